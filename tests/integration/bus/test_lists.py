"""Long replies: made once, outside the event loop, and no longer than the bus permits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable

import pytest

from ipv6natd.dbus import lists as dbus_lists
from ipv6natd.dbus.connection import BusError
from ipv6natd.dbus.limits import Limits
from ipv6natd.dbus.lists import Lists
from ipv6natd.dbus.values import marshal_rows
from ipv6natd.netfilter.docker_rules import Leftover
from ipv6natd.report.explain import Explanation
from ipv6natd.report.status import Row
from ipv6natd.system.threads import in_thread
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


def test_10000_rows_do_not_block_the_event_loop(bus: Bus) -> None:
    async def body() -> None:
        now = status(*(mapping(number) for number in range(10_000)))
        lists = Lists(lambda: now)
        turns = 0
        task = asyncio.create_task(lists.rows("ListMappings"))
        while not task.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert turns > 50  # in a second of work; a count, because a busy machine is slow
        assert await lists.rows("ListMappings") is task.result()
        async with serving(bus, FakeSource(now)), client(bus) as root:
            rows = await ask(root, "ListMappings")
        assert [row["HostPort"] for row in rows] == list(range(8000, 18_000))

    run(body())


def test_rows_are_marshalled_once_per_generation(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = marshal_rows

    def counted(rows: Iterable[Row]) -> bytes:
        listed = list(rows)
        made.append(len(listed))
        return real(listed)

    monkeypatch.setattr(dbus_lists, "marshal_rows", counted)

    async def body() -> None:
        source = FakeSource(status(mapping()))
        async with serving(bus, source) as service, client(bus) as root:
            await asyncio.gather(*(ask(root, "ListMappings") for _ in range(10)))
            assert made == [1]
            old, source.now = source.now, status(mapping(), mapping(1), generation=2)
            service.publish(old, source.now)
            assert len(await ask(root, "ListMappings")) == 2
            assert made == [1, 2]

    run(body())


def test_reply_above_the_size_limit_is_an_error(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbus_lists, "MAX_REPLY_BYTES", 1000)

    async def body() -> None:
        source = FakeSource(status(*(mapping(number) for number in range(10))))
        source.text = "x" * 2000
        async with serving(bus, source), client(bus) as root:
            for member in ("ListMappings", "GetRuleset", "ListMappings"):
                with pytest.raises(BusError, match="more than the bus carries"):
                    await ask(root, member)
            assert len(await ask(root, "ListSkipped")) == 1

    run(body())


def test_user_waits_for_at_most_one_reply_of_another_user_and_root_for_none() -> None:
    ended: list[str] = []
    go = threading.Event()

    def slow() -> bytes:
        assert go.wait(20)
        return b""

    async def body() -> None:
        limits = Limits()

        async def asked(uid: int, name: str, make: Callable[[], bytes] = bytes) -> None:
            async with limits.turn(uid):
                await in_thread(make)
            ended.append(name)

        async with asyncio.TaskGroup() as tasks:
            for number in range(5):
                tasks.create_task(asked(1, f"flood {number}", slow))
            await asyncio.sleep(0)
            tasks.create_task(asked(2, "other"))
            async with asyncio.timeout(5):
                await asked(0, "root")
            await asyncio.sleep(0.05)
            assert ended == ["root"]
            go.set()
        assert ended.index("other") <= 2
        assert not limits._user_locks

    run(body())


def test_explain_and_list_leftovers_run_one_at_a_time_per_user(bus: Bus) -> None:
    looking, most = 0, 0

    class Slow(FakeSource):
        async def explain(self, asked: str) -> list[Explanation]:
            nonlocal looking, most
            looking += 1
            most = max(most, looking)
            await asyncio.sleep(0.02)
            looking -= 1
            return await super().explain(asked)

        async def leftovers(self) -> tuple[Leftover, ...]:
            await self.explain("")
            return ()

    async def body() -> None:
        async with (
            serving(bus, Slow(status())),
            client(bus, uid=65534) as first,
            client(bus, uid=65534) as second,
        ):
            calls = [
                ask(connection, "ListLeftovers") for connection in (first, second) for _ in range(5)
            ]
            calls += [
                ask(connection, "Explain", "s", "x")
                for connection in (first, second)
                for _ in range(5)
            ]
            await asyncio.gather(*calls)
            assert most == 1

    run(body())
