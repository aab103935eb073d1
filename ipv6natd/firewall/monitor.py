"""Detects writes to the tables by other programs, and wakes the reconciler.

nft: `nft monitor` prints each new generation of the ruleset with the process that made it. Our own
writes are recognized, and a full read every ten minutes is enough. legacy: the kernel reports
nothing, so table sizes are compared every second, and a full read every minute finds edits that
keep the size. nft without `nft monitor`: a full read every 1.5 seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from ipv6natd.firewall.backend import Firewall, FirewallError
from ipv6natd.netfilter.rules import Backend
from ipv6natd.system.process import KILL_TIMEOUT, spawn_monitor, which
from ipv6natd.system.threads import in_thread

log = logging.getLogger(__name__)

SIZE_CHECK_INTERVAL = 1.0
MONITOR_START_TIME = 1.0
"""Seconds until `nft monitor` surely receives events; it does not report when it does."""
LEGACY_READ_INTERVAL = 60.0
NFT_READ_INTERVAL = 600.0
"""With `nft monitor`. A read of 10,000 rules takes a quarter of a second."""
UNMONITORED_READ_INTERVAL = 1.5
MONITOR_RESTART_DELAY = 1.0
BURST_DELAY = 0.1
"""Seconds between a foreign write and the read, so that a burst of writes causes one read."""
_NFT = which("nft")
_GENERATION = re.compile(rb"^# new generation \d+(?: by process (\d+))?.*\n", re.MULTILINE)


@runtime_checkable
class ReportsSizeChanges(Protocol):
    """A firewall that can compare the sizes of its tables at low cost."""

    def changed_since_read(self) -> bool:
        """True if a table has another size than at the last read."""


@runtime_checkable
class RecognizesOwnWrites(Protocol):
    """A firewall that knows the processes of its own writes."""

    def take_own_write(self, process: int) -> bool:
        """True once for each process of a write of ours."""


def read_interval(firewall: Firewall) -> float:
    """Seconds between two full reads by the reconciler."""
    if firewall.backend is Backend.NFT:
        return NFT_READ_INTERVAL if _NFT else UNMONITORED_READ_INTERVAL
    return LEGACY_READ_INTERVAL


async def watch(firewall: Firewall, changed: Callable[[], None]) -> None:
    """Call `changed` if another program may have written. Runs until it is cancelled."""
    if isinstance(firewall, ReportsSizeChanges):
        await _poll_sizes(firewall, changed)
    elif _NFT and isinstance(firewall, RecognizesOwnWrites):
        while True:
            # RuntimeError: up to Python 3.11 asyncio starts a thread for a process.
            with contextlib.suppress(OSError, RuntimeError):
                await _run_monitor(_NFT, firewall, changed)
            changed()
            log.debug("nft monitor ended; it is started again")
            await asyncio.sleep(MONITOR_RESTART_DELAY)


class MonitorOutput:
    """The output of `nft monitor`: the changes of a generation, then its process."""

    def __init__(self, is_own_write: Callable[[int], bool]) -> None:
        """`is_own_write` is true for the process of a write of ours."""
        self._is_own_write = is_own_write
        self._partial_line = b""
        self._changes_ipv6 = False

    def has_foreign_write(self, chunk: bytes) -> bool:
        """Read the next bytes; true if they end a foreign generation with IPv6 changes."""
        text = self._partial_line + chunk
        foreign, start = False, 0
        for generation in _GENERATION.finditer(text):
            own = generation[1] is not None and self._is_own_write(int(generation[1]))
            foreign |= not own and (
                self._changes_ipv6 or _mentions_ipv6(text[start : generation.start()])
            )
            self._changes_ipv6, start = False, generation.end()
        # A long transaction arrives in many chunks, and a chunk may end within a line.
        complete = max(start, text.rfind(b"\n") + 1)
        self._changes_ipv6 |= _mentions_ipv6(text[start:complete])
        self._partial_line = text[complete:]
        return foreign


def _mentions_ipv6(lines: bytes) -> bool:
    # Docker writes IPv4 rules often.
    return b" ip6 " in lines or b" inet " in lines


async def _poll_sizes(firewall: ReportsSizeChanges, changed: Callable[[], None]) -> None:
    while True:
        try:
            if await in_thread(firewall.changed_since_read):
                changed()
        except FirewallError as error:
            log.debug("cannot read table sizes: %s", error)
        await asyncio.sleep(SIZE_CHECK_INTERVAL)


async def _run_monitor(
    nft: str, firewall: RecognizesOwnWrites, changed: Callable[[], None]
) -> None:
    process = await spawn_monitor(nft, "monitor")
    assert process.stdout is not None
    catch_up = asyncio.get_running_loop().call_later(MONITOR_START_TIME, changed)
    try:
        output = MonitorOutput(firewall.take_own_write)
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
