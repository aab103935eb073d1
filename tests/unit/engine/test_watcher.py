"""The watcher with the fake engine."""

from __future__ import annotations

import asyncio
import errno
import gc
import gzip
import json
import os
import socket
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from ipv6natd.engine import client as engine_client
from ipv6natd.engine import inspects, stream
from ipv6natd.engine import watcher as docker_watch
from ipv6natd.engine.client import (
    EngineAddress,
    EngineUnavailable,
    InspectFailed,
    connect,
    inspect,
)
from ipv6natd.engine.inspects import MAX_POLLS
from ipv6natd.engine.watcher import EngineWatcher
from ipv6natd.model import Container, EngineState
from tests.harness.build import identity
from tests.harness.fake_engine import (
    CUT,
    END,
    Answer,
    FakeEngine,
    event,
    raw_container,
    raw_network,
    row,
)
from tests.harness.waiting import background, until

# The library compares versions with distutils, and does not close its sockets.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*distutils:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*unclosed <socket:pytest.PytestUnraisableExceptionWarning"),
]

X = raw_network("x")
SUBNET = IPv6Network("fd00:a::/64")
WEB = raw_container("web")
INSPECT_WEB = f"/containers/{identity('web')}/json"
LISTS = ("/containers/json", "/networks")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    fake = FakeEngine(tmp_path / "engine.sock")
    fake.have(X, WEB)
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """Collect the threads and sockets of the library at the end of this file."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_watch, "stopped_unit", lambda _: "")
    monkeypatch.setattr(docker_watch, "MIN_RETRY_DELAY", 0.01)
    monkeypatch.setattr(docker_watch, "MAX_RETRY_DELAY", 0.05)
    monkeypatch.setattr(docker_watch, "INSPECT_RETRY_DELAY", 0.02)


@dataclass
class Watched:
    """A watcher, and the number of times that it woke the loop."""

    engine: FakeEngine
    resync_interval: float = 3600
    wakes: int = 0
    watch: EngineWatcher = field(init=False)

    def start(self) -> None:
        self.watch = EngineWatcher(
            EngineAddress(endpoint=self.engine.endpoint),
            self._wake,
            resync_interval=self.resync_interval,
        )

    def _wake(self) -> None:
        self.wakes += 1

    def container(self, name: str) -> Container | None:
        return self.watch.containers.get(identity(name))

    def address(self, name: str) -> IPv6Address | None:
        container = self.container(name)
        return container.endpoints[0].address if container else None

    async def connected(self) -> None:
        await until(lambda: self.watch.state is EngineState.CONNECTED)

    async def emit(self, kind: str, action: str, name: str, **attributes: str) -> None:
        self.engine.emit(event(kind, action, name, **attributes))


@asynccontextmanager
async def following(watched: Watched) -> AsyncIterator[Watched]:
    watched.start()
    async with background(watched.watch.run(retry=True)):
        yield watched


Scenario = Callable[[Watched], Awaitable[None]]


def run(engine: FakeEngine, scenario: Scenario, *, resync_interval: float = 3600) -> None:
    async def whole() -> None:
        async with following(Watched(engine, resync_interval)) as watched:
            await scenario(watched)

    asyncio.run(whole())


# The first lists.


def test_security_warning_is_logged_once_and_not_at_every_connect(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setattr(docker_watch, "security_warnings", lambda *_, **__: ("a doubt",))

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.send(None)
        await until(lambda: caplog.text.count("a doubt") == 2)

    run(engine, scenario)
    levels = [record.levelname for record in caplog.records if record.message == "a doubt"]
    assert levels == ["WARNING", "DEBUG"]


def test_start_reads_all_objects_with_one_list_call_each(engine: FakeEngine) -> None:
    engine.have(X, *(raw_container(f"c{i}", port=8000 + i) for i in range(50)))

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        assert watched.watch.state.has_facts
        assert watched.watch.waiting_for == ""
        assert len(watched.watch.containers) == 50
        assert set(watched.watch.networks) == {identity("x")}
        assert [engine.asked_for(path) for path in LISTS] == [1, 1]
        assert not [path for path in engine.asked if path.startswith("/containers/c")]
        assert watched.wakes >= 1

    run(engine, scenario)


def test_t10_watcher_subscribes_before_it_lists(engine: FakeEngine) -> None:
    """T10: events report every change after the list."""

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        assert engine.asked.index("/events") < min(map(engine.asked.index, LISTS))

    run(engine, scenario)


def test_t10_event_just_before_the_subscription_causes_an_inspect(engine: FakeEngine) -> None:
    """The engine sends the head of its answer before it subscribes the client."""
    now = time.time_ns()
    engine.past = [
        event("container", "start", "old") | {"timeNano": now - 60 * 10**9},
        event("container", "start", "web") | {"timeNano": now + 60 * 10**9},
    ]

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        await until(lambda: engine.asked_for(INSPECT_WEB))
        asked = len(engine.asked)
        await watched.emit("container", "start", "late")
        await until(lambda: len(engine.asked) > asked)
        inspects = [path for path in engine.asked if path.startswith("/containers/")]
        late = f"/containers/{identity('late')}/json"
        assert inspects == ["/containers/json", INSPECT_WEB, late]

    run(engine, scenario)


def test_t1_watcher_is_not_listed_before_the_first_list(engine: FakeEngine) -> None:
    gate = threading.Event()

    def delayed() -> Answer:
        assert gate.wait(5)
        del engine.say["/networks"]
        return 200, b"[]"

    engine.say["/networks"] = delayed

    async def scenario(watched: Watched) -> None:
        await until(lambda: engine.asked_for("/networks"))
        assert watched.watch.state is EngineState.STARTING
        gate.set()
        await watched.connected()

    run(engine, scenario)


@pytest.mark.parametrize(("version", "inspects"), [("20.10.24", 1), ("27.5.1", 1), ("28.0.0", 0)])
def test_p11_container_is_inspected_if_the_list_lacks_facts(
    engine: FakeEngine, version: str, inspects: int
) -> None:
    """Engines before 28 list an address also if a sysctl disables IPv6."""
    engine.version = version
    off = raw_container("web")
    off["HostConfig"]["Sysctls"] = {"net.ipv6.conf.all.disable_ipv6": "1"}
    engine.have(X, off)

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        await until(lambda: (watched.address("web") is None) == bool(inspects))
        assert engine.asked_for(INSPECT_WEB) == inspects
        # And not again while the list has no new facts.
        await watched.watch.relist()
        await asyncio.sleep(0.03)
        assert engine.asked_for(INSPECT_WEB) == inspects
        assert (watched.address("web") is None) == bool(inspects)

    run(engine, scenario)


# API versions.


@pytest.mark.parametrize(
    ("version", "api", "least"),
    [("20.10.24", "1.41", "1.12"), ("28.5.1", "1.51", "1.24"), ("29.0.0", "1.52", "1.44")],
)
def test_t14_connect_uses_the_api_version_of_the_engine(
    engine: FakeEngine, version: str, api: str, least: str
) -> None:
    """29 rejects versions below 1.44, and 20.10 has at most 1.41."""
    engine.version, engine.api, engine.least_api = version, api, least

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        assert watched.watch.engine is not None
        assert watched.watch.engine.version == version
        assert engine.versions == {"", api}

    run(engine, scenario)


# Events.


def test_p6_event_causes_one_inspect_of_its_container(engine: FakeEngine) -> None:
    """The address changes with the restart."""

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(X, raw_container("web", address="fd00:a::9"))
        await watched.emit("container", "start", "web")
        await until(lambda: watched.address("web") == IPv6Address("fd00:a::9"))
        assert engine.asked_for(INSPECT_WEB) == 1
        assert [engine.asked_for(path) for path in LISTS] == [1, 1]

    run(engine, scenario)


def test_event_of_an_old_api_version_causes_an_inspect(engine: FakeEngine) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        old = event("container", "start", "web") | {"status": "start", "id": identity("web")}
        engine.emit(old)
        await until(lambda: engine.asked_for(INSPECT_WEB) == 1)

    run(engine, scenario)


def test_m3_connect_event_causes_inspects_of_container_and_network(engine: FakeEngine) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        await watched.emit("network", "connect", "x", container=identity("web"))
        await until(lambda: engine.asked_for(INSPECT_WEB))
        await until(lambda: engine.asked_for(f"/networks/{identity('x')}"))

    run(engine, scenario)


def test_create_event_of_a_network_causes_its_inspect(engine: FakeEngine) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(X, WEB, raw_network("y", "fd00:b::/64"))
        await watched.emit("network", "create", "y")
        await until(lambda: identity("y") in watched.watch.networks)

    run(engine, scenario)


def test_event_of_another_type_causes_no_inspect(engine: FakeEngine) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        before = len(engine.asked)
        await watched.emit("image", "pull", "lab")
        await watched.emit("container", "exec_start", "web")
        await watched.emit("container", "start", "late")
        await until(lambda: len(engine.asked) > before)
        assert engine.asked[before:] == [f"/containers/{identity('late')}/json"]

    run(engine, scenario)


@pytest.mark.parametrize("action", ["die", "destroy"])
def test_p9_t11_container_that_the_engine_does_not_have_is_removed(
    engine: FakeEngine, action: str
) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(X)
        await watched.emit("container", action, "web")
        await until(lambda: watched.container("web") is None)

    run(engine, scenario)


def test_p9_stopped_container_is_removed(engine: FakeEngine) -> None:
    """A stopped container can still be inspected."""

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(X, raw_container("web", State={"Running": False}))
        await watched.emit("container", "die", "web")
        await until(lambda: watched.container("web") is None)

    run(engine, scenario)


def test_t12_removed_network_is_removed(engine: FakeEngine) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(WEB)
        await watched.emit("network", "remove", "x")
        await until(lambda: watched.watch.networks == {})

    run(engine, scenario)


def test_w1_unknown_network_of_a_container_is_inspected(engine: FakeEngine) -> None:
    """Docker creates docker_gwbridge without an event."""

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        gateway = raw_network("docker_gwbridge", "fd00:e::/64")
        engine.have(X, raw_container("web", on="docker_gwbridge"), gateway)
        await watched.emit("container", "start", "web")
        await until(lambda: gateway["Id"] in watched.watch.networks)

    run(engine, scenario)


def test_burst_of_events_never_inspects_one_container_twice_at_a_time(engine: FakeEngine) -> None:
    inspect = threading.Semaphore(0)
    fresh = raw_container("web", address="fd00:a::9")

    def slow() -> Answer:
        assert inspect.acquire(timeout=5)
        return engine.say_json(fresh)

    engine.say[INSPECT_WEB] = slow

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        await watched.emit("container", "start", "web")
        await until(lambda: engine.asked_for(INSPECT_WEB) == 1)
        for _ in range(100):
            await watched.emit("container", "start", "web")
        await asyncio.sleep(0.1)
        assert engine.asked_for(INSPECT_WEB) == 1
        inspect.release()
        # One more inspect for all later events: the first response may be older than they are.
        await until(lambda: engine.asked_for(INSPECT_WEB) == 2)
        inspect.release(9)
        await until(lambda: watched.address("web") == IPv6Address("fd00:a::9"))
        await asyncio.sleep(0.1)
        # A third inspect if the last events arrived late on a slow machine.
        assert engine.asked_for(INSPECT_WEB) <= 3
        assert engine.at_once[INSPECT_WEB] == 1

    run(engine, scenario)


def test_p8_slow_inspect_does_not_delay_other_containers(engine: FakeEngine) -> None:
    gate = threading.Event()

    def slow() -> Answer:
        assert gate.wait(5)
        return engine.say_json(WEB)

    engine.say[INSPECT_WEB] = slow

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(X, WEB, raw_container("other", port=9090, address="fd00:a::3"))
        await watched.emit("container", "start", "web")
        await until(lambda: engine.asked_for(INSPECT_WEB))
        await watched.emit("container", "start", "other")
        await until(lambda: watched.container("other"))
        gate.set()

    run(engine, scenario)


def test_number_of_parallel_inspects_is_limited(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q10: of all, and of those that began lately. An inspect that hangs holds nothing up."""
    monkeypatch.setattr(docker_watch, "MAX_PARALLEL_INSPECTS", 3)
    monkeypatch.setattr(docker_watch, "SLOW_INSPECT", 0.2)
    monkeypatch.setattr(docker_watch, "MAX_INSPECTS", 8)
    gate, names = threading.Event(), [f"c{i}" for i in range(10)]
    paths = {f"/containers/{identity(name)}/json": raw_container(name) for name in names}

    def slow(raw: dict[str, object]) -> Callable[[], Answer]:
        def answer() -> Answer:
            assert gate.wait(5)
            return engine.say_json(raw)

        return answer

    engine.say |= {path: slow(raw) for path, raw in paths.items()}

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.emit(*(event("container", "start", name) for name in names))
        await until(lambda: sum(map(engine.asked_for, paths)) == 3)
        await asyncio.sleep(0.03)
        assert sum(map(engine.asked_for, paths)) == 3
        await until(lambda: sum(map(engine.asked_for, paths)) == 6)
        await until(lambda: sum(map(engine.asked_for, paths)) == 8)
        await asyncio.sleep(0.25)
        assert sum(map(engine.asked_for, paths)) == 8
        gate.set()
        await until(lambda: len(watched.watch.containers) == 11)

    run(engine, scenario)


