"""ipv6natctl: what the daemon shows on the bus, for people and for scripts.

Everything comes over the bus, so that reading needs no root and a stopped daemon stays stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from ipv6natd import __version__, bus
from ipv6natd.bus import ERROR, BusError
from ipv6natd.tables import pairs, printable, table

NAME = "org.ipv6natd1"
PATH = "/org/ipv6natd1"
MANAGER = "org.ipv6natd1.Manager"
PROPERTIES = "org.freedesktop.DBus.Properties"

FAILED, NOT_RUNNING, NO_PERMISSION = 1, 3, 4
RESYNC_SECONDS = 120.0
JSON_MODES = ("short", "pretty", "off")

EPILOG = """\
commands:
  status      state, counts and what is wrong, on one screen (the default)
  mappings    published ports that are forwarded, and to which container
  networks    networks that are handled, with their warnings
  skipped     ports that were wanted and are not forwarded, and what to do about it
  resync      compare engine and rules now and repair what differs (root)
  rules       the rules in force, as ip6tables-restore reads them

examples:
  ipv6natctl
  ipv6natctl mappings --no-legend | grep ' web '
  ipv6natctl mappings --json=short | jq -r '.[] | select(.HostPort == 443) | .ContainerName'
  ipv6natctl skipped
  sudo ipv6natctl resync
  ipv6natctl status >/dev/null || echo "something is wrong with IPv6"

exit codes:
  0 done (status: synced)   1 failed (status: not synced)   2 wrong usage
  3 ipv6natd is not running   4 not permitted
