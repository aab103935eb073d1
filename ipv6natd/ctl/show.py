"""The commands that show the daemon's state: status, rules, and the four lists."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from ipv6natd.ctl.client import (
    EXIT_FAILED,
    DaemonClient,
    Options,
    Result,
    Row,
    labelled,
    listing,
    painted,
    printable_cells,
    suggestion,
)
from ipv6natd.host.findings import Severity
from ipv6natd.model import MIN_ID_LENGTH
from ipv6natd.report.status import State, counted
from ipv6natd.system.terminal import pairs, printable

MAX_WARNINGS = 5
"""Warnings in the output of `status`, which must fit on one screen."""


async def status(daemon: DaemonClient, options: Options) -> Result:
    """State, counts and warnings, on one screen."""
    rows = await daemon.call("ListFindings")
    value = await daemon.properties()  # the list may have changed them
    warnings = [
        f"{row['Network']}: {finding_text(row)}"
        for row in rows
        if row["Network"] and row["Severity"] != Severity.NOTE
    ]
    reason = f" ({printable(value['StateReason'])})" if value["StateReason"] else ""
    engine = printable(value["EngineVersion"]) or "not known yet"
    hint = " (ipv6natctl skipped)" if value["SkippedCount"] else ""
    lines = [
        ("ipv6natd", printable(value["Version"])),
        ("State", painted(value["State"], options.screen) + reason),
        ("Docker", engine if value["DockerConnected"] else f"{engine}, not connected"),
        ("Backend", printable(value["Backend"]) or "not known yet"),
        ("Mappings", str(value["MappingCount"])),
        ("Networks", str(value["NetworkCount"])),
        ("Skipped", f"{value['SkippedCount']}{hint}"),
        ("Findings", _finding_counts(rows)),
        ("Last sync", _time_text(value["LastSync"])),
        ("Repairs", f"{value['DriftRepairs']} of rules that another program had changed"),
        *labelled("Warnings", warnings[:MAX_WARNINGS]),
    ]
    if len(warnings) > MAX_WARNINGS:
        lines.append(("", f"and {len(warnings) - MAX_WARNINGS} more: ipv6natctl findings"))
    code = 0 if value["State"] == State.SYNCED else EXIT_FAILED
    value["Warnings"] = warnings
    return Result(value=value, text=pairs(lines, options.screen), code=code)


def _finding_counts(rows: Sequence[Row]) -> str:
    counts = Counter(row["Severity"] for row in rows)
    parts = [counted(counts[severity], severity) for severity in Severity if counts[severity]]
    return f"{', '.join(parts)} (ipv6natctl findings)" if parts else "none"


def finding_text(row: Row) -> str:
    """A row of ListFindings in one sentence."""
    return f"{row['Text']}: {row['Command']}" if row["Command"] else str(row["Text"])


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
    rows = await daemon.call("ListMappings")
    return _filtered_table(options, "mapping", _mapping_cells, rows)


def _mapping_cells(row: Row) -> dict[str, str]:
    return {
        "PROTOCOL": row["Protocol"],
        "HOST": row_socket(row, "Host"),
        "CONTAINER": row["ContainerName"],
        "ADDRESS": row_socket(row, "Container"),
        "NETWORK": row["Network"],
        "STATE": row["State"],
    }


def row_socket(row: Row, side: str) -> str:
    """The "Host" or "Container" side of a mapping, such as "[fd00:a::2]:80" or "[::]:80-90"."""
    first, last = row[f"{side}Port"], row[f"{side}PortEnd"]
    return f"[{row[f'{side}Address']}]:{first}" + (f"-{last}" if last != first else "")


async def networks(daemon: DaemonClient, options: Options) -> Result:
    """The managed networks, with their manager and warnings."""
    rows = await daemon.call("ListNetworks")
    return _filtered_table(options, "network", _network_cells, rows)


def _network_cells(row: Row) -> dict[str, str]:
    return {
        "NETWORK": row["Name"],
        "BRIDGE": row["Bridge"],
        "MODE": row["Mode"],
        "MANAGED-BY": row["ManagedBy"],
        "SUBNETS": ",".join(row["Subnets"]),
        "WARNINGS": "; ".join(row["Warnings"]),
    }


async def skipped(daemon: DaemonClient, options: Options) -> Result:
    """The ports and networks that are not forwarded, with reason and remedy."""
    return _filtered_table(options, "row", _skipped_cells, await daemon.call("ListSkipped"))


def _skipped_cells(row: Row) -> dict[str, str]:
    return {
        "CONTAINER": row["ContainerName"],
        "NETWORK": row["Network"],
        "PORT": row["Port"],
        "REASON": row["Reason"],
    }


async def findings(daemon: DaemonClient, options: Options) -> Result:
    """What is wrong with this host, each with its remedy; exit code 1 if an error is listed."""
    rows = await daemon.call("ListFindings")
    result = _filtered_table(options, "finding", _finding_cells, rows)
    errors = any(row["Severity"] == Severity.ERROR for row in result.value)
    return replace(result, code=EXIT_FAILED if errors else result.code)


def _finding_cells(row: Row) -> dict[str, str]:
    return {
        "SEVERITY": row["Severity"],
        "ABOUT": row["About"],
        "NETWORK": row["Network"],
        "WHAT": finding_text(row),
    }


async def rules(daemon: DaemonClient, _options: Options) -> Result:
    """The rules in force."""
    value = await daemon.call("GetRuleset")
    return Result(value=value, text="".join(f"{printable(line)}\n" for line in value.splitlines()))


def _filtered_table(
    options: Options, noun: str, cells: Callable[[Row], dict[str, str]], value: Sequence[Row]
) -> Result:
    """The rows that pass the filters, as a table with their count."""
    rows = [row for row in value if all(_matches(row, *item) for item in options.filters.items())]
    if options.filters and not rows:
        return Result(value=rows, code=EXIT_FAILED, note=_no_match_note(options, noun, value))
    printed = [printable_cells(cells(row)) for row in rows]
    text = listing(printed, options, f"{counted(len(rows), noun)} listed.")
    return Result(value=rows, text=text)


def _matches(row: Row, option: str, wanted: Any) -> bool:
    match option:
        case "port":
            return bool(row["HostPort"] <= wanted <= row["HostPortEnd"])
        case "protocol":
            return bool(row["Protocol"] == wanted)
        case "container" if len(wanted) >= MIN_ID_LENGTH:
            if row.get("ContainerId", "").startswith(wanted):
                return True
    return fnmatchcase(_name(row, option), wanted)


def _name(row: Row, option: str) -> str:
    """The name of the row that `--container` or `--network` compares."""
    return str(
        row["ContainerName"] if option == "container" else row.get("Network", row.get("Name"))
    )


def _no_match_note(options: Options, noun: str, value: Sequence[Row]) -> str:
    """A sentence for filters that match no row, with similar names."""
    filters = " ".join(f"--{option} {wanted}" for option, wanted in options.filters.items())
    hints = []
    for option in ("container", "network"):
        wanted = options.filters.get(option)
        if wanted and not any(_matches(row, option, wanted) for row in value):
            hints += get_close_matches(wanted, [_name(row, option) for row in value], n=1)
    hint_command = "ipv6natctl skipped" if noun == "mapping" else "ipv6natctl"
    return f"no {noun} matches {filters}{suggestion(hints, f': see {hint_command}')}"