def test_many_starts_at_once_need_a_handful_of_inspects_of_their_network(
    engine: FakeEngine,
) -> None:
    """Each container's inspect waits for its start, and none of them delays another's port."""
    gate, names = threading.Event(), [f"c{i}" for i in range(200)]
    created: set[str] = set()
    addresses: dict[str, dict[str, str]] = {}

    def asked(raw: dict[str, Any]) -> Callable[[], Answer]:
        def answer() -> Answer:
            if raw["Id"] in created:
                assert gate.wait(10)
                return engine.say_json(raw)
            created.add(raw["Id"])
            settings: dict[str, object] = {"Ports": {}, "Networks": {"x": {}}}
            return engine.say_json(raw | {"State": {"Running": False}, "NetworkSettings": settings})

        return answer

    for number, name in enumerate(names):
        addresses[identity(name)] = {"IPv6Address": f"{SUBNET[number + 16]}/64"}
        raw = raw_container(name, port=9000 + number, address=str(SUBNET[number + 16]))
        engine.say[f"/containers/{identity(name)}/json"] = asked(raw)
    network = f"/networks/{identity('x')}"
    engine.say[network] = lambda: engine.say_json(X | {"Containers": addresses})

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.emit(*(event("container", "create", name) for name in names))
        await until(lambda: len(created) == len(names))
        engine.emit(*(event("network", "connect", "x", container=identity(name)) for name in names))
        await until(lambda: all(watched.container(name) for name in names))
        assert all(watched.watch.containers[identity(name)].starting for name in names)
        assert engine.asked_for(network) < 6
        gate.set()
        await until(lambda: not any(it.starting for it in watched.watch.containers.values()))
        assert [str(watched.address(name)) for name in names] == [
            str(SUBNET[number + 16]) for number in range(len(names))
        ]

    run(engine, scenario)


