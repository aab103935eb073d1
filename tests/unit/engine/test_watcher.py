"""The watcher against an engine that a test plays."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from ipv6natd.engine import client as engine_client
from ipv6natd.engine import watcher as docker_watch
from ipv6natd.engine.client import EngineAddress, EngineUnavailable
from ipv6natd.engine.watcher import EngineWatcher
from ipv6natd.model import Container
from tests.harness.build import identity
from tests.harness.fake_engine import (
    CUT,
    END,
    Answer,
    FakeEngine,
    event,
    raw_container,
    raw_network,
)
from tests.harness.waiting import background, until

# The library compares versions with distutils and leaves its sockets to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*distutils:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*unclosed <socket:pytest.PytestUnraisableExceptionWarning"),
]

X = raw_network("x")
WEB = raw_container("web")
INSPECT_WEB = f"/containers/{identity('web')}/json"
LISTS = ("/containers/json", "/networks")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    found = FakeEngine(tmp_path / "engine.sock")
    found.have(X, WEB)
    found.start()
    yield found
    found.stop()


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """Threads and sockets of the library do not outlive this file."""
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
    """The watcher and how often it woke the loop."""

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
        found = self.container(name)
        return found.endpoints[0].address if found else None

    async def connected(self) -> None:
        await until(lambda: self.watch.connected)

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


# The first picture.


def test_a_doubt_is_warned_of_once_not_at_each_connect(
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


def test_the_first_picture_comes_from_one_list_call_each(engine: FakeEngine) -> None:
    engine.have(X, *(raw_container(f"c{i}", port=8000 + i) for i in range(50)))

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        assert watched.watch.listed
        assert watched.watch.waiting_for == ""
        assert len(watched.watch.containers) == 50
        assert set(watched.watch.networks) == {identity("x")}
        assert [engine.asked_for(path) for path in LISTS] == [1, 1]
        assert not [path for path in engine.asked if path.startswith("/containers/c")]
        assert watched.wakes >= 1

    run(engine, scenario)


def test_it_subscribes_before_it_lists(engine: FakeEngine) -> None:
    """T10: what happens meanwhile is already hinted at."""

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        assert engine.asked.index("/events") < min(map(engine.asked.index, LISTS))

    run(engine, scenario)


def test_before_the_first_list_there_is_nothing_to_act_on(engine: FakeEngine) -> None:
    """T1."""
    gate = threading.Event()

    def held() -> Answer:
        assert gate.wait(5)
        del engine.say["/networks"]
        return 200, b"[]"

    engine.say["/networks"] = held

    async def scenario(watched: Watched) -> None:
        await until(lambda: engine.asked_for("/networks"))
        assert (watched.watch.listed, watched.watch.connected) == (False, False)
        gate.set()
        await watched.connected()

    run(engine, scenario)


@pytest.mark.parametrize(("version", "inspects"), [("20.10.24", 1), ("27.5.1", 1), ("28.0.0", 0)])
def test_an_engine_whose_list_leaves_something_out_is_inspected_too(
    engine: FakeEngine, version: str, inspects: int
) -> None:
    """P11: engines before 28 list an address even where IPv6 is switched off."""
    engine.version = version
    off = raw_container("web")
    off["HostConfig"]["Sysctls"] = {"net.ipv6.conf.all.disable_ipv6": "1"}
    engine.have(X, off)

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        await until(lambda: (watched.address("web") is None) == bool(inspects))
        assert engine.asked_for(INSPECT_WEB) == inspects
        # And not again while the list tells nothing new.
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
def test_the_api_version_is_the_engines_own(
    engine: FakeEngine, version: str, api: str, least: str
) -> None:
    """T14: 29 refuses below 1.44, 20.10 knows at most 1.41."""
    engine.version, engine.api, engine.least_api = version, api, least

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        assert watched.watch.engine is not None
        assert (watched.watch.engine.version, watched.watch.engine.api_version) == (version, api)
        assert engine.versions <= {"", api}

    run(engine, scenario)


# Events.


def test_an_event_makes_one_inspect_of_what_it_names(engine: FakeEngine) -> None:
    """P6: the address changes with the restart."""

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(X, raw_container("web", address="fd00:a::9"))
        await watched.emit("container", "start", "web")
        await until(lambda: watched.address("web") == IPv6Address("fd00:a::9"))
        assert engine.asked_for(INSPECT_WEB) == 1
        assert [engine.asked_for(path) for path in LISTS] == [1, 1]

    run(engine, scenario)


def test_an_event_with_the_words_of_an_old_engine_is_followed_too(engine: FakeEngine) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        old = event("container", "start", "web") | {"status": "start", "id": identity("web")}
        engine.emit(old)
        await until(lambda: engine.asked_for(INSPECT_WEB) == 1)

    run(engine, scenario)


def test_a_connect_rereads_the_container_and_the_network(engine: FakeEngine) -> None:
    """M3."""

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        await watched.emit("network", "connect", "x", container=identity("web"))
        await until(lambda: engine.asked_for(INSPECT_WEB))
        await until(lambda: engine.asked_for(f"/networks/{identity('x')}"))

    run(engine, scenario)


def test_a_new_network_is_known_from_its_create_event(engine: FakeEngine) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(X, WEB, raw_network("y", "fd00:b::/64"))
        await watched.emit("network", "create", "y")
        await until(lambda: identity("y") in watched.watch.networks)

    run(engine, scenario)


def test_events_of_others_ask_for_nothing(engine: FakeEngine) -> None:
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
def test_what_the_engine_has_no_more_goes(engine: FakeEngine, action: str) -> None:
    """P9, T11."""

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(X)
        await watched.emit("container", action, "web")
        await until(lambda: watched.container("web") is None)

    run(engine, scenario)


def test_a_container_that_does_not_run_goes(engine: FakeEngine) -> None:
    """P9: stopped, it can still be inspected."""

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(X, raw_container("web", State={"Running": False}))
        await watched.emit("container", "die", "web")
        await until(lambda: watched.container("web") is None)

    run(engine, scenario)


def test_a_network_that_was_removed_goes(engine: FakeEngine) -> None:
    """T12."""

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(WEB)
        await watched.emit("network", "remove", "x")
        await until(lambda: watched.watch.networks == {})

    run(engine, scenario)


def test_a_network_that_nobody_announced_is_inspected(engine: FakeEngine) -> None:
    """W1: docker_gwbridge is made without an event."""

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        gateway = raw_network("docker_gwbridge", "fd00:e::/64")
        engine.have(X, raw_container("web", on="docker_gwbridge"), gateway)
        await watched.emit("container", "start", "web")
        await until(lambda: gateway["Id"] in watched.watch.networks)

    run(engine, scenario)


def test_a_burst_for_one_container_never_inspects_it_twice_at_a_time(engine: FakeEngine) -> None:
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
        # What came meanwhile is one more: the first answer may be from before it.
        await until(lambda: engine.asked_for(INSPECT_WEB) == 2)
        inspect.release(9)
        await until(lambda: watched.address("web") == IPv6Address("fd00:a::9"))
        await asyncio.sleep(0.1)
        # A third where a slow machine brought the last events late; never one for each.
        assert engine.asked_for(INSPECT_WEB) <= 3
        assert engine.at_once[INSPECT_WEB] == 1

    run(engine, scenario)


def test_a_slow_container_delays_nobody_else(engine: FakeEngine) -> None:
    """P8."""
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


def test_the_number_of_inspects_at_a_time_is_bounded(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_watch, "MAX_PARALLEL_INSPECTS", 3)
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
        gate.set()
        await until(lambda: len(watched.watch.containers) == 11)

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
def test_an_answer_that_tells_nothing_is_asked_for_again(engine: FakeEngine, bad: Answer) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(X, raw_container("web", address="fd00:a::9"))
        engine.say[INSPECT_WEB] = bad
        await watched.emit("container", "start", "web")
        await until(lambda: engine.asked_for(INSPECT_WEB) >= 2)
        # What was known stays until something better is.
        assert watched.address("web") == IPv6Address("fd00:a::2")
        assert watched.watch.connected
        del engine.say[INSPECT_WEB]
        await until(lambda: watched.address("web") == IPv6Address("fd00:a::9"))

    run(engine, scenario)


@pytest.mark.parametrize("answer", [b"[]", b"5", b"null", b'{"Id": 5}', b'"x"'])
def test_json_that_is_no_container_drops_it_and_crashes_nothing(
    engine: FakeEngine, answer: bytes
) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.say[INSPECT_WEB] = (200, answer)
        await watched.emit("container", "start", "web")
        await until(lambda: watched.container("web") is None)
        assert watched.watch.connected

    run(engine, scenario)


def test_odd_rows_of_a_list_cost_nobody_else_anything(engine: FakeEngine) -> None:
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
def test_a_stream_that_breaks_is_followed_by_a_new_one_and_a_list(
    engine: FakeEngine, last: list[bytes | None]
) -> None:
    """T10: what was lost meanwhile is in the list."""

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(X, raw_container("web", address="fd00:a::9"))
        for data in last:
            engine.send(data)
        await until(lambda: watched.address("web") == IPv6Address("fd00:a::9"))
        assert [engine.asked_for(path) for path in LISTS] == [2, 2]
        await until(lambda: engine.listeners == 1)

    run(engine, scenario)


def test_an_event_in_pieces_is_one_event(engine: FakeEngine) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        whole = b'{"Type":"container","Action":"start","Actor":{"ID":"%b"}}\n'
        for byte in whole % identity("web").encode():
            engine.send(bytes([byte]))
        await until(lambda: engine.asked_for(INSPECT_WEB) == 1)

    run(engine, scenario)


def test_odd_json_in_the_stream_crashes_nothing(engine: FakeEngine) -> None:
    async def scenario(watched: Watched) -> None:
        await watched.connected()
        odd = b'{"Type":"container","Action":["start"],"Actor":5}\n{"Type":{}}\n{}\n'
        engine.send(odd)
        await watched.emit("container", "start", "web")
        await until(lambda: engine.asked_for(INSPECT_WEB) == 1)

    run(engine, scenario)


# The engine goes and comes.


def test_without_an_engine_it_says_what_it_waits_for(tmp_path: Path) -> None:
    """T1."""
    engine = FakeEngine(tmp_path / "engine.sock")

    async def scenario(watched: Watched) -> None:
        await until(lambda: watched.wakes)
        assert watched.watch.waiting_for.startswith(f"cannot reach {engine.endpoint}: ")
        assert "\n" not in watched.watch.waiting_for
        assert (watched.watch.connected, watched.watch.listed) == (False, False)
        # Told once: every further try would say the same.
        await asyncio.sleep(0.05)
        assert watched.wakes == 1
        engine.have(X, WEB)
        engine.start()
        await watched.connected()

    try:
        run(engine, scenario)
    finally:
        engine.stop()


def test_an_engine_that_goes_leaves_its_facts_and_comes_back(engine: FakeEngine) -> None:
    """T9, T5."""

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.stop()
        await until(lambda: not watched.watch.connected)
        assert watched.watch.waiting_for
        assert watched.address("web") == IPv6Address("fd00:a::2")
        assert watched.watch.listed
        engine.have(X, raw_container("web", address="fd00:a::9"))
        engine.start()
        await until(lambda: watched.address("web") == IPv6Address("fd00:a::9"))
        await watched.connected()

    run(engine, scenario)


def test_without_retry_a_missing_engine_raises(tmp_path: Path) -> None:
    async def whole() -> None:
        watched = Watched(FakeEngine(tmp_path / "engine.sock"))
        watched.start()
        with pytest.raises(EngineUnavailable, match="cannot reach unix://"):
            await watched.watch.run(retry=False)

    asyncio.run(whole())


def test_without_retry_an_engine_that_goes_raises(engine: FakeEngine) -> None:
    async def whole() -> None:
        watched = Watched(engine)
        watched.start()
        task = asyncio.create_task(watched.watch.run(retry=False))
        await watched.connected()
        engine.send(END)
        with pytest.raises(EngineUnavailable, match="event stream"):
            await asyncio.wait_for(task, 5)

    asyncio.run(whole())


def test_an_engine_that_somebody_stopped_is_not_even_connected_to(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decision 12: with docker.socket active a mere connect would start it."""
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
    "last_words",
    [event("container", "die", "web"), event("network", "disconnect", "x", container="web")],
    ids=["die", "disconnect"],
)
def test_an_engine_that_is_being_stopped_is_not_asked_about_what_ends_with_it(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, last_words: dict[str, Any]
) -> None:
    """systemd takes the question, and starts the engine again to have it answered."""
    stopping = "docker.service is deactivating"

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        await until(lambda: watched.watch.containers)
        monkeypatch.setattr(docker_watch, "stopped_unit", lambda _: stopping)
        asked = list(engine.asked)
        with pytest.raises(EngineUnavailable, match=stopping):
            await watched.watch.relist()
        engine.emit(last_words)
        await until(lambda: watched.watch.waiting_for == stopping)
        assert engine.asked == asked

    run(engine, scenario)


