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
    warning,
)


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


def test_signals_are_dropped_while_the_bus_does_not_read(bus: Bus) -> None:
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


def test_publish_without_a_bus_does_nothing() -> None:
    service = BusService(FakeSource(status()))
    service.publish(status(), status(mapping(), generation=2))
