"""The signals of a sync."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import replace
from functools import partial

import pytest

from ipv6natd.dbus import limits as dbus_limits
from ipv6natd.dbus import signals as dbus_signals
from ipv6natd.dbus.connection import BUS, Signal
from ipv6natd.dbus.objects import MANAGER, NAME, PATH, PEER, PROPERTIES
from ipv6natd.dbus.service import BusService
from ipv6natd.report.status import State, Status
from tests.harness.waiting import until
from tests.integration.bus.conftest import (
    Bus,
    FakeSource,
    ask,
    client,
    mapping,
    run,
    serving,
    status,
    warning,
)
from tests.integration.bus.flood import connected, message, send

NOBODY = 65534


def test_sync_emits_each_change_once(bus: Bus) -> None:
    async def body() -> None:
        signals: list[Signal] = []
        old = status(mapping(), mapping(1), mapping(2))
        new = status(
            mapping(),
            mapping(1, name="new"),
            mapping(3),
            generation=2,
            last_sync=old.last_sync + 1,
            state=State.DEGRADED,
            state_reason="x",
        )
        async with serving(bus, FakeSource(new)) as service, client(bus, signals.append) as root:
            service.publish(old, new, ("nat", "filter"))
            service.publish(new, new)
            await ask(root, "Ping", interface=PEER)
        assert [signal.member for signal in signals] == [
            "PropertiesChanged",
            *("MappingRemoved", "MappingRemoved", "MappingAdded", "MappingAdded"),
            *("DriftRepaired", "Synced"),
        ]
        changed = {
            "State": "degraded",
            "StateReason": "x",
            "Generation": 2,
            "LastSync": new.last_sync,
        }
        assert signals[0].args == [MANAGER, changed, []]
        ports = [signal.args[0]["HostPort"] for signal in signals[1:5]]
        assert ports == [8001, 8002, 8001, 8003]
        assert signals[5].args == [{"Tables": ["nat", "filter"]}]
        assert signals[6].args == [
            2,
            {"MappingsAdded": 2, "MappingsRemoved": 2, "State": "degraded"},
        ]

    run(body())


def test_sync_without_changes_emits_only_last_sync_and_synced(bus: Bus) -> None:
    async def body() -> None:
        signals: list[Signal] = []
        old = status(mapping())
        new = replace(old, version="2", last_sync=old.last_sync + 1)
        async with serving(bus, FakeSource(new)) as service, client(bus, signals.append) as root:
            service.publish(old, new)
            await ask(root, "Ping", interface=PEER)
        assert [signal.member for signal in signals] == ["PropertiesChanged", "Synced"]
        assert signals[0].args == [MANAGER, {"LastSync": new.last_sync}, []]

    run(body())


def test_changed_findings_are_announced_once(bus: Bus) -> None:
    async def body() -> None:
        signals: list[Signal] = []
        old = status()
        new = replace(old, findings=(*old.findings, warning("third")))
        other = replace(new, findings=(*old.findings, warning("fourth")))
        async with serving(bus, FakeSource(new)) as service, client(bus, signals.append) as root:
            service.publish(old, new)
            service.publish(new, new)
            service.publish(new, other)
            await ask(root, "Ping", interface=PEER)
        assert [(signal.member, signal.args) for signal in signals] == [
            ("PropertiesChanged", [MANAGER, {"FindingCount": 3}, []]),
            ("FindingsChanged", []),
            ("FindingsChanged", []),
        ]

    run(body())


def test_sync_emits_at_most_50_mapping_signals(bus: Bus) -> None:
    async def body() -> None:
        signals: list[Signal] = []
        old = status(*(mapping(number) for number in range(40)))
        new = status(*(mapping(number) for number in range(40, 120)), generation=2, last_sync=5)
        async with serving(bus, FakeSource(new)) as service, client(bus, signals.append) as root:
            service.publish(old, new)
            await ask(root, "Ping", interface=PEER)
        names = [signal.member for signal in signals]
        assert (names.count("MappingRemoved"), names.count("MappingAdded")) == (40, 10)
        assert signals[-1].args[1]["MappingsAdded"] == 80

    run(body())


def test_signals_wait_while_the_bus_does_not_read(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dbus_signals, "CROWDED_INTERVAL", 0.2)
    signals: list[Signal] = []

    async def body() -> None:
        old = status()
        async with (
            serving(bus, FakeSource(old)) as service,
            client(bus, signals.append),
            client(bus) as root,
        ):
            bus.pause()
            for number in range(6000):
                new = replace(old, last_sync=number)
                service.publish(old, new)
                old = new
            connection = service._connection
            assert connection is not None
            assert 900 < connection.unsent < 1100
            bus.resume()
            assert await ask(root, "ListMappings") == []
            await until(lambda: {"LastSync": 5999} in signals[-2].args)
            assert len(signals) < 1200

    run(body())


def test_publish_without_a_bus_does_nothing() -> None:
    service = BusService(FakeSource(status()))
    service.publish(status(), status(mapping(), generation=2))


def subscribed(bus: Bus) -> socket.socket:
    """A connection of a plain user that subscribes to all signals and never reads."""
    sock = connected(bus.address.removeprefix("unix:path="), NOBODY)
    body = [f"type='signal',path='{PATH}'"]
    parts = {"destination": BUS[0], "path": BUS[1], "interface": BUS[2], "serial": 2}
    sock.sendall(message(**parts, member="AddMatch", signature="s", body=body))
    return sock


def renamed(turn: int, size: int) -> Status:
    """A status whose mappings all differ from those of another turn."""
    rows = (mapping(number, name=f"{turn}-".ljust(size, "x")) for number in range(50))
    return status(*rows, generation=turn, last_sync=turn)


def test_subscriber_that_never_reads_does_not_block_root(bus: Bus) -> None:
    """The bus daemon stops reading from a service with 127 MiB of unread messages."""

    async def body() -> None:
        source = FakeSource(renamed(0, 60_000))
        async with serving(bus, source) as service, client(bus) as root:
            with contextlib.closing(subscribed(bus)):
                for turn in range(1, 60):  # 3 MB each
                    old, source.now = source.now, renamed(turn, 60_000)
                    service.publish(old, source.now)
                    assert service._connection is not None
                    await service._connection.flush(1)
                assert (await ask(root, "GetAll", "s", MANAGER, interface=PROPERTIES, timeout=5))[
                    "Generation"
                ] == turn
                assert len(await ask(root, "ListMappings", timeout=5)) == 50

    run(body())


def test_changes_while_signals_are_unread_are_sent_as_those_of_one_sync(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dbus_limits, "MAX_UNREAD_BYTES_FOR_FULL_SIGNALS", 1 << 18)
    monkeypatch.setattr(dbus_signals, "CROWDED_INTERVAL", 0.2)
    signals: list[Signal] = []

    def seen(*members: str) -> list[Signal]:
        return [signal for signal in signals if signal.member in members]

    async def body() -> None:
        async with serving(bus, FakeSource(status())) as service, client(bus, signals.append):
            sock = subscribed(bus)
            now = renamed(0, 1000)
            for turn in range(1, 21):
                now, old = renamed(turn, 1000), now
                service.publish(old, now, ("nat",) if turn == 19 else ())
                await asyncio.sleep(0.01)
            await until(lambda: seen("Synced")[-1].args[0] == 20)
            # The last signals have the changes of several syncs, and no rows.
            full = len(seen("MappingAdded", "MappingRemoved")) // 50
            assert 3 < full < 10  # syncs of 60 kB
            assert len(seen("Synced")) < 20
            assert seen("Synced")[-1].args[1]["MappingsAdded"] == 50
            assert seen("PropertiesChanged")[-1].args[1]["Generation"] == 20
            assert [signal.args for signal in seen("DriftRepaired")] == [[{"Tables": ["nat"]}]]
            # Above the second limit nothing is sent until there is room.
            monkeypatch.setattr(dbus_limits, "MAX_UNREAD_BYTES_FOR_SIGNALS", 1 << 18)
            before = len(signals)
            service.publish(now, renamed(21, 1000), ("raw",))
            service.publish(renamed(21, 1000), renamed(22, 1000), ("nat", "raw"))
            await asyncio.sleep(0.5)
            assert len(signals) == before
            sock.close()
            await until(lambda: seen("Synced")[-1].args[0] == 22)
            assert len(seen("MappingAdded", "MappingRemoved")) == 50 * (full + 1)
            assert seen("DriftRepaired")[-1].args == [{"Tables": ["raw", "nat"]}]

    run(body())


def test_signals_that_all_subscribers_read_are_sent_at_once(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dbus_limits, "MAX_UNREAD_BYTES_FOR_FULL_SIGNALS", 1 << 18)
    signals: list[Signal] = []

    def arrived(generation: int) -> bool:
        return bool(signals) and signals[-1].args[0] == generation

    async def body() -> None:
        now = renamed(0, 1000)
        async with serving(bus, FakeSource(now)) as service, client(bus, signals.append):
            for turn in range(1, 21):
                now, old = renamed(turn, 1000), now
                service.publish(old, now)
                await until(partial(arrived, turn))
        assert len(signals) == 20 * 52

    run(body())


def test_unread_errors_do_not_stop_the_signals(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, size in (("", 17), ("_FOR_ERRORS", 18), ("_FOR_FULL_SIGNALS", 16)):
        monkeypatch.setattr(dbus_limits, f"MAX_UNREAD_BYTES{kind}", 1 << size)
    monkeypatch.setattr(dbus_limits, "MAX_UNREAD_BYTES_FOR_SIGNALS", 3 << 17)
    monkeypatch.setattr(dbus_signals, "CROWDED_INTERVAL", 0.2)
    signals: list[Signal] = []

    async def body() -> None:
        path = bus.address.removeprefix("unix:path=")
        call = message(destination=NAME, path=PATH, interface=MANAGER, member="No", serial=1)
        now = renamed(0, 100)
        async with (
            serving(bus, FakeSource(now)) as service,
            client(bus, signals.append),
            client(bus) as root,
        ):
            with contextlib.closing(connected(path, NOBODY)) as sock:
                await asyncio.to_thread(send, sock, call, 4000)
                assert len(await ask(root, "ListMappings")) == 50
                assert service._limits._unread_bytes > 1 << 17
                service.publish(now, renamed(1, 100))
                await until(lambda: len(signals) == 2)
        assert [signal.member for signal in signals] == ["PropertiesChanged", "Synced"]

    run(body())
