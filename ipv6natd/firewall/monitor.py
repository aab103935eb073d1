"""Detects writes of other programs by `nft monitor`.

It prints each new generation of the ruleset with the number and the name of the process that made
it, so that our own writes are recognized.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from ipv6natd.system import files
from ipv6natd.system.files import read_link, read_rows
from ipv6natd.system.process import KILL_TIMEOUT, kernel_sees_our_pids, spawn_monitor

log = logging.getLogger(__name__)

CATCH_UP_INTERVAL = 1.0
"""Seconds between two reads of the tables while `nft monitor` misses events."""
MONITOR_RESTART_DELAY = 1.0
BURST_DELAY = 0.1
"""Seconds between a foreign write and the read, so that a burst of writes causes one read."""
_GENERATION = re.compile(rb"# new generation \d+(?: by process (\d+) \((.*)\))?")
WRITER = "ipv6natd-writer"
"""The name by which our writes are recognized in a pid namespace of its own. Not longer than a name
of a process."""
_LOST_EVENTS = b"# ERROR"
"""The line for events that the kernel dropped because `nft monitor` was too slow for them."""
_NETLINK_SOCKETS = Path("/proc/thread-self/net/netlink")
_NETLINK_NETFILTER = "12"
_SOCKET_LINK = re.compile(r"socket:\[(\d+)\]")


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


def writer(tool: str) -> str | None:
    """A link to the tool that gives its process the name WRITER; None if the process number is
    enough, or if no link can be made: then each of our writes causes a read."""
    if kernel_sees_our_pids():
        return None
    folder = os.environ.get("RUNTIME_DIRECTORY", "/run/ipv6natd")
    link = Path(folder, "writers", Path(tool).name, WRITER)
    try:
        files.link(link, tool)
    except OSError as error:
        log.debug("each write of ours causes a read of the tables: %s", error)
        return None
    return str(link)


class MonitorOutput:
    """The output of `nft monitor`: the changes of a generation, then its process."""

    def __init__(self, own_writes: deque[int]) -> None:
        self._own_writes = own_writes
        self._partial_line = b""
        self._changes_ipv6 = False
        self.lost_events = False
        """True if the last chunk says that events are lost."""

    def has_foreign_write(self, chunk: bytes) -> bool:
        """Read the next bytes; true if they end a foreign generation with IPv6 changes.

        A lost event may be one.
        """
        # A long transaction arrives in many chunks, and a chunk may end within a line.
        *lines, self._partial_line = (self._partial_line + chunk).split(b"\n")
        self.lost_events = any(line.startswith(_LOST_EVENTS) for line in lines)
        foreign = self.lost_events
        for line in lines:
            if generation := _GENERATION.match(line):
                if generation[2] != WRITER.encode():
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
    catch_up = asyncio.create_task(_catch_up(process.pid, changed))
    try:
        output = MonitorOutput(own_writes)
        while chunk := await process.stdout.read(1 << 16):
            if output.has_foreign_write(chunk):
                if output.lost_events and catch_up.done():
                    catch_up = asyncio.create_task(_catch_up(process.pid, changed))
                await asyncio.sleep(BURST_DELAY)
                changed()
    finally:
        catch_up.cancel()
        if process.returncode is None:
            # Not process.kill(): it reaps a process that has just ended, and asyncio then warns of
            # an unknown child process.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_TIMEOUT):
                await process.wait()


async def _catch_up(pid: int, changed: Callable[[], None]) -> None:
    """Call `changed` regularly while the process misses events, and once more then.

    Before it subscribes, `nft monitor` reads all sets of the host: 20 s for 600,000 elements. After
    a loss, the kernel drops events silently until the process has received all that wait for it.
    """
    receives_all = False
    while not receives_all:
        await asyncio.sleep(CATCH_UP_INTERVAL)
        receives_all = _receives_all_events(pid)
        changed()


def _receives_all_events(pid: int) -> bool:
    """True if the process is subscribed to netfilter events, and none waits for it. Also if its
    sockets cannot be read."""
    try:
        links = [read_link(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return True
    sockets = {found[1] for link in links if (found := _SOCKET_LINK.fullmatch(link))}
    # sk, protocol, pid, groups, bytes in the queue, …, inode
    rows = islice(read_rows(_NETLINK_SOCKETS), 1, None)
    queues = [
        int(queued)
        for _, protocol, _, groups, queued, *_, inode in rows
        if protocol == _NETLINK_NETFILTER and int(groups, 16) and inode in sockets
    ]
    return bool(queues) and not any(queues)