@pytest.mark.parametrize("path", ["/version", "/info", "/events", "/networks", "/containers/json"])
@pytest.mark.parametrize(
    "bad",
    [
        *((500, b'{"message": "no"}'), (200, b"<html>"), (200, b"5"), (200, b"")),
        (200, b"[" * 100_000),
    ],
)
def test_an_engine_out_of_its_mind_is_waited_for(
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
        await until(lambda: watched.watch.connected and engine.listeners)
        assert watched.container("web")

    run(engine, scenario)


def test_a_list_that_fails_leaves_no_stream_behind(engine: FakeEngine) -> None:
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


def test_an_engine_that_hangs_is_given_up_in_time(
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


def test_an_inspect_that_hangs_is_asked_for_again(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        assert watched.watch.connected
        gate.set()

    run(engine, scenario)


def test_stopping_does_not_wait_for_a_call_that_hangs(engine: FakeEngine) -> None:
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


def test_a_stop_in_the_moment_in_which_the_engine_goes_is_a_stop(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go together when the host shuts down."""

    async def whole() -> None:
        goes = asyncio.Event()

        async def gone(*_: object) -> None:
            await goes.wait()
            raise EngineUnavailable("gone")

        monkeypatch.setattr(EngineWatcher, "_list_periodically", gone)
        watched = Watched(engine)
        watched.start()
        task = asyncio.create_task(watched.watch.run(retry=True))
        await watched.connected()
        await until(lambda: engine.listeners)
        goes.set()
        task.cancel()
        stopped, _ = await asyncio.wait({task}, timeout=0.3)
        while not task.done():
            goes.clear()
            task.cancel()
            await asyncio.wait({task}, timeout=0.1)
        assert stopped

    asyncio.run(whole())


# Listing again.


def test_relist_reads_everything_again(engine: FakeEngine) -> None:
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


def test_relist_without_an_engine_raises_why(tmp_path: Path) -> None:
    async def scenario(watched: Watched) -> None:
        with pytest.raises(EngineUnavailable, match="not connected yet"):
            await watched.watch.relist()

    run(FakeEngine(tmp_path / "engine.sock"), scenario)


def test_it_lists_by_itself_now_and_then(engine: FakeEngine) -> None:
    """T10: an event that was lost is repaired."""

    async def scenario(watched: Watched) -> None:
        await watched.connected()
        engine.have(X, raw_container("web", address="fd00:a::9"))
        await until(lambda: watched.address("web") == IPv6Address("fd00:a::9"))

    run(engine, scenario, resync_interval=0.02)


def test_what_was_inspected_while_a_list_ran_is_newer(engine: FakeEngine) -> None:
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
