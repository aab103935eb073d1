"""Messages of a plain user: every member with legal, illegal and huge arguments, unrequested
replies, and names of other services. The user can read, and can change nothing.

The members come from the introspection data, so that a new member is tested too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from ipv6natd.dbus import polkit
from ipv6natd.dbus.connection import BUS, ERROR, BusError, Call, Connection, Signal, connect
from ipv6natd.dbus.members import METHODS
from ipv6natd.dbus.objects import INTERFACES, LOG_CONTROL, MANAGER, NAME, PATH, PEER, PROPERTIES
from ipv6natd.dbus.polkit import Action
from ipv6natd.dbus.service import BusService
from ipv6natd.dbus.wire import Message, MessageType, Variant
from ipv6natd.system import logs
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
from tests.integration.bus.flood import answer_to, connected, flood, message
from tests.integration.bus.test_objects import members
from tests.integration.bus.test_polkit import FakePolkit, authority

NOBODY = 65534
DENIED = ERROR + "AccessDenied"
LIMIT = ERROR + "LimitsExceeded"
CHALLENGE = ERROR + "InteractiveAuthorizationRequired"
ALL_METHODS = [
    (path, interface, member, takes)
    for path in INTERFACES
    for (interface, member), (takes, _returns) in members(path, "method").items()
]
LEVEL = Variant("s", "debug")
LEGAL_ARGUMENTS: dict[tuple[str, str], list[Any]] = {
    (MANAGER, "Get"): [MANAGER, "State"],
    (MANAGER, "GetAll"): [MANAGER],
    (MANAGER, "Set"): [MANAGER, "State", LEVEL],
    (LOG_CONTROL, "Get"): [LOG_CONTROL, "LogLevel"],
    (LOG_CONTROL, "GetAll"): [LOG_CONTROL],
    (LOG_CONTROL, "Set"): [LOG_CONTROL, "LogLevel", LEVEL],
}
"""Legal arguments, by the object's own interface and the member."""
DEFAULT_ARGUMENTS: dict[str, Any] = {
    "s": "web",
    "v": LEVEL,
    "a{sv}": {},
    "as": ["x"],
    "u": 7,
    "b": True,
}
SIGNATURES = ("", "s", "ss", "sss", "ssv", "v", "u", "as", "a{sv}", "a{ss}", "ay", "(s)", "aaaas")
VALUES: dict[str, list[Any]] = {
    "ss": ["a", "b"],
    "sss": ["a", "b", "c"],
    "ssv": ["a", "b", LEVEL],
    "a{ss}": [{"a": "b"}],
    "ay": [b"abc"],
    "(s)": [["a"]],
    "aaaas": [[[[["a"]]]]],
}


def ids(case: tuple[str, str, str, str]) -> str:
    return f"{case[1].rpartition('.')[2]}.{case[2]}@{case[0].rpartition('/')[2] or 'root'}"


def legal_arguments(path: str, member: str, takes: str) -> list[Any]:
    own = (*INTERFACES.get(path, ()), MANAGER)[0]
    given = LEGAL_ARGUMENTS.get((own, member))
    if given is None and takes == "ss":
        given = [own, "Nothing"]
    if given is None and takes == "ssv":
        given = [own, "Nothing", LEVEL]
    return given if given is not None else [DEFAULT_ARGUMENTS[takes]] if takes else []


async def outcome(connection: Connection, *words: Any, **options: Any) -> str:
    """The name of the error, "" for none."""
    try:
        await ask(connection, *words, **options)
    except BusError as error:
        caught = error
    else:
        return ""
    assert caught.text
    assert "Traceback" not in caught.text
    return caught.name


@contextlib.asynccontextmanager
async def plain_user(bus: Bus) -> AsyncIterator[tuple[FakeSource, Connection]]:
    """A service and a plain user; at the end asserts that nothing has changed."""
    source = FakeSource(status(mapping()))
    level = logs.level()
    async with serving(bus, source), client(bus, uid=NOBODY) as nobody:
        yield source, nobody
        assert await ask(nobody, "Ping", interface=PEER) is None
    assert source.done == []
    assert logs.level() == level


