"""Callers who ask too much, read too little or send too much, and everybody else meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from ipv6natd import dbus_limits, polkit
from ipv6natd.bus import BUS, ERROR, BusError, Connection
from ipv6natd.dbus_limits import MAX_UNREAD, STATS
from ipv6natd.dbus_objects import INTROSPECTABLE, PEER
from ipv6natd.dbus_wire import BATCH
from tests.bus.conftest import Bus, FakeSource, ask, client, mapping, run, serving, status
from tests.bus.flood import flood
from tests.unit.waiting import until

NOBODY = 65534
LIMIT = ERROR + "LimitsExceeded"


async def outcome(connection: Connection, member: str, **how: Any) -> str:
    """The name of the error that the call ends with, or what was called."""
    try:
        await ask(connection, member, **how)
    except BusError as error:
        return error.name
    return member


def test_a_sender_with_too_many_calls_waiting_is_refused_and_others_are_not(bus: Bus) -> None:
    async def body() -> None:
        source = FakeSource(status())
        source.gate = asyncio.Event()
        async with serving(bus, source) as service, client(bus) as greedy, client(bus) as other:
            waiting = [asyncio.create_task(ask(greedy, "Resync")) for _ in range(16)]
            await until(lambda: sum(service._limits._unanswered.values()) == 16)
            with pytest.raises(BusError, match="16 calls of yours wait") as caught:
                await ask(greedy, "ListMappings")
            assert caught.value.name == LIMIT
            assert await ask(greedy, "Ping", interface=PEER) is None
            assert await ask(other, "ListMappings") == []
            source.gate.set()
            await asyncio.gather(*waiting)
            assert await ask(greedy, "ListMappings") == []
            assert not service._limits._unanswered

    run(body())


def test_twenty_thousand_calls_of_a_plain_user_hold_up_nobody(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = 20_000
    enough = 600.0  # seconds: it is turns that are counted, and a busy machine has slow ones
    monkeypatch.setattr(polkit, "CALL_SECONDS", enough)
    monkeypatch.setattr(polkit, "PATIENCE", enough)

    async def body() -> None:
        old, new = status(mapping()), status(mapping(), mapping(1), generation=2)
        path = bus.address.removeprefix("unix:path=")
        async with serving(bus, FakeSource(old)) as service, client(bus) as root:
            await ask(root, "ListMappings")
            flooding = asyncio.create_task(
                asyncio.to_thread(flood, path, "ListMappings", many, uid=NOBODY)
            )
            turns = asked = 0

            async def turn() -> None:
                nonlocal turns
                while not flooding.done():
                    await asyncio.sleep(0)
                    turns += 1

            turning = asyncio.create_task(turn())
            while not flooding.done():
                service.publish(old, new)
                assert len(await ask(root, "ListMappings", timeout=enough)) == 1
                asked += 1
            await turning
            outcomes = flooding.result()
            # One who did nothing but read would have needed one turn.
            assert turns > many / BATCH
            assert asked > 0
            assert set(outcomes) == {"ListMappings", "LimitsExceeded"}
            assert outcomes["ListMappings"] >= 16

    run(body(), seconds=enough)


async def unread(root: Connection, sender: str) -> int:
    """Bytes that the bus keeps for a sender."""
    (stats,) = await root.call(*BUS[:2], STATS, "GetConnectionStats", "s", sender)
    return int(stats["OutgoingBytes"])


def deaf(connection: Connection) -> Any:
    """Stop reading from the bus; what is returned begins again."""
    bus = connection._bus
    bus._loop.remove_reader(bus._fd)
    return lambda: bus._loop.add_reader(bus._fd, bus._message_reader)


def test_a_reader_that_never_reads_gets_no_more_than_the_bus_should_keep(bus: Bus) -> None:
    async def body() -> None:
        # 6 MB, as 10,000 mappings have, in rows that are read faster.
        now = status(*(mapping(number, name="x" * 60_000) for number in range(100)))
        async with (
            serving(bus, FakeSource(now)) as service,
            client(bus) as root,
            client(bus, uid=NOBODY) as lazy,
        ):
            hear = deaf(lazy)
            calls: list[asyncio.Task[str]] = []
            for _ in range(10):
                calls += [asyncio.create_task(outcome(lazy, "ListMappings")) for _ in range(10)]
                # Others are served meanwhile.
                assert len(await ask(root, "ListMappings")) == 100
                await until(lambda: not service._tasks)
            # All calls went out and were answered; what can be read is no more than it should.
            kept = await unread(root, lazy.unique_name)
            assert MAX_UNREAD / 2 < kept <= MAX_UNREAD + (1 << 20)
            hear()
            outcomes = Counter(await asyncio.gather(*calls))
            assert set(outcomes) == {"ListMappings", LIMIT}
            assert 2 < outcomes["ListMappings"] < 10
            # Whoever has read may ask again.
            assert len(await ask(lazy, "ListMappings")) == 100

    run(body())


def test_small_answers_count_too(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbus_limits, "MAX_UNREAD", 1 << 20)

    async def body() -> None:
        async with (
            serving(bus, FakeSource(status())),
            client(bus) as root,
            client(bus, uid=NOBODY) as lazy,
        ):
            hear = deaf(lazy)
            how = {"interface": INTROSPECTABLE}
            calls = [asyncio.create_task(outcome(lazy, "Introspect", **how)) for _ in range(1000)]
            await asyncio.sleep(0)
            for _ in range(20):  # every one of the calls has been answered
                await ask(root, "Ping", interface=PEER)
                await asyncio.sleep(0.01)
            assert await unread(root, lazy.unique_name) < 2 << 20
            hear()
            outcomes = Counter(await asyncio.gather(*calls))
            assert outcomes["Introspect"] > 10
            assert outcomes[LIMIT] > 500

    run(body())


def test_a_bus_that_does_not_say_what_was_read_has_limits_of_its_own(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As dbus-broker."""
    monkeypatch.setattr(dbus_limits, "MAX_UNREAD", 1000)
    monkeypatch.setattr(dbus_limits, "STATS", "org.ipv6natd1.NoSuchInterface")

    async def body() -> None:
        now = status(*(mapping(number) for number in range(10)))
        async with serving(bus, FakeSource(now)), client(bus) as root:
            for _ in range(3):
                # Alone it is more than the limit; but nothing of it is known to be unread.
                assert await outcome(root, "GetRuleset") == "GetRuleset"

    run(body())


def test_senders_who_left_are_forgotten(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbus_limits, "MAX_KNOWN", 5)

    async def body() -> None:
        async with serving(bus, FakeSource(status())) as service, client(bus) as stays:
            await ask(stays, "ListMappings")
            for _ in range(20):
                async with client(bus) as passing:
                    await ask(passing, "ListMappings")
            assert len(service._limits._sent) <= 7
            assert stays.unique_name in service._limits._sent

    run(body())
