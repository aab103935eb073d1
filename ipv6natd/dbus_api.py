"""The bus service: a window on the status, and the way to ask for a sync.

Dispatch is our own over the static XML in dbus/, because the library's high level sends tracebacks
to callers, knows no sender and cannot say which properties announce their changes. It decides
nothing about rules, and the rules do not wait for it: without a bus it only keeps trying.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ipv6natd import bus
from ipv6natd.bus import ERROR, BusError, Call, Connection
from ipv6natd.model import Mapping
from ipv6natd.status import (
    Row,
    Status,
    SyncResult,
    mapping_id,
    mapping_row,
    mapping_rows,
    network_rows,
    properties,
    skipped_rows,
)

log = logging.getLogger(__name__)

NAME = "org.ipv6natd1"
PATH = "/org/ipv6natd1"
MANAGER = "org.ipv6natd1.Manager"
PROPERTIES = "org.freedesktop.DBus.Properties"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PEER = "org.freedesktop.DBus.Peer"
BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
"""The bus itself: name, path and interface."""
FAILED = "org.ipv6natd1.Error.Failed"

SERVED = {
    "/": (INTROSPECTABLE, PEER),
    "/org": (INTROSPECTABLE, PEER),
    PATH: (MANAGER, PROPERTIES, INTROSPECTABLE, PEER),
}
"""The interfaces at each path; a call without interface means the first that has the member."""

MAX_UNANSWERED = 16
"""Calls that one sender may have waiting."""
MAX_UNSENT = 1000
"""Messages waiting for the bus above which signals are left out: nobody is reading."""
MAX_SIGNALS = 50
"""MappingAdded and MappingRemoved of one sync, together."""
MAX_ANSWER = 31 << 20
"""Bytes. The bus throws out whoever sends a message of more than 32 MiB."""
SLICE = 20
"""Rows marshalled, a few milliseconds of work, before the loop gets the interpreter."""
FIRST_DELAY, LAST_DELAY = 0.2, 30.0
"""Seconds between two tries to reach the bus."""


class Source(Protocol):
    """What the service shows and asks; the daemon is it."""

    def status(self) -> Status:
        """The newest status."""
        ...

    async def resync(self) -> SyncResult:
        """Compare and write everything once more. May be cancelled: the caller went away."""
        ...

    def ruleset_text(self) -> str:
        """The rules in force, as ip6tables-restore reads them."""
        ...


class Follower(Protocol):
    """Who wants to hear of other services, over the connection that serves."""

    async def join(self, connection: Connection) -> None:
        """The connection is there."""
        ...

    def heard(self, signal: bus.Signal) -> None:
        """A signal came; must not wait."""
        ...

    def leave(self) -> None:
        """The connection has ended."""
        ...


class BusService:
    """org.ipv6natd1 for as long as the daemon lives, over as many connections as that takes."""

    def __init__(self, source: Source, *, follower: Follower | None = None) -> None:
        """Serve what `source` says; `serve` does the work. `follower` listens on the side."""
        self._source = source
        self._follower = follower
        self._connection: Connection | None = None
        self._lists: dict[str, tuple[int, asyncio.Task[bytes]]] = {}
        self._unanswered: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self.owned = asyncio.Event()
        """Set while the name is ours."""

    async def session(self, address: str | None = None) -> None:
        """One connection, from hello to its end; BusError when the name could not be had."""
        heard = self._follower.heard if self._follower else None
        connection = await bus.connect(
            address, on_call=self._on_call, on_signal=heard, limit=bus.SMALL
        )
        try:
            await _own(connection)
            log.info("serving %s on the bus", NAME)
            self._connection = connection
            self.owned.set()
            await self._join(connection)
            await connection.closed()
        finally:
            self.owned.clear()
            if self._follower is not None:
                self._follower.leave()
            self._connection = None
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await connection.flush(1.0)
            connection.close()

    async def _join(self, connection: Connection) -> None:
        if self._follower is None:
            return
        try:
            await self._follower.join(connection)
        except BusError as error:
            log.warning("other services on the bus cannot be followed: %s", error.text)

    def publish(self, old: Status, new: Status, drift: Row | None = None) -> None:
        """Tell listeners what a sync changed; nothing happens while there is no bus."""
        if old.generation != new.generation:
            self._lists.clear()  # megabytes that nobody will ask for again
        connection = self._connection
        if connection is None or connection.unsent > MAX_UNSENT:
            return
        try:
            _emit(connection, old, new, drift)
        except Exception:
            log.exception("the signals of a sync could not be sent")  # the rules go on

    def _on_call(self, call: Call) -> None:
        try:
            method = _method(call)
            answer = method.answer(self, call)
            if isinstance(answer, list):
                call.connection.reply(call, method.out_signature, answer)
            else:
                self._answer_later(call, method.out_signature, answer)
        except Exception as error:
            _refuse(call, error)

    def _answer_later(self, call: Call, signature: str, answer: _Later) -> None:
        if self._unanswered[call.sender] >= MAX_UNANSWERED:
            text = f"{MAX_UNANSWERED} calls of yours wait for their answers: wait for one of them"
            raise BusError(ERROR + "LimitsExceeded", text)
        self._unanswered[call.sender] += 1
        task = asyncio.create_task(self._wait(call, signature, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wait(self, call: Call, signature: str, answer: _Later) -> None:
        try:
            result = await answer()
            if isinstance(result, bytes):
                call.connection.reply_marshalled(call, signature, result)
            else:
                call.connection.reply(call, signature, result)
        except Exception as error:
            _refuse(call, error)
        finally:
            self._unanswered[call.sender] -= 1
            if not self._unanswered[call.sender]:
                del self._unanswered[call.sender]

    async def list_rows(self, member: str) -> bytes:
        """ListMappings, ListNetworks, ListSkipped."""
        status = self._source.status()
        generation, task = self._lists.get(member, (None, None))
        if task is None or generation != status.generation or _failed(task):
            task = asyncio.create_task(asyncio.to_thread(_marshalled, member, status))
            self._lists[member] = (status.generation, task)
        # Shielded: others may wait for the same rows.
        return await asyncio.shield(task)

    async def resync(self, call: Call) -> list[Any]:
        """Resync."""
        await _only_root(call)
        result = await self._source.resync()
        row: Row = {
            "Generation": ("t", result.generation),
            "RulesAdded": ("u", result.rules_added),
            "RulesRemoved": ("u", result.rules_removed),
            "DurationMs": ("u", result.duration_ms),
        }
        return [bus.variants(row)]

    def ruleset(self) -> list[Any]:
        """GetRuleset."""
        text = bus.bus_text(self._source.ruleset_text())
        _fits(len(text.encode()))
        return [text]

    def get(self, call: Call) -> list[Any]:
        """Properties.Get."""
        interface, name = call.args
        values = self._properties(interface)
        if name not in values:
            raise _unknown_property(interface, name)
        return [values[name]]

    def get_all(self, call: Call) -> list[Any]:
        """Properties.GetAll."""
        return [self._properties(call.args[0])]

    def set(self, call: Call) -> list[Any]:
        """Properties.Set: nothing here can be set."""
        interface, name, _value = call.args
        if name not in self._properties(interface):
            raise _unknown_property(interface, name)
        raise BusError(ERROR + "PropertyReadOnly", f"{name} can only be read")

    def _properties(self, interface: str) -> dict[str, Any]:
        if interface in ("", MANAGER):
            return bus.variants(properties(self._source.status()))
        if interface in SERVED[PATH]:
            return {}
        raise BusError(ERROR + "UnknownInterface", f"{PATH} has no interface {interface!r}")


async def serve(
    service: BusService,
    address: str | None = None,
    *,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Keep the name on the bus until cancelled. Never raises: rules are kept without a bus too."""
    delay, said = FIRST_DELAY, ""
    while True:
        try:
            await service.session(address)
            delay, said, text = FIRST_DELAY, "", "the system bus closed the connection"
        except BusError as error:
            text = error.text
        except Exception:
            log.exception("the bus service failed")
            text = "the bus service failed"
        # Once for each trouble, not once for each try.
        log.log(logging.DEBUG if text == said else logging.WARNING, "%s; trying again", text)
        said = text
        await pause(delay)
        delay = min(delay * 2, LAST_DELAY)


