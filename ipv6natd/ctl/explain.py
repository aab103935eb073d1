"""`explain`: why a container or a port is reachable or not."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ipv6natd.ctl.client import EXIT_FAILED, DaemonClient, Options, Result
from ipv6natd.model import Outcome
from ipv6natd.system.terminal import Colour, Screen, pairs, printable, table

Row = Mapping[str, Any]

COLOURS = {
    Outcome.FORWARDED: Colour.GOOD,
    Outcome.NATIVE: Colour.GOOD,
    Outcome.DIRECT: Colour.GOOD,
    Outcome.SKIPPED: Colour.BAD,
}
_ID_LENGTH = 12
"""Characters; Docker shows as many of an id."""


async def explain(daemon: DaemonClient, options: Options) -> Result:
    """The explanation of each container that matches; exit code 1 if none does."""
    rows = await daemon.call("Explain", "s", options.argument)
    if not rows:
        note = _no_container_note(options.argument, await daemon.call("ListMappings"))
        return Result(value=[], text="", code=EXIT_FAILED, note=note)
    return Result(value=rows, text="\n".join(_container_text(row, options) for row in rows))


def _no_container_note(query: str, mappings: list[Row]) -> str:
    """The sentence for a query that no container matches."""
    if query.partition("/")[0].isdigit():
        return f"no running container publishes port {query}, for IPv4 or IPv6: docker ps"
    close = difflib.get_close_matches(query, {row["ContainerName"] for row in mappings}, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ": docker ps"
    return f"no running container is called {query!r}{hint}"


def _container_text(row: Row, options: Options) -> str:
    name = options.screen.paint(printable(row["ContainerName"]), Colour.NAME)
    lines = [("Container", f"{name} ({row['ContainerId'][:_ID_LENGTH]})")]
    used = [network for network in row["Networks"] if network["Used"]]
    lines += [("Reached by", _network_text(network, options.screen)) for network in used]
    if not used:
        lines.append(("Reached by", "no network with an IPv6 gateway"))
    others = [network for network in row["Networks"] if not network["Used"]]
    lines += [
        (
            "" if number else "Not by",
            f"{printable(network['Name'])}: {printable(network['Reason'])}",
        )
        for number, network in enumerate(others)
    ]
    lines += [("On [::1]", row["Loopback"])] * bool(row["Loopback"])
    lines += [
        (
            "" if number else "Skipped",
            printable(f"{skipped['Port']}: {skipped['Reason']}".lstrip(": ")),
        )
        for number, skipped in enumerate(row["Skipped"])
    ]
    return pairs(lines, options.screen) + _port_table(row, options)


def _network_text(row: Row, screen: Screen) -> str:
    name = screen.paint(printable(row["Name"]), Colour.NAME)
    address = row["Address"] or "no address"
    return f"{name} ({row['Bridge']}) at {address}; {printable(row['Reason'])}"


def _port_table(row: Row, options: Options) -> str:
    if not row["Ports"]:
        return "\nThe container publishes no port.\n" if options.legend else ""
    cells = [
        (
            port["Binding"],
            options.screen.paint(port["Outcome"], COLOURS.get(port["Outcome"], Colour.WARNING)),
            str(port.get("Connections", "")),
            printable(port["Reason"] or port["Rule"]),
        )
        for port in row["Ports"]
    ]
    header = ("PORT", "OUTCOME", "CONNECTIONS", "WHY")
    return "\n" + table(header, cells, legend=options.legend, screen=options.screen)
