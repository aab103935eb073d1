"""`monitor`: prints changes, from the daemon's signals."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from ipv6natd.ctl.client import DaemonClient, Options, Result, is_not_running, json_text, painted
from ipv6natd.ctl.show import row_socket
from ipv6natd.dbus.connection import BUS, BusError, Signal
from ipv6natd.dbus.objects import NAME, PATH
from ipv6natd.report.status import counted
from ipv6natd.system.terminal import Screen, printable

Event = dict[str, Any]

_SHOWN_PROPERTIES = (
    *("State", "StateReason", "FindingCount", "DockerConnected", "EngineVersion", "Backend"),
)
"""Properties whose changes are events; the others change with each sync."""


async def monitor(daemon: DaemonClient, options: Options) -> Result:
    """Print events until interrupted; raises BusError if the bus ends."""
    reader = EventReader()
    _print(await subscribe(daemon, reader), options)
    while (signal := await daemon.signals.get()) is not None:
        for event in reader.events(signal):
            _print(event, options)
    raise BusError("", "the system bus closed the connection: systemctl status dbus.socket")


async def subscribe(daemon: DaemonClient, reader: EventReader) -> Event:
    """Receive the signals from now on; returns the state before the first one. Raises BusError."""
    connection = await daemon.connection()
    for rule in (
        f"type='signal',sender='{NAME}',path='{PATH}'",
        f"type='signal',sender='{BUS[0]}',member='NameOwnerChanged',arg0='{NAME}'",
    ):
        await connection.call(*BUS, "AddMatch", "s", rule)
    closed = asyncio.ensure_future(connection.closed())
    closed.add_done_callback(lambda _: daemon.signals.put_nowait(None))
    try:
        (reader.owner,) = await connection.call(*BUS, "GetNameOwner", "s", NAME)
        return {"Event": "now", **await daemon.properties()}
    except BusError as error:
        if not is_not_running(error):
            raise
        return {"Event": "stopped"}


class EventReader:
    """Makes events of signals."""

    def __init__(self) -> None:
        self.owner = ""
        self._signalled: Counter[str] = Counter()

    def events(self, signal: Signal) -> Iterator[Event]:
        """The events of a signal; none if another process sent it."""
        if signal.sender == BUS[0]:
            if signal.member == "NameOwnerChanged" and signal.args[0] == NAME:
                self.owner = signal.args[2]
                yield {"Event": "started" if self.owner else "stopped"}
            return
        if signal.sender != self.owner:
            return
        match (signal.member, signal.args):
            case ("MappingAdded" | "MappingRemoved" as member, [row]):
                kind = member.removeprefix("Mapping").lower()
                self._signalled[kind] += 1
                yield {"Event": kind, "Mapping": row}
            case ("Synced", [generation, details]):
                # The changes that had no signal of their own.
                added = details["MappingsAdded"] - self._signalled["added"]
                removed = details["MappingsRemoved"] - self._signalled["removed"]
                self._signalled.clear()
                if added > 0 or removed > 0:
                    counts = {"Added": added, "Removed": removed}
                    yield {"Event": "more", "Generation": generation, **counts}
            case ("DriftRepaired", [details]):
                yield {"Event": "repaired", **details}
            case ("PropertiesChanged", [_, changed, _]):
                changes = {name: changed[name] for name in _SHOWN_PROPERTIES if name in changed}
                if changes:
                    yield {"Event": "changed", **changes}


def _print(event: Event, options: Options) -> None:
    event = {"Time": time.time_ns() // 1000, **event}
    text = event_line(event, options.screen)
    print(text if options.json == "off" else json_text(event, options.json), flush=True)


def event_line(event: Event, screen: Screen) -> str:
    """The event for people; it needs its Time."""
    at = datetime.fromtimestamp(event["Time"] / 1_000_000).strftime("%H:%M:%S")
    kind = event["Event"]
    word = kind if kind in ("now", "changed", "more") else painted(kind, screen)
    return f"{at} {word}{' ' * (8 - len(kind))} {_event_text(event, screen)}".rstrip()


def _event_text(event: Event, screen: Screen) -> str:
    match event["Event"]:
        case "added" | "removed":
            row = event["Mapping"]
            target = f"{row['ContainerName']} {row_socket(row, 'Container')} ({row['Network']})"
            return printable(f"{row['Protocol']} {row_socket(row, 'Host')} -> {target}")
        case "repaired":
            tables = printable(" and ".join(event["Tables"]))
            return f"{tables}: another program had changed our rules"
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
        parts.append(painted(event["State"], screen))
    if event.get("StateReason"):
        parts.append(printable(event["StateReason"]))
    if "FindingCount" in event:
        parts.append(counted(event["FindingCount"], "finding"))
    if "DockerConnected" in event:
        parts.append("engine connected" if event["DockerConnected"] else "engine not connected")
    if event.get("EngineVersion"):
        parts.append(f"engine {printable(event['EngineVersion'])}")
    if event.get("Backend"):
        parts.append(f"{printable(event['Backend'])} tables")
    return "; ".join(parts) or "no fault any more"
