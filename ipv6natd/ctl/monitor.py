"""`monitor`: prints changes, from the daemon's signals."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from ipv6natd.ctl.client import DaemonClient, Options, Result, is_not_running
from ipv6natd.ctl.show import COLOURS, host_socket, socket
from ipv6natd.dbus.connection import BUS, BusError, Signal
from ipv6natd.dbus.objects import MANAGER, NAME, PATH, PROPERTIES
from ipv6natd.report.status import counted
from ipv6natd.system.terminal import Colour, Screen, printable

Event = dict[str, Any]

_COLOURS = {
    "added": Colour.GOOD,
    "removed": Colour.WARNING,
    "repaired": Colour.BAD,
    "stopped": Colour.BAD,
    "started": Colour.GOOD,
}
_SHOWN_PROPERTIES = ("State", "StateReason", "DockerConnected", "EngineVersion", "Backend")
"""Properties whose changes are events; the others change with each sync."""


async def monitor(daemon: DaemonClient, options: Options) -> Result:
    """Print events until interrupted; raises BusError if the bus ends."""
    signals: asyncio.Queue[Signal] = asyncio.Queue()
    connection = await daemon.connection(signals.put_nowait)
    await daemon.listen(f"type='signal',sender='{NAME}',path='{PATH}'")
    await daemon.listen(f"type='signal',sender='{BUS[0]}',member='NameOwnerChanged',arg0='{NAME}'")
    reader = _EventReader()

    def show(event: Event) -> None:
        text = _line(event, options.screen) if options.json == "off" else _json(event, options)
        print(text, flush=True)

    show(await _initial_event(daemon, reader))
    closed = asyncio.ensure_future(connection.closed())
    while not closed.done():
        next_signal = asyncio.ensure_future(signals.get())
        await asyncio.wait((next_signal, closed), return_when=asyncio.FIRST_COMPLETED)
        if not next_signal.done():
            next_signal.cancel()
            break
        for event in reader.events(next_signal.result()):
            show(event)
    raise BusError("", "the system bus closed the connection: systemctl status dbus.socket")


async def _initial_event(daemon: DaemonClient, reader: _EventReader) -> Event:
    """The state before the first change."""
    at = {"Time": _microseconds()}
    connection = await daemon.connection()
    try:
        (reader.owner,) = await connection.call(*BUS, "GetNameOwner", "s", NAME)
        return at | {"Event": "now", **await daemon.properties()}
    except BusError as error:
        if not is_not_running(error):
            raise
        return at | {"Event": "stopped"}


def _microseconds() -> int:
    return time.time_ns() // 1000


class _EventReader:
    """Makes events of signals."""

    def __init__(self) -> None:
        self.owner = ""
        self._signalled = {"added": 0, "removed": 0}

    def events(self, signal: Signal) -> Iterator[Event]:
        """The events of a signal; none if another process sent it."""
        at = {"Time": _microseconds()}
        if signal.sender == BUS[0]:
            if signal.member == "NameOwnerChanged" and signal.args[0] == NAME:
                self.owner = signal.args[2]
                yield at | {"Event": "started" if self.owner else "stopped"}
            return
        if signal.sender != self.owner:
            return
        match (signal.interface, signal.member, signal.args):
            case (interface, "MappingAdded" | "MappingRemoved" as member, [row]) if (
                interface == MANAGER
            ):
                kind = member.removeprefix("Mapping").lower()
                self._signalled[kind] += 1
                yield at | {"Event": kind, "Mapping": row}
            case (interface, "Synced", [generation, details]) if interface == MANAGER:
                yield from (at | event for event in self._unsignalled_changes(generation, details))
            case (interface, "DriftRepaired", [details]) if interface == MANAGER:
                yield at | {"Event": "repaired", **details}
            case (interface, "PropertiesChanged", [_, changed, _]) if interface == PROPERTIES:
                changes = {name: changed[name] for name in _SHOWN_PROPERTIES if name in changed}
                if changes:
                    yield at | {"Event": "changed", **changes}

    def _unsignalled_changes(self, generation: int, details: Mapping[str, Any]) -> Iterator[Event]:
        """One event for the changes of a sync that had no signal of their own."""
        signalled, self._signalled = self._signalled, {"added": 0, "removed": 0}
        added = details["MappingsAdded"] - signalled["added"]
        removed = details["MappingsRemoved"] - signalled["removed"]
        if added > 0 or removed > 0:
            yield {"Event": "more", "Generation": generation, "Added": added, "Removed": removed}


def _json(event: Event, options: Options) -> str:
    if options.json == "short":
        return json.dumps(event, separators=(",", ":"))
    return json.dumps(event, indent=2)


def _line(event: Event, screen: Screen) -> str:
    at = datetime.fromtimestamp(event["Time"] / 1_000_000).strftime("%H:%M:%S")
    kind = event["Event"]
    word = screen.paint(kind, _COLOURS[kind]) if kind in _COLOURS else kind
    return f"{at} {word}{' ' * (8 - len(kind))} {_event_text(event, screen)}".rstrip()


def _event_text(event: Event, screen: Screen) -> str:
    match event["Event"]:
        case "added" | "removed":
            row = event["Mapping"]
            target = socket(row["ContainerAddress"], row["ContainerPort"], row["ContainerPortEnd"])
            name = printable(row["ContainerName"])
            network = printable(row["Network"])
            return f"{row['Protocol']} {host_socket(row)} -> {name} {target} ({network})"
        case "repaired":
            return f"{' and '.join(event['Tables'])}: another program had changed our rules"
        case "more":
            counts = f"{event['Added']} more added and {event['Removed']} more removed"
            return f"{counts}: ipv6natctl mappings"
        case "started" | "stopped":
            return "ipv6natd"
        case "now":
            counts = counted(event["MappingCount"], "mapping")
            counts += f", {counted(event['NetworkCount'], 'network')}"
            return f"{_state_text(event, screen)}; {counts}"
    return _state_text(event, screen)


def _state_text(event: Event, screen: Screen) -> str:
    parts = []
    if "State" in event:
        state = event["State"]
        parts.append(screen.paint(printable(state), COLOURS.get(state, Colour.WARNING)))
    if event.get("StateReason"):
        parts.append(printable(event["StateReason"]))
    if "DockerConnected" in event:
        parts.append("engine connected" if event["DockerConnected"] else "engine not connected")
    parts += [f"engine {printable(event[key])}" for key in ("EngineVersion",) if event.get(key)]
    parts += [f"{printable(event[key])} tables" for key in ("Backend",) if event.get(key)]
    return "; ".join(parts) or "no fault any more"