async def _own(connection: Connection) -> None:
    # 4: do not queue, so that the second of two daemons says so instead of waiting in silence.
    (result,) = await connection.call(*BUS, "RequestName", "su", NAME, 4)
    if result != 1:
        raise BusError(ERROR + "NameExists", f"another process owns {NAME} on the bus")


async def _only_root(call: Call) -> None:
    try:
        (uid,) = await call.connection.call(
            *BUS, "GetConnectionUnixUser", "s", call.sender, timeout=5.0
        )
    except BusError as error:
        text = f"the bus could not tell who asked: {error.text}"
        raise BusError(ERROR + "AccessDenied", text) from None
    if uid != 0:
        text = f"only root may do that: sudo ipv6natctl {call.member.lower()}"
        raise BusError(ERROR + "AccessDenied", text)


def _method(call: Call) -> _Method:
    served = SERVED.get(call.path)
    if served is None and call.interface == PEER:
        served = (PEER,)  # it answers for the process, not for an object
    if served is None:
        raise BusError(ERROR + "UnknownObject", f"there is no object {call.path}: try {PATH}")
    if call.interface is not None and call.interface not in served:
        text = f"{call.path} has no interface {call.interface}"
        raise BusError(ERROR + "UnknownInterface", text)
    for interface in (call.interface,) if call.interface else served:
        method = METHODS.get((interface, call.member))
        if method is not None and method.in_signature == call.signature:
            return method
        if method is not None:
            text = f"{call.member} takes {method.in_signature!r}, not {call.signature!r}"
            raise BusError(ERROR + "InvalidArgs", text)
    text = f"{call.path} has no method {call.member}: busctl introspect {NAME} {PATH}"
    raise BusError(ERROR + "UnknownMethod", text)