@pytest.fixture
def free_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspects, "ports_in_use", frozenset)


@pytest.mark.usefixtures("free_ports")
def test_network_is_asked_when_a_port_is_added_to_its_bridge(engine: FakeEngine) -> None:
    """Before any event, until it shows the container, and only if a start is possible."""
    network, containers = f"/networks/{identity('x')}", dict[str, dict[str, str]]()
    engine.say[network] = lambda: engine.say_json(X | {"Containers": containers})
    gate = threading.Event()
    settings: dict[str, object] = {"Ports": {}, "Networks": {"x": {}}}
    new = raw_container("new", port=9000)
    inspect_new = f"/containers/{identity('new')}/json"
    created = new | {"State": {"Running": False}, "NetworkSettings": settings}

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        (bridge,) = {found.bridge for found in watched.watch.networks.values()}
        watched.watch.port_added(bridge)
        await asyncio.sleep(0.1)
        assert engine.asked_for(network) == 0
        engine.say[inspect_new] = lambda: engine.say_json(created)
        await watched.emit("container", "create", "new")
        await until(lambda: engine.asked_for(inspect_new))
        await until(lambda: watched.watch._facts.expects_start(identity("x")))
        watched.watch.port_added("another")
        watched.watch.port_added(bridge)
        await until(lambda: engine.asked_for(network) == MAX_POLLS)
        await asyncio.sleep(0.1)
        assert engine.asked_for(network) == MAX_POLLS
        engine.say[inspect_new] = lambda: engine.say_json(new) if gate.wait(10) else (500, b"")
        containers["ep-1"] = {"Name": "new", "IPv6Address": "fd00:a::9/64"}
        watched.watch.port_added(bridge)
        await until(lambda: watched.container("new"))
        found = watched.container("new")
        assert found is not None
        assert found.starting
        await asyncio.sleep(0.1)
        assert engine.asked_for(network) == MAX_POLLS + 1
        gate.set()
        await until(lambda: not watched.watch.containers[identity("new")].starting)

    run(engine, scenario)