"""


class Answer(NamedTuple):
    """What a command found: the value for --json, the text for people, the exit code."""

    value: Any
    text: str
    code: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # LANG=C must not end in a traceback
    options = _parser().parse_args(_with_json_mode(sys.argv[1:] if argv is None else argv))
    try:
        answer = asyncio.run(_ask(options))
    except BusError as error:
        code, text = _explained(error)
        print(printable(text), file=sys.stderr)
        return code
    except KeyboardInterrupt:
        return 130
    if options.json == "off":
        sys.stdout.write(answer.text)
    else:
        indent, marks = (None, (",", ":")) if options.json == "short" else (2, (",", ": "))
        print(json.dumps(answer.value, indent=indent, separators=marks))
    return answer.code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ipv6natctl",
        usage="ipv6natctl [OPTION...] [COMMAND]",
        description="Show and steer IPv6 NAT for Docker containers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "command", nargs="?", default="status", choices=COMMANDS, help=argparse.SUPPRESS
    )
    parser.add_argument(
        "--json",
        choices=JSON_MODES,
        default="off",
        metavar="MODE",
        help="JSON instead of text: short (one line), pretty or off; --json alone is -j",
    )
    parser.add_argument(
        "-j",
        dest="json",
        action="store_const",
        const=_json_mode(),
        help="--json=pretty on a terminal, --json=short elsewhere",
    )
    parser.add_argument(
        "--no-legend", action="store_true", help="leave out the header and the count of rows"
    )
    parser.add_argument("--version", action="version", version=f"ipv6natctl {__version__}")
    return parser


def _json_mode() -> str:
    return "pretty" if sys.stdout.isatty() else "short"


def _with_json_mode(argv: Sequence[str]) -> list[str]:
    # A value that may be missing would swallow the command that follows: `--json mappings`.
    words: list[str] = []
    for each in argv:
        if words and words[-1] == "--json" and each in JSON_MODES:
            words[-1] = f"--json={each}"
        else:
            words.append(each)
    return ["-j" if each == "--json" else each for each in words]


async def _ask(options: argparse.Namespace) -> Answer:
    connection = await bus.connect()
    try:
        answer: Answer = await COMMANDS[options.command](connection, not options.no_legend)
        return answer
    finally:
        connection.close()


async def _call(connection: bus.Connection, member: str, **how: Any) -> Any:
    (value,) = await connection.call(NAME, PATH, MANAGER, member, **how)
    return value


async def _status(connection: bus.Connection, _legend: bool) -> Answer:
    (value,) = await connection.call(NAME, PATH, PROPERTIES, "GetAll", "s", MANAGER)
    reason = f" ({value['StateReason']})" if value["StateReason"] else ""
    engine = value["EngineVersion"] or "not seen yet"
    hint = " (ipv6natctl skipped)" if value["SkippedCount"] else ""
    lines = [
        ("ipv6natd", value["Version"]),
        ("State", value["State"] + reason),
        ("Docker", engine if value["DockerConnected"] else f"{engine}, not connected"),
        ("Backend", value["Backend"] or "not known yet"),
        ("Mappings", str(value["MappingCount"])),
        ("Networks", str(value["NetworkCount"])),
        ("Skipped", f"{value['SkippedCount']}{hint}"),
        ("Last sync", _moment(value["LastSync"])),
        ("Repairs", f"{value['DriftRepairs']} of rules that something else had changed"),
    ]
    return Answer(value, pairs(lines), 0 if value["State"] == "synced" else FAILED)


def _moment(microseconds: int) -> str:
    if not microseconds:
        return "never"
    return datetime.fromtimestamp(microseconds // 1_000_000).astimezone().isoformat(" ")


async def _mappings(connection: bus.Connection, legend: bool) -> Answer:
    value = await _call(connection, "ListMappings")
    header = ("PROTOCOL", "HOST", "CONTAINER", "ADDRESS", "NETWORK", "STATE")
    rows = [
        (
            each["Protocol"],
            _socket(each["HostAddress"], each["HostPort"], each["HostPortEnd"]),
            each["ContainerName"],
            _socket(each["ContainerAddress"], each["ContainerPort"], each["ContainerPortEnd"]),
            each["Network"],
            each["State"],
        )
        for each in value
    ]
    return Answer(value, _listed(header, rows, "mapping", legend))


def _socket(address: str, first: int, last: int) -> str:
    return f"[{address}]:{first}" + (f"-{last}" if last != first else "")


async def _networks(connection: bus.Connection, legend: bool) -> Answer:
    value = await _call(connection, "ListNetworks")
    header = ("NETWORK", "BRIDGE", "MODE", "MANAGED-BY", "SUBNETS", "WARNINGS")
    rows = [
        (
            each["Name"],
            each["Bridge"],
            each["Mode"],
            each["ManagedBy"],
            ",".join(each["Subnets"]),
            "; ".join(each["Warnings"]),
        )
        for each in value
    ]
    return Answer(value, _listed(header, rows, "network", legend))


async def _skipped(connection: bus.Connection, legend: bool) -> Answer:
    value = await _call(connection, "ListSkipped")
    header = ("CONTAINER", "NETWORK", "PORT", "REASON")
    keys = ("ContainerName", "Network", "Port", "Reason")
    rows = [tuple(each[key] for key in keys) for each in value]
    return Answer(value, _listed(header, rows, "row", legend))


def _listed(header: Sequence[str], rows: Sequence[Sequence[str]], what: str, legend: bool) -> str:
    count = f"\n{len(rows)} {what}{'' if len(rows) == 1 else 's'} listed.\n" if legend else ""
    return table(header, rows, legend=legend and bool(rows)) + count.removeprefix(
        "" if rows else "\n"
    )


async def _resync(connection: bus.Connection, _legend: bool) -> Answer:
    value = await _call(connection, "Resync", timeout=RESYNC_SECONDS)
    text = "rules added: {RulesAdded}, removed: {RulesRemoved}, in {DurationMs} ms\n"
    return Answer(value, text.format_map(value))


async def _rules(connection: bus.Connection, _legend: bool) -> Answer:
    value = await _call(connection, "GetRuleset")
    return Answer(value, "".join(f"{printable(line)}\n" for line in value.splitlines()))


def _explained(error: BusError) -> tuple[int, str]:
    """The exit code, and a sentence that says what to do."""
    match error.name.removeprefix(ERROR):
        case "ServiceUnknown" | "NameHasNoOwner":
            return NOT_RUNNING, "ipv6natd is not running: systemctl start ipv6natd"
        case "AccessDenied" | "AuthFailed" | "InteractiveAuthorizationRequired":
            return NO_PERMISSION, f"not permitted: {error.text}"
        case "NoServer":
            return FAILED, f"{error.text}: systemctl status dbus.socket"
        case "NoReply" | "Timeout" | "TimedOut" | "Disconnected":
            return FAILED, f"ipv6natd gave no answer ({error.text}): systemctl status ipv6natd"
        case "UnknownMethod" | "UnknownInterface" | "UnknownObject":
            return (
                FAILED,
                f"ipv6natd is of another version: systemctl restart ipv6natd ({error.text})",
            )
    return FAILED, error.text


COMMANDS: dict[str, Callable[[bus.Connection, bool], Any]] = {
    "status": _status,
    "mappings": _mappings,
    "networks": _networks,
    "skipped": _skipped,
    "resync": _resync,
    "rules": _rules,
}
