"""What the daemon holds: status, mappings, networks, skipped, rules."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from ipv6natd.ctl.client import FAILED, Answer, Daemon, How
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
"""Warnings that `status` shows: it is to stay on one screen."""
SHORTEST_ID = 4
"""Characters of a container's id that are taken for one."""


async def status(daemon: Daemon, how: How) -> Answer:
    """Everything that matters, on one screen."""
    value = await daemon.properties()
    networks = await daemon.call("ListNetworks")
    warnings = [f"{each['Name']}: {text}" for each in networks for text in each["Warnings"]]
    state = how.screen.paint(value["State"], COLOURS.get(value["State"], Colour.WARNING))
    reason = f" ({printable(value['StateReason'])})" if value["StateReason"] else ""
    engine = printable(value["EngineVersion"]) or "not seen yet"
    hint = " (ipv6natctl skipped)" if value["SkippedCount"] else ""
    lines = [
        ("ipv6natd", printable(value["Version"])),
        ("State", state + reason),
        ("Docker", engine if value["DockerConnected"] else f"{engine}, not connected"),
        ("Backend", value["Backend"] or "not known yet"),
        ("Mappings", str(value["MappingCount"])),
        ("Networks", str(value["NetworkCount"])),
        ("Skipped", f"{value['SkippedCount']}{hint}"),
        ("Last sync", _moment(value["LastSync"])),
        ("Repairs", f"{value['DriftRepairs']} of rules that something else had changed"),
        *(
            ("" if i else "Warnings", printable(text))
            for i, text in enumerate(warnings[:MAX_WARNINGS])
        ),
    ]
    if left := len(warnings) - MAX_WARNINGS:
        lines += [("", f"and {left} more: ipv6natctl networks")] * (left > 0)
    code = 0 if value["State"] == State.SYNCED else FAILED
    return Answer(value=value | {"Warnings": warnings}, text=pairs(lines, how.screen), code=code)


def _moment(microseconds: int) -> str:
    if not microseconds:
        return "never"
    seconds = microseconds // 1_000_000
    ago = max(int(time.time()) - seconds, 0)
    return f"{datetime.fromtimestamp(seconds).astimezone().isoformat(' ')} ({_ago(ago)} ago)"


def _ago(seconds: int) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


async def mappings(daemon: Daemon, how: How) -> Answer:
    """What is forwarded."""
    header = ("PROTOCOL", "HOST", "CONTAINER", "ADDRESS", "NETWORK", "STATE")
    return _listed(how, "mapping", header, _mapping_cells, await daemon.call("ListMappings"))


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
    """Where on the host a mapping's row listens, "[::]:8000-8010"."""
    return socket(row["HostAddress"], row["HostPort"], row["HostPortEnd"])


def socket(address: str, first: int, last: int) -> str:
    """Address and port, or ports."""
    return f"[{address}]:{first}" + (f"-{last}" if last != first else "")


async def networks(daemon: Daemon, how: How) -> Answer:
    """What is handled, by whom, with warnings."""
    header = ("NETWORK", "BRIDGE", "MODE", "MANAGED-BY", "SUBNETS", "WARNINGS")
    return _listed(how, "network", header, _network_cells, await daemon.call("ListNetworks"))


def _network_cells(row: Row) -> tuple[str, ...]:
    return (
        row["Name"],
        row["Bridge"],
        row["Mode"],
        row["ManagedBy"],
        ",".join(row["Subnets"]),
        "; ".join(row["Warnings"]),
    )


async def skipped(daemon: Daemon, how: How) -> Answer:
    """What is not forwarded, and what to do about it."""
    header = ("CONTAINER", "NETWORK", "PORT", "REASON")
    return _listed(how, "row", header, _skipped_cells, await daemon.call("ListSkipped"))


def _skipped_cells(row: Row) -> tuple[str, ...]:
    return tuple(row[key] for key in ("ContainerName", "Network", "Port", "Reason"))


async def rules(daemon: Daemon, _how: How) -> Answer:
    """The rules in force."""
    value = await daemon.call("GetRuleset")
    return Answer(value=value, text="".join(f"{printable(each)}\n" for each in value.splitlines()))


def _listed(
    how: How,
    what: str,
    header: Sequence[str],
    cells: Callable[[Row], tuple[str, ...]],
    value: Sequence[Row],
) -> Answer:
    """The rows that pass the filters, as a table with their count below it."""
    rows = [row for row in value if all(_passes(row, *each) for each in how.filters.items())]
    printed = [tuple(printable(cell) for cell in cells(row)) for row in rows]
    text = table(header, printed, legend=how.legend and bool(rows), screen=how.screen)
    if how.legend:
        text += "\n" * bool(rows) + f"{counted(len(rows), what)} listed.\n"
    if rows or not how.filters:
        return Answer(value=rows, text=text)
    return Answer(value=rows, text="", code=FAILED, note=_nothing(how, what, value))


def _passes(row: Row, name: str, wanted: Any) -> bool:
    match name:
        case "container":
            return is_container(row, wanted)
        case "network":
            return fnmatchcase(row.get("Network", row.get("Name", "")), wanted)
        case "port":
            return bool(row["HostPort"] <= wanted <= row["HostPortEnd"])
    return bool(row["Protocol"] == wanted)


def is_container(row: Row, wanted: str) -> bool:
    """Whether the row is that container's: by a pattern of its name, or the start of its id."""
    by_id = len(wanted) >= SHORTEST_ID and row.get("ContainerId", "").startswith(wanted)
    return by_id or fnmatchcase(row["ContainerName"], wanted)


def _nothing(how: How, what: str, value: Sequence[Row]) -> str:
    """A sentence for when nothing is left, with the name that was perhaps meant."""
    asked = " ".join(f"--{name} {wanted}" for name, wanted in how.filters.items())
    hints = []
    for name, keys in (("container", ("ContainerName",)), ("network", ("Network", "Name"))):
        known = sorted({row[key] for row in value for key in keys if key in row})
        wanted = how.filters.get(name)
        if wanted and not any(fnmatchcase(each, wanted) for each in known):
            hints += difflib.get_close_matches(wanted, known, n=1)
    hint = f"; did you mean {' and '.join(map(repr, hints))}?" if hints else ""
    seen = "ipv6natctl skipped" if what == "mapping" else "ipv6natctl"
    return f"no {what} matches {asked}{hint or f': see {seen}'}"
