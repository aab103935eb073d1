"""The commands that show the daemon's state: status, mappings, networks, skipped, rules."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from ipv6natd.ctl.client import EXIT_FAILED, DaemonClient, Options, Result
from ipv6natd.model import MIN_ID_LENGTH
from ipv6natd.report.status import State, counted
from ipv6natd.system.terminal import Colour, pairs, printable, table

Row = Mapping[str, Any]

COLOURS = {
    State.SYNCED: Colour.GOOD,
    State.STARTING: Colour.WARNING,
    State.WAITING_FOR_DOCKER: Colour.WARNING,
    State.DEGRADED: Colour.BAD,
    State.STOPPED: Colour.BAD,
}
MAX_WARNINGS = 5
"""Warnings in the output of `status`, which must fit on one screen."""


async def status(daemon: DaemonClient, options: Options) -> Result:
    """State, counts and warnings, on one screen."""
    value = await daemon.properties()
    networks = await daemon.call("ListNetworks")
    warnings = [
        f"{network['Name']}: {text}" for network in networks for text in network["Warnings"]
    ]
    state = options.screen.paint(value["State"], COLOURS.get(value["State"], Colour.WARNING))
    reason = f" ({printable(value['StateReason'])})" if value["StateReason"] else ""
    engine = printable(value["EngineVersion"]) or "not known yet"
    hint = " (ipv6natctl skipped)" if value["SkippedCount"] else ""
    lines = [
        ("ipv6natd", printable(value["Version"])),
        ("State", state + reason),
        ("Docker", engine if value["DockerConnected"] else f"{engine}, not connected"),
        ("Backend", value["Backend"] or "not known yet"),
        ("Mappings", str(value["MappingCount"])),
        ("Networks", str(value["NetworkCount"])),
        ("Skipped", f"{value['SkippedCount']}{hint}"),
        ("Last sync", _time_text(value["LastSync"])),
        ("Repairs", f"{value['DriftRepairs']} of rules that another program had changed"),
        *(
            ("" if i else "Warnings", printable(text))
            for i, text in enumerate(warnings[:MAX_WARNINGS])
        ),
    ]
    if more := len(warnings) - MAX_WARNINGS:
        lines += [("", f"and {more} more: ipv6natctl networks")] * (more > 0)
    code = 0 if value["State"] == State.SYNCED else EXIT_FAILED
    return Result(
        value=value | {"Warnings": warnings}, text=pairs(lines, options.screen), code=code
    )


def _time_text(microseconds: int) -> str:
    if not microseconds:
        return "never"
    seconds = microseconds // 1_000_000
    age = max(int(time.time()) - seconds, 0)
    return f"{datetime.fromtimestamp(seconds).astimezone().isoformat(' ')} ({_age_text(age)} ago)"


def _age_text(seconds: int) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


async def mappings(daemon: DaemonClient, options: Options) -> Result:
    """The forwarded ports."""
    header = ("PROTOCOL", "HOST", "CONTAINER", "ADDRESS", "NETWORK", "STATE")
    return _filtered_table(
        options, "mapping", header, _mapping_cells, await daemon.call("ListMappings")
    )


def _mapping_cells(row: Row) -> tuple[str, ...]:
    return (
        row["Protocol"],
        host_socket(row),
        row["ContainerName"],
        socket(row["ContainerAddress"], row["ContainerPort"], row["ContainerPortEnd"]),
        row["Network"],
        row["State"],
    )


def host_socket(row: Row) -> str:
    """The host side of a mapping, such as "[::]:8000-8010"."""
    return socket(row["HostAddress"], row["HostPort"], row["HostPortEnd"])


def socket(address: str, first: int, last: int) -> str:
    """An address and a port or port range, such as "[fd00:a::2]:80"."""
    return f"[{address}]:{first}" + (f"-{last}" if last != first else "")


async def networks(daemon: DaemonClient, options: Options) -> Result:
    """The managed networks, with their manager and warnings."""
    header = ("NETWORK", "BRIDGE", "MODE", "MANAGED-BY", "SUBNETS", "WARNINGS")
    return _filtered_table(
        options, "network", header, _network_cells, await daemon.call("ListNetworks")
    )


def _network_cells(row: Row) -> tuple[str, ...]:
    return (
        row["Name"],
        row["Bridge"],
        row["Mode"],
        row["ManagedBy"],
        ",".join(row["Subnets"]),
        "; ".join(row["Warnings"]),
    )


async def skipped(daemon: DaemonClient, options: Options) -> Result:
    """The ports and networks that are not forwarded, with reason and remedy."""
    header = ("CONTAINER", "NETWORK", "PORT", "REASON")
    return _filtered_table(options, "row", header, _skipped_cells, await daemon.call("ListSkipped"))


def _skipped_cells(row: Row) -> tuple[str, ...]:
    return tuple(row[key] for key in ("ContainerName", "Network", "Port", "Reason"))


async def rules(daemon: DaemonClient, _options: Options) -> Result:
    """The rules in force."""
    value = await daemon.call("GetRuleset")
    return Result(value=value, text="".join(f"{printable(line)}\n" for line in value.splitlines()))


def _filtered_table(
    options: Options,
    noun: str,
    header: Sequence[str],
    cells: Callable[[Row], tuple[str, ...]],
    value: Sequence[Row],
) -> Result:
    """The rows that pass the filters, as a table with their count."""
    rows = [row for row in value if all(_matches(row, *item) for item in options.filters.items())]
    printed = [tuple(printable(cell) for cell in cells(row)) for row in rows]
    text = table(header, printed, legend=options.legend and bool(rows), screen=options.screen)
    if options.legend:
        text += "\n" * bool(rows) + f"{counted(len(rows), noun)} listed.\n"
    if rows or not options.filters:
        return Result(value=rows, text=text)
    return Result(value=rows, text="", code=EXIT_FAILED, note=_no_match_note(options, noun, value))


def _matches(row: Row, name: str, wanted: Any) -> bool:
    match name:
        case "container":
            return is_container(row, wanted)
        case "network":
            return fnmatchcase(row.get("Network", row.get("Name", "")), wanted)
        case "port":
            return bool(row["HostPort"] <= wanted <= row["HostPortEnd"])
    return bool(row["Protocol"] == wanted)


def is_container(row: Row, wanted: str) -> bool:
    """True if `wanted` is a pattern that matches the container's name, or the beginning of its
    id."""
    by_id = len(wanted) >= MIN_ID_LENGTH and row.get("ContainerId", "").startswith(wanted)
    return by_id or fnmatchcase(row["ContainerName"], wanted)


def _no_match_note(options: Options, noun: str, value: Sequence[Row]) -> str:
    """A sentence for filters that match no row, with similar names."""
    filters = " ".join(f"--{name} {wanted}" for name, wanted in options.filters.items())
    hints = []
    for name, keys in (("container", ("ContainerName",)), ("network", ("Network", "Name"))):
        known = sorted({row[key] for row in value for key in keys if key in row})
        wanted = options.filters.get(name)
        if wanted and not any(fnmatchcase(name, wanted) for name in known):
            hints += difflib.get_close_matches(wanted, known, n=1)
    hint = f"; did you mean {' and '.join(map(repr, hints))}?" if hints else ""
    hint_command = "ipv6natctl skipped" if noun == "mapping" else "ipv6natctl"
    return f"no {noun} matches {filters}{hint or f': see {hint_command}'}"
