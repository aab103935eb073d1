"""Who may do what: root everything, everybody else what polkit says of the action.

Where polkit is missing or fails everybody may look and only root may change. The actions and
their defaults are in dbus/org.ipv6natd1.policy.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from enum import StrEnum
from typing import Any

from ipv6natd.dbus.connection import BUS, ERROR, BusError, Call, Connection, Signal
from ipv6natd.dbus.values import variants

log = logging.getLogger(__name__)

NAME = "org.freedesktop.PolicyKit1"
AUTHORITY = (NAME, "/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1.Authority")
CHECK_TIMEOUT = 20.0
"""Seconds that polkit has to answer by itself. Its answer may stand in a queue with many calls."""
DIALOG_TIMEOUT = 120.0
"""Seconds that somebody has to type a password."""
MAX_CHECKS, MAX_DIALOGS = 64, 16
"""Questions that wait for polkit at one time: the bus allows 128 calls of ours to wait. One user
cannot have all of them, see MAX_CALLS_OF_USER."""
MAX_DIALOGS_OF_USER = 2
"""Dialogs of one user at one time, who may leave them open."""
IDENTIFY_INTERVAL, MAX_IDENTIFY_ATTEMPTS = 2.5, 10
"""Seconds until the bus is asked once more whose a call is, and how often it is asked. While 127
MiB wait for us, it drops its own answers to us too. An answer that comes late is good as well."""
BUSY_ERRORS = (ERROR + "NoReply", ERROR + "LimitsExceeded")
"""Errors of a polkit that is there. The bus says the second while 127 MiB wait for polkit."""
MAX_SENDERS = 1000
"""Senders to remember. They are forgotten together, and then asked about again."""


class Action(StrEnum):
    """What polkit is asked about."""

    INSPECT = "org.ipv6natd1.inspect"
    RESYNC = "org.ipv6natd1.resync"
    RELOAD = "org.ipv6natd1.reload"
    CLEANUP = "org.ipv6natd1.cleanup"
    SET_LOG_LEVEL = "org.ipv6natd1.set-log-level"


ROOT_COMMANDS = {
    "ListMappings": "ipv6natctl mappings",
    "FindMappings": "ipv6natctl mappings",
    "ListNetworks": "ipv6natctl networks",
    "ListSkipped": "ipv6natctl skipped",
    "ListLeftovers": "ipv6natctl cleanup --leftovers --dry-run",
    "Explain": "ipv6natctl explain",
    "GetRuleset": "ipv6natctl rules",
    "Resync": "ipv6natctl resync",
    "Reload": "ipv6natctl reload",
    "Cleanup": "ipv6natctl cleanup",
    "CleanupLeftovers": "ipv6natctl cleanup --leftovers",
    "Set": "systemctl service-log-level ipv6natd debug",
}
"""The way out for those who are refused a member."""


class Authority:
    """Asks polkit over the connection that serves, and remembers who may look.

    A sender's name is never used twice on one bus, so what is known of one stays true until polkit
    says that something changed.
    """

    def __init__(self) -> None:
        """Nothing is known before anybody calls."""
        self._check_slots = asyncio.Semaphore(MAX_CHECKS)
        self._dialogs: Counter[int] = Counter()
        self._rules_version = 0
        self._uids: dict[str, int] = {}
        self._may_inspect: set[str] = set()

    async def subscribe(self, connection: Connection) -> None:
        """Hear when rules change or polkit comes and goes. BusError when the bus does not let."""
        for rule in (
            f"type='signal',sender='{NAME}',interface='{AUTHORITY[2]}',member='Changed'",
            f"type='signal',sender='{BUS[0]}',member='NameOwnerChanged',arg0='{NAME}'",
        ):
            await connection.call(*BUS, "AddMatch", "s", rule)

    def on_signal(self, signal: Signal) -> None:
        """A signal came over the connection; anybody may have sent it, and then it costs a call."""
        changed = (signal.interface, signal.member) == (AUTHORITY[2], "Changed")
        if changed or (signal.member == "NameOwnerChanged" and signal.args[:1] == [NAME]):
            self._rules_version += 1
            self._may_inspect.clear()

    def disconnected(self) -> None:
        """The connection has ended, and with it all names."""
        self._uids.clear()
        self._may_inspect.clear()

    def cached_uid(self, call: Call) -> int | None:
        """The caller's uid, None before `fetch_uid` asked for it."""
        return self._uids.get(call.sender)

    async def fetch_uid(self, call: Call) -> int:
        """The caller's uid, as the bus says. BusError when it does not."""
        try:
            uid = await _query_uid(call)
        except BusError as error:
            text = f"the bus could not tell who asked: {error.text}"
            raise BusError(ERROR + "AccessDenied", text) from None
        if len(self._uids) >= MAX_SENDERS:
            self._uids.clear()
        self._uids[call.sender] = uid
        return uid

    async def check(self, call: Call, action: Action) -> None:
        """Return when the caller may; BusError, a sentence for the caller, when not."""
        if call.uid == 0 or (action is Action.INSPECT and call.sender in self._may_inspect):
            return
        version = self._rules_version
        await self._check_user(call, action)
        # An answer from before a change is good for this call, and for no other.
        if action is Action.INSPECT and version == self._rules_version:
            if len(self._may_inspect) >= MAX_SENDERS:
                self._may_inspect.clear()
            self._may_inspect.add(call.sender)

    async def _check_user(self, call: Call, action: Action) -> None:
        try:
            async with self._check_slots:
                authorized, challenge = await _check_authorization(call, action, dialog=False)
        except BusError as error:
            log.debug("polkit does not say whether %s may be done: %s", action, error.text)
            if error.name in BUSY_ERRORS:
                # Anybody can keep it busy, and what an administrator closed must stay closed.
                raise _access_denied("polkit is too busy to answer", call) from None
            if action is Action.INSPECT:
                return
            raise _access_denied("only root may do that", call) from None
        if challenge and not authorized:
            authorized = await self._dialog(call, action)
        if not authorized:
            raise _access_denied(f"polkit does not allow you {action}", call)

    async def _dialog(self, call: Call, action: Action) -> bool:
        """Have somebody asked for a password."""
        if not call.interactive:
            raise _password_required(call)
        if self._dialogs.total() >= MAX_DIALOGS:
            text = f"{MAX_DIALOGS} people are being asked for a password: try again later"
            raise BusError(ERROR + "LimitsExceeded", text)
        if self._dialogs[call.uid] >= MAX_DIALOGS_OF_USER:
            text = f"you are being asked for {MAX_DIALOGS_OF_USER} passwords: answer one of them"
            raise BusError(ERROR + "LimitsExceeded", text)
        self._dialogs[call.uid] += 1
        try:
            authorized, challenge = await _check_authorization(call, action, dialog=True)
        except BusError:
            raise _access_denied("nobody typed the password for that", call) from None
        finally:
            self._dialogs[call.uid] -= 1
        if challenge and not authorized:
            raise _password_required(call)  # no agent of polkit answers for the caller
        return authorized


