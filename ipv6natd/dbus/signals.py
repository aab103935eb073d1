"""The signals for the changes of a sync: one PropertiesChanged, and a bounded number of others."""

from __future__ import annotations

import asyncio
import logging

from ipv6natd.dbus.connection import Connection
from ipv6natd.dbus.limits import Limits
from ipv6natd.dbus.objects import MANAGER, PATH, PROPERTIES
from ipv6natd.dbus.values import variants
from ipv6natd.model import mapping_changes
from ipv6natd.report.status import Status, mapping_row, properties

log = logging.getLogger(__name__)

MAX_SIGNALS = 50
"""MappingAdded and MappingRemoved together, for one sync."""
MAX_UNSENT = 1000
"""Unsent messages; above this number no signals are sent, because the bus does not read."""
CROWDED_INTERVAL = 10.0
"""Seconds between two groups of signals while many messages are unread."""


class Announcer:
    """Sends the signals of one connection; loses no change.

    The bus daemon stores a signal until the slowest subscriber has read it, and any user may
    subscribe and never read. So while many messages are unread, the changes of several syncs are
    sent as those of one, and without the signals for single mappings. Clients need nothing new for
    this: the counts in Synced are complete, and Generation has changed.
    """

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self._connection, self._limits = connection, limits
        self._waiting: tuple[Status, Status, tuple[str, ...]] | None = None
        """The changes that were not sent yet."""
        self._later: asyncio.Task[None] | None = None
        """Sends the changes that wait."""

    def publish(self, old: Status, new: Status, drift: tuple[str, ...]) -> None:
        """Send the signals for the changes from `old` to `new`, now or later."""
        if self._waiting is not None:
            old, _, tables = self._waiting
            drift = (*tables, *(table for table in drift if table not in tables))
        self._waiting = old, new, drift
        if self._has_room(crowded=False):
            self._send(MAX_SIGNALS)
        elif self._later is None or self._later.done():
            self._later = asyncio.create_task(self._send_later())

    def close(self) -> None:
        """Send nothing more."""
        self._waiting = None
        if self._later is not None:
            self._later.cancel()

    async def _send_later(self) -> None:
        await self._limits.count_unread(self._connection)  # often all has been read
        while self._waiting is not None and not self._has_room(crowded=False):
            await asyncio.sleep(CROWDED_INTERVAL)
            if self._has_room(crowded=True):
                break
        self._send(MAX_SIGNALS if self._has_room(crowded=False) else 0)

    def _has_room(self, *, crowded: bool) -> bool:
        fits = self._limits.signals_fit(self._connection, crowded=crowded)
        return fits and self._connection.unsent <= MAX_UNSENT

    def _send(self, max_signals: int) -> None:
        if self._waiting is None:
            return
        (old, new, drift), self._waiting = self._waiting, None
        try:
            self._limits.add_sent(emit(self._connection, old, new, drift, max_signals))
        except Exception:
            log.exception("cannot send the signals of a sync")  # the sync itself is complete


def emit(
    connection: Connection,
    old: Status,
    new: Status,
    drift: tuple[str, ...],
    max_signals: int = MAX_SIGNALS,
) -> int:
    """Send the signals for the changes from `old` to `new`; `drift` names the repaired tables.

    At most `max_signals` are for single mappings. Returns the bytes of all signals.
    """
    size = 0
    old_properties = properties(old)
    changed = {
        name: value for name, value in properties(new).items() if old_properties[name] != value
    }
    changed.pop("Version", None)
    if changed:
        announced = variants(changed)
        signature = "sa{sv}as"
        size += connection.emit(
            PATH, PROPERTIES, "PropertiesChanged", signature, MANAGER, announced, []
        )
    removed, added = mapping_changes(old.mappings, new.mappings)
    signals = [("MappingRemoved", mapping, old) for mapping in removed[:max_signals]]
    signals += [("MappingAdded", mapping, new) for mapping in added[:max_signals]]
    for member, mapping, status in signals[:max_signals]:
        row = variants(mapping_row(mapping, status.since))
        size += connection.emit(PATH, MANAGER, member, "a{sv}", row)
    if old.findings != new.findings:
        size += connection.emit(PATH, MANAGER, "FindingsChanged", "")
    if drift:
        size += connection.emit(
            PATH, MANAGER, "DriftRepaired", "a{sv}", variants({"Tables": drift})
        )
    if old.last_sync != new.last_sync:
        counts = {"MappingsAdded": len(added), "MappingsRemoved": len(removed)}
        details = variants(counts | {"State": new.state})
        size += connection.emit(PATH, MANAGER, "Synced", "ta{sv}", new.generation, details)
    return size
