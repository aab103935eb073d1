"""The costs of a large engine in API calls, transactions and leaked bytes, not in seconds.

The engine is simulated, with responses in the recorded form of a real engine; the rules are real.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.engine import Simulated
from tests.harness import Daemon, Sandbox
from tests.harness.needs import need
from tests.harness.process import end, spawn

CONTAINERS = 300
SIMULTANEOUS_STARTS = 200
KILOBYTES = 1024
CHURN = 1000
"""Containers that start and are removed; `make bench` sends ten times as many events."""


@dataclass(frozen=True)
class Scale:
    """A daemon beside an engine with many containers."""

    sandbox: Sandbox
    engine: Simulated
    daemon: Daemon

    def shows(self, mappings: int) -> None:
        """Wait until this number of mappings is in force."""
        self.daemon.wait_for(
            lambda: f": {mappings} mappings" in self.daemon.status, f"{mappings} mappings", 60
        )

    @property
    def rss(self) -> int:
        """Bytes resident."""
        assert self.daemon.process is not None
        text = Path(f"/proc/{self.daemon.process.pid}/smaps_rollup").read_text()
        found = re.search(r"^Rss: +([0-9]+) kB", text, re.MULTILINE)
        assert found is not None
        return int(found[1]) * KILOBYTES


@pytest.fixture
def scale() -> Iterator[Scale]:
    need("ip", "nft", "ip6tables-nft-restore")
    with Sandbox("nft") as sandbox:
        engine = Simulated(sandbox.dir / "engine.sock")
        engine.fill(CONTAINERS)
        engine.start()
        try:
            with Daemon(sandbox, engine.endpoint, args=()) as daemon:
                found = Scale(sandbox, engine, daemon)
                found.shows(CONTAINERS)
                yield found
        finally:
            engine.stop()


@contextmanager
def count_writers(scale: Scale) -> Iterator[Counter[str]]:
    """The number of nf_tables transactions of each program, from the kernel's messages."""
    path, host = scale.sandbox.dir / "monitor", scale.sandbox.host
    writers: Counter[str] = Counter()
    with path.open("wb") as out:
        monitor = spawn(["nsenter", f"--net={host.path}", "nft", "monitor"], log=out)

    def announced(table: str) -> bool:
        # The monitor misses messages from before its subscription.
        host.run("nft", f"add table ip {table}; delete table ip {table}")
        return f"add table ip {table}" in path.read_text()

    try:
        scale.daemon.wait_for(lambda: announced("beginning"), "nft monitor listens", 60)
        yield writers
        scale.daemon.wait_for(lambda: announced("ending"), "nft monitor has told all", 60)
    finally:
        end(monitor)
    said = path.read_text()
    writers.update(re.findall(r"^# new generation \d+ by process \d+ \((.*)\)$", said, re.M))


def test_200_simultaneous_starts_take_few_transactions(scale: Scale) -> None:
    """As `docker compose up` does: one inspect per container, no list, no read of the tables."""
    before = len(scale.engine.asked)
    with count_writers(scale) as writers:
        for number in range(SIMULTANEOUS_STARTS):
            scale.engine.add(30_000 + 5 * number)
        scale.shows(CONTAINERS + SIMULTANEOUS_STARTS)
    asked = Counter(scale.engine.asked[before:])
    assert set(asked.values()) == {1}
    assert len(asked) == SIMULTANEOUS_STARTS
    assert all(re.fullmatch(r"/containers/[0-9a-f]{64}/json", path) for path in asked)
    written = sum(count for name, count in writers.items() if name.startswith("ip6tables"))
    assert 1 <= written <= SIMULTANEOUS_STARTS // 5


@pytest.mark.slow
def test_started_and_removed_containers_leak_no_memory(scale: Scale) -> None:
    """The facts and rules of a container take about 4 kB, so a leak would take 4 MB."""

    def churned(count: int) -> None:
        for _ in range(count // 50):
            some = [scale.engine.add(30_000 + 5 * number) for number in range(50)]
            scale.shows(CONTAINERS + len(some))
            for each in some:
                scale.engine.remove(each)
            scale.shows(CONTAINERS)

    churned(CHURN // 4)
    before = scale.rss
    churned(CHURN)
    assert scale.rss - before < 2 * KILOBYTES * CHURN