@pytest.mark.parametrize("case", ALL_METHODS, ids=ids)
def test_plain_user_reads_everything_and_cannot_change_anything(
    bus: Bus, case: tuple[str, str, str, str]
) -> None:
    path, interface, member, takes = case
    method = METHODS[interface, member]
    expected = {"", ERROR + "UnknownProperty"} if takes == "ss" else {""}
    if method.action not in (None, Action.INSPECT):
        expected = {DENIED}
    if member == "Set" and INTERFACES[path][:1] != (LOG_CONTROL,):
        expected = {ERROR + "PropertyReadOnly", ERROR + "UnknownProperty"}

    async def body() -> None:
        async with plain_user(bus) as (_, nobody):
            args = legal_arguments(path, member, takes)
            for interactive in (False, True):
                options = {"path": path, "interface": interface, "interactive": interactive}
                assert await outcome(nobody, member, takes, *args, **options) in expected

    run(body())


@pytest.mark.parametrize("case", ALL_METHODS, ids=ids)
def test_wrong_argument_signature_returns_invalid_args(
    bus: Bus, case: tuple[str, str, str, str]
) -> None:
    path, interface, member, takes = case

    async def body() -> None:
        async with plain_user(bus) as (_, nobody):
            for signature in SIGNATURES:
                if signature == takes:
                    continue
                args = (
                    VALUES[signature] if signature in VALUES else legal_arguments("", "", signature)
                )
                options = {"path": path, "interface": interface}
                name = await outcome(nobody, member, signature, *args, **options)
                assert name == ERROR + "InvalidArgs", signature

    run(body())


@pytest.mark.parametrize("case", [case for case in ALL_METHODS if case[3]], ids=ids)
def test_huge_arguments_return_limits_exceeded_and_do_not_delay_others(
    bus: Bus, case: tuple[str, str, str, str]
) -> None:
    path, interface, member, takes = case
    long = "x" * (4 << 20)
    huge: dict[str, list[Any]] = {
        "s": [long],
        "ss": [long, long],
        "ssv": [long, long, Variant("s", long)],
    }

    async def body() -> None:
        async with plain_user(bus) as (_, nobody), client(bus) as other:
            asked = asyncio.create_task(
                outcome(
                    nobody, member, takes, *huge[takes], path=path, interface=interface, timeout=20
                )
            )
            assert len(await ask(other, "ListMappings")) == 1
            assert await asked == LIMIT

    run(body())


CALL_HEADER = {"destination": NAME, "path": PATH, "serial": 2}
EXPLAIN_CALL = {**CALL_HEADER, "interface": MANAGER, "member": "Explain"}
SET_CALL = {**CALL_HEADER, "interface": PROPERTIES, "member": "Set", "signature": "ssv"}
SIZE = 31 << 20
LARGE_MESSAGES: dict[str, Callable[[], dict[str, Any]]] = {
    "argument": lambda: {**EXPLAIN_CALL, "signature": "s", "body": ["x" * SIZE]},
    "bytes": lambda: {**EXPLAIN_CALL, "signature": "ay", "body": [bytes(SIZE)]},
    "structure": lambda: {**EXPLAIN_CALL, "signature": "(s)", "body": [["x" * SIZE]]},
    "variant": lambda: {**SET_CALL, "body": [LOG_CONTROL, "LogLevel", Variant("s", "x" * SIZE)]},
    "variant in variants": lambda: {
        **SET_CALL,
        "body": [LOG_CONTROL, "LogLevel", Variant("v", Variant("v", Variant("ay", bytes(SIZE))))],
    },
    "dictionary": lambda: {
        **EXPLAIN_CALL,
        "signature": "a{sv}",
        "body": [{"Container": Variant("s", "x" * SIZE)}],
    },
    "no such member": lambda: {
        **EXPLAIN_CALL,
        "member": "Nothing",
        "signature": "s",
        "body": ["x" * SIZE],
    },
    "path": lambda: {**EXPLAIN_CALL, "path": "/" + "x" * SIZE},
    "signal": lambda: {
        **EXPLAIN_CALL,
        "message_type": MessageType.SIGNAL,
        "signature": "s",
        "body": ["x" * SIZE],
    },
    "answer": lambda: {
        "message_type": MessageType.METHOD_RETURN,
        "destination": NAME,
        "reply_serial": 3,
        "serial": 2,
        "signature": "s",
        "body": ["x" * SIZE],
    },
    "error": lambda: {
        "message_type": MessageType.ERROR,
        "error_name": "a.b",
        "destination": NAME,
        "reply_serial": 3,
        "serial": 2,
        "signature": "s",
        "body": ["x" * SIZE],
    },
}
"""Each place of a message that can be large, and such a message."""