def _refuse(call: Call, error: Exception) -> None:
    if not isinstance(error, BusError):
        log.error("%s failed", call.member, exc_info=error)
        text = f"{call.member} failed; the journal says why: journalctl -u ipv6natd"
        error = BusError(FAILED, text)
    call.connection.refuse(call, error)


def _emit(connection: Connection, old: Status, new: Status, drift: Row | None) -> None:
    before = properties(old)
    changed = {name: value for name, value in properties(new).items() if before[name] != value}
    changed.pop("Version", None)
    if changed:
        announced = bus.variants(changed)
        signature = "sa{sv}as"
        connection.emit(PATH, PROPERTIES, "PropertiesChanged", signature, MANAGER, announced, [])
    gone, come = _difference(old, new)
    signals = [("MappingRemoved", _mapping_row(each, old)) for each in gone[:MAX_SIGNALS]]
    signals += [("MappingAdded", _mapping_row(each, new)) for each in come[:MAX_SIGNALS]]
    for member, row in signals[:MAX_SIGNALS]:
        connection.emit(PATH, MANAGER, member, "a{sv}", bus.variants(row))
    if drift is not None:
        connection.emit(PATH, MANAGER, "DriftRepaired", "a{sv}", bus.variants(drift))
    if old.last_sync != new.last_sync:
        details: Row = {
            "MappingsAdded": ("u", len(come)),
            "MappingsRemoved": ("u", len(gone)),
            "State": ("s", new.state.value),
        }
        connection.emit(PATH, MANAGER, "Synced", "ta{sv}", new.generation, bus.variants(details))


