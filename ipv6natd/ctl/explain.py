"""`explain`: why a container or a port is reachable or not."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from ipv6natd.ctl.client import (
    EXIT_FAILED,
    DaemonClient,
    Options,
    Result,
    labelled,
    painted,
    suggestion,
)
from ipv6natd.system.terminal import Colour, Screen, pairs, printable, table

Row = Mapping[str, Any]

_ID_LENGTH = 12
"""Characters; Docker shows as many of an id."""


async def explain(daemon: DaemonClient, options: Options) -> Result:
    """The explanation of each container that matches; exit code 1 if none does."""
    rows = await daemon.call("Explain", options.argument)
    if not rows:
        note = _no_container_note(options.argument, await daemon.call("ListMappings"))
        return Result(value=[], code=EXIT_FAILED, note=note)
    return Result(value=rows, text="\n".join(_container_text(row, options) for row in rows))


def _no_container_note(query: str, mappings: list[Row]) -> str:
    """The sentence for a query that no container matches."""
    if query.partition("/")[0].isdigit():
        return f"no running container publishes port {query}, for IPv4 or IPv6: docker ps"
    close = get_close_matches(query, [row["ContainerName"] for row in mappings], n=1)
    return f"no running container is called {query!r}{suggestion(close, ': docker ps')}"


def _container_text(row: Row, options: Options) -> str:
    name = options.screen.paint(printable(row["ContainerName"]), Colour.NAME)
    used = [_network_text(net, options.screen) for net in row["Networks"] if net["Used"]]
    others = [f"{net['Name']}: {net['Reason']}" for net in row["Networks"] if not net["Used"]]
    skipped = [f"{port['Port']}: {port['Reason']}".lstrip(": ") for port in row["Skipped"]]
    lines = [
        ("Container", f"{name} ({row['ContainerId'][:_ID_LENGTH]})"),
        *(("Reached by", text) for text in used or ["no network with an IPv6 gateway"]),
        *labelled("Not by", others),
        *labelled("On [::1]", [row["Loopback"]] if row["Loopback"] else []),
        *labelled("Skipped", skipped),
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
            painted(port["Outcome"], options.screen),
            str(port.get("Connections", "")),
            printable(port["Reason"] or port["Rule"]),
        )
        for port in row["Ports"]
    ]
    header = ("PORT", "OUTCOME", "CONNECTIONS", "WHY")
    return "\n" + table(header, cells, legend=options.legend, screen=options.screen)