@pytest.mark.parametrize("place", LARGE_MESSAGES)
@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_31_mib_in_any_part_of_a_message_use_no_memory(bus: Bus, place: str, uid: int) -> None:
    """Also messages of root: on the private bus root may send what the policy denies others."""

    async def body() -> None:
        path = bus.address.removeprefix("unix:path=")
        data = await asyncio.to_thread(lambda: message(**LARGE_MESSAGES[place]()))
        async with serving_apart(bus) as pid, client(bus) as root:
            await ask(root, "ListMappings")
            before = peak(pid)
            with contextlib.closing(connected(path, uid)) as sock:
                await asyncio.to_thread(sock.sendall, data)
                assert len(await ask(root, "ListMappings")) == 1
                if place in WITH_REPLY:
                    await asyncio.to_thread(answer_to, sock, LIMIT.encode())
                # The next message on the same connection gets a reply.
                ping = message(**CALL_HEADER | {"serial": 7}, interface=PEER, member="Ping")
                await asyncio.to_thread(sock.sendall, ping)
                await asyncio.to_thread(answer_to, sock, b"\x05\x01u\0\x07\0\0\0")
            assert peak(pid) - before < 4

    run(body())


WITH_REPLY = LARGE_MESSAGES.keys() - {"path", "signal", "answer", "error"}


