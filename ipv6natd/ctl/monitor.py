"""`monitor`: what changes, as it changes, from the daemon's signals."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from ipv6natd.ctl.client import (
    BUS,
    MANAGER,
    NAME,
    PATH,
    PROPERTIES,
    Answer,
    Daemon,
    How,
    not_running,
)
from ipv6natd.ctl.show import COLOURS, host_socket, socket
from ipv6natd.dbus.connection import BusError, Signal
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
_TOLD = ("State", "StateReason", "DockerConnected", "EngineVersion", "Backend")
"""Properties whose change is an event; the others change with every sync."""


async def monitor(daemon: Daemon, how: How) -> Answer:
    """Print events until interrupted; BusError when the bus goes."""
    heard: asyncio.Queue[Signal] = asyncio.Queue()
    connection = await daemon.connection(heard.put_nowait)
    await daemon.listen(f"type='signal',sender='{NAME}',path='{PATH}'")
    await daemon.listen(f"type='signal',sender='{BUS[0]}',member='NameOwnerChanged',arg0='{NAME}'")
    watch = _Watch()

    def show(event: Event) -> None:
        text = _line(event, how.screen) if how.json == "off" else _json(event, how)
        print(text, flush=True)

    show(await _now(daemon, watch))
    end = asyncio.ensure_future(connection.closed())
    while not end.done():
        get = asyncio.ensure_future(heard.get())
        await asyncio.wait((get, end), return_when=asyncio.FIRST_COMPLETED)
        if not get.done():
            get.cancel()
            break
        for event in watch.events(get.result()):
            show(event)
    raise BusError("", "the system bus closed the connection: systemctl status dbus.socket")


async def _now(daemon: Daemon, watch: _Watch) -> Event:
    """How things are before anything changes."""
    at = {"Time": _microseconds()}
    connection = await daemon.connection()
    try:
        (watch.owner,) = await connection.call(*BUS, "GetNameOwner", "s", NAME)
        return at | {"Event": "now", **await daemon.properties()}
    except BusError as error:
        if not not_running(error):
            raise
        return at | {"Event": "stopped"}


def _microseconds() -> int:
    return time.time_ns() // 1000


class _Watch:
    """What has to be kept between two signals."""

    def __init__(self) -> None:
        self.owner = ""
        self._shown = {"added": 0, "removed": 0}

    def events(self, signal: Signal) -> Iterator[Event]:
        """What a signal tells; nothing of what others send."""
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
                what = member.removeprefix("Mapping").lower()
                self._shown[what] += 1
                yield at | {"Event": what, "Mapping": row}
            case (interface, "Synced", [generation, details]) if interface == MANAGER:
                yield from (at | each for each in self._unshown(generation, details))
            case (interface, "DriftRepaired", [details]) if interface == MANAGER:
                yield at | {"Event": "repaired", **details}
            case (interface, "PropertiesChanged", [_, changed, _]) if interface == PROPERTIES:
                told = {name: changed[name] for name in _TOLD if name in changed}
                if told:
                    yield at | {"Event": "changed", **told}

    def _unshown(self, generation: int, details: Mapping[str, Any]) -> Iterator[Event]:
        """A sync is told only where it did more than was signalled one by one."""
        shown, self._shown = self._shown, {"added": 0, "removed": 0}
        added = details["MappingsAdded"] - shown["added"]
        removed = details["MappingsRemoved"] - shown["removed"]
        if added > 0 or removed > 0:
            yield {"Event": "more", "Generation": generation, "Added": added, "Removed": removed}


def _json(event: Event, how: How) -> str:
    if how.json == "short":
        return json.dumps(event, separators=(",", ":"))
    return json.dumps(event, indent=2)


def _line(event: Event, screen: Screen) -> str:
    at = datetime.fromtimestamp(event["Time"] / 1_000_000).strftime("%H:%M:%S")
    what = event["Event"]
    word = screen.paint(what, _COLOURS[what]) if what in _COLOURS else what
    return f"{at} {word}{' ' * (8 - len(what))} {_told(event, screen)}".rstrip()


def _told(event: Event, screen: Screen) -> str:
    match event["Event"]:
        case "added" | "removed":
            row = event["Mapping"]
            inside = socket(row["ContainerAddress"], row["ContainerPort"], row["ContainerPortEnd"])
            name = printable(row["ContainerName"])
            network = printable(row["Network"])
            return f"{row['Protocol']} {host_socket(row)} -> {name} {inside} ({network})"
        case "repaired":
            return f"{' and '.join(event['Tables'])}: something else had changed our rules"
        case "more":
            counts = f"{event['Added']} added and {event['Removed']} removed"
            return f"{counts} besides: ipv6natctl mappings"
        case "started" | "stopped":
            return "ipv6natd"
        case "now":
            counts = counted(event["MappingCount"], "mapping")
            counts += f", {counted(event['NetworkCount'], 'network')}"
            return f"{_changed(event, screen)}; {counts}"
    return _changed(event, screen)


def _changed(event: Event, screen: Screen) -> str:
    parts = []
    if "State" in event:
        state = event["State"]
        parts.append(screen.paint(printable(state), COLOURS.get(state, Colour.WARNING)))
    if event.get("StateReason"):
        parts.append(printable(event["StateReason"]))
    if "DockerConnected" in event:
        parts.append("the engine is there" if event["DockerConnected"] else "the engine is gone")
    parts += [f"engine {printable(event[key])}" for key in ("EngineVersion",) if event.get(key)]
    parts += [f"{printable(event[key])} tables" for key in ("Backend",) if event.get(key)]
    return "; ".join(parts) or "nothing is wrong any more"
