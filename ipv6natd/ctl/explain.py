"""`explain`: why a container or a port is reachable or not."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

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
from ipv6natd.host.servers import Answer
from ipv6natd.netfilter.trace import Fate
from ipv6natd.report.status import State
from ipv6natd.system.terminal import Colour, Screen, pairs, printable

_ID_LENGTH = 12
"""Characters; Docker shows as many of an id."""
_MAX_SERVERS = 32
"""Servers that one command connects to."""
SERVER_HINTS = {
    Answer.REFUSED: "no program in the container listens on its IPv6 address; let the server "
    "listen on [::], not only on 0.0.0.0",
    Answer.NONE: "the container does not answer on its IPv6 address; a firewall inside it, or a "
    "server that hangs",
}


async def explain(daemon: DaemonClient, options: Options) -> Result:
    """The explanation of each container that matches; exit code 1 if none does."""
    query = options.argument
    if source := options.filters.get("from"):
        return await _traced(daemon, options, source)
    rows = await daemon.call("Explain", query)
    if rows:
        await _add_servers(daemon, rows)
        text = "\n".join(_container_text(row, options) for row in rows)
        return Result(value=rows, text=text, note=await _state_note(daemon))
    if query.partition("/")[0].isdigit():
        note = f"no running container publishes port {query}, for IPv4 or IPv6: docker ps"
    else:
        names = [row["ContainerName"] for row in await daemon.call("ListMappings")]
        others = [name for name in names if name != query]
        hint = suggestion(get_close_matches(query, others, n=1), ": docker ps")
        note = f"no running container is called {query!r}{hint}"
    return Result(value=[], code=EXIT_FAILED, note=note)


async def _traced(daemon: DaemonClient, options: Options, source: str) -> Result:
    """What becomes of packets from this address to the port; exit code 1 if one does not reach a
    container."""
    rows = await daemon.call("Trace", options.argument, source)
    text = "\n".join(_trace_text(row, options) for row in rows)
    code = 0 if all(row["Fate"] == Fate.FORWARDED for row in rows) else EXIT_FAILED
    return Result(value=rows, text=text, code=code)


def _trace_text(row: Row, options: Options) -> str:
    incoming = f"comes in by {row['Interface']}" if row["Interface"] else "is sent by the host"
    head = f"A {row['Protocol']} packet from {row['Source']} to [{row['HostAddress']}]:"
    head += f"{row['HostPort']} {incoming}; {row['Reason']}."
    cells = [
        printable_cells(
            {
                "HOOK": step["Hook"],
                "TABLE": step["Table"],
                "BY": step["By"],
                "VERDICT": step["Verdict"],
                "RULE": f"-A {step['Chain']} {step['Rule']}" if step["Rule"] else "",
            }
        )
        for step in row["Steps"]
    ]
    return f"{printable(head)}\n\n{listing(cells, options)}"


async def _state_note(daemon: DaemonClient) -> str:
    """A sentence if a port may be unreachable in spite of its rule."""
    value = await daemon.properties()
    if value["State"] == State.SYNCED:
        return ""
    return f"note: ipv6natd is {value['State']}: {value['StateReason']}"


def _container_text(row: Row, options: Options) -> str:
    name = options.screen.paint(printable(row["ContainerName"]), Colour.NAME)
    used = [_network_text(net, options.screen) for net in row["Networks"] if net["Used"]]
    others = [f"{net['Name']}: {net['Reason']}" for net in row["Networks"] if not net["Used"]]
    skipped = [f"{port['Port']}: {port['Reason']}".lstrip(": ") for port in row["Skipped"]]
    lines = [
        ("Container", f"{name} ({printable(row['ContainerId'][:_ID_LENGTH])})"),
        *(("Reached by", text) for text in used or ["no network with an IPv6 gateway"]),
        *labelled("Not by", others),
        *labelled("On [::1]", [row["Loopback"]] if row["Loopback"] else []),
        *labelled("Skipped", skipped),
    ]
    return pairs(lines, options.screen) + _port_table(row, options) + _other_rules(row, options)


async def _add_servers(daemon: DaemonClient, rows: Iterable[Row]) -> None:
    """Add to each TCP port what a new connection to the container gets."""
    ports = [
        port
        for row in rows
        for port in row["Ports"]
        if "ContainerPort" in port and port["Binding"].endswith("/tcp")
    ]
    sockets = dict.fromkeys((port["ContainerAddress"], port["ContainerPort"]) for port in ports)
    answers = await daemon.tcp_answers(list(sockets)[:_MAX_SERVERS])
    for port in ports:
        if answer := answers.get((port["ContainerAddress"], port["ContainerPort"])):
            port["Server"] = answer


def _other_rules(row: Row, options: Options) -> str:
    """The rules of other programs; nothing if there are none."""
    if not row.get("OtherRules"):
        return ""
    cells = [
        printable_cells(
            {name.upper(): step[name] for name in ("Table", "Chain", "Verdict", "Rule")}
        )
        for step in row["OtherRules"]
    ]
    more = row["OtherRuleCount"] - len(cells)
    end = f"\nand {more} more\n" if more else ""
    return (
        "\nRules of others that a new connection to these ports meets, or may meet:\n\n"
        f"{listing(cells, options)}{end}"
    )


def _network_text(row: Row, screen: Screen) -> str:
    name = screen.paint(printable(row["Name"]), Colour.NAME)
    address = row["Address"] or "no address"
    where = printable(f"({row['Bridge']}) at {address}; {row['Reason']}")
    return f"{name} {where}"


def _port_table(row: Row, options: Options) -> str:
    if not row["Ports"]:
        return "\nThe container publishes no port.\n" if options.legend else ""
    hints = [
        f"{port['Binding']}: {SERVER_HINTS[port['Server']]}"
        for port in row["Ports"]
        if port.get("Server") in SERVER_HINTS
    ]
    cells = [
        {
            "PORT": printable(port["Binding"]),
            "OUTCOME": painted(port["Outcome"], options.screen),
            "CONNECTIONS": str(port.get("Connections", "")),
            "SERVER": printable(port.get("Server", "")),
            "WHY": printable("; ".join(filter(None, (port["Reason"], port["Rule"])))),
        }
        for port in row["Ports"]
    ]
    return "\n" + listing(cells, options) + "".join(f"\n{printable(hint)}\n" for hint in hints)
