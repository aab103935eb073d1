"""Nothing waits without end for what others do: every wait in the sources, with what bounds it.

A new wait fails the first test until somebody has written down here what bounds it.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipv6natd.conntrack import entries as conntrack
from ipv6natd.dbus import connection as bus
from ipv6natd.dbus import polkit
from ipv6natd.dbus import service as dbus_api
from ipv6natd.dbus.connection import Connection as BusConnection
from ipv6natd.engine import watcher as docker_watch
from ipv6natd.engine.watcher import Connection, DockerWatch, EngineGone
from ipv6natd.firewall import monitor as drift
from ipv6natd.firewall import restore
from ipv6natd.report import textfile
from ipv6natd.sync import applier as kernel
from ipv6natd.sync import reconciler as reconcile
from ipv6natd.system import process as tools
from ipv6natd.system import sd_notify as notify
from tests.unit.test_house import modules

OURS = "for ourselves: somebody else in this process ends it, or we are told to stop"
THREAD = "for a thread, whose own calls are bounded"
WAITS = {
    "ctnetlink._forgotten: netlink.recv": "timeout",
    "address_watch.watch: await loop.sock_recv": "for news, which is our whole task",
    "background.in_thread: await future": THREAD,
    "bus._reply_to: await asyncio.wait_for": "timeout",
    "bus.closed: await asyncio.wait": "for the end of the connection, which is our whole task",
    "bus.connect: await asyncio.wait_for": "seconds",
    "bus.flush: async with asyncio.timeout": "seconds",
    "ctl.watching.monitor: await asyncio.wait": "for the user, who ends it",
    "daemon._ready: await asyncio.wait_for": "PATIENCE",
    "daemon._reload_when_told: await self._reload.wait": OURS,
    "daemon._until_stopped: await self._stop.wait": OURS,
    "daemon._watch_drift: await self._to_watch": OURS,
    "daemon.explain: with self._explaining": THREAD,
    "daemon.reload: await done": OURS,
    "dbus_api._answer_user: await answer": "a caller of ours, who may leave; see each member",
    "dbus_api.session: await asyncio.gather": "tasks that were cancelled",
    "dbus_lists.turn: with own": THREAD,
    "dbus_lists.turn: with others": THREAD,
    "dbus_wire._auth_readline: await self._loop.sock_recv": "bus.connect",
    "dbus_wire._setup_socket: sock.connect": "does not block",
    "docker_watch._follow: await asyncio.gather": "tasks that were cancelled",
    "docker_watch._follow: await ended": "for the end of the engine, which is our whole task",
    "docker_watch._list: with self._listing": THREAD,
    "docker_watch._reread_hinted: await self._hinted.wait": OURS,
    "docker_watch._subscribed: await asyncio.wait": "CALL_TIMEOUT",
    "engine_flags._listener: sock.connect": "settimeout",
    "firewall.drift._monitor: await process.stdout.read": "for news, which is our whole task",
    "firewall.drift._monitor: await process.wait": "BURIED",
    "firewall.drift._monitor: async with asyncio.timeout": "BURIED",
    "firewall.late._there: with self._opening": THREAD,
    "firewall.legacy._opened: with _TABLES": THREAD,
    "firewall.xtables._taken: fcntl.flock": "LOCK_NB",
    "forwarding.follow: with self._lock": THREAD,
    "forwarding.heed: with self._lock": THREAD,
    "forwarding.put_back: with self._lock": THREAD,
    "kernel._alone: self._busy.acquire": "PATIENCE",
    "logs.__init__: self._socket.connect": "settimeout",
    "polkit._user: await asyncio.gather": "tasks that were cancelled",
    "polkit._user: await asyncio.wait": "IDENTIFY_PAUSE",
    "polkit._check_user: with self._asked": "those before have a timeout each",
    "reconcile._learn: with self._writing": THREAD,
    "reconcile._next_pass: await waiter": OURS,
    "reconcile._pass: with self._writing": THREAD,
    "reconcile._wait: async with asyncio.timeout": "the next beat",
    "reconcile._wait: await self._woken.wait": "the next beat",
    "reconcile.cleanup: await removal": OURS,
    "reconcile.remove: with self._writing": THREAD,
    "reconcile.settled: await self._first_pass.wait": OURS,
    "reconcile.watch_host: async with asyncio.timeout": "LOOK_EVERY",
    "reconcile.watch_host: await self._look_wanted.wait": "LOOK_EVERY",
    "textfile._write: self._lock.acquire": "PATIENCE",
    "textfile.run: async with asyncio.timeout": "EVERY",
    "textfile.run: await self._changed.wait": "EVERY",
    "tools.agent: process.wait": "BURIED",
    "tools.agent: select.select": "REGISTERED",
    "tools.call: process.communicate": "timeout",
    "tools.call: process.wait": "BURIED",
}

DONE = {
    *("ctl.watching.monitor: heard.get", "ctl.watching.monitor: get.result"),
    *("docker_watch._subscribed: ended.result", "docker_watch._subscribed: open_.result"),
    "polkit._user: done.pop().result",
}
"""What is done already when it is asked, and what a wait of WAITS waits for."""

BLOCKING = {"acquire", "recv", "recvfrom", "accept", "communicate", "select", "flock", "lockf"}
BLOCKING |= {"wait", "getaddrinfo", "urlopen", "create_connection", "result", "readline"}
AWAITED = {"wait", "gather", "wait_for", "read", "readexactly", "readline", "sock_recv", "get"}


def waits(tree: ast.AST, function: str = "") -> Iterator[str]:
    """Each place where a source may wait for somebody, as "function: what"."""
    for node in ast.iter_child_nodes(tree):
        inner = function
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                inner = name
            case ast.Await(value=ast.Name() | ast.Attribute() as value):
                yield f"{function}: await {ast.unparse(value)}"
            case ast.Await(value=ast.Call(func=ast.Attribute(attr=attr) as func)):
                if attr in AWAITED:
                    yield f"{function}: await {ast.unparse(func)}"
                    yield from waits(node.value, inner)
                    continue
            case ast.Call(func=ast.Attribute(attr="connect", value=value) as func):
                if not ast.unparse(value).endswith("bus"):
                    yield f"{function}: {ast.unparse(func)}"
            case ast.Call(func=ast.Attribute(attr=attr) as func) if attr in BLOCKING:
                yield f"{function}: {ast.unparse(func)}"
            case ast.Call(func=ast.Attribute(attr="join" | "get") as func, args=[]):
                yield f"{function}: {ast.unparse(func)}"
            case ast.With(items=items) | ast.AsyncWith(items=items):
                for item in items:
                    match item.context_expr:
                        case ast.Name() | ast.Attribute() as lock:
                            yield f"{function}: with {ast.unparse(lock)}"
                        case ast.Call(func=ast.Attribute(attr="timeout") as func):
                            yield f"{function}: async with {ast.unparse(func)}"
        yield from waits(node, inner)


def test_every_wait_has_a_bound_that_is_written_down() -> None:
    found = {
        f"{name}.{each}"
        for name, path in modules().items()
        for each in waits(ast.parse(path.read_text()))
    }
    found -= DONE
    assert sorted(found - WAITS.keys()) == []
    assert sorted(WAITS.keys() - found) == []


@pytest.mark.parametrize(
    "source",
    [
        "def f(): lock.acquire()",
        "def f():\n with lock: pass",
        "def f(): thread.join()",
        "def f(): queue.get()",
        "def f(): sock.recv(1)",
        "def f(): sock.connect(x)",
        "def f(): process.wait()",
        "async def f(): await event.wait()",
        "async def f(): await future",
        "async def f(): await stream.readline()",
    ],
)
def test_the_reader_of_sources_sees_what_it_is_for(source: str) -> None:
    assert list(waits(ast.parse(source)))


def test_calls_over_the_bus_and_to_the_engine_end() -> None:
    signature = inspect.signature(BusConnection.call)
    assert signature.parameters["timeout"].default == bus.CALL_SECONDS
    connected = inspect.signature(bus.connect)
    assert connected.parameters["seconds"].default == bus.CONNECT_SECONDS
    text = modules()["docker_watch"].read_text()
    assert len(re.findall(r"timeout=CALL_TIMEOUT", text)) == 3
    assert "settimeout(5)" in modules()["engine_flags"].read_text()
    assert "settimeout(PATIENCE)" in modules()["logs"].read_text()


def test_one_step_of_a_pass_is_shorter_than_the_watchdog() -> None:
    """A step is one call of a tool, or what flows may take, looked at twice, and neighbours."""
    unit = (Path(__file__).parents[2] / "systemd" / "ipv6natd.service").read_text()
    watchdog = int(re.findall(r"^WatchdogSec=(\d+)$", unit, re.MULTILINE)[0])
    end = int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[0])
    beat = notify.watchdog_interval({"WATCHDOG_USEC": str(watchdog * 1_000_000)})
    assert beat is not None
    assert restore.TIMEOUT + tools.BURIED + beat < watchdog
    assert 2 * conntrack.PATIENCE + conntrack.TIMEOUT + beat < watchdog
    assert end > kernel.PATIENCE + tools.BURIED
    assert drift.RESTART_PAUSE > 0


RETRIES = {
    "the engine": (docker_watch.FIRST_PAUSE, 2, docker_watch.LONGEST_PAUSE),
    "a container or network that the engine does not show": (docker_watch.RETRY_PAUSE, 1, None),
    "rules that could not be written, and flows that could not follow": (
        reconcile.FIRST_RETRY,
        2,
        reconcile.LONGEST_RETRY,
    ),
    "the system bus and our name on it": (dbus_api.FIRST_DELAY, 2, dbus_api.LAST_DELAY),
    "the bus that has not said whose a call is": (polkit.IDENTIFY_PAUSE, 1, None),
    "a call over the bus that it had no room for": (bus.FULL_PAUSE, 1, None),
    "`nft monitor`": (drift.RESTART_PAUSE, 1, None),
    "the xtables lock": (0.01, 1, None),
}


def test_what_is_tried_again_is_documented_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
    rows = re.findall(r"^\| (.*?) \| ([0-9.]+) s \| (.*?) \| (.*?) \|", page, re.MULTILINE)
    told = {
        name: (
            float(first),
            {"each time the same": 1, "doubles": 2}[factor],
            float(longest.removesuffix(" s")) if longest != "-" else None,
        )
        for name, first, factor, longest in rows
    }
    assert told == RETRIES


LIMITS = {
    "a tool that reads or writes rules": restore.TIMEOUT,
    "neighbours that are to be forgotten": conntrack.TIMEOUT,
    "the flows of one change": conntrack.PATIENCE,
    "an answer of the engine": float(docker_watch.CALL_TIMEOUT),
    "a connect to the bus": bus.CONNECT_SECONDS,
    "a call over the bus": bus.CALL_SECONDS,
    "the bus to say whose a call is": polkit.IDENTIFY_PAUSE * polkit.IDENTIFY_TRIES,
    "polkit by itself": polkit.PATIENCE,
    "somebody who types a password": polkit.DIALOG_PATIENCE,
    "a pass that is under way when we stop": kernel.PATIENCE,
    "a metrics file on a disk that hangs, when we stop": textfile.PATIENCE,
    "a process that was killed": tools.BURIED,
}


def test_how_long_is_waited_is_documented_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
    told = dict(re.findall(r"^\| (.*?) \| ([0-9.]+) s \|$", page, re.MULTILINE))
    assert {name: float(seconds) for name, seconds in told.items()} == LIMITS


def test_the_engine_is_tried_with_growing_pauses_and_the_first_again_after_it_was_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 12:
            raise asyncio.CancelledError

    async def session(watch: DockerWatch) -> None:
        if len(pauses) == 8:
            watch.connected = True
        raise EngineGone("gone")

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(DockerWatch, "_session", session)
    watch = DockerWatch(Connection(endpoint="unix:///x"), lambda: None, resync_interval=60)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(watch.run(retry=True))
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 0.1, 0.2, 0.4, 0.8]
