"""The bridge ports of containers while the engine was followed last: has a container left since?

The rules stay when the service stops. If a container has left its bridge, another one may have its
address.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from ipv6natd.host.facts import container_ports
from ipv6natd.sync.forwarding import FOLDER
from ipv6natd.sync.saved_rules import read_saved, unit_folder, write_saved

log = logging.getLogger(__name__)

FILE_NAME = "ports"


class SavedPorts:
    """One file, in a folder that a boot empties. Nothing here raises."""

    def __init__(self) -> None:
        """Reads the file of the last run."""
        self._path = unit_folder("RUNTIME_DIRECTORY", FOLDER) / FILE_NAME
        self._before = read_saved(self._path, lambda text: frozenset(text.split()))
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