@pytest.mark.parametrize(
    "bad",
    [
        (500, b'{"message": "driver failed"}'),
        (500, b""),
        (200, b"<html>"),
        (200, b""),
        (200, b"[" * 100_000),
        (409, b"\xff\xfe"),
    ],
)
def test_failed_inspect_is_repeated(engine: FakeEngine, bad: Answer) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(X, raw_container("web", address="fd00:a::9"))
        engine.say[INSPECT_WEB] = bad
        await watched.emit("container", "start", "web")
        await until(lambda: engine.asked_for(INSPECT_WEB) >= 2)
        # The known facts stay until an inspect succeeds.
        assert watched.address("web") == IPv6Address("fd00:a::2")
        assert watched.watch.state is EngineState.CONNECTED
        del engine.say[INSPECT_WEB]
        await until(lambda: watched.address("web") == IPv6Address("fd00:a::9"))

    run(engine, scenario)


@pytest.mark.parametrize("answer", [b"[]", b"5", b"null", b'{"Id": 5}', b'"x"'])
def test_inspect_with_other_json_removes_the_container(engine: FakeEngine, answer: bytes) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.say[INSPECT_WEB] = (200, answer)
        await watched.emit("container", "start", "web")
        await until(lambda: watched.container("web") is None)
        assert watched.watch.state is EngineState.CONNECTED

    run(engine, scenario)


def test_invalid_rows_of_a_list_are_skipped(engine: FakeEngine) -> None:
    good = engine.answer("", "/containers/json")[1]
    engine.say["/containers/json"] = (200, b'[5, null, {"Id": []}, ' + good[1:])

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        assert set(watched.watch.containers) == {identity("web")}

    run(engine, scenario)


# The stream breaks.


@pytest.mark.parametrize(
    "last",
    [
        pytest.param([END], id="ended"),
        pytest.param([CUT], id="cut"),
        pytest.param([b'{"Type": "contai', CUT], id="cut within an event"),
        pytest.param([b'{"Type": "contai', END], id="ended within an event"),
        pytest.param([b"no json\n", END], id="no JSON"),
        pytest.param([b"\xff\xfe\n", END], id="no UTF-8"),
    ],
)
def test_t10_broken_stream_is_followed_by_a_new_one_and_a_list(
    engine: FakeEngine, last: list[bytes | None]
) -> None:
    """The list has the changes in between."""

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(X, raw_container("web", address="fd00:a::9"))
        for data in last:
            engine.send(data)
        await until(lambda: watched.address("web") == IPv6Address("fd00:a::9"))
        assert [engine.asked_for(path) for path in LISTS] == [2, 2]
        await until(lambda: engine.listeners == 1)

    run(engine, scenario)


