"""The bridge ports of containers while the engine was followed last: has a container left since?

The rules stay when the service stops. If a container has left its bridge, another one may have its
address.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable
from functools import partial

from ipv6natd.host.facts import container_ports
from ipv6natd.sync.departures import Departures
from ipv6natd.sync.forwarding import FOLDER
from ipv6natd.sync.saved_rules import read_saved, unit_folder, write_saved
from ipv6natd.system.threads import in_thread

log = logging.getLogger(__name__)

FILE_NAME = "ports"
SAVE_INTERVAL = 0.2
"""Seconds between two writes of the file."""


class SavedPorts:
    """One file, in a folder that a boot empties. Nothing here raises."""

    def __init__(self) -> None:
        """Reads the file of the last run."""
        self._path = unit_folder("RUNTIME_DIRECTORY", FOLDER) / FILE_NAME
        self._before = read_saved(
            self._path, lambda text: frozenset(filter(None, text.split("\n")))
        )
        """As "BRIDGE/PORT"; None if unknown."""

    def have_left(self, bridges: Collection[str]) -> bool | None:
        """True if a port of the last run is gone, or left one of `bridges` since the start; ""
        stands for any bridge. None if the ports are unknown."""
        if self._before is None:
            return True if bridges else None
        known = {port.partition("/")[0] for port in self._before}
        return (
            "" in bridges
            or not known.isdisjoint(bridges)
            or not self._before <= container_ports(known)
        )

    def save(self, bridges: Iterable[str]) -> None:
        """Save the ports of these bridges. A port that leaves later than this stays in the file, so
        the ports are closed at a start that needs the file: never too late."""
        text = "".join(f"{port}\n" for port in sorted(container_ports(bridges)))
        try:
            write_saved(self._path, text)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error.strerror)


class PortSaver:
    """Saves the ports of the engine's bridges while it is followed."""

    def __init__(self, saved: SavedPorts, departures: Departures) -> None:
        self._saved = saved
        self._departures = departures
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Save the ports soon, for a start after a crash."""
        if self._departures.engine.current:
            self._changed.set()

    async def run(self) -> None:
        """Save the ports after changes, at most once in SAVE_INTERVAL, until cancelled."""
        while True:
            await self._changed.wait()
            if self._departures.confirmed:
                self._changed.clear()
                await in_thread(partial(self._saved.save, self._bridges))
            await asyncio.sleep(SAVE_INTERVAL)

    def save(self) -> None:
        """Save the ports now, unless a container may have left them that the engine has not
        reported."""
        if self._departures.engine.state.has_facts and self._departures.confirmed:
            self._saved.save(self._bridges)

    @property
    def _bridges(self) -> list[str]:
        return [net.bridge for net in self._departures.engine.networks.values() if net.bridge]
