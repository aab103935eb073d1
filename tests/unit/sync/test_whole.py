"""Watcher and reconciler against a fake engine: the number of requests and writes."""

from __future__ import annotations

import asyncio
from ipaddress import IPv6Network
from pathlib import Path
from typing import Any

import pytest

from ipv6natd.engine import watcher as docker_watch
from ipv6natd.engine.client import EngineAddress
from ipv6natd.engine.watcher import EngineWatcher
from ipv6natd.model import Policy
from ipv6natd.sync.applier import Applier
from ipv6natd.sync.reconciler import Reconciler
from tests.harness.build import identity
from tests.harness.fake_engine import FakeEngine, event, raw_container, raw_network
from tests.harness.fake_firewall import FakeFirewall
from tests.harness.fake_host import FakeHost, FakeObserver
from tests.harness.waiting import background, until

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*distutils:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*unclosed <socket:pytest.PytestUnraisableExceptionWarning"),
]

SUBNET = IPv6Network("fd00:a::/64")
PORTS = 4
LISTS = ["/containers/json", "/networks"]


def crowd(number: int) -> dict[str, Any]:
    """One of many containers, with PORTS published ports that are not adjacent."""
    raw = raw_container(f"c{number}", address=str(SUBNET[number + 2]))
    raw["NetworkSettings"]["Ports"] = {
        f"{80 + port}/tcp": [
            {"HostIp": where, "HostPort": str(10000 + number * 2 * PORTS + 2 * port)}
            for where in ("0.0.0.0", "::")
        ]
        for port in range(PORTS)
    }
    return raw


@pytest.mark.parametrize(
    ("version", "containers", "inspects"), [("28.5.1", 500, 0), ("20.10.24", 50, 50)]
)
def test_k7_many_containers_are_read_once_and_written_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    containers: int,
    inspects: int,
) -> None:
    """The lists of engines before 28 are incomplete, so each container is inspected."""
    monkeypatch.setattr(docker_watch, "stopped_unit", lambda _: "")
    engine = FakeEngine(tmp_path / "engine.sock", version=version)
    engine.have(raw_network("x"), *map(crowd, range(containers)))
    engine.start()
    firewall = FakeFirewall()

    def request_count(prefix: str) -> int:
        return len([path for path in engine.asked if path.startswith(prefix)])

    async def scenario() -> None:
        loop: Reconciler
        watch = EngineWatcher(
            EngineAddress(endpoint=engine.endpoint), lambda: loop.trigger(), resync_interval=3600
        )
        loop = Reconciler(
            engine=watch,
            applier=Applier(lambda: firewall, FakeHost()),
            observer=FakeObserver(),
            policy=Policy(),
        )
        async with background(watch.run(retry=True)), background(loop.run()):
            await until(lambda: len(loop.status.mappings) == PORTS * containers)
            await until(lambda: request_count("/containers/") == inspects + 1)
            assert [engine.asked_for(path) for path in LISTS] == [1, 1]
            # Each table once, however much is in it.
            assert firewall.writes == 3
            before = len(engine.asked), firewall.reads, firewall.writes
            await asyncio.sleep(0.1)
            assert (len(engine.asked), firewall.reads, firewall.writes) == before

            removed = identity("c7")
            del engine.containers[removed]
            engine.emit(event("container", "die", "c7"))
            await until(lambda: len(loop.status.mappings) == PORTS * (containers - 1))
            await until(lambda: engine.asked[before[0] :] == [f"/containers/{removed}/json"])
            assert firewall.writes == before[2] + 1

    try:
        asyncio.run(scenario())
    finally:
        engine.stop()
