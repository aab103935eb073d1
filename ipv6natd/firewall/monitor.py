"""Notices that somebody wrote to the tables, so that the loop looks; decides nothing.

nft: the kernel announces each new generation of its rules and who made it, and `nft monitor` prints
that: idle costs nothing, our own writes are known, and the loop reads everything every ten minutes
only, in case. legacy: the kernel announces nothing, so sizes are compared every second, and the
loop reads everything once a minute for edits that keep the size. Without nft it just reads often.
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
"""Seconds after which `nft monitor` surely hears what is written; it does not say so itself."""
LEGACY_READ_INTERVAL = 60.0
NFT_READ_INTERVAL = 600.0
"""Where every write is announced: with 10,000 rules a read takes a quarter of a second."""
UNMONITORED_READ_INTERVAL = 1.5
MONITOR_RESTART_DELAY = 1.0
BURST_DELAY = 0.1
"""Seconds after an announcement before looking: a burst of writes is looked at once."""
_NFT = which("nft")
_GENERATION = re.compile(rb"^# new generation \d+(?: by process (\d+))?.*\n", re.MULTILINE)


@runtime_checkable
class ReportsSizeChanges(Protocol):
    """A firewall that can tell cheaply whether its tables changed in size."""

    def changed_since_read(self) -> bool:
        """Whether they have another size than at the last read, by the loop or by anybody."""


@runtime_checkable
class RecognizesOwnWrites(Protocol):
    """A firewall whose own writes can be told from those of others."""

    def take_own_write(self, process: int) -> bool:
        """Whether this process was a write of ours; asked once for each."""


def read_interval(firewall: Firewall) -> float:
    """Seconds between two complete reads that the loop has to do by itself."""
    if firewall.backend is Backend.NFT:
        return NFT_READ_INTERVAL if _NFT else UNMONITORED_READ_INTERVAL
    return LEGACY_READ_INTERVAL


async def watch(firewall: Firewall, changed: Callable[[], None]) -> None:
    """Call `changed` when somebody else may have written. Runs until cancelled."""
    if isinstance(firewall, ReportsSizeChanges):
        await _poll_sizes(firewall, changed)
    elif _NFT and isinstance(firewall, RecognizesOwnWrites):
        while True:
            # Up to Python 3.11 a process needs a thread as well, which is refused in its own way.
            with contextlib.suppress(OSError, RuntimeError):
                await _run_monitor(_NFT, firewall, changed)
            changed()
            log.debug("nft monitor ended; starting it again")
            await asyncio.sleep(MONITOR_RESTART_DELAY)


class MonitorOutput:
    """What `nft monitor` prints: lines of what is new and gone, then who did it."""

    def __init__(self, is_own_write: Callable[[int], bool]) -> None:
        """`is_own_write` tells whether a process was one of ours."""
        self._is_own_write = is_own_write
        self._partial_line = b""
        self._changes_ipv6 = False

    def has_foreign_write(self, chunk: bytes) -> bool:
        """Whether somebody else is known now to have written IPv6 rules."""
        text = self._partial_line + chunk
        foreign, start = False, 0
        for generation in _GENERATION.finditer(text):
            own = generation[1] is not None and self._is_own_write(int(generation[1]))
            foreign |= not own and (
                self._changes_ipv6 or _mentions_ipv6(text[start : generation.start()])
            )
            self._changes_ipv6, start = False, generation.end()
        # A long transaction comes in many pieces, the last line of each cut somewhere.
        complete = max(start, text.rfind(b"\n") + 1)
        self._changes_ipv6 |= _mentions_ipv6(text[start:complete])
        self._partial_line = text[complete:]
        return foreign


def _mentions_ipv6(lines: bytes) -> bool:
    # Docker writes IPv4 rules all the time.
    return b" ip6 " in lines or b" inet " in lines


async def _poll_sizes(firewall: ReportsSizeChanges, changed: Callable[[], None]) -> None:
    while True:
        try:
            if await in_thread(firewall.changed_since_read):
                changed()
        except FirewallError as error:
            log.debug("cannot count rules: %s", error)
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
