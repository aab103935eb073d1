"""`nft monitor` with a host's large sets: what it misses is read from the tables."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ipv6natd.firewall import monitor
from ipv6natd.firewall.restore import RestoreFirewall
from ipv6natd.netfilter.rules import Backend
from ipv6natd.system.process import spawn_monitor, which
from tests.harness.needs import need
from tests.harness.waiting import until


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.subprocess.Process]:
    """The started monitors."""
    found: list[asyncio.subprocess.Process] = []

    async def spawn(*argv: str) -> asyncio.subprocess.Process:
        found.append(await spawn_monitor(*argv))
        return found[-1]

    monkeypatch.setattr(monitor, "spawn_monitor", spawn)
    return found


def big_set(size: int) -> str:
    """An nft script that makes a set of `size` addresses."""
    elements = ",\n".join(f"2001:db8::{n >> 16:x}:{n & 0xFFFF:x}" for n in range(size))
    return f"table inet big {{\nset s {{\ntype ipv6_addr\nelements = {{ {elements} }}\n}}\n}}\n"


def nft(script: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)


def watched(scenario: Callable[[Callable[[], int]], Awaitable[None]]) -> None:
    """Run the scenario beside the monitor; it gets a function that counts the reads."""
    need("nft")

    async def whole() -> None:
        reads = 0

        def changed() -> None:
            nonlocal reads
            reads += 1

        task = asyncio.create_task(monitor.watch(which("nft") or "nft", deque(), changed))
        try:
            await scenario(lambda: reads)
        finally:
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(whole())


async def quiet(reads: Callable[[], int]) -> int:
    """Wait until the tables are not read for three seconds; return the number of reads."""
    before = -1
    while before != reads():
        before = reads()
        await asyncio.sleep(3 * monitor.CATCH_UP_INTERVAL)
    return before


@pytest.mark.slow
def test_lost_events_cause_reads_until_the_monitor_has_caught_up(
    namespace: str, started: list[asyncio.subprocess.Process]
) -> None:
    """Q3."""
    del namespace

    async def scenario(reads: Callable[[], int]) -> None:
        before = await quiet(reads)
        assert before == 1
        (process,) = started
        process.send_signal(signal.SIGSTOP)
        await asyncio.to_thread(nft, big_set(400_000))
        process.send_signal(signal.SIGCONT)
        assert await quiet(reads) - before > 1
        before = reads()
        await asyncio.to_thread(nft, "add table ip6 later")
        assert await quiet(reads) == before + 1

    watched(scenario)


@pytest.mark.slow
def test_a_monitor_that_reads_a_large_set_at_its_start_causes_reads_until_it_is_subscribed(
    namespace: str,
) -> None:
    """Q3."""
    del namespace
    nft(big_set(200_000))

    async def scenario(reads: Callable[[], int]) -> None:
        assert await quiet(reads) > 1
        before = reads()
        await asyncio.to_thread(nft, "add table ip6 later")
        assert await quiet(reads) == before + 1

    watched(scenario)


def test_own_writes_cause_no_reads_where_the_process_numbers_differ(
    namespace: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in a container. The monitor does not know the numbers of these writes."""
    assert namespace
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(monitor, "kernel_sees_our_pids", lambda: False)
    need("ip6tables-nft-restore", "nft")
    firewall = RestoreFirewall(Backend.NFT)

    async def scenario(reads: Callable[[], int]) -> None:
        before = await quiet(reads)
        for rule in ("", "-A IPV6NAT-X -j ACCEPT\n"):
            await asyncio.to_thread(
                firewall.restore, f"*filter\n:IPV6NAT-X - [0:0]\n{rule}COMMIT\n"
            )
        assert await quiet(reads) == before
        await asyncio.to_thread(nft, "add table ip6 later")
        assert await quiet(reads) == before + 1

    watched(scenario)


def test_monitor_that_has_just_ended_is_no_unknown_child(
    namespace: str, started: list[asyncio.subprocess.Process], caplog: pytest.LogCaptureFixture
) -> None:
    """Q22: a signal to the whole process group ends both at once."""
    del namespace

    async def once() -> None:
        started.clear()
        task = asyncio.create_task(monitor.watch(which("nft") or "nft", deque(), lambda: None))
        await until(lambda: started)
        os.kill(started[0].pid, signal.SIGTERM)
        task.cancel()
        await asyncio.wait([task])

    for _ in range(20):
        asyncio.run(once())
    assert [record.getMessage() for record in caplog.records] == []
