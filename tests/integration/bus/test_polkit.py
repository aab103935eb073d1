"""Permissions of several users: with a fake polkit, a real one, and without polkit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ipv6natd.ctl.commands import COMMANDS
from ipv6natd.dbus import polkit
from ipv6natd.dbus.connection import BUS, ERROR, BusError, Call, Connection, connect
from ipv6natd.dbus.members import METHODS
from ipv6natd.dbus.objects import MANAGER
from ipv6natd.dbus.polkit import ROOT_COMMANDS, Action
from tests import ROOT as TREE
from tests.harness.needs import lack, need
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
)

ROOT, GAMES, NOBODY = 0, 5, 65534
DENIED = ERROR + "AccessDenied"
CHALLENGE = ERROR + "InteractiveAuthorizationRequired"
POLKITD = Path("/usr/lib/polkit-1/polkitd")
MEMBERS = {
    member: method.action
    for (interface, member), method in METHODS.items()
    if interface == MANAGER and not method.in_signature
}
"""Each member without arguments, and its polkit action."""


@dataclass
class FakePolkit:
    """Replies as the test sets: action -> (authorized, challenge), or an error, or no reply."""

    says: dict[str, tuple[bool, bool]] = field(default_factory=dict)
    typed: bool | None = True
    """True if a dialog ends with the right password; None if it does not end."""
    agent: bool = True
    """True if the user has a polkit agent."""
    error: BusError | None = None
    silent: bool = False
    instead: Callable[[Call], None] | None = None
    """Replies in place of this object."""
    asked: list[tuple[str, str, int]] = field(default_factory=list)
    """Sender, action and flags of each check."""

    def on_call(self, call: Call) -> None:
        if self.silent or call.member != "CheckAuthorization":
            return
        (kind, subject), action, _details, flags, _cancellation = call.args
        assert kind == "system-bus-name"
        self.asked.append((subject["name"], action, flags))
        if self.instead is not None:
            self.instead(call)
            return
        if self.error is not None:
            call.connection.reply_error(call, self.error)
            return
        authorized, challenge = self.says.get(action, (action == Action.INSPECT, True))
        if flags and challenge and self.agent:
            if self.typed is None:
                return
            authorized, challenge = self.typed, False
        call.connection.reply(call, "(bba{ss})", [[authorized, challenge, {}]])


@contextlib.asynccontextmanager
async def authority(bus: Bus, fake: FakePolkit) -> AsyncIterator[Connection]:
    """The fake polkit on the bus; the connection that owns the name."""
    connection = await connect(bus.address, on_call=fake.on_call)
    try:
        await connection.call(*BUS, "RequestName", "su", polkit.NAME, 4)
        yield connection
    finally:
        connection.close()


async def outcome(bus: Bus, uid: int, member: str, **options: Any) -> str:
    """The name of the error that the user gets, "" for none."""
    async with client(bus, uid=uid) as connection:
        try:
            await ask(connection, member, **options)
        except BusError as error:
            return error.name
    return ""


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("uid", [ROOT, NOBODY])
def test_without_polkit_all_users_read_and_only_root_changes(
    bus: Bus, uid: int, member: str
) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status())):
            may = uid == ROOT or MEMBERS[member] is Action.INSPECT
            assert await outcome(bus, uid, member) == ("" if may else DENIED)

    run(body())


@pytest.mark.parametrize("uid", [ROOT, GAMES])
def test_each_member_checks_its_own_action_and_root_is_not_checked(bus: Bus, uid: int) -> None:
    async def body() -> None:
        fake = FakePolkit(says=dict.fromkeys(Action, (True, False)))
        async with serving(bus, FakeSource(status())), authority(bus, fake):
            for member, action in MEMBERS.items():
                fake.asked.clear()
                assert await outcome(bus, uid, member) == ""
                assert [asked_action for _, asked_action, _ in fake.asked] == (
                    [action] if uid else []
                )

    run(body())


@pytest.mark.parametrize(
    ("says", "typed", "interactive", "expected", "asked"),
    [
        ((True, False), True, False, "", [0]),
        ((True, False), True, True, "", [0]),
        ((False, False), True, False, DENIED, [0]),
        ((False, False), True, True, DENIED, [0]),
        ((False, True), True, False, CHALLENGE, [0]),
        ((False, True), True, True, "", [0, 1]),
        ((False, True), False, True, DENIED, [0, 1]),
    ],
)
def test_dialog_opens_only_for_calls_that_allow_interaction(
    bus: Bus,
    says: tuple[bool, bool],
    typed: bool,
    interactive: bool,
    expected: str,
    asked: list[int],
) -> None:
    async def body() -> None:
        fake = FakePolkit(says={Action.RESYNC: says}, typed=typed)
        source = FakeSource(status())
        async with serving(bus, source), authority(bus, fake):
            assert await outcome(bus, NOBODY, "Resync", interactive=interactive) == expected
        assert [flags for _, _, flags in fake.asked] == asked
        assert source.done == ([] if expected else ["resync"])

    run(body())


def test_user_without_polkit_agent_gets_interactive_authorization_required(bus: Bus) -> None:
    async def body() -> None:
        fake = FakePolkit(says={Action.RESYNC: (False, True)}, agent=False)
        async with serving(bus, FakeSource(status())), authority(bus, fake):
            assert await outcome(bus, NOBODY, "Resync", interactive=True) == CHALLENGE

    run(body())


def test_access_denied_message_has_the_root_command(bus: Bus) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status())), client(bus, uid=NOBODY) as nobody:
            with pytest.raises(BusError, match="only root may do that: sudo ipv6natctl reload"):
                await ask(nobody, "Reload")
            fake = FakePolkit(says={Action.CLEANUP: (False, False)})
            async with authority(bus, fake):
                with pytest.raises(BusError, match=r"allow you org\.ipv6natd1\.cleanup: sudo"):
                    await ask(nobody, "Cleanup")
                with pytest.raises(BusError, match="a password is needed"):
                    await ask(nobody, "Resync")

    run(body())


def test_each_member_with_an_action_has_a_root_command() -> None:
    guarded = {member for (_, member), method in METHODS.items() if method.action}
    assert set(ROOT_COMMANDS) == guarded
    commands = [words.split() for words in ROOT_COMMANDS.values()]
    assert {words[1] for words in commands if words[0] == "ipv6natctl"} <= set(COMMANDS)


def test_with_polkit_errors_all_users_read_and_only_root_changes(bus: Bus) -> None:
    async def body() -> None:
        fake = FakePolkit()
        fake.error = BusError("org.freedesktop.PolicyKit1.Error.Failed", "no rules")
        async with serving(bus, FakeSource(status())), authority(bus, fake):
            assert await outcome(bus, NOBODY, "ListMappings") == ""
            assert await outcome(bus, NOBODY, "Resync", interactive=True) == DENIED
            assert await outcome(bus, ROOT, "Resync") == ""

    run(body())


def test_polkit_timeout_denies_plain_users(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any user could keep polkit busy to read what an administrator denied."""
    monkeypatch.setattr(polkit, "CHECK_TIMEOUT", 0.3)

    async def body() -> None:
        async with serving(bus, FakeSource(status())), authority(bus, FakePolkit(silent=True)):
            assert await outcome(bus, NOBODY, "ListMappings") == DENIED
            assert await outcome(bus, NOBODY, "Resync", interactive=True) == DENIED
            assert await outcome(bus, ROOT, "ListMappings") == ""
            assert await outcome(bus, ROOT, "Resync") == ""

    run(body())