def test_event_in_pieces_is_one_event(engine: FakeEngine) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        whole = b'{"Type":"container","Action":"start","Actor":{"ID":"%b"}}\n'
        for byte in whole % identity("web").encode():
            engine.send(bytes([byte]))
        await until(lambda: engine.asked_for(INSPECT_WEB) == 1)

    run(engine, scenario)


def test_event_with_other_json_is_ignored(engine: FakeEngine) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        odd = b'{"Type":"container","Action":["start"],"Actor":5}\n{"Type":{}}\n{}\n'
        engine.send(odd)
        await watched.emit("container", "start", "web")
        await until(lambda: engine.asked_for(INSPECT_WEB) == 1)

    run(engine, scenario)


# The engine stops and starts.


def test_t1_watcher_without_an_engine_gives_the_reason(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path / "engine.sock")

    async def scenario(watched: Watched) -> None:
        await until(lambda: watched.wakes)
        assert watched.watch.waiting_for.startswith(f"cannot reach {engine.endpoint}: ")
        assert "\n" not in watched.watch.waiting_for
        assert watched.watch.state is EngineState.UNREACHABLE
        # Once: further attempts have the same reason.
        await asyncio.sleep(0.05)
        assert watched.wakes == 1
        engine.have(X, WEB)
        engine.start()
        await watched.connected()

    try:
        run(engine, scenario)
    finally:
        engine.stop()


def test_t9_t5_facts_stay_while_the_engine_is_away(engine: FakeEngine) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.stop()
        await until(lambda: watched.watch.state is EngineState.LOST)
        assert watched.watch.waiting_for
        assert watched.address("web") == IPv6Address("fd00:a::2")
        assert watched.watch.state.has_facts
        engine.have(X, raw_container("web", address="fd00:a::9"))
        engine.start()
        await until(lambda: watched.address("web") == IPv6Address("fd00:a::9"))
        await watched.connected()

    run(engine, scenario)


def test_run_without_retry_raises_if_the_engine_is_missing(tmp_path: Path) -> None:
    async def whole() -> None:
        watched = Watched(FakeEngine(tmp_path / "engine.sock"))
        watched.start()
        with pytest.raises(EngineUnavailable, match="cannot reach unix://"):
            await watched.watch.run(retry=False)

    asyncio.run(whole())


def test_run_without_retry_raises_at_the_end_of_the_stream(engine: FakeEngine) -> None:
    async def whole() -> None:
        watched = Watched(engine)
        watched.start()
        task = asyncio.create_task(watched.watch.run(retry=False))
        await watched.connected()
        engine.send(END)
        with pytest.raises(EngineUnavailable, match="event stream"):
            async with asyncio.timeout(5):
                await task

    asyncio.run(whole())


