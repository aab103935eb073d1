"""firewalld: when it writes, and which interface is in which of its zones.

It takes out everything at a reload, ours too with older releases; it says so on the bus.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from ipv6natd.dbus.connection import BUS, BusError, Connection, Signal

log = logging.getLogger(__name__)

NAME = "org.fedoraproject.FirewallD1"
PATH = "/org/fedoraproject/FirewallD1"
ZONES_TIMEOUT = 10.0
"""Seconds to wait for its zones: a reload of a large firewalld takes some."""


class Firewalld:
    """What the bus says about firewalld. `changed` is called when it came, went or wrote."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """Nothing is known before `subscribe`."""
        self._changed = changed
        self._connection: Connection | None = None
        self._owner = ""

    async def subscribe(self, connection: Connection) -> None:
        """Follow it over this connection. BusError when the bus does not let us."""
        for rule in (
            f"type='signal',sender='{NAME}',interface='{NAME}',member='Reloaded'",
            f"type='signal',sender='{BUS[0]}',member='NameOwnerChanged',arg0='{NAME}'",
        ):
            await connection.call(*BUS, "AddMatch", "s", rule)
        self._connection = connection
        try:
            (self._owner,) = await connection.call(*BUS, "GetNameOwner", "s", NAME)
        except BusError:
            return  # it does not run, which is the rule
        self._changed()

    def disconnected(self) -> None:
        """The connection has ended."""
        self._connection, self._owner = None, ""

    def on_signal(self, signal: Signal) -> None:
        """A signal came over the connection."""
        if signal.member == "NameOwnerChanged" and signal.sender == BUS[0]:
            name, _, owner = signal.args
            if name != NAME:
                return
            self._owner = owner
            log.info("firewalld %s", "came" if owner else "went")
        elif signal.member != "Reloaded" or not self._owner or signal.sender != self._owner:
            return
        self._changed()

    async def zones(self) -> Mapping[str, str] | None:
        """Interface -> zone; None where no firewalld runs or it does not say."""
        if self._connection is None or not self._owner:
            return None
        try:
            (active,) = await self._connection.call(
                NAME, PATH, f"{NAME}.zone", "getActiveZones", timeout=ZONES_TIMEOUT
            )
        except BusError as error:
            log.debug("firewalld does not tell its zones: %s", error.text)
            return None
        return {
            interface: zone
            for zone, members in active.items()
            for interface in members.get("interfaces", ())
        }