def test_unicast_signal_of_a_plain_user_does_not_reach_the_service(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service would have to read a flood of them; it needs only broadcast signals."""
    signals: list[Signal] = []
    monkeypatch.setattr(BusService, "_on_signal", lambda _self, signal: signals.append(signal))

    async def body() -> None:
        async with plain_user(bus) as (_, nobody):
            for name in (NAME, await name_of(nobody, NAME)):
                nobody._bus.send(
                    Message(
                        message_type=MessageType.SIGNAL,
                        destination=name,
                        path=polkit.AUTHORITY[1],
                        interface=polkit.AUTHORITY[2],
                        member="Changed",
                    )
                )
            assert await ask(nobody, "Ping", interface=PEER) is None
            assert [signal for signal in signals if signal.sender == nobody.unique_name] == []
            async with authority(bus, FakePolkit()) as real:
                real.emit(polkit.AUTHORITY[1], polkit.AUTHORITY[2], "Changed", "")
                await until(lambda: any(signal.sender == real.unique_name for signal in signals))

    run(body())


@pytest.mark.parametrize(
    "member",
    [name for (where, name), it in METHODS.items() if where == MANAGER and not it.in_signature],
)
def test_flood_of_calls_by_a_plain_user_changes_nothing(bus: Bus, member: str) -> None:
    async def body() -> None:
        path = bus.address.removeprefix("unix:path=")
        async with plain_user(bus):
            outcomes = await asyncio.to_thread(flood, path, member, 500, uid=NOBODY)
        reads = METHODS[MANAGER, member].action is Action.INSPECT
        assert set(outcomes) - {"LimitsExceeded"} <= {member} | (
            set() if reads else {"AccessDenied"}
        )
        assert reads or outcomes[member] == 0

    run(body())


async def name_of(connection: Connection, name: str) -> str:
    """The owner of a name, "" for none."""
    try:
        (owner,) = await connection.call(*BUS, "GetNameOwner", "s", name)
    except BusError:
        return ""
    return str(owner)


@pytest.mark.parametrize("name", [NAME, polkit.NAME, "org.fedoraproject.FirewallD1"])
@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_plain_user_cannot_own_any_service_name(bus: Bus, name: str, up: bool) -> None:
    """With and without the daemon, and with each combination of the flags of RequestName."""

    async def body() -> None:
        async with contextlib.AsyncExitStack() as stack:
            if up:
                await stack.enter_async_context(serving(bus, FakeSource(status())))
            nobody = await stack.enter_async_context(client(bus, uid=NOBODY))
            before = await name_of(nobody, name)
            for flags in range(8):
                with pytest.raises(BusError) as caught:
                    await nobody.call(*BUS, "RequestName", "su", name, flags)
                assert caught.value.name == DENIED
            assert await name_of(nobody, name) == before

    run(body())


def test_root_process_with_replace_existing_does_not_take_the_name(bus: Bus) -> None:
    async def body() -> None:
        async with client(bus) as rival:
            async with serving(bus, FakeSource(status())) as service:
                ours = await name_of(rival, NAME)
                # 2 is DBUS_NAME_FLAG_REPLACE_EXISTING; 2 in the reply means queued.
                assert await rival.call(*BUS, "RequestName", "su", NAME, 2) == [2]
                assert await name_of(rival, NAME) == ours
                assert service._connection is not None
            # The rival owns the name after we have left.
            owners = [await name_of(rival, NAME)]
            for _ in range(500):
                if owners[-1] != ours:
                    break
                await asyncio.sleep(0.01)
                owners.append(await name_of(rival, NAME))
            assert owners[-1] == rival.unique_name

    run(body())


def test_forged_reply_to_a_polkit_check_is_ignored(bus: Bus) -> None:
    """The bus daemon delivers no reply without a call."""

    async def body() -> None:
        fake = FakePolkit(silent=True)
        async with plain_user(bus) as (_, nobody), authority(bus, fake) as real:
            pending: list[Call] = []
            fake.silent, fake.instead = False, pending.append
            waiting = asyncio.create_task(outcome(nobody, "Cleanup"))
            await until(lambda: pending)
            service = await name_of(nobody, NAME)
            for serial in range(1, 200):
                nobody._bus.send(
                    Message(
                        message_type=MessageType.METHOD_RETURN,
                        destination=service,
                        reply_serial=serial,
                        signature="(bba{ss})",
                        body=[[True, False, {}]],
                    )
                )
            await nobody.call(*BUS, "GetId")
            assert not waiting.done()
            real.reply(pending[0], "(bba{ss})", [[False, False, {}]])
            assert await waiting == DENIED

    run(body())


@pytest.mark.parametrize("member", ["Cleanup", "ListMappings"])
def test_polkit_that_exits_during_a_check_denies_the_call(bus: Bus, member: str) -> None:
    """A reply of the next owner of the name does not count either."""

    async def body() -> None:
        async with plain_user(bus) as (_, nobody):
            first = FakePolkit()
            pending: list[Call] = []
            first.instead = pending.append
            async with authority(bus, first):
                waiting = asyncio.create_task(outcome(nobody, member))
                await until(lambda: pending)
            second = FakePolkit(says=dict.fromkeys(Action, (True, False)))
            async with authority(bus, second):
                assert await waiting == DENIED
                assert second.asked == []

    run(body())


def test_reply_of_polkit_after_it_lost_its_name_is_not_cached(bus: Bus) -> None:
    async def body() -> None:
        async with plain_user(bus) as (_, nobody):
            first = FakePolkit()
            pending: list[Call] = []
            first.instead = pending.append
            async with authority(bus, first) as old:
                waiting = asyncio.create_task(outcome(nobody, "ListMappings"))
                await until(lambda: pending)
                await old.call(*BUS, "ReleaseName", "s", polkit.NAME)
                second = FakePolkit(says={Action.INSPECT: (False, False)})
                async with authority(bus, second):
                    old.reply(pending[0], "(bba{ss})", [[True, False, {}]])
                    assert (
                        await waiting == ""
                    )  # this call was checked while the old process owned the name
                    assert await outcome(nobody, "ListMappings") == DENIED

    run(body())


@pytest.mark.parametrize(
    "answer", [("s", ["yes"]), ("", []), ("(bb)", [[True, True]]), ("(sba{ss})", [["x", True, {}]])]
)
def test_polkit_reply_with_wrong_signature_denies_the_call(
    bus: Bus, answer: tuple[str, list[Any]]
) -> None:
    async def body() -> None:
        async with plain_user(bus) as (_, nobody):
            fake = FakePolkit()

            def oddly(call: Call) -> None:
                call.connection.reply(call, *answer)

            fake.instead = oddly
            async with authority(bus, fake):
                for member in ("Cleanup", "Resync"):
                    assert await outcome(nobody, member)

    run(body())


def test_forged_polkit_and_bus_signals_grant_nothing(bus: Bus) -> None:
    async def body() -> None:
        async with plain_user(bus) as (_, nobody):
            fake = FakePolkit(says={Action.INSPECT: (False, False)})
            forger = await connect(bus.address)
            async with authority(bus, fake):
                for _ in range(100):
                    forger.emit(polkit.AUTHORITY[1], polkit.AUTHORITY[2], "Changed", "")
                    forger.emit(BUS[1], BUS[2], "NameOwnerChanged", "sss", polkit.NAME, ":1.0", "")
                    forger.emit(BUS[1], BUS[2], "NameOwnerChanged", "u", 7)
                await forger.call(*BUS, "GetId")
                assert await outcome(nobody, "ListMappings") == DENIED
                assert await outcome(nobody, "Cleanup") in (DENIED, CHALLENGE)
            forger.close()

    run(body())