def test_full_queue_of_polkit_denies_plain_users(bus: Bus) -> None:
    """Any user can fill the queue of polkit."""

    async def body() -> None:
        fake = FakePolkit(error=BusError(ERROR + "LimitsExceeded", "full message queue"))
        async with serving(bus, FakeSource(status())), authority(bus, fake):
            assert await outcome(bus, NOBODY, "ListMappings") == DENIED
            assert await outcome(bus, ROOT, "ListMappings") == ""

    run(body())


def test_pending_polkit_checks_are_bounded(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the bus daemon would reject them, and polkit would seem to be missing."""
    monkeypatch.setattr(polkit, "MAX_DIALOGS", 2)
    uids = (GAMES, GAMES, 3, 3, 4, 4, NOBODY, NOBODY)

    async def body() -> None:
        fake = FakePolkit(typed=None)
        async with contextlib.AsyncExitStack() as stack:
            service = await stack.enter_async_context(serving(bus, FakeSource(status())))
            await stack.enter_async_context(authority(bus, fake))
            users = [await stack.enter_async_context(client(bus, uid=uid)) for uid in uids]
            waiting = [
                asyncio.create_task(ask(user, "Resync", interactive=True)) for user in users[:2]
            ]
            await until(lambda: service._authority._dialogs.total() == 2)
            with pytest.raises(BusError, match="2 password dialogs are open") as caught:
                await ask(users[2], "Resync", interactive=True)
            assert caught.value.name == ERROR + "LimitsExceeded"
            fake.silent = True
            waiting += [
                asyncio.create_task(ask(user, "ListMappings")) for user in users for _ in range(14)
            ]
            await until(lambda: service._authority._check_slots.locked())
            connection = service._connection
            assert connection is not None
            assert len(connection._bus._method_return_handlers) <= 64 + 2
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    run(body())


def test_polkit_checks_of_one_user_do_not_block_other_users(bus: Bus) -> None:
    """For any number of connections of the user, and any delay of polkit."""

    async def body() -> None:
        fake = FakePolkit()
        async with contextlib.AsyncExitStack() as stack:
            service = await stack.enter_async_context(serving(bus, FakeSource(status(mapping()))))
            await stack.enter_async_context(authority(bus, fake))
            users = [await stack.enter_async_context(client(bus, uid=NOBODY)) for _ in range(10)]
            names = {user.unique_name for user in users}
            pending: list[Call] = []

            def instead(call: Call) -> None:
                if call.args[0][1]["name"] in names:
                    pending.append(call)
                else:
                    call.connection.reply(call, "(bba{ss})", [[True, False, {}]])

            fake.instead = instead
            waiting = [
                asyncio.create_task(ask(user, "ListMappings")) for user in users for _ in range(16)
            ]
            await until(lambda: len(pending) == 32)
            await until(lambda: sum(task.done() for task in waiting) == 128)
            for uid in (GAMES, ROOT):
                other = await stack.enter_async_context(client(bus, uid=uid))
                assert len(await ask(other, "ListMappings", timeout=5)) == 1
            assert len(pending) == 32
            assert service._limits._calls_of_user[NOBODY] == 32
            for task in waiting:
                task.cancel()
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            names = {error.name for error in outcomes if isinstance(error, BusError)}
            assert names == {ERROR + "LimitsExceeded"}

    run(body())


def test_dialogs_of_one_user_do_not_block_other_users(bus: Bus) -> None:
    async def body() -> None:
        fake = FakePolkit(says={Action.RESYNC: (False, True)}, typed=None)
        async with contextlib.AsyncExitStack() as stack:
            service = await stack.enter_async_context(serving(bus, FakeSource(status())))
            await stack.enter_async_context(authority(bus, fake))
            users = [await stack.enter_async_context(client(bus, uid=NOBODY)) for _ in range(20)]
            waiting = [asyncio.create_task(ask(user, "Resync", interactive=True)) for user in users]
            await until(lambda: sum(task.done() for task in waiting) == 18)
            with pytest.raises(BusError, match="2 open password dialogs") as caught:
                await ask(users[0], "Resync", interactive=True)
            assert caught.value.name == ERROR + "LimitsExceeded"
            fake.typed = True
            assert await outcome(bus, GAMES, "Resync", interactive=True) == ""
            assert service._authority._dialogs[NOBODY] == 2
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    run(body())


def test_dialog_timeout_denies_the_call(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for reading: a timeout must not permit what an administrator denied."""
    monkeypatch.setattr(polkit, "DIALOG_TIMEOUT", 0.3)

    async def body() -> None:
        fake = FakePolkit(says={Action.INSPECT: (False, True)}, typed=None)
        async with serving(bus, FakeSource(status())), authority(bus, fake):
            assert await outcome(bus, NOBODY, "ListMappings", interactive=True) == DENIED

    run(body())


def test_read_permission_is_cached_until_polkit_changes(bus: Bus) -> None:
    async def body() -> None:
        fake = FakePolkit()
        async with serving(bus, FakeSource(status())), client(bus, uid=NOBODY) as nobody:
            async with authority(bus, fake) as connection:
                for _ in range(3):
                    await ask(nobody, "ListMappings")
                assert len(fake.asked) == 1
                connection.emit(polkit.AUTHORITY[1], polkit.AUTHORITY[2], "Changed", "")
                await connection.call(*BUS, "GetId")
                await ask(nobody, "ListMappings")
                assert len(fake.asked) == 2
                fake.says[Action.INSPECT] = (False, False)
            # polkit restarts with other rules.
            async with authority(bus, fake):
                with pytest.raises(BusError, match=r"allow you org\.ipv6natd1\.inspect"):
                    await ask(nobody, "ListMappings")
                # Actions that change something are checked each time.
                fake.asked.clear()
                fake.says[Action.RESYNC] = (True, False)
                for _ in range(3):
                    await ask(nobody, "Resync")
                assert len(fake.asked) == 3

    run(body())


def test_reply_before_a_polkit_change_is_not_cached(bus: Bus) -> None:
    async def body() -> None:
        fake = FakePolkit()
        async with (
            serving(bus, FakeSource(status())),
            authority(bus, fake) as connection,
            client(bus, uid=NOBODY) as nobody,
        ):

            def answer_and_change(call: Call) -> None:
                connection.reply(call, "(bba{ss})", [[True, False, {}]])
                connection.emit(polkit.AUTHORITY[1], polkit.AUTHORITY[2], "Changed", "")

            fake.instead = answer_and_change
            for _ in range(3):
                await ask(nobody, "ListMappings")
            assert len(fake.asked) == 3

    run(body())


def test_cached_senders_are_bounded(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polkit, "MAX_SENDERS", 3)

    async def body() -> None:
        async with serving(bus, FakeSource(status())) as service:
            for _ in range(8):
                assert await outcome(bus, NOBODY, "ListSkipped") == ""
            assert len(service._authority._may_inspect) <= 3
            assert len(service._authority._uids) <= 3

    run(body())


def test_policy_file_has_each_action_with_description_and_defaults() -> None:
    root = ET.parse(TREE / "dbus" / "org.ipv6natd1.policy").getroot()
    found = {}
    for element in root.iter("action"):
        assert (element.findtext("description") or "").strip()
        assert (element.findtext("message") or "").endswith(".")
        found[element.attrib["id"]] = {default.text for default in element.find("defaults") or ()}
    assert set(found) == set(Action)
    for action, defaults in found.items():
        if action == Action.INSPECT:
            assert defaults == {"yes"}
        else:
            assert defaults <= {"auth_admin", "auth_admin_keep"}


@contextlib.contextmanager
def real_polkit(bus: Bus, folder: Path, *, rules: bool) -> Iterator[None]:
    """Debian's polkitd on the private bus, with our actions and optionally the example rules."""
    for name in ("rules", "none"):
        (folder / name).mkdir()
        (folder / name).chmod(0o755)
    if rules:
        (folder / "rules" / "50-ipv6natd.rules").write_bytes(
            (TREE / "examples" / "50-ipv6natd.rules").read_bytes()
        )
    # The user games is in the group that the example names.
    lines = Path("/etc/group").read_text().splitlines()
    other_groups = [line for line in lines if not line.startswith("docker:")]
    (folder / "group").write_text("\n".join([*other_groups, "docker:x:4242:games"]) + "\n")
    script = f"""
        mount --bind {TREE}/dbus /usr/share/polkit-1/actions
        mount --bind {folder}/none /usr/share/polkit-1/rules.d
        mount --bind {folder}/rules /etc/polkit-1/rules.d
        mount --bind {folder}/group /etc/group
        exec {POLKITD} --no-debug
    """
    process = subprocess.Popen(
        ("unshare", "--mount", "sh", "-ec", script),
        env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


async def wait_for_polkit(connection: Connection) -> None:
    while not (await connection.call(*BUS, "NameHasOwner", "s", polkit.NAME))[0]:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("rules", [False, True], ids=["defaults", "example"])
def test_real_polkit_applies_the_policy_and_the_example_rules(bus: Bus, rules: bool) -> None:
    need("unshare")
    if not POLKITD.exists():
        lack("polkitd")
    folder = Path(bus.address.removeprefix("unix:path=")).parent

    async def body() -> None:
        source = FakeSource(status(mapping()))
        with real_polkit(bus, folder, rules=rules):
            async with serving(bus, source), client(bus) as root:
                await wait_for_polkit(root)
                for member, action in MEMBERS.items():
                    assert await outcome(bus, ROOT, member) == ""
                    looks = action is Action.INSPECT
                    nobody = CHALLENGE if rules or not looks else ""
                    assert await outcome(bus, NOBODY, member) == nobody
                    # No user is logged in, so no dialog is possible.
                    assert await outcome(bus, NOBODY, member, interactive=True) == nobody
                    games = "" if rules or looks else CHALLENGE
                    assert await outcome(bus, GAMES, member) == games

    run(body())
