"""What org.ipv6natd1 has: objects, interfaces and members, and how each is answered.

Dispatch is our own over the static XML in dbus/, because the library's high level sends tracebacks
to callers, knows no sender and cannot say which properties announce their changes.

A new member needs: its place in the XML, a row in METHODS, what answers it in Members, what that
asks in Source, and its paragraph in org.ipv6natd1(5).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ipv6natd.bus import ERROR, BusError, Call
from ipv6natd.dbus_lists import Lists, fits
from ipv6natd.dbus_values import bus_text, marshal_rows, variants
from ipv6natd.leftovers import Leftover
from ipv6natd.polkit import Action
from ipv6natd.status import Row, Status, SyncResult, leftover_row, properties

NAME = "org.ipv6natd1"
PATH = "/org/ipv6natd1"
MANAGER = "org.ipv6natd1.Manager"
PROPERTIES = "org.freedesktop.DBus.Properties"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PEER = "org.freedesktop.DBus.Peer"

SERVED = {
    "/": (INTROSPECTABLE, PEER),
    "/org": (INTROSPECTABLE, PEER),
    PATH: (MANAGER, PROPERTIES, INTROSPECTABLE, PEER),
}
"""The interfaces at each path; a call without interface means the first that has the member."""

Answer = list[Any] | Awaitable[bytes | list[Any]]
"""The values at once, or what makes them later; bytes are marshalled already."""


class Source(Protocol):
    """What is shown and asked; the daemon is it. What waits may be cancelled: the caller left."""

    def status(self) -> Status:
        """The newest status."""
        ...

    async def resync(self) -> SyncResult:
        """Compare and write everything once more."""
        ...

    async def reload(self) -> None:
        """Read the configuration again, and go by it."""
        ...

    async def cleanup(self) -> None:
        """Take all rules out, and write none until `resync`."""
        ...

    async def leftovers(self) -> tuple[Leftover, ...]:
        """What docker-ipv6nat or an engine that was switched off left behind."""
        ...

    async def remove_leftovers(self) -> tuple[Leftover, ...]:
        """Take that out, and say what it was."""
        ...

    async def explain(self, asked: str) -> list[Row]:
        """Why the containers that `asked` names are reached as they are."""
        ...

    def ruleset_text(self) -> str:
        """The rules in force, as ip6tables-restore reads them."""
        ...


class Members:
    """Answers calls from a source."""

    def __init__(self, source: Source) -> None:
        """Answer what `source` says."""
        self._source = source
        self.lists = Lists(source.status)

    async def resync(self, _call: Call) -> list[Any]:
        """Resync."""
        result = await self._source.resync()
        row: Row = {
            "Generation": ("t", result.generation),
            "RulesAdded": ("u", result.rules_added),
            "RulesRemoved": ("u", result.rules_removed),
            "DurationMs": ("u", result.duration_ms),
        }
        return [variants(row)]

    async def reload(self, _call: Call) -> list[Any]:
        """Reload."""
        await self._source.reload()
        return []

    async def cleanup(self, _call: Call) -> list[Any]:
        """Cleanup."""
        await self._source.cleanup()
        return []

    async def leftovers(self, _call: Call) -> bytes:
        """ListLeftovers."""
        return await _leftover_rows(self._source.leftovers())

    async def remove_leftovers(self, _call: Call) -> bytes:
        """CleanupLeftovers."""
        return await _leftover_rows(self._source.remove_leftovers())

    def rows(self, call: Call) -> Awaitable[bytes]:
        """ListMappings, ListNetworks, ListSkipped."""
        return self.lists.rows(call.member)

    async def explain(self, call: Call) -> bytes:
        """Explain."""
        rows = await self._source.explain(call.args[0])
        data = await asyncio.to_thread(marshal_rows, rows)
        fits(len(data))
        return data

    def ruleset(self, _call: Call) -> list[Any]:
        """GetRuleset."""
        text = bus_text(self._source.ruleset_text())
        fits(len(text.encode()))
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
            return variants(properties(self._source.status()))
        if interface in SERVED[PATH]:
            return {}
        raise BusError(ERROR + "UnknownInterface", f"{PATH} has no interface {interface!r}")


class Method(NamedTuple):
    """A method: what it takes and returns as signatures, what answers it, and who may call it."""

    takes: str
    returns: str
    answer: Callable[[Members, Call], Answer]
    action: Action | None = None
    """None: everybody, and at once."""


METHODS = {
    (MANAGER, "ListMappings"): Method("", "aa{sv}", Members.rows, Action.INSPECT),
    (MANAGER, "ListNetworks"): Method("", "aa{sv}", Members.rows, Action.INSPECT),
    (MANAGER, "ListSkipped"): Method("", "aa{sv}", Members.rows, Action.INSPECT),
    (MANAGER, "Explain"): Method("s", "aa{sv}", Members.explain, Action.INSPECT),
    (MANAGER, "GetRuleset"): Method("", "s", Members.ruleset, Action.INSPECT),
    (MANAGER, "Resync"): Method("", "a{sv}", Members.resync, Action.RESYNC),
    (MANAGER, "Reload"): Method("", "", Members.reload, Action.RELOAD),
    (MANAGER, "Cleanup"): Method("", "", Members.cleanup, Action.CLEANUP),
    (MANAGER, "ListLeftovers"): Method("", "aa{sv}", Members.leftovers, Action.INSPECT),
    (MANAGER, "CleanupLeftovers"): Method("", "aa{sv}", Members.remove_leftovers, Action.CLEANUP),
    (PROPERTIES, "Get"): Method("ss", "v", Members.get),
    (PROPERTIES, "GetAll"): Method("s", "a{sv}", Members.get_all),
    (PROPERTIES, "Set"): Method("ssv", "", Members.set),
    (INTROSPECTABLE, "Introspect"): Method("", "s", lambda _, call: [_introspection(call.path)]),
    (PEER, "Ping"): Method("", "", lambda *_: []),
    (PEER, "GetMachineId"): Method("", "s", lambda *_: [_machine_id()]),
}
"""What is implemented. The XML says the same, and a test compares the two."""


def called(call: Call) -> Method:
    """The method that the call means. Raises BusError when there is none."""
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
        if method is not None and method.takes == call.signature:
            return method
        if method is not None:
            text = f"{call.member} takes {method.takes!r}, not {call.signature!r}"
            raise BusError(ERROR + "InvalidArgs", text)
    text = f"{call.path} has no method {call.member}: busctl introspect {NAME} {PATH}"
    raise BusError(ERROR + "UnknownMethod", text)


async def _leftover_rows(found: Awaitable[tuple[Leftover, ...]]) -> bytes:
    rows = map(leftover_row, await found)
    # In a thread: a rule for each port, say, of ten thousand.
    body = await asyncio.to_thread(marshal_rows, rows)
    fits(len(body))
    return body


def _unknown_property(interface: str, name: str) -> BusError:
    text = f"{interface or MANAGER} has no property {name!r}"
    return BusError(ERROR + "UnknownProperty", text)


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
