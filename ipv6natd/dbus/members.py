"""The members of org.ipv6natd1: signatures, permissions, and handlers.

Dispatch is our own, over the static XML in dbus/: dbus-next's service layer sends tracebacks to
callers, does not tell a handler its sender, and cannot declare which properties emit changes.

A new member needs: its entry in the XML, a row in METHODS, a handler in Members, a method in
Source, its command in polkit.ROOT_COMMANDS, and its paragraph in org.ipv6natd1(5).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import isawaitable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ipv6natd.dbus import log_control
from ipv6natd.dbus.connection import ERROR, BusError, Call
from ipv6natd.dbus.lists import Lists, rows_body, text_body
from ipv6natd.dbus.objects import (
    INTERFACES,
    INTROSPECTABLE,
    LOG_CONTROL,
    MANAGER,
    NAME,
    PATH,
    PEER,
    PROPERTIES,
    introspection,
)
from ipv6natd.dbus.polkit import Action
from ipv6natd.dbus.values import variants
from ipv6natd.dbus.wire import Variant
from ipv6natd.host.findings import Finding
from ipv6natd.netfilter.docker_rules import Leftover
from ipv6natd.report.explain import Explanation
from ipv6natd.report.ports import ConnectionsRow
from ipv6natd.report.status import FindingRow, Status, SyncResult, finding_row, properties
from ipv6natd.report.traces import TraceRow

Body = list[Any] | bytes
"""The values of a reply, or their marshalled bytes."""


class Source(Protocol):
    """What the members show and do; the daemon implements it. A coroutine here is cancelled when
    the connection ends."""

    def status(self) -> Status:
        """The newest status."""

    async def resync(self) -> SyncResult:
        """Compare engine and kernel again, and write the differences."""

    async def reload(self) -> None:
        """Read the configuration again and apply it."""

    async def cleanup(self) -> None:
        """Remove all rules, and write none until `resync`."""

    async def leftovers(self) -> tuple[Leftover, ...]:
        """The rules that docker-ipv6nat or an engine with IPv6 rules now switched off has left."""

    async def remove_leftovers(self) -> tuple[Leftover, ...]:
        """Remove the leftovers and return them."""

    async def findings(self) -> tuple[Finding, ...]:
        """What is wrong with the host or one network, by a check that began after the call."""

    async def connections(self) -> list[ConnectionsRow]:
        """The number of connections of each mapping."""

    async def explain(self, query: str) -> list[Explanation]:
        """Why the containers that `query` names are reachable or not."""

    async def trace(self, asked: str, source: str) -> list[TraceRow]:
        """What becomes of a packet from this source to a host port."""

    def ruleset_text(self) -> str:
        """The rules in force, in the format of ip6tables-restore. Runs in a thread."""

    def facts_text(self) -> str:
        """The facts that decide about rules, as JSON. Runs in a thread."""


class Members:
    """The handlers of all members."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._lists = Lists(source.status)

    async def reply(self, call: Call, method: Method) -> Body:
        """Do what the call wants; return the body of the reply in the method's signature."""
        result = method.handler(self, call)
        value = await result if isawaitable(result) else result
        if isinstance(value, bytes):
            return value
        match method.out_signature:
            case "":
                return []
            case "a{sv}":
                return [variants(value)]
            case "aa{sv}":
                return await rows_body(value)
        return [value]

    def list_rows(self, call: Call) -> Awaitable[bytes]:
        """ListMappings, ListNetworks, ListSkipped."""
        return self._lists.rows(call.member)

    async def findings(self, _call: Call) -> list[FindingRow]:
        """ListFindings."""
        return [finding_row(finding) for finding in await self.source.findings()]

    def get(self, call: Call) -> Variant:
        """Properties.Get."""
        return variants(self.properties(call))[call.args[1]]

    def check_writable(self, call: Call) -> None:
        """Raise BusError for a property that does not exist or is read-only."""
        name = call.args[1]
        self.properties(call)
        if name not in log_control.WRITABLE:
            raise BusError(ERROR + "PropertyReadOnly", f"{name} can only be read")

    def properties(self, call: Call) -> dict[str, Any]:
        """The properties of the interface that the call names, or of the object's own for an empty
        name."""
        own, *others = INTERFACES[call.path]
        interface = call.args[0] or own
        if interface not in (own, *others):
            text = f"{call.path} has no interface {interface!r}"
            raise BusError(ERROR + "UnknownInterface", text)
        values: dict[str, Any] = {}
        if interface == MANAGER:
            values = properties(self.source.status())
        elif interface == LOG_CONTROL:
            values = log_control.properties()
        if call.member != "GetAll" and call.args[1] not in values:
            text = f"{interface} has no property {call.args[1]!r}"
            raise BusError(ERROR + "UnknownProperty", text)
        return values