async def _query_uid(call: Call) -> int:
    """The uid of the sender. BusError when the bus does not say."""
    seconds = IDENTIFY_INTERVAL * MAX_IDENTIFY_ATTEMPTS
    requests: list[asyncio.Task[list[Any]]] = []
    try:
        for _ in range(MAX_IDENTIFY_ATTEMPTS):
            arguments = (*BUS, "GetConnectionUnixUser", "s", call.sender)
            requests.append(asyncio.create_task(call.connection.call(*arguments, timeout=seconds)))
            done, _ = await asyncio.wait(
                requests, timeout=IDENTIFY_INTERVAL, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return int(done.pop().result()[0])
        return int((await requests[0])[0])  # its time is up
    finally:
        for task in requests:
            task.cancel()
        await asyncio.gather(*requests, return_exceptions=True)


async def _check_authorization(call: Call, action: Action, *, dialog: bool) -> tuple[bool, bool]:
    """Whether the caller is authorized, and whether a password would make it so."""
    subject = ["system-bus-name", variants({"name": ("s", call.sender)})]
    reply = await call.connection.call(
        *AUTHORITY,
        "CheckAuthorization",
        "(sa{sv})sa{ss}us",
        *(subject, action.value, {}, int(dialog), ""),
        timeout=DIALOG_TIMEOUT if dialog else CHECK_TIMEOUT,
        autostart=True,
    )
    match reply:
        case [[bool(authorized), bool(challenge), dict()]]:
            return authorized, challenge
    raise ValueError(f"polkit answers {reply!r:.100} to a question of yes or no")


def _access_denied(why: str, call: Call) -> BusError:
    return BusError(ERROR + "AccessDenied", f"{why}: {_root_command(call)}")


def _password_required(call: Call) -> BusError:
    text = f"that takes a password, and nobody can be asked for it: {_root_command(call)}"
    return BusError(ERROR + "InteractiveAuthorizationRequired", text)


def _root_command(call: Call) -> str:
    return f"sudo {ROOT_COMMANDS[call.member]}"
