"""The signals of a sync."""

from __future__ import annotations

from dataclasses import replace

from ipv6natd.dbus.connection import Signal
from ipv6natd.dbus.objects import (
    MANAGER,
    PEER,
)
from ipv6natd.dbus.service import BusService
from ipv6natd.report.status import (
    Row,
    State,
)
from tests.integration.bus.conftest import (
    Bus,
    FakeSource,
    ask,
    client,
    mapping,
    run,
    serving,
    status,
)


def test_a_sync_is_signalled_once_with_what_changed(bus: Bus) -> None:
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
        drift: Row = {"Rules": ("u", 4)}
        async with serving(bus, FakeSource(new)) as service, client(bus, signals.append) as root:
            service.publish(old, new, drift)
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
        assert signals[5].args == [{"Rules": 4}]
        assert signals[6].args == [
            2,
            {"MappingsAdded": 2, "MappingsRemoved": 2, "State": "degraded"},
        ]

    run(body())


def test_the_version_is_never_announced_and_a_quiet_sync_says_only_that_it_was(bus: Bus) -> None:
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


def test_at_most_fifty_mappings_are_signalled_a_sync(bus: Bus) -> None:
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


def test_signals_are_left_out_while_nobody_reads_them(bus: Bus) -> None:
    async def body() -> None:
        old = status()
        async with serving(bus, FakeSource(old)) as service, client(bus) as root:
            bus.pause()
            for number in range(6000):
                service.publish(old, replace(old, last_sync=number))
            connection = service._connection
            assert connection is not None
            assert 900 < connection.unsent < 1100
            bus.resume()
            assert await ask(root, "ListMappings") == []

    run(body())


def test_publishing_without_a_bus_does_nothing() -> None:
    service = BusService(FakeSource(status()))
    service.publish(status(), status(mapping(), generation=2))
