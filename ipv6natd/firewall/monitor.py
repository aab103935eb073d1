"""Detects writes of other programs by `nft monitor`.

It prints each new generation of the ruleset with the process that made it, so that our own writes
are recognized.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import deque
from collections.abc import Callable

from ipv6natd.system.process import KILL_TIMEOUT, spawn_monitor

log = logging.getLogger(__name__)

MONITOR_START_TIME = 1.0
"""Seconds until `nft monitor` surely receives events; it does not report when it does."""
MONITOR_RESTART_DELAY = 1.0
BURST_DELAY = 0.1
"""Seconds between a foreign write and the read, so that a burst of writes causes one read."""
_GENERATION = re.compile(rb"# new generation \d+(?: by process (\d+))?")


async def watch(nft: str, own_writes: deque[int], changed: Callable[[], None]) -> None:
    """Call `changed` if another program may have written. Runs until it is cancelled.

    `own_writes` has the processes of our writes; each is removed with its generation.
    """
    while True:
        # RuntimeError: up to Python 3.11 asyncio starts a thread for a process.
        with contextlib.suppress(OSError, RuntimeError):
            await _run_monitor(nft, own_writes, changed)
        changed()
        log.debug("nft monitor ended; it is started again")
        await asyncio.sleep(MONITOR_RESTART_DELAY)


class MonitorOutput:
    """The output of `nft monitor`: the changes of a generation, then its process."""

    def __init__(self, own_writes: deque[int]) -> None:
        self._own_writes = own_writes
        self._partial_line = b""
        self._changes_ipv6 = False

    def has_foreign_write(self, chunk: bytes) -> bool:
        """Read the next bytes; true if they end a foreign generation with IPv6 changes."""
        # A long transaction arrives in many chunks, and a chunk may end within a line.
        *lines, self._partial_line = (self._partial_line + chunk).split(b"\n")
        foreign = False
        for line in lines:
            if generation := _GENERATION.match(line):
                try:
                    self._own_writes.remove(int(generation[1] or 0))
                except ValueError:
                    foreign |= self._changes_ipv6
                self._changes_ipv6 = False
            elif b" ip6 " in line or b" inet " in line:  # Docker writes IPv4 rules often
                self._changes_ipv6 = True
        return foreign


async def _run_monitor(nft: str, own_writes: deque[int], changed: Callable[[], None]) -> None:
    process = await spawn_monitor(nft, "monitor")
    assert process.stdout is not None
    catch_up = asyncio.get_running_loop().call_later(MONITOR_START_TIME, changed)
    try:
        output = MonitorOutput(own_writes)
        while chunk := await process.stdout.read(1 << 16):
            if output.has_foreign_write(chunk):
                await asyncio.sleep(BURST_DELAY)
                changed()
    finally:
        catch_up.cancel()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_TIMEOUT):
                await process.wait()
