"""firewalld: its reloads, and the zones of interfaces.

A reload removes all rules, with older releases also ours; firewalld announces it by a signal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from ipv6natd.dbus.connection import BUS, BusError, Connection, Signal

log = logging.getLogger(__name__)

NAME = "org.fedoraproject.FirewallD1"
PATH = "/org/fedoraproject/FirewallD1"
ZONES_TIMEOUT = 10.0
"""Seconds; firewalld does not reply during a reload, which takes long on a large configuration."""


class Firewalld:
    """The state of firewalld on the bus. Calls `changed` when firewalld starts, stops or
    reloads."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._connection: Connection | None = None
        self._owner = ""

    async def subscribe(self, connection: Connection) -> None:
        """Subscribe to firewalld's signals over this connection. Raises BusError."""
        await connection.watch_service(NAME, interface=NAME, member="Reloaded")
        self._connection = connection
        try:
            (self._owner,) = await connection.call(*BUS, "GetNameOwner", "s", NAME)
        except BusError:
            return  # the usual case: firewalld does not run
        self._changed()

    def disconnected(self) -> None:
        """Forget firewalld: the connection has ended."""
        self._connection, self._owner = None, ""

    def on_signal(self, signal: Signal) -> None:
        """Handle a signal of the connection."""
        if signal.member == "NameOwnerChanged" and signal.sender == BUS[0]:
            name, _, owner = signal.args
            if name != NAME:
                return
            self._owner = owner
            log.info("firewalld %s", "started" if owner else "stopped")
        elif signal.member != "Reloaded" or not self._owner or signal.sender != self._owner:
            return
        self._changed()

    async def zones(self) -> Mapping[str, str] | None:
        """Interface -> zone; None if firewalld does not run or does not reply."""
        if self._connection is None or not self._owner:
            return None
        try:
            (active,) = await self._connection.call(
                NAME, PATH, f"{NAME}.zone", "getActiveZones", timeout=ZONES_TIMEOUT
            )
        except BusError as error:
            log.debug("cannot read the zones of firewalld: %s", error.text)
            return None
        return {
            interface: zone
            for zone, members in active.items()
            for interface in members.get("interfaces", ())
        }
