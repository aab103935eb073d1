"""The bridge ports of containers at the last stop: has a container left a bridge since?

The rules stay when the service stops. If a container has left, another one may have its address.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ipv6natd.host.facts import container_ports
from ipv6natd.sync.forwarding import FOLDER
from ipv6natd.sync.saved_rules import read_saved, write_saved

log = logging.getLogger(__name__)

FILE_NAME = "ports"


class SavedPorts:
    """One file, in a folder that a boot empties. Nothing here raises."""

    def __init__(self) -> None:
        """Reads the file, and removes it: after a crash there must be none."""
        runtime = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or FOLDER
        self._path = Path(runtime, FILE_NAME)
        self._at_stop = read_saved(self._path, lambda text: frozenset(text.split()))
        self._remove()

    @property
    def have_left(self) -> bool | None:
        """True if a port of the last stop is gone; None if its ports are unknown."""
        return None if self._at_stop is None else not self._at_stop <= container_ports()

    def save(self, *, current: bool) -> None:
        """Save the ports at a stop: those of now, or without `current` those of the last stop."""
        ports = container_ports() if current else self._at_stop
        if ports is not None:
            try:
                write_saved(self._path, "".join(f"{name}\n" for name in sorted(ports)))
            except OSError as error:
                log.warning("%s cannot be written: %s", self._path, error.strerror)

    def _remove(self) -> None:
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s", self._path, error.strerror)
