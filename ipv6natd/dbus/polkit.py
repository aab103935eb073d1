"""Permissions: root may do everything; for other users polkit decides each action.

If polkit is missing or fails, every user may read and only root may change. The actions and their
defaults are in dbus/org.ipv6natd1.policy.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from enum import StrEnum
from typing import Any

from ipv6natd.dbus.connection import BUS, ERROR, BusError, Call, Connection, Signal
from ipv6natd.dbus.limits import counted
from ipv6natd.dbus.wire import Variant

log = logging.getLogger(__name__)

NAME = "org.freedesktop.PolicyKit1"
AUTHORITY = (NAME, "/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1.Authority")
CHECK_TIMEOUT = 20.0
"""Seconds for a check without a dialog; polkit may have a long queue."""
DIALOG_TIMEOUT = 120.0
"""Seconds for a user to type a password."""
MAX_CHECKS, MAX_DIALOGS = 64, 16
"""Pending checks and dialogs of all users: the bus daemon permits 128 pending calls of one
connection (max_replies_per_connection). One user cannot have all of them, see MAX_CALLS_OF_USER."""
MAX_DIALOGS_OF_USER = 2
"""Open dialogs of one user, who may leave them unanswered."""
IDENTIFY_INTERVAL, MAX_IDENTIFY_ATTEMPTS = 2.5, 10
"""Seconds until the bus daemon is asked again for the user of a call, and the number of requests.
While 127 MiB wait for us, the bus daemon also drops its own replies to us. A late reply to an
earlier request is used too."""
BUSY_ERRORS = (ERROR + "NoReply", ERROR + "LimitsExceeded")
"""Errors while polkit runs. The bus daemon sends LimitsExceeded while 127 MiB wait for polkit."""
MAX_SENDERS = 1000
"""Senders in a cache. A full cache is cleared."""


class Action(StrEnum):
    """The polkit actions."""

    INSPECT = "org.ipv6natd1.inspect"
    RESYNC = "org.ipv6natd1.resync"
    RELOAD = "org.ipv6natd1.reload"
    CLEANUP = "org.ipv6natd1.cleanup"
    SET_LOG_LEVEL = "org.ipv6natd1.set-log-level"


ROOT_COMMANDS = {
    "ListMappings": "ipv6natctl mappings",
    "ListNetworks": "ipv6natctl networks",
    "ListSkipped": "ipv6natctl skipped",
    "ListFindings": "ipv6natctl findings",
    "ListConnections": "ipv6natctl top",
    "ListLeftovers": "ipv6natctl cleanup --leftovers --dry-run",
    "Explain": "ipv6natctl explain",
    "Trace": "ipv6natctl explain --from",
    "GetRuleset": "ipv6natctl rules",
    "GetFacts": "ipv6natctl report",
    "Resync": "ipv6natctl resync",
    "Reload": "ipv6natctl reload",
    "Cleanup": "ipv6natctl cleanup",
    "CleanupLeftovers": "ipv6natctl cleanup --leftovers",
    "Set": "systemctl service-log-level ipv6natd debug",
}
"""Member -> the command that root can run instead, for the error text."""


class Authority:
    """Asks polkit over the service's connection, and caches which senders may read.

    A bus daemon never uses a sender's name twice. So an entry stays true until polkit announces a
    change of its rules.
    """

    def __init__(self) -> None:
        self._check_slots = asyncio.Semaphore(MAX_CHECKS)
        self._dialogs: Counter[int] = Counter()
        self._rules_version = 0
        self._uids: dict[str, int] = {}
        self._may_inspect: set[str] = set()

    async def subscribe(self, connection: Connection) -> None:
        """Subscribe to changes of polkit's rules and of its owner. Raises BusError."""
        await connection.watch_service(NAME, interface=AUTHORITY[2], member="Changed")

    def on_signal(self, signal: Signal) -> None:
        """Clear the cache of permissions. Any user can send such a signal; the cost is one more
        check."""
        changed = (signal.interface, signal.member) == (AUTHORITY[2], "Changed")
        if changed or (signal.member == "NameOwnerChanged" and signal.args[:1] == [NAME]):
            self._rules_version += 1
            self._may_inspect.clear()

    def disconnected(self) -> None:
        """Clear both caches: the connection has ended, and the senders' names with it."""
        self._uids.clear()
        self._may_inspect.clear()

    def cached_uid(self, call: Call) -> int | None:
        """The caller's uid, None before `fetch_uid`."""
        return self._uids.get(call.sender)

    async def fetch_uid(self, call: Call) -> int:
        """The caller's uid, from the bus daemon. Raises BusError."""
        try:
            uid = await _query_uid(call)
        except BusError as error:
            text = f"the bus did not name the user of the caller: {error.text}"
            raise BusError(ERROR + "AccessDenied", text) from None
        if len(self._uids) >= MAX_SENDERS:
            self._uids.clear()
        self._uids[call.sender] = uid
        return uid

    async def check(self, call: Call, action: Action) -> None:
        """Raise BusError if the caller may not do the action."""
        if call.uid == 0 or (action is Action.INSPECT and call.sender in self._may_inspect):
            return
        version = self._rules_version
        await self._check_user(call, action)
        # A reply from before a change of rules is valid for this call only.
        if action is Action.INSPECT and version == self._rules_version:
            if len(self._may_inspect) >= MAX_SENDERS:
                self._may_inspect.clear()
            self._may_inspect.add(call.sender)

    async def _check_user(self, call: Call, action: Action) -> None:
        try:
            async with self._check_slots:
                authorized, challenge = await _check_authorization(call, action, dialog=False)
        except BusError as error:
            log.debug("polkit did not answer for %s: %s", action, error.text)
            if error.name in BUSY_ERRORS:
                # Any user can keep polkit busy: that must not permit what an administrator denied.
                raise _access_denied("polkit is too busy to answer", call) from None
            if action is Action.INSPECT:
                return
            raise _access_denied("only root may do that", call) from None
        if challenge and not authorized:
            authorized = await self._dialog(call, action)
        if not authorized:
            raise _access_denied(f"polkit does not allow you {action}", call)

    async def _dialog(self, call: Call, action: Action) -> bool:
        """Have a polkit agent ask the caller for a password."""
        if not call.interactive:
            raise _password_required(call)
        if self._dialogs.total() >= MAX_DIALOGS:
            text = f"{MAX_DIALOGS} password dialogs are open: try again later"
            raise BusError(ERROR + "LimitsExceeded", text)
        text = f"you have {MAX_DIALOGS_OF_USER} open password dialogs: answer one of them"
        with counted(self._dialogs, call.uid, MAX_DIALOGS_OF_USER, text):
            try:
                authorized, challenge = await _check_authorization(call, action, dialog=True)
            except BusError:
                raise _access_denied("no password was entered", call) from None
        if challenge and not authorized:
            raise _password_required(call)  # the caller has no polkit agent
        return authorized


async def _query_uid(call: Call) -> int:
    """The sender's uid. Raises BusError if the bus daemon does not name it."""
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
        return int((await requests[0])[0])  # the timeout has passed
    finally:
        for task in requests:
            task.cancel()
        await asyncio.gather(*requests, return_exceptions=True)


async def _check_authorization(call: Call, action: Action, *, dialog: bool) -> tuple[bool, bool]:
    """Whether the caller is authorized, and whether a password would authorize the caller."""
    subject = ["system-bus-name", {"name": Variant("s", call.sender)}]
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
    raise ValueError(f"unexpected reply of polkit to CheckAuthorization: {reply!r:.100}")


def _access_denied(why: str, call: Call, error: str = "AccessDenied") -> BusError:
    return BusError(ERROR + error, f"{why}: sudo {ROOT_COMMANDS[call.member]}")


def _password_required(call: Call) -> BusError:
    text = "a password is needed, and no agent can ask for it"
    return _access_denied(text, call, "InteractiveAuthorizationRequired")
