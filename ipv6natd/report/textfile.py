"""Writes the metrics to a file for the textfile collector of node_exporter.

Nothing here raises: the rules must stay in sync without the file.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from ipv6natd.report.metrics import STOPPED, samples, text
from ipv6natd.report.status import (
    Status,
    bus_fields,
    finding_row,
    mapping_rows,
    network_row,
    properties,
)
from ipv6natd.system import files
from ipv6natd.system.threads import in_thread

log = logging.getLogger(__name__)

REWRITE_INTERVAL = 60.0
"""Seconds after which the unchanged file is written again: its age shows that ipv6natd runs."""
LOCK_TIMEOUT = 2.0
"""Seconds to wait for an earlier write, which a failed disk can block."""
MIN_WRITE_INTERVAL = 5.0
"""Seconds between two writes; the file is usually read every 15 s."""


class Textfile:
    """One file, none if `path` is empty. It is replaced atomically."""

    def __init__(self, path: str, status: Callable[[], Status]) -> None:
        """`status` returns the current status."""
        self.path = path
        self._status = status
        self._changed = asyncio.Event()
        self._last_failure = ""
        self._lock = threading.Lock()  # a thread may still write during write_stopped

    def changed(self) -> None:
        """Write the file soon: the status changed."""
        self._changed.set()

    async def run(self) -> None:
        """Keep the file up to date until cancelled."""
        while True:
            self._changed.clear()
            if self.path:
                await in_thread(partial(self._write, partial(_metrics, self._status())))
            await asyncio.sleep(MIN_WRITE_INTERVAL)
            with suppress(TimeoutError):
                async with asyncio.timeout(REWRITE_INTERVAL - MIN_WRITE_INTERVAL):
                    await self._changed.wait()

    def write_stopped(self) -> None:
        """Write only `ipv6natd_up 0`, and end."""
        self._write(lambda: text(STOPPED))
        self.path = ""

    def _write(self, render: Callable[[], str]) -> None:
        failure = ""
        if self._lock.acquire(timeout=LOCK_TIMEOUT):
            try:
                if self.path:
                    # The temporary file ends in .new, because the collector reads every *.prom in
                    # the folder. Mode 644, because the collector is another user.
                    files.replace(Path(self.path), render(), mode=0o644)
            except OSError as error:
                failure = error.strerror or str(error)
            finally:
                self._lock.release()
        else:
            failure = "an earlier write has not finished"
        if failure:
            # Logged once, not for each write.
            level = logging.DEBUG if self._last_failure == failure else logging.WARNING
            reason = f"{self.path} cannot be written: {failure}; see ipv6natd.toml(5)"
            log.log(level, "metrics_textfile: %s", reason)
        self._last_failure = failure


def _metrics(status: Status) -> str:
    mappings = map(bus_fields, mapping_rows(status))
    networks = (bus_fields(network_row(network)) for network in status.networks)
    findings = (bus_fields(finding_row(finding)) for finding in status.findings)
    return text(samples(properties(status), mappings, networks, findings))