def _difference(before: Status, after: Status) -> tuple[list[Mapping], list[Mapping]]:
    """The mappings that went and those that came, in order."""
    if before.generation == after.generation:
        return [], []
    # Both are sorted and nearly equal, and comparing is cheaper than hashing: cut off both ends.
    old, new = before.mappings, after.mappings
    shorter = min(len(old), len(new))
    first = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    shorter -= first
    last = next((i for i in range(shorter) if old[-1 - i] != new[-1 - i]), shorter)
    old, new = old[first : len(old) - last], new[first : len(new) - last]
    gone, come = set(old), set(new)
    return [each for each in old if each not in come], [each for each in new if each not in gone]


def _mapping_row(mapping: Mapping, status: Status) -> Row:
    return mapping_row(mapping, status.since.get(mapping_id(mapping), 0))


def _unknown_property(interface: str, name: str) -> BusError:
    text = f"{interface or MANAGER} has no property {name!r}"
    return BusError(ERROR + "UnknownProperty", text)


def _fits(size: int) -> None:
    if size > MAX_ANSWER:
        text = f"the answer has {size >> 20} MiB, more than the bus carries: ask the kernel instead"
        raise BusError(ERROR + "LimitsExceeded", text)


def _failed(task: asyncio.Task[bytes]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _marshalled(member: str, status: Status) -> bytes:
    """Runs in a thread; lets go of the interpreter between slices, so that the loop never waits."""

    def rows() -> Iterator[Row]:
        match member:
            case "ListNetworks":
                yield from network_rows(status)
            case "ListSkipped":
                yield from skipped_rows(status)
            case _:
                for first in range(0, len(status.mappings), SLICE):
                    time.sleep(0)
                    mappings = status.mappings[first : first + SLICE]
                    yield from mapping_rows(replace(status, mappings=mappings))

    data = bus.marshal_rows(rows())
    _fits(len(data))
    return data


def _introspection(path: str) -> str:
    if path == PATH:
        return interface_xml()
    child = {"/": "org", "/org": NAME.removeprefix("org.")}[path]
    return f'<node><node name="{child}"/></node>\n'


@cache
def interface_xml() -> str:
    """What is served: org.ipv6natd1.xml beside this module or, in a checkout, in dbus/."""
    here = Path(__file__)
    places = (here.with_name(f"{NAME}.xml"), here.parents[1] / "dbus" / f"{NAME}.xml")
    return next((each for each in places if each.exists()), places[0]).read_text("utf-8")


def _machine_id() -> str:
    for place in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        if Path(place).exists():
            return Path(place).read_text("ascii").strip()
    text = "this host has no machine id: systemd-machine-id-setup makes one"
    raise BusError(ERROR + "FileNotFound", text)


_Later = Callable[[], Awaitable[bytes | list[Any]]]


class _Method(NamedTuple):
    in_signature: str
    out_signature: str
    answer: Callable[[BusService, Call], list[Any] | _Later]


def _rows(service: BusService, call: Call) -> _Later:
    return partial(service.list_rows, call.member)


METHODS = {
    (MANAGER, "ListMappings"): _Method("", "aa{sv}", _rows),
    (MANAGER, "ListNetworks"): _Method("", "aa{sv}", _rows),
    (MANAGER, "ListSkipped"): _Method("", "aa{sv}", _rows),
    (MANAGER, "Resync"): _Method("", "a{sv}", lambda it, call: partial(it.resync, call)),
    (MANAGER, "GetRuleset"): _Method("", "s", lambda it, _: it.ruleset()),
    (PROPERTIES, "Get"): _Method("ss", "v", BusService.get),
    (PROPERTIES, "GetAll"): _Method("s", "a{sv}", BusService.get_all),
    (PROPERTIES, "Set"): _Method("ssv", "", BusService.set),
    (INTROSPECTABLE, "Introspect"): _Method("", "s", lambda _, call: [_introspection(call.path)]),
    (PEER, "Ping"): _Method("", "", lambda *_: []),
    (PEER, "GetMachineId"): _Method("", "s", lambda *_: [_machine_id()]),
}
"""What is implemented. The XML says the same, and a test compares the two."""
