"""docs/limits.md: its time-outs and retries are those of the sources."""

from __future__ import annotations

import asyncio
import inspect
import re

import pytest

from ipv6natd.conntrack import flush as conntrack
from ipv6natd.dbus import connection as bus
from ipv6natd.dbus import polkit
from ipv6natd.dbus import service as dbus_api
from ipv6natd.dbus import signals as dbus_signals
from ipv6natd.dbus.connection import Connection as BusConnection
from ipv6natd.engine import watcher as docker_watch
from ipv6natd.engine.client import CALL_TIMEOUT, EngineAddress, EngineUnavailable
from ipv6natd.engine.watcher import EngineWatcher
from ipv6natd.firewall import monitor as drift
from ipv6natd.firewall import tools as firewall_tools
from ipv6natd.model import EngineState
from ipv6natd.report import textfile
from ipv6natd.sync import applier, reconciler
from ipv6natd.system import process as tools
from ipv6natd.system import sd_notify as notify
from tests import ROOT
from tests.docs.sources import modules


def test_calls_over_the_bus_and_to_the_engine_end() -> None:
    signature = inspect.signature(BusConnection.call)
    assert signature.parameters["timeout"].default == bus.CALL_TIMEOUT
    connected = inspect.signature(bus.connect)
    assert connected.parameters["seconds"].default == bus.CONNECT_TIMEOUT
    texts = (modules()[name].read_text() for name in ("engine.watcher", "engine.client"))
    limited = re.compile(r"timeout[=(]CALL_TIMEOUT|events\.subscribe\(CALL_TIMEOUT")
    assert sum(len(limited.findall(text)) for text in texts) == 2
    assert "settimeout(5)" in modules()["engine.dockerd"].read_text()
    assert "settimeout(SEND_TIMEOUT)" in modules()["system.logs"].read_text()


def test_a_pass_may_take_several_calls_that_wait_as_long_as_they_may() -> None:
    unit = (ROOT / "systemd" / "ipv6natd.service").read_text()
    watchdog = int(re.findall(r"^WatchdogSec=(\d+)$", unit, re.MULTILINE)[0])
    end = int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[0])
    interval = notify.watchdog_interval({"WATCHDOG_USEC": str(watchdog * 1_000_000)})
    assert interval == watchdog / 3
    flush = 2 * conntrack.SCAN_TIMEOUT + conntrack.IP_TIMEOUT
    assert 4 * (firewall_tools.TOOL_TIMEOUT + tools.KILL_TIMEOUT) + flush < reconciler.MAX_PASS_TIME
    page = (ROOT / "docs" / "limits.md").read_text()
    assert f"no pass takes\nlonger than {reconciler.MAX_PASS_TIME:g} s" in page
    assert end > applier.LOCK_TIMEOUT + tools.KILL_TIMEOUT
    assert drift.MONITOR_RESTART_DELAY > 0


RETRIES = {
    "a connection to the engine": (docker_watch.MIN_RETRY_DELAY, 2, docker_watch.MAX_RETRY_DELAY),
    "a connection to an endpoint of Podman": (docker_watch.WRONG_ENGINE_RETRY_DELAY, 1, None),
    "a failed inspect of a container or network": (
        docker_watch.INSPECT_RETRY_DELAY,
        1,
        None,
    ),
    "a failed write of rules, or a failed deletion of conntrack entries": (
        reconciler.MIN_RETRY_PAUSE,
        2,
        reconciler.MAX_RETRY_PAUSE,
    ),
    "the system bus and our name on it": (dbus_api.MIN_RETRY_DELAY, 2, dbus_api.MAX_RETRY_DELAY),
    "the question to the bus daemon about the sender of a call": (
        polkit.IDENTIFY_INTERVAL,
        1,
        None,
    ),
    "a call over the bus that the bus daemon rejected for lack of space": (
        bus.RETRY_DELAY,
        1,
        None,
    ),
    "signals on the bus, while too many messages are unread": (
        dbus_signals.CROWDED_INTERVAL,
        1,
        None,
    ),
    "`nft monitor`": (drift.MONITOR_RESTART_DELAY, 1, None),
    "the xtables lock": (0.01, 1, None),
}


def test_what_is_tried_again_is_documented_as_it_is() -> None:
    page = (ROOT / "docs" / "limits.md").read_text()
    rows = re.findall(r"^\| (.*?) \| ([0-9.]+) s \| (.*?) \| (.*?) \|", page, re.MULTILINE)
    told = {
        name: (
            float(first),
            {"constant": 1, "doubles": 2}[factor],
            float(longest.removesuffix(" s")) if longest != "-" else None,
        )
        for name, first, factor, longest in rows
    }
    assert told == RETRIES


LIMITS = {
    "a tool that reads or writes rules": firewall_tools.TOOL_TIMEOUT,
    "deleting neighbour entries": conntrack.IP_TIMEOUT,
    "deleting the conntrack entries of one change": conntrack.SCAN_TIMEOUT,
    "a response of the engine": float(CALL_TIMEOUT),
    "a connection to the bus": bus.CONNECT_TIMEOUT,
    "a call over the bus": bus.CALL_TIMEOUT,
    "the bus daemon to name a call's sender": polkit.IDENTIFY_INTERVAL
    * polkit.MAX_IDENTIFY_ATTEMPTS,
    "polkit without a dialog": polkit.CHECK_TIMEOUT,
    "polkit with a password dialog": polkit.DIALOG_TIMEOUT,
    "the current pass, at a stop": applier.LOCK_TIMEOUT,
    "the metrics file on a disk that hangs, at a stop": textfile.LOCK_TIMEOUT,
    "a killed process": tools.KILL_TIMEOUT,
}


def test_how_long_is_waited_is_documented_as_it_is() -> None:
    page = (ROOT / "docs" / "limits.md").read_text()
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

    async def session(watch: EngineWatcher) -> None:
        if len(pauses) == 8:
            watch.state = EngineState.CONNECTED
        raise EngineUnavailable("gone")

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(EngineWatcher, "_session", session)
    watch = EngineWatcher(EngineAddress(endpoint="unix:///x"), lambda: None, resync_interval=60)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(watch.run(retry=True))
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 0.1, 0.2, 0.4, 0.8]
