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

LOOK_EVERY = 1.0
LISTENS = 1.0
"""Seconds after which `nft monitor` surely hears what is written; it does not say so itself."""
READ_EVERY = 60.0
READ_SELDOM = 600.0
"""Where every write is announced: with 10,000 rules a read takes a quarter of a second."""
READ_OFTEN = 1.5
RESTART_PAUSE = 1.0
QUIET = 0.1
"""Seconds after an announcement before looking: a burst of writes is looked at once."""
_NFT = which("nft")
_GENERATION = re.compile(rb"^# new generation \d+(?: by process (\d+))?.*\n", re.MULTILINE)


@runtime_checkable
class Counted(Protocol):
    """A firewall that can tell cheaply whether its tables changed in size."""

    def changed_since_read(self) -> bool:
        """Whether they have another size than at the last read, by the loop or by anybody."""


@runtime_checkable
class Known(Protocol):
    """A firewall whose own writes can be told from those of others."""

    def wrote(self, process: int) -> bool:
        """Whether this process was a write of ours; asked once for each."""


def read_interval(firewall: Firewall) -> float:
    """Seconds between two complete reads that the loop has to do by itself."""
    if firewall.backend is Backend.NFT:
        return READ_SELDOM if _NFT else READ_OFTEN
    return READ_EVERY


async def watch(firewall: Firewall, changed: Callable[[], None]) -> None:
    """Call `changed` when somebody else may have written. Runs until cancelled."""
    if isinstance(firewall, Counted):
        await _watch_counts(firewall, changed)
    elif _NFT and isinstance(firewall, Known):
        while True:
            # Up to Python 3.11 a process needs a thread as well, which is refused in its own way.
            with contextlib.suppress(OSError, RuntimeError):
                await _monitor(_NFT, firewall, changed)
            changed()
            log.debug("nft monitor ended; starting it again")
            await asyncio.sleep(RESTART_PAUSE)


class Announcements:
    """What `nft monitor` prints: lines of what is new and gone, then who did it."""

    def __init__(self, ours: Callable[[int], bool]) -> None:
        """`ours` tells whether a process was one of ours."""
        self._ours = ours
        self._rest = b""
        self._touched = False

    def concern_us(self, said: bytes) -> bool:
        """Whether somebody else is known now to have written IPv6 rules."""
        text = self._rest + said
        found, start = False, 0
        for end in _GENERATION.finditer(text):
            ours = end[1] is not None and self._ours(int(end[1]))
            found |= not ours and (self._touched or _names_ipv6(text[start : end.start()]))
            self._touched, start = False, end.end()
        # A long transaction comes in many pieces, the last line of each cut somewhere.
        whole = max(start, text.rfind(b"\n") + 1)
        self._touched |= _names_ipv6(text[start:whole])
        self._rest = text[whole:]
        return found


def _names_ipv6(lines: bytes) -> bool:
    # Docker writes IPv4 rules all the time.
    return b" ip6 " in lines or b" inet " in lines


async def _watch_counts(firewall: Counted, changed: Callable[[], None]) -> None:
    while True:
        try:
            if await in_thread(firewall.changed_since_read):
                changed()
        except FirewallError as error:
            log.debug("cannot count rules: %s", error)
        await asyncio.sleep(LOOK_EVERY)


async def _monitor(nft: str, firewall: Known, changed: Callable[[], None]) -> None:
    process = await spawn_monitor(nft, "monitor")
    assert process.stdout is not None
    missed = asyncio.get_running_loop().call_later(LISTENS, changed)
    try:
        heard = Announcements(firewall.wrote)
        while said := await process.stdout.read(1 << 16):
            if heard.concern_us(said):
                await asyncio.sleep(QUIET)
                changed()
    finally:
        missed.cancel()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_TIMEOUT):
                await process.wait()
