"""The limits for callers with many calls, unread replies or large messages, and other callers
meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from ipv6natd.dbus import connection as bus_module
from ipv6natd.dbus import limits as dbus_limits
from ipv6natd.dbus import polkit
from ipv6natd.dbus.connection import BUS, ERROR, BusError, Connection
from ipv6natd.dbus.limits import MAX_UNREAD_BYTES, STATS_INTERFACE, Limits
from ipv6natd.dbus.objects import INTROSPECTABLE, MANAGER, NAME, PATH, PEER, PROPERTIES
from ipv6natd.dbus.polkit import Action
from ipv6natd.dbus.wire import MAX_BATCH, Variant
from tests.harness.waiting import until
from tests.integration.bus.apart import peak, serving_apart
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
from tests.integration.bus.flood import answer_to, connected, flood, message, send
from tests.integration.bus.test_polkit import FakePolkit, authority

GAMES, NOBODY = 5, 65534
LIMIT = ERROR + "LimitsExceeded"


async def outcome(connection: Connection, member: str, **options: Any) -> str:
    """The name of the error, or the name of the member after a reply."""
    try:
        await ask(connection, member, **options)
    except BusError as error:
        return error.name
    return member


def test_sender_with_16_pending_calls_is_refused_and_others_are_not(bus: Bus) -> None:
    async def body() -> None:
        source = FakeSource(status())
        source.gate = asyncio.Event()
        async with serving(bus, source) as service, client(bus) as greedy, client(bus) as other:
            waiting = [asyncio.create_task(ask(greedy, "Resync")) for _ in range(16)]
            await until(lambda: sum(service._limits._calls_of_sender.values()) == 16)
            with pytest.raises(BusError, match="16 of your calls have no reply yet") as caught:
                await ask(greedy, "ListMappings")
            assert caught.value.name == LIMIT
            assert await ask(greedy, "Ping", interface=PEER) is None
            assert await ask(other, "ListMappings") == []
            source.gate.set()
            await asyncio.gather(*waiting)
            assert await ask(greedy, "ListMappings") == []
            assert not service._limits._calls_of_sender

    run(body())


@pytest.mark.slow
def test_20000_calls_of_a_plain_user_do_not_block_root(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = 20_000
    enough = 600.0  # seconds; the test counts turns, which are slow on a busy machine
    monkeypatch.setattr(polkit, "IDENTIFY_INTERVAL", enough)
    monkeypatch.setattr(polkit, "CHECK_TIMEOUT", enough)

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
            # A loop that reads all messages at once would need one turn.
            assert turns > many / MAX_BATCH
            assert asked > 0
            assert set(outcomes) == {"ListMappings", "LimitsExceeded"}
            assert outcomes["ListMappings"] >= 16

    run(body(), seconds=enough)


async def unread(root: Connection, sender: str) -> int:
    """Bytes that the bus daemon stores for a connection."""
    (stats,) = await root.call(*BUS[:2], STATS_INTERFACE, "GetConnectionStats", "s", sender)
    return int(stats["OutgoingBytes"])


def stop_reading(connection: Connection) -> Any:
    """Stop reading from the bus; return a function that starts again."""
    bus = connection._bus
    bus._loop.remove_reader(bus._fd)
    return lambda: bus._loop.add_reader(bus._fd, bus._message_reader)


def test_unread_replies_are_bounded_for_all_but_root(bus: Bus) -> None:
    async def body() -> None:
        # 6 MB, the size of 10,000 mappings, in fewer rows, which are parsed faster.
        now = status(*(mapping(number, name="x" * 60_000) for number in range(100)))
        async with (
            serving(bus, FakeSource(now)) as service,
            client(bus) as root,
            client(bus, uid=NOBODY) as lazy,
        ):
            resume_reading = stop_reading(lazy)
            calls: list[asyncio.Task[str]] = []
            for _ in range(10):
                calls += [asyncio.create_task(outcome(lazy, "ListMappings")) for _ in range(10)]
                # Root gets replies meanwhile.
                assert len(await ask(root, "ListMappings")) == 100
                await until(lambda: not service._tasks)
            # All calls have replies; the stored bytes are within the limit.
            unread_bytes = await unread(root, lazy.unique_name)
            assert MAX_UNREAD_BYTES / 2 < unread_bytes <= MAX_UNREAD_BYTES + (1 << 20)
            resume_reading()
            outcomes = Counter(await asyncio.gather(*calls))
            assert set(outcomes) == {"ListMappings", LIMIT}
            assert 5 < outcomes["ListMappings"] < 15
            # After reading, the sender may call again.
            assert len(await ask(lazy, "ListMappings")) == 100

    run(body())


@pytest.mark.parametrize("member", ["ListMappings", "GetRuleset"])
def test_connections_that_never_read_do_not_block_root_or_use_memory(bus: Bus, member: str) -> None:
    """The bus daemon stops reading from a service with 127 MiB of unread messages."""

    async def body() -> None:
        path = bus.address.removeprefix("unix:path=")
        call = message(destination=NAME, path=PATH, interface=MANAGER, member=member, serial=1)
        async with contextlib.AsyncExitStack() as stack:
            pid = await stack.enter_async_context(serving_apart(bus, rows=100))
            root = await stack.enter_async_context(client(bus))
            for each in ("ListMappings", "GetRuleset"):
                await ask(root, each)
            before = peak(pid)
            socks = [
                stack.enter_context(contextlib.closing(connected(path, NOBODY))) for _ in range(8)
            ]
            for number in range(12):
                for sock in socks:
                    await asyncio.to_thread(send, sock, call, 8, first=2 + 8 * number)
                assert len(await ask(root, "ListMappings")) == 100
            assert peak(pid) - before < 32  # some replies of 6 MB; the calls ask for 768

    run(body(), seconds=120)


def test_unread_errors_are_bounded(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbus_limits, "MAX_UNREAD_BYTES", 1 << 18)
    monkeypatch.setattr(dbus_limits, "MAX_UNREAD_BYTES_FOR_ERRORS", 1 << 18)

    async def body() -> None:
        path = bus.address.removeprefix("unix:path=")
        call = message(destination=NAME, path=PATH, interface=MANAGER, member="No", serial=1)
        async with serving(bus, FakeSource(status())) as service, client(bus) as root:
            with contextlib.closing(connected(path, NOBODY)) as sock:
                await asyncio.to_thread(send, sock, call, 5000)
                for _ in range(3):
                    assert await ask(root, "ListMappings", timeout=60) == []
                assert service._connection is not None
                ours = service._connection.unique_name
                (stats,) = await root.call(
                    *BUS[:2], STATS_INTERFACE, "GetConnectionStats", "s", ours
                )
                assert (1 << 17) < stats["IncomingBytes"] < (1 << 19)
            # The bus daemon drops the messages of a closed connection.
            async with client(bus, uid=NOBODY) as other:
                assert await outcome(other, "ListMappings") == "ListMappings"
                assert await outcome(other, "No") == ERROR + "UnknownMethod"

    run(body())


def test_failing_calls_do_not_wait_for_the_bus_and_root_gets_replies(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood delays the answers of the bus daemon; here it answers nothing about unread bytes."""
    monkeypatch.setattr(dbus_limits, "MAX_UNREAD_BYTES", 1 << 16)
    monkeypatch.setattr(dbus_limits, "MAX_UNREAD_BYTES_FOR_ERRORS", 1 << 16)
    real, asked = Connection.call, 0

    async def losing(connection: Connection, *words: Any, **options: Any) -> list[Any]:
        nonlocal asked
        if "GetConnectionStats" in words:
            asked += 1
            await asyncio.sleep(60)
        return await real(connection, *words, **options)

    async def body() -> None:
        path = bus.address.removeprefix("unix:path=")
        call = message(destination=NAME, path=PATH, interface=MANAGER, member="No", serial=1)
        async with serving(bus, FakeSource(status())) as service, client(bus) as root:
            assert await ask(root, "ListMappings") == []
            monkeypatch.setattr(Connection, "call", losing)
            with contextlib.ExitStack() as stack:
                for _ in range(20):
                    sock = stack.enter_context(contextlib.closing(connected(path, NOBODY)))
                    await asyncio.to_thread(send, sock, call, 200)
                    assert await ask(root, "ListMappings", timeout=10) == []
                    assert len(service._tasks) < MAX_BATCH
            assert service._limits._sent_bytes < 1 << 17  # 4,000 errors have 800 kB
            assert asked == 1

    run(body())


