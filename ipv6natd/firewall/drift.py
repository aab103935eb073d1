"""Notices that somebody wrote to the tables, so that the loop looks; decides nothing.

nft: the kernel announces each new generation of its rules, and `nft monitor` prints it: idle costs
nothing. legacy: the kernel announces nothing, so sizes are compared every second, and the loop
reads everything once a minute for edits that keep the size. Without nft the loop just reads often.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from ipv6natd.background import in_thread
from ipv6natd.firewall import Backend, Firewall, FirewallError
from ipv6natd.tools import find

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
READ_EVERY = 60.0
READ_OFTEN = 1.5
RESTART_PAUSE = 1.0
QUIET = 0.1
"""Seconds after an announcement before looking: a burst of writes is looked at once."""
_NFT = find("nft")


@runtime_checkable
class Counted(Protocol):
    """A firewall that can tell cheaply whether its tables changed in size."""

    def changed_since_read(self) -> bool:
        """Whether they have another size than at the last read, by the loop or by anybody."""


def read_interval(firewall: Firewall) -> float:
    """Seconds between two complete reads that the loop has to do by itself."""
    if firewall.backend is Backend.NFT and not _NFT:
        return READ_OFTEN
    return READ_EVERY


async def watch(firewall: Firewall, changed: Callable[[], None]) -> None:
    """Call `changed` when somebody, we included, may have written. Runs until cancelled."""
    if isinstance(firewall, Counted):
        await _watch_counts(firewall, changed)
    elif _NFT:
        while True:
            with contextlib.suppress(OSError):
                await _monitor(_NFT, changed)
            changed()
            log.debug("nft monitor ended; starting it again")
            await asyncio.sleep(RESTART_PAUSE)


async def _watch_counts(firewall: Counted, changed: Callable[[], None]) -> None:
    while True:
        try:
            if await in_thread(firewall.changed_since_read):
                changed()
        except FirewallError as error:
            log.debug("cannot count rules: %s", error)
        await asyncio.sleep(LOOK_EVERY)


async def _monitor(nft: str, changed: Callable[[], None]) -> None:
    process = await asyncio.create_subprocess_exec(
        nft,
        "monitor",
        env={"LC_ALL": "C"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        while said := await process.stdout.read(1 << 16):
            # Docker writes IPv4 rules all the time. A word cut in two by the end of the read
            # loses nothing: every announcement names its family more than once.
            if b" ip6 " in said or b" inet " in said:
                await asyncio.sleep(QUIET)
                changed()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
