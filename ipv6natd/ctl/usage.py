"""The command line of ipv6natctl: one table of options, their combinations, and the help."""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from ipv6natd import __version__
from ipv6natd.ctl.client import Options, suggestion
from ipv6natd.ctl.commands import COMMANDS, GROUPS
from ipv6natd.model import Protocol
from ipv6natd.report.traces import parse_source
from ipv6natd.system.terminal import PIPE, Screen, printable

JSON_MODES = ("short", "pretty", "off")
FILTERS = {
    "container": ("NAME", "only this container: a name, a pattern such as 'web*', or an id"),
    "network": ("NAME", "only this network: a name or a pattern"),
    "port": ("PORT", "only mappings that contain this host port"),
    "protocol": ("PROTOCOL", f"only {', '.join(Protocol)}"),
    "from": ("ADDRESS", "with explain PORT: follow a packet from this address through the rules"),
}
"""Option -> the name of its value, and its help line."""
FLAGS = {
    "leftovers": "with cleanup: remove what docker-ipv6nat or a switched-off engine left",
    "dry-run": "with cleanup --leftovers: only list them",
    "unchanged": "with report: keep names and public addresses",
}

EXAMPLES = """\
examples:
  ipv6natctl                                   is there a fault?
  ipv6natctl explain 8080                      why is port 8080 reachable or not?
  ipv6natctl explain 8080 --from 2001:db8::7   which rule decides about a packet from there?
  ipv6natctl mappings --network 'shop*' --protocol udp
  ipv6natctl mappings --json=short | jq -r '.[] | select(.HostPort == 443) | .ContainerName'
  ipv6natctl skipped                           what is not forwarded, and why?
  ipv6natctl findings                          what is wrong with this host, with remedies
  ipv6natctl monitor                           print changes as they occur
  ipv6natctl status >/dev/null || echo "IPv6 NAT has a fault"

exit status:
  0 success, no fault            1 failed, not synced, or no row matches
  2 wrong usage                  3 ipv6natd is not running
  4 permission denied

See ipv6natctl(1), ipv6natd.toml(5) for the settings, org.ipv6natd1(5) for the bus.
"""


def parse_arguments(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[str, Options]:
    """The command and its options; raises SystemExit(2) for wrong usage, with a sentence."""
    parser = _parser()
    arguments = parser.parse_intermixed_args(_with_json_mode(argv))
    name = arguments.command
    command = COMMANDS.get(name)
    if command is None:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = suggestion(close, f": one of {', '.join(COMMANDS)}")
        parser.error(f"{name!r} is not a command{hint}")
    filters = {option: value for option in FILTERS if (value := getattr(arguments, option))}
    flags = frozenset(arguments.flags)
    for option in (*filters, *sorted(flags)):
        if option not in command.options:
            takers = [taker for taker in COMMANDS if option in COMMANDS[taker].options]
            parser.error(f"--{option} goes with {' or '.join(takers)}, not with {name}")
    if flags == {"dry-run"}:
        parser.error("--dry-run goes with cleanup --leftovers")
    if command.argument and not arguments.argument:
        parser.error(f"{name} needs an argument: {command.argument}")
    if arguments.argument and not command.argument:
        parser.error(f"{name} takes no argument: {arguments.argument!r}")
    return name, Options(
        argument=arguments.argument,
        filters=filters,
        json=arguments.json,
        legend=not arguments.no_legend,
        flags=flags,
        screen=_screen(environ),
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ipv6natctl",
        usage="ipv6natctl [OPTION...] [COMMAND]",
        description=f"Show and control IPv6 NAT for Docker.\n\n{_command_list()}",
        epilog=EXAMPLES,
        # A fixed width, so that a test can compare the help with the manual page.
        formatter_class=partial(
            argparse.RawDescriptionHelpFormatter, max_help_position=24, width=100
        ),
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("command", nargs="?", default="status", help=argparse.SUPPRESS)
    add("argument", nargs="?", default="", help=argparse.SUPPRESS)
    for name, (value, about) in FILTERS.items():
        parse = {"port": _port, "protocol": _protocol, "from": _address}.get(name, _name)
        add(f"--{name}", type=parse, metavar=value, help=about)
    for name, about in FLAGS.items():
        add(f"--{name}", dest="flags", action="append_const", const=name, default=[], help=about)
    about = "JSON instead of text: short (one line), pretty or off; --json alone is -j"
    add("--json", choices=JSON_MODES, default="off", metavar="MODE", help=about)
    mode = "pretty" if sys.stdout.isatty() else "short"
    about = "--json=pretty on a terminal, --json=short elsewhere"
    add("-j", dest="json", action="store_const", const=mode, help=about)
    add("--no-legend", action="store_true", help="leave out the header and the count of rows")
    add("--version", action="version", version=f"ipv6natctl {__version__}")
    return parser


class _Parser(argparse.ArgumentParser):
    """Prints one sentence for an error, without the usage."""

    def _print_message(self, message: str, file: Any = None) -> None:
        # Since Python 3.12 argparse ignores errors of the write, such as a full disk.
        print(message, end="", file=file or sys.stderr, flush=True)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"ipv6natctl: {printable(message)}; see ipv6natctl --help\n")


def _command_list() -> str:
    """The commands, by group."""
    lines: list[str] = []
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:"]
        for name, command in commands.items():
            words = f"{name} {command.argument}".strip()
            lines.append(f"  {words:<24}{command.about}")
    return "\n".join(lines[1:])


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("a name is missing")
    return text


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,8}", text) or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a number from 1 to 65535")
    return int(text)


def _protocol(text: str) -> str:
    if text not in tuple(Protocol):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(Protocol)}")
    return text


def _address(text: str) -> str:
    try:
        return str(parse_source(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IPv6 address") from None


def _with_json_mode(argv: Sequence[str]) -> list[str]:
    # With nargs="?" argparse would take the command in `--json mappings` as the mode.
    words: list[str] = []
    for word in argv:
        if words and words[-1] == "--json" and word in JSON_MODES:
            words[-1] = f"--json={word}"
        else:
            words.append(word)
    return ["-j" if word == "--json" else word for word in words]


def _screen(environ: Mapping[str, str]) -> Screen:
    """The properties of the output. NO_COLOR as on no-color.org: any value except the empty one."""
    if not sys.stdout.isatty():
        return PIPE
    plain = environ.get("NO_COLOR") or environ.get("TERM", "dumb") == "dumb"
    return Screen(colour=not plain, columns=shutil.get_terminal_size((0, 0)).columns)