def test_root_gets_errors_after_many_replies_that_it_has_read(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dbus_limits, "MAX_UNREAD_BYTES", 1 << 14)
    monkeypatch.setattr(dbus_limits, "MAX_UNREAD_BYTES_FOR_ERRORS", 1 << 15)

    async def body() -> None:
        now = status(*(mapping(number) for number in range(10)))
        async with serving(bus, FakeSource(now)), client(bus) as root:
            for _ in range(30):
                assert len(await ask(root, "ListMappings")) == 10
            assert await outcome(root, "No", timeout=5) == ERROR + "UnknownMethod"
            # Errors alone are counted too.
            for _ in range(400):
                assert await outcome(root, "No", timeout=5) == ERROR + "UnknownMethod"

    run(body())


def test_small_unread_replies_are_bounded(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbus_limits, "MAX_UNREAD_BYTES", 1 << 20)

    async def body() -> None:
        async with (
            serving(bus, FakeSource(status())),
            client(bus) as root,
            client(bus, uid=NOBODY) as lazy,
        ):
            resume_reading = stop_reading(lazy)
            options = {"interface": INTROSPECTABLE}
            calls = [
                asyncio.create_task(outcome(lazy, "Introspect", **options)) for _ in range(1000)
            ]
            await asyncio.sleep(0)
            for _ in range(20):  # until all calls have replies
                await ask(root, "Ping", interface=PEER)
                await asyncio.sleep(0.01)
            assert await unread(root, lazy.unique_name) < 2 << 20
            resume_reading()
            outcomes = Counter(await asyncio.gather(*calls))
            assert outcomes["Introspect"] > 10
            assert outcomes[LIMIT] > 500

    run(body())


