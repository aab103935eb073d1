"""`explain`: why a container or a port is reached as it is, or is not."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ipv6natd.ctl.client import FAILED, Answer, Daemon, How
from ipv6natd.report.ports import Outcome
from ipv6natd.system.terminal import Colour, Screen, pairs, printable, table

Row = Mapping[str, Any]

COLOURS = {
    Outcome.FORWARDED: Colour.GOOD,
    Outcome.NATIVE: Colour.GOOD,
    Outcome.DIRECT: Colour.GOOD,
    Outcome.SKIPPED: Colour.BAD,
}
_ID = 12
"""Characters of an id, as Docker shows them."""


async def explain(daemon: Daemon, how: How) -> Answer:
    """All that is known; exit 1 where nobody is meant."""
    rows = await daemon.call("Explain", "s", how.argument)
    if not rows:
        note = _nobody(how.argument, await daemon.call("ListMappings"))
        return Answer(value=[], text="", code=FAILED, note=note)
    return Answer(value=rows, text="\n".join(_text(each, how) for each in rows))


def _nobody(asked: str, mappings: list[Row]) -> str:
    """The sentence for when no container is meant."""
    if asked.partition("/")[0].isdigit():
        return f"no running container publishes port {asked}, be it for IPv4 or IPv6: docker ps"
    close = difflib.get_close_matches(asked, {each["ContainerName"] for each in mappings}, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ": docker ps"
    return f"no running container is called {asked!r}{hint}"


def _text(row: Row, how: How) -> str:
    name = how.screen.paint(printable(row["ContainerName"]), Colour.NAME)
    lines = [("Container", f"{name} ({row['ContainerId'][:_ID]})")]
    used = [each for each in row["Networks"] if each["Used"]]
    lines += [("Reached by", _network(each, how.screen)) for each in used]
    if not used:
        lines.append(("Reached by", "no network with an IPv6 gateway"))
    others = [each for each in row["Networks"] if not each["Used"]]
    lines += [
        ("" if number else "Not by", f"{printable(each['Name'])}: {printable(each['Reason'])}")
        for number, each in enumerate(others)
    ]
    lines += [("On [::1]", row["Loopback"])] * bool(row["Loopback"])
    lines += [
        ("" if number else "Skipped", printable(f"{each['Port']}: {each['Reason']}".lstrip(": ")))
        for number, each in enumerate(row["Skipped"])
    ]
    return pairs(lines, how.screen) + _ports(row, how)


def _network(row: Row, screen: Screen) -> str:
    name = screen.paint(printable(row["Name"]), Colour.NAME)
    at = row["Address"] or "no address"
    return f"{name} ({row['Bridge']}) at {at}; {printable(row['Reason'])}"


def _ports(row: Row, how: How) -> str:
    if not row["Ports"]:
        return "\nIt publishes no port.\n" if how.legend else ""
    cells = [
        (
            each["Binding"],
            how.screen.paint(each["Outcome"], COLOURS.get(each["Outcome"], Colour.WARNING)),
            str(each.get("Connections", "")),
            printable(each["Reason"] or each["Rule"]),
        )
        for each in row["Ports"]
    ]
    header = ("PORT", "OUTCOME", "CONNECTIONS", "WHY")
    return "\n" + table(header, cells, legend=how.legend, screen=how.screen)