def test_watcher_does_not_connect_to_a_stopped_engine(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While docker.socket is active, a connect would start the engine."""
    reason = ["docker.service is inactive"]
    monkeypatch.setattr(docker_watch, "stopped_unit", lambda _: reason[0])

    async def scenario(watched: Watched) -> None:
        await until(lambda: watched.watch.waiting_for == "docker.service is inactive")
        await asyncio.sleep(0.03)
        assert engine.asked == []
        reason[0] = ""
        await watched.connected()

    run(engine, scenario)


@pytest.mark.parametrize(
    "last_event",
    [event("container", "die", "web"), event("network", "disconnect", "x", container="web")],
    ids=["die", "disconnect"],
)
def test_end_event_of_a_stopping_engine_causes_no_inspect(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, last_event: dict[str, Any]
) -> None:
    """systemd would accept the connection and start the engine again."""
    stopping = "docker.service is deactivating"

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        await until(lambda: watched.watch.containers)
        monkeypatch.setattr(docker_watch, "stopped_unit", lambda _: stopping)
        asked = list(engine.asked)
        with pytest.raises(EngineUnavailable, match=stopping):
            await watched.watch.relist()
        engine.emit(last_event)
        await until(lambda: watched.watch.waiting_for == stopping)
        assert engine.asked == asked

    run(engine, scenario)


@pytest.mark.parametrize("path", ["/version", "/events", "/networks", "/containers/json"])
@pytest.mark.parametrize(
    "bad",
    [
        *((500, b'{"message": "no"}'), (200, b"<html>"), (200, b"5"), (200, b"")),
        (200, b"[" * 100_000),
    ],
)
def test_watcher_retries_after_an_invalid_response(
    engine: FakeEngine, path: str, bad: Answer
) -> None:
    answers = 0

    def sick() -> Answer:
        nonlocal answers
        answers += 1
        if answers == 3:
            del engine.say[path]
        return bad

    engine.say[path] = sick

    async def scenario(watched: Watched) -> None:
        await until(lambda: watched.watch.state is EngineState.CONNECTED and engine.listeners)
        assert watched.container("web")

    run(engine, scenario)


@pytest.mark.parametrize(
    "refusal",
    [
        *((code, b'{"message": "no"}') for code in (401, 403, 404, 500, 501)),
        *((403, b"<html>"), (200, b"<html>"), (200, b"null")),
    ],
)
def test_info_is_not_needed(engine: FakeEngine, refusal: Answer) -> None:
    """Q11: a socket proxy refuses it. The engine may then be experimental: its rules decide."""
    engine.version = "20.10.24"
    engine.say["/info"] = refusal

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        assert watched.container("web")
        assert watched.watch.engine is not None
        assert watched.watch.engine.may_write_ipv6_rules

    run(engine, scenario)


def test_refused_events_are_one_message_that_names_them(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Q11: a socket proxy permits only some paths."""
    caplog.set_level("INFO")
    engine.say["/events"] = (403, b'{"message": "no"}')

    async def scenario(watched: Watched) -> None:
        await until(lambda: engine.asked_for("/events") > 3)
        assert watched.watch.state is EngineState.UNREACHABLE
        assert "refuses /events: 403 Forbidden" in watched.watch.waiting_for
        del engine.say["/events"]
        await watched.connected()

    run(engine, scenario)
    assert caplog.text.count("403") == 1


def test_inspect_that_fails_again_for_the_same_reason_is_one_warning(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(docker_watch, "INSPECT_RETRY_DELAY", 0.001)
    engine.say[INSPECT_WEB] = (403, b'{"message": "no"}')

    def warnings() -> int:
        return sum(record.levelname == "WARNING" for record in caplog.records)

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        await watched.emit("container", "start", "web")
        await until(lambda: engine.asked_for(INSPECT_WEB) > 5)
        assert warnings() == 1
        engine.say[INSPECT_WEB] = (500, b'{"message": "no"}')
        await until(lambda: engine.asked_for(INSPECT_WEB) > 10)
        assert warnings() == 2

    run(engine, scenario)


# Answers that are too long, as with a label of 45 MB in an image.

LONG = {"Labels": {"a": 'x"}]' * 2000}}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_LENGTH", 5000)
    monkeypatch.setattr(stream, "MAX_EVENT", 1000)
    monkeypatch.setattr(engine_client, "_PIECE", 1000)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.usefixtures("short")
def test_inspect_that_is_too_long_closes_the_ports_and_is_not_repeated(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """The last known address may be another container's by then."""

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(X, WEB | {"Config": LONG}, raw_container("other", address="fd00:a::3"))

        async def starts(count: int) -> None:
            await watched.emit("container", "start", "web")
            await until(lambda: engine.asked_for(INSPECT_WEB) == count)
            await until(lambda: watched.container("web") is None)

        await starts(1)
        await starts(2)
        await watched.emit("container", "start", "other")
        await until(lambda: watched.container("other") is not None)
        await asyncio.sleep(0.1)
        assert engine.asked_for(INSPECT_WEB) == 2
        (warning,) = warnings_in(caplog)
        assert f"cannot inspect container {identity('web'):.12}: the answer is longer" in warning
        engine.have(X, WEB)
        await watched.emit("container", "start", "web")
        await until(lambda: watched.container("web") is not None)
        assert watched.watch.state is EngineState.CONNECTED

    run(engine, scenario)


@pytest.mark.usefixtures("short")
def test_network_whose_inspect_is_too_long_stays_as_it_was(engine: FakeEngine) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        path = f"/networks/{identity('x')}"
        engine.say[path] = engine.say_json(X | LONG)
        await watched.emit("network", "create", "x")
        await until(lambda: engine.asked_for(path) == 1)
        await asyncio.sleep(0.1)
        assert engine.asked_for(path) == 1
        assert watched.watch.networks[identity("x")].subnets == (SUBNET,)

    run(engine, scenario)


@pytest.mark.usefixtures("short")
def test_row_that_is_too_long_is_left_out_of_the_list(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    other = row(raw_container("other", address="fd00:a::3"))
    engine.say["/containers/json"] = engine.say_json([row(WEB) | LONG, other, row(WEB) | LONG])

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        for _ in range(3):
            await watched.watch.relist()
            assert {*watched.watch.containers} == {identity("other")}
        (warning,) = warnings_in(caplog)
        assert identity("web") in warning

    run(engine, scenario)


@pytest.mark.usefixtures("short")
def test_network_that_is_too_long_for_the_list_is_an_unavailable_engine(
    engine: FakeEngine,
) -> None:
    """Without the network its containers would be unprotected."""
    engine.say["/networks"] = engine.say_json([raw_network("y") | LONG, X])

    async def scenario(watched: Watched) -> None:
        await until(lambda: "too long labels" in watched.watch.waiting_for)
        assert watched.watch.state is EngineState.UNREACHABLE
        del engine.say["/networks"]
        await watched.connected()

    run(engine, scenario)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("status", [200, 500])
def test_version_that_is_too_long_is_an_unavailable_engine(engine: FakeEngine, status: int) -> None:
    engine.say["/version"] = (status, b'"' + b"x" * 10_000 + b'"')
    with pytest.raises(EngineUnavailable, match="the answer is longer than"):
        connect(EngineAddress(endpoint=engine.endpoint))


def test_compressed_answer_is_an_unavailable_engine(engine: FakeEngine) -> None:
    """1 kB can be 1 GB of text, and nobody asked for it."""
    engine.encoding = "gzip, gzip"
    engine.say["/version"] = (200, gzip.compress(gzip.compress(b" " * 100_000)))
    with pytest.raises(EngineUnavailable, match="the answer is compressed: gzip, gzip"):
        connect(EngineAddress(endpoint=engine.endpoint))


@pytest.mark.usefixtures("short")
def test_event_that_is_too_long_causes_an_inspect_of_its_container(engine: FakeEngine) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(X, WEB, raw_container("other", address="fd00:a::3"))
        long = event("container", "start", "other", **LONG["Labels"])
        engine.send(json.dumps(long, separators=(",", ":")).encode() + b"\n")
        await until(lambda: watched.container("other") is not None)
        assert engine.asked_for("/events") == 1

    run(engine, scenario)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EMFILE, InspectFailed),
        (errno.ENOMEM, InspectFailed),
        (errno.ECONNREFUSED, EngineUnavailable),
    ],
)
def test_engine_is_not_lost_because_this_process_has_no_file_left(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
) -> None:
    client, _ = connect(EngineAddress(endpoint=engine.endpoint))

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with closing(client):
        client.close()  # its open connections
        monkeypatch.setattr(socket.socket, "connect", refuse)
        with pytest.raises(expected):
            inspect(client, "container", identity("web"))


def test_event_stream_that_a_proxy_ends_is_opened_again(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Q11. A change meanwhile is found, and no warning is logged."""
    monkeypatch.setattr(docker_watch, "MIN_STREAM_TIME", 0.0)

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        states = set()
        for number, end in enumerate((END, CUT, END, CUT)):
            name = f"more{number}"
            engine.have(X, raw_container("web"), raw_container(name))
            subscriptions = engine.asked_for("/events")
            engine.send(end)
            while watched.container(name) is None:
                states.add(watched.watch.state)
                await asyncio.sleep(0.001)
            assert engine.asked_for("/events") == subscriptions + 1
        assert states == {EngineState.CONNECTED}
        await until(lambda: engine.listeners == 1)
        engine.emit(event("container", "start", "web"))
        await until(lambda: engine.asked_for(INSPECT_WEB))

    run(engine, scenario)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_engine_is_lost_if_it_opens_no_event_stream_again(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_watch, "MIN_STREAM_TIME", 0.0)
    monkeypatch.setattr(docker_watch, "REOPEN_TIMEOUT", 0.1)

    def hangs() -> Answer:
        time.sleep(1)
        return 200, b""

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        assert watched.watch.current
        engine.say["/events"] = hangs
        engine.send(END)
        await until(lambda: not watched.watch.current)
        assert watched.watch.state is EngineState.CONNECTED
        await until(lambda: watched.watch.state is EngineState.LOST)
        assert watched.watch.waiting_for == "its event stream ended"
        assert not watched.watch.current

    run(engine, scenario)


def test_engine_whose_event_streams_end_at_once_is_lost(engine: FakeEngine) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.send(END)
        await until(lambda: watched.watch.state is EngineState.LOST)
        await watched.connected()
        assert watched.watch.current

    run(engine, scenario)


def test_podman_is_left_alone(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q12. The answer is that of Podman 4.3.1."""
    engine.say["/version"] = engine.say_json(
        {
            "Version": "4.3.1",
            "ApiVersion": "1.41",
            "Components": [{"Name": "Podman Engine", "Version": "4.3.1"}, {"Name": "Conmon"}],
        }
    )
    monkeypatch.setattr(docker_watch, "WRONG_ENGINE_RETRY_DELAY", 0.3)

    async def scenario(watched: Watched) -> None:
        await until(lambda: "is Podman, which does IPv6 NAT itself" in watched.watch.waiting_for)
        assert watched.watch.state is EngineState.UNREACHABLE
        await asyncio.sleep(0.1)
        assert engine.asked_for("/version") == 2  # once for the version of the API
        assert not engine.asked_for("/networks")
        del engine.say["/version"]
        await watched.connected()

    run(engine, scenario)


def test_failed_list_closes_its_event_stream(engine: FakeEngine) -> None:
    tries = 0

    def sick() -> Answer:
        nonlocal tries
        tries += 1
        if tries == 5:
            del engine.say["/networks"]
        return 500, b""

    engine.say["/networks"] = sick

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        await asyncio.sleep(0.1)
        assert engine.listeners == 1

    run(engine, scenario)


def test_connect_to_a_hanging_engine_times_out(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_client, "CALL_TIMEOUT", 0.1)
    gate = threading.Event()

    def hangs() -> Answer:
        gate.wait(5)
        return 200, b"{}"

    engine.say["/version"] = hangs

    async def scenario(watched: Watched) -> None:
        await until(lambda: watched.watch.waiting_for.startswith("cannot reach"))
        assert "does not answer" in watched.watch.waiting_for
        gate.set()
        del engine.say["/version"]
        await watched.connected()

    run(engine, scenario)


def test_hanging_inspect_is_repeated(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_client, "CALL_TIMEOUT", 0.1)
    gate = threading.Event()

    def hangs() -> Answer:
        gate.wait(5)
        return 200, b"{}"

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(X, raw_container("web", address="fd00:a::9"))
        engine.say[INSPECT_WEB] = hangs
        await watched.emit("container", "start", "web")
        await until(lambda: engine.asked_for(INSPECT_WEB) >= 1)
        del engine.say[INSPECT_WEB]
        await until(lambda: watched.address("web") == IPv6Address("fd00:a::9"))
        assert watched.watch.state is EngineState.CONNECTED
        gate.set()

    run(engine, scenario)


def test_stop_does_not_wait_for_a_hanging_call(engine: FakeEngine) -> None:
    gate = threading.Event()

    def hangs() -> Answer:
        gate.wait(5)
        return 200, b"{}"

    engine.say["/networks"] = hangs

    async def scenario(watched: Watched) -> None:
        del watched
        await until(lambda: engine.asked_for("/networks"))

    run(engine, scenario)
    assert not gate.is_set()
    gate.set()


def test_stop_at_the_moment_of_an_engine_failure_stops(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both happen together when the host shuts down."""

    async def whole() -> None:
        failure = asyncio.Event()

        async def failing(*_: object) -> None:
            await failure.wait()
            raise EngineUnavailable("stopped")

        monkeypatch.setattr(EngineWatcher, "_list_periodically", failing)
        watched = Watched(engine)
        watched.start()
        task = asyncio.create_task(watched.watch.run(retry=True))
        await watched.connected()
        await until(lambda: engine.listeners)
        failure.set()
        task.cancel()
        stopped, _ = await asyncio.wait({task}, timeout=0.3)
        while not task.done():
            failure.clear()
            task.cancel()
            await asyncio.wait({task}, timeout=0.1)
        assert stopped

    asyncio.run(whole())


def test_stop_at_the_moment_of_the_subscription_stops(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def whole() -> None:
        stream: asyncio.Future[object] = asyncio.get_running_loop().create_future()

        async def in_thread(call: Callable[[], object]) -> object:
            subscribes = getattr(call, "func", None) is engine_client.subscribe
            return await stream if subscribes else call()

        monkeypatch.setattr(docker_watch, "in_thread", in_thread)
        watched = Watched(engine)
        watched.start()
        task = asyncio.create_task(watched.watch.run(retry=True))
        await until(lambda: engine.asked_for("/info"))
        await asyncio.sleep(0.01)
        stream.set_result(iter(()))
        task.cancel()
        stopped, _ = await asyncio.wait({task}, timeout=0.3)
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        assert stopped

    asyncio.run(whole())


# Later lists.


def test_relist_reads_all_objects_again(engine: FakeEngine) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        wakes = watched.wakes
        engine.have(X, raw_container("web", address="fd00:a::9"))
        await watched.watch.relist()
        assert watched.address("web") == IPv6Address("fd00:a::9")
        assert watched.wakes == wakes + 1
        await watched.watch.relist()
        assert watched.wakes == wakes + 1

    run(engine, scenario)


def test_relist_without_an_engine_raises_the_reason(tmp_path: Path) -> None:
    async def scenario(watched: Watched) -> None:
        with pytest.raises(EngineUnavailable, match="not connected yet"):
            await watched.watch.relist()

    run(FakeEngine(tmp_path / "engine.sock"), scenario)


def test_t10_periodic_list_repairs_a_lost_event(engine: FakeEngine) -> None:

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(X, raw_container("web", address="fd00:a::9"))
        await until(lambda: watched.address("web") == IPv6Address("fd00:a::9"))

    run(engine, scenario, resync_interval=0.02)


def test_inspect_during_a_list_overrides_the_list(engine: FakeEngine) -> None:
    gate = threading.Event()
    stale = engine.answer("", "/containers/json")

    def slow() -> Answer:
        assert gate.wait(5)
        return stale

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.say["/containers/json"] = slow
        relist = asyncio.create_task(watched.watch.relist())
        await until(lambda: engine.asked_for("/containers/json") == 2)
        engine.have(X, raw_container("web", address="fd00:a::9"))
        await watched.emit("container", "start", "web")
        await until(lambda: watched.address("web") == IPv6Address("fd00:a::9"))
        gate.set()
        await relist
        assert watched.address("web") == IPv6Address("fd00:a::9")

    run(engine, scenario)