def test_bus_without_stats_interface_has_no_unread_limit(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dbus-broker is such a bus."""
    monkeypatch.setattr(dbus_limits, "MAX_UNREAD_BYTES", 8000)
    monkeypatch.setattr(dbus_limits, "STATS_INTERFACE", "org.ipv6natd1.NoSuchInterface")

    async def body() -> None:
        now = status(*(mapping(number) for number in range(10)))
        async with serving(bus, FakeSource(now)), client(bus, uid=NOBODY) as nobody:
            for _ in range(3):
                # Two replies exceed the limit, but no byte is known to be unread.
                assert await outcome(nobody, "ListMappings") == "ListMappings"

    run(body())


CALLS: dict[str, dict[str, Any]] = {
    "at once": {"interface": PEER, "member": "Ping"},
    "property": {
        **{"interface": PROPERTIES, "member": "Get", "signature": "ss"},
        "body": [MANAGER, "State"],
    },
    "error": {"interface": MANAGER, "member": "Nothing"},
    "list": {"interface": MANAGER, "member": "ListMappings"},
}


@pytest.mark.parametrize("what", CALLS)
def test_counters_of_disconnected_senders_are_deleted(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(polkit, "MAX_SENDERS", 100)
    call = message(destination=NAME, path=PATH, serial=2, **CALLS[what])

    def pass_by(times: int) -> None:
        path = bus.address.removeprefix("unix:path=")
        for _ in range(times):
            with contextlib.closing(connected(path, NOBODY)) as sock:
                sock.sendall(call)
                answer_to(sock, b"\x05\x01u\0\x02\0\0\0")  # to serial 2

    async def body() -> None:
        now = status(mapping(name="x" * 100_000))
        async with serving(bus, FakeSource(now)) as service, client(bus, uid=NOBODY) as owes:
            resume_reading = stop_reading(owes)
            asked = asyncio.create_task(ask(owes, "ListMappings", timeout=60))
            await asyncio.to_thread(pass_by, 1000)
            limits = service._limits
            assert len(service._authority._uids) <= 100
            assert not limits._calls_of_sender
            assert not limits._calls_of_user
            assert limits._unidentified_bytes.total() == 0
            resume_reading()
            await asked

    run(body())


def test_more_connections_give_a_user_no_more_pending_calls(bus: Bus) -> None:
    async def body() -> None:
        source = FakeSource(status())
        source.gate = asyncio.Event()
        fake = FakePolkit(says=dict.fromkeys(Action, (True, False)))
        async with contextlib.AsyncExitStack() as stack:
            service = await stack.enter_async_context(serving(bus, source))
            await stack.enter_async_context(authority(bus, fake))
            users = [await stack.enter_async_context(client(bus, uid=NOBODY)) for _ in range(4)]
            waiting = [
                asyncio.create_task(outcome(user, "Resync")) for user in users for _ in range(12)
            ]
            done: set[asyncio.Task[str]] = set()
            while len(done) < 16:
                done, _ = await asyncio.wait(waiting, return_when="FIRST_COMPLETED", timeout=0.1)
            assert {call.result() for call in done} == {LIMIT}
            assert service._limits._calls_of_user[NOBODY] == 32
            with pytest.raises(BusError, match="32 calls of your user have no reply yet"):
                await ask(users[0], "ListMappings")
            for uid in (0, GAMES):
                other = await stack.enter_async_context(client(bus, uid=uid))
                assert await ask(other, "ListMappings") == []
            source.gate.set()
            assert Counter(await asyncio.gather(*waiting)) == {LIMIT: 16, "Resync": 32}
            assert await ask(users[0], "ListMappings") == []

    run(body())


def test_root_has_no_limit_over_all_connections(bus: Bus) -> None:
    async def body() -> None:
        source = FakeSource(status())
        source.gate = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            service = await stack.enter_async_context(serving(bus, source))
            roots = [await stack.enter_async_context(client(bus)) for _ in range(4)]
            waiting = [
                asyncio.create_task(ask(root, "Resync")) for root in roots for _ in range(15)
            ]
            await until(lambda: service._limits._calls_of_user[0] == 60)
            assert await ask(roots[0], "ListMappings") == []
            source.gate.set()
            await asyncio.gather(*waiting)

    run(body())


def test_unidentified_calls_are_bounded_with_room_for_one_per_sender() -> None:
    limits = Limits()

    def let_in(stack: contextlib.ExitStack, sender: str, size: int) -> bool:
        call: Any = SimpleNamespace(sender=sender, size=size)
        stack.enter_context(limits.sender_call(call))
        with contextlib.suppress(BusError):
            stack.enter_context(limits.unidentified_call(call))
            return True
        return False

    with contextlib.ExitStack() as stack:
        large = [let_in(stack, f":1.{number}", 128 << 10) for number in range(256)]
        assert 10 < sum(large) < 40
        assert [let_in(stack, f":2.{number}", 200) for number in range(2000)] == [True] * 2000
        assert not let_in(stack, ":2.7", 200)
        assert sum(let_in(stack, f":3.{number}", 200) for number in range(10_000)) < 10_000
        assert limits._unidentified_bytes.total() <= 16 << 20
    assert limits._unidentified_bytes.total() == 0
    assert let_in(contextlib.ExitStack(), ":4.1", 128 << 10)


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_lost_reply_of_get_connection_unix_user_is_requested_again(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    """The bus daemon also drops its own replies while too many bytes wait for us."""
    monkeypatch.setattr(polkit, "IDENTIFY_INTERVAL", 0.05)
    real, asked = Connection.call, 0

    async def losing(connection: Connection, *words: Any, **options: Any) -> list[Any]:
        nonlocal asked
        if "GetConnectionUnixUser" in words:
            asked += 1
            if asked <= lost:
                await asyncio.sleep(60)
        return await real(connection, *words, **options)

    async def body() -> None:
        async with serving(bus, FakeSource(status())), client(bus) as root:
            monkeypatch.setattr(Connection, "call", losing)
            assert await ask(root, "ListMappings") == []
            assert asked > lost
            assert await ask(root, "Resync")

    run(body())


def test_call_of_an_unidentified_user_is_denied(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polkit, "IDENTIFY_INTERVAL", 0.02)
    real = Connection.call

    async def losing(connection: Connection, *words: Any, **options: Any) -> list[Any]:
        if "GetConnectionUnixUser" in words:
            await asyncio.sleep(options["timeout"])
            raise BusError(ERROR + "NoReply", "nothing came")
        return await real(connection, *words, **options)

    async def body() -> None:
        async with serving(bus, FakeSource(status())) as service, client(bus) as root:
            monkeypatch.setattr(Connection, "call", losing)
            assert await outcome(root, "ListMappings") == ERROR + "AccessDenied"
            assert service._limits._unidentified_bytes.total() == 0

    run(body())


def test_late_reply_of_get_connection_unix_user_is_accepted(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polkit, "IDENTIFY_INTERVAL", 0.2)
    real = Connection.call

    async def late(connection: Connection, *words: Any, **options: Any) -> list[Any]:
        if "GetConnectionUnixUser" in words:
            await asyncio.sleep(0.5)
        return await real(connection, *words, **options)

    async def body() -> None:
        async with serving(bus, FakeSource(status())), client(bus) as root:
            monkeypatch.setattr(Connection, "call", late)
            assert await ask(root, "ListMappings") == []

    run(body())


def test_31_mib_strings_from_12_connections_use_no_memory_and_root_gets_replies(
    bus: Bus,
) -> None:
    parts = {"destination": NAME, "path": PATH, "interface": MANAGER, "member": "Explain"}

    async def body() -> None:
        path = bus.address.removeprefix("unix:path=")
        data = message(**parts, signature="s", body=["x" * (31 << 20)], serial=2)
        async with contextlib.AsyncExitStack() as stack:
            pid = await stack.enter_async_context(serving_apart(bus))
            root = await stack.enter_async_context(client(bus))
            await ask(root, "ListMappings")
            before = peak(pid)
            socks = [
                stack.enter_context(contextlib.closing(connected(path, NOBODY))) for _ in range(12)
            ]
            sending = asyncio.gather(*(asyncio.to_thread(send, sock, data, 2) for sock in socks))
            asked = 0
            while not sending.done():
                async with client(bus) as new:
                    assert len(await ask(new, "ListMappings", timeout=60)) == 1
                assert len(await ask(root, "ListMappings", timeout=60)) == 1
                asked += 1
                await asyncio.sleep(0.05)
            await sending
            assert asked > 3
            assert peak(pid) - before < 8

    run(body(), seconds=240)


FLOODS: dict[str, dict[str, Any]] = {
    "text": {
        **{"interface": MANAGER, "member": "Explain", "signature": "s"},
        "body": ["x" * (bus_module.MAX_MESSAGE - 300)],
    },
    "array": {
        **{"interface": PROPERTIES, "member": "Set", "signature": "ssv"},
        "body": [MANAGER, "State", Variant("aq", [1] * 30_000)],
    },
}
"""Calls of the largest permitted size that are slow to parse."""


@pytest.mark.parametrize("shape", FLOODS)
def test_flood_of_slow_to_parse_calls_does_not_block_root(bus: Bus, shape: str) -> None:
    async def body() -> None:
        path = bus.address.removeprefix("unix:path=")
        data = message(destination=NAME, path=PATH, serial=2, **FLOODS[shape])
        async with contextlib.AsyncExitStack() as stack:
            pid = await stack.enter_async_context(serving_apart(bus))
            before = peak(pid)
            socks = [
                stack.enter_context(contextlib.closing(connected(path, NOBODY))) for _ in range(2)
            ]
            times = (32 << 20) // len(data)
            sending = asyncio.gather(*(asyncio.to_thread(send, it, data, times) for it in socks))
            asked = 0
            while not sending.done() or asked == 0:
                async with client(bus) as new:
                    assert len(await ask(new, "ListMappings", timeout=20)) == 1
                asked += 1
            await sending
            assert peak(pid) - before < 24  # of the 64 MiB that were sent

    run(body(), seconds=120)


def test_call_rejected_by_a_full_bus_queue_is_sent_again(bus: Bus) -> None:
    """The bus daemon rejects calls to the service while 127 MiB wait for the service."""
    parts = {"destination": NAME, "path": PATH, "interface": MANAGER, "member": "Explain"}

    async def body() -> None:
        path = bus.address.removeprefix("unix:path=")
        data = message(**parts, signature="s", body=["x" * (31 << 20)], serial=2)
        async with serving_apart(bus) as pid, client(bus) as root:
            os.kill(pid, signal.SIGSTOP)
            # Two senders: the bus daemon stops reading from a sender with 127 MiB in its queue.
            with (
                contextlib.closing(connected(path, NOBODY)) as one,
                contextlib.closing(connected(path, NOBODY)) as other,
            ):
                for sock in (one, other):
                    await asyncio.to_thread(send, sock, data, 3)
                await asyncio.to_thread(answer_to, other, b"full message queue")
                with pytest.raises(BusError, match="full message queue"):
                    await ask(root, "ListMappings", timeout=0.2)
                asked = asyncio.create_task(ask(root, "ListMappings"))
                await asyncio.sleep(0.3)
                os.kill(pid, signal.SIGCONT)
                assert len(await asked) == 1

    run(body())


def test_calls_of_all_users_together_are_bounded_and_leave_one_for_each() -> None:
    limits = Limits()
    with contextlib.ExitStack() as calls:
        users = dbus_limits.MAX_CALLS_OF_USERS // dbus_limits.MAX_CALLS_OF_USER
        for uid in range(1, users + 1):
            for _ in range(dbus_limits.MAX_CALLS_OF_USER):
                calls.enter_context(limits.user_call(uid))
        calls.enter_context(limits.user_call(1000))
        with pytest.raises(BusError, match="calls of all users"):
            calls.enter_context(limits.user_call(1000))
        for _ in range(dbus_limits.MAX_CALLS_OF_USER + 1):
            calls.enter_context(limits.user_call(0))
    with limits.user_call(1000), limits.user_call(1000):
        pass


def test_long_calls_of_many_users_use_no_memory(bus: Bus) -> None:
    """A text with one such character takes four times as many bytes in Python."""
    text = "\N{GRINNING FACE}" + "x" * (127 << 10)
    parts = {"destination": NAME, "path": PATH, "interface": MANAGER}
    long = message(**parts, member="Explain", signature="s", body=[text], serial=2)
    # The daemon of the bus admits numbers with a user only; the smallest tree has 19 of them.
    users = sorted({user.pw_uid for user in pwd.getpwall()} - {0})[:16]

    async def body() -> None:
        path = bus.address.removeprefix("unix:path=")
        async with contextlib.AsyncExitStack() as stack:
            pid = await stack.enter_async_context(serving_apart(bus))
            root = await stack.enter_async_context(client(bus))
            await ask(root, "ListMappings")
            before = peak(pid)
            os.kill(pid, signal.SIGSTOP)
            for uid in users:
                sock = stack.enter_context(contextlib.closing(connected(path, uid)))
                await asyncio.to_thread(send, sock, long, 16)
            os.kill(pid, signal.SIGCONT)
            for _ in range(20):
                assert len(await ask(root, "ListMappings", timeout=60)) == 1
            assert len(users) == 16
            assert peak(pid) - before < 24

    run(body(), seconds=120)