class Method(NamedTuple):
    """A method: its signatures, its handler, and its permission."""

    in_signature: str
    out_signature: str
    handler: Callable[[Members, Call], Any]
    """Returns the value of the reply or an awaitable for it; bytes are a marshalled body."""
    action: Action | None = None
    """The polkit action. None: every user may call it, and the handler must not wait."""
    validate: Callable[[Members, Call], None] = lambda _members, _call: None
    """Raises BusError for bad arguments, before the authorization."""
    in_turn: bool = False
    """True if each call makes a long reply: see Limits.turn."""


METHODS = {
    (MANAGER, "ListMappings"): Method("", "aa{sv}", Members.list_rows, Action.INSPECT),
    (MANAGER, "ListNetworks"): Method("", "aa{sv}", Members.list_rows, Action.INSPECT),
    (MANAGER, "ListSkipped"): Method("", "aa{sv}", Members.list_rows, Action.INSPECT),
    (MANAGER, "ListConnections"): Method(
        "", "aa{sv}", lambda it, _: it.source.connections(), Action.INSPECT, in_turn=True
    ),
    (MANAGER, "ListFindings"): Method("", "aa{sv}", Members.findings, Action.INSPECT, in_turn=True),
    (MANAGER, "Explain"): Method(
        "s", "aa{sv}", lambda it, call: it.source.explain(*call.args), Action.INSPECT, in_turn=True
    ),
    (MANAGER, "Trace"): Method(
        "ss", "aa{sv}", lambda it, call: it.source.trace(*call.args), Action.INSPECT, in_turn=True
    ),
    (MANAGER, "GetRuleset"): Method(
        "", "s", lambda it, _: text_body(it.source.ruleset_text), Action.INSPECT, in_turn=True
    ),
    (MANAGER, "GetFacts"): Method(
        "", "s", lambda it, _: text_body(it.source.facts_text), Action.INSPECT, in_turn=True
    ),
    (MANAGER, "Resync"): Method("", "a{sv}", lambda it, _: it.source.resync(), Action.RESYNC),
    (MANAGER, "Reload"): Method("", "", lambda it, _: it.source.reload(), Action.RELOAD),
    (MANAGER, "Cleanup"): Method("", "", lambda it, _: it.source.cleanup(), Action.CLEANUP),
    (MANAGER, "ListLeftovers"): Method(
        "", "aa{sv}", lambda it, _: it.source.leftovers(), Action.INSPECT, in_turn=True
    ),
    (MANAGER, "CleanupLeftovers"): Method(
        "", "aa{sv}", lambda it, _: it.source.remove_leftovers(), Action.CLEANUP
    ),
    (PROPERTIES, "Get"): Method("ss", "v", Members.get),
    (PROPERTIES, "GetAll"): Method("s", "a{sv}", Members.properties),
    (PROPERTIES, "Set"): Method(
        "ssv",
        "",
        lambda _, call: log_control.set_property(*call.args[1:]),
        Action.SET_LOG_LEVEL,
        Members.check_writable,
    ),
    (INTROSPECTABLE, "Introspect"): Method("", "s", lambda _, call: introspection(call.path)),
    (PEER, "Ping"): Method("", "", lambda *_: None),
    (PEER, "GetMachineId"): Method("", "s", lambda *_: _machine_id()),
}
"""All methods. A test compares this table with the XML."""


def find_method(call: Call) -> Method:
    """The method that the call names. Raises BusError if there is none."""
    # Peer belongs to the process, not to an object.
    served = INTERFACES.get(call.path, (PEER,) if call.interface == PEER else ())
    if not served:
        raise BusError(ERROR + "UnknownObject", f"there is no object {call.path}: try {PATH}")
    if call.interface is not None and call.interface not in served:
        text = f"{call.path} has no interface {call.interface}"
        raise BusError(ERROR + "UnknownInterface", text)
    for interface in (call.interface,) if call.interface else served:
        if method := METHODS.get((interface, call.member)):
            if method.in_signature != call.signature:
                text = f"{call.member} takes {method.in_signature!r}, not {call.signature!r}"
                raise BusError(ERROR + "InvalidArgs", text)
            return method
    text = f"{call.path} has no method {call.member}: busctl introspect {NAME} {PATH}"
    raise BusError(ERROR + "UnknownMethod", text)


def _machine_id() -> str:
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        if Path(path).exists():
            return Path(path).read_text("ascii").strip()
    text = "this host has no machine id: systemd-machine-id-setup makes one"
    raise BusError(ERROR + "FileNotFound", text)
