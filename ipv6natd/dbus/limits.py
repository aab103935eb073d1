"""Limits for callers: calls without a reply, and replies that no caller has read.

Calls are counted for each sender and for each user. One user can have 256 connections (the bus
daemon's max_connections_per_user), and gets no more calls by them. Calls of root are not counted
for the user, so that no other user can block root.

The bus daemon accepts our messages at once and stores them until their receivers read them. It
stops reading from us when it stores 127 MiB (its max_incoming_bytes), whoever the receivers are. So
processes that do not read could block all others, and root gets replies beyond the limits of the
others. An error does not wait for an answer of the bus daemon: failed calls are not counted, so the
tasks that wait would fill the memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar
from weakref import WeakValueDictionary

from ipv6natd.dbus.connection import BUS, ERROR, BusError, Call, Connection

T = TypeVar("T")
log = logging.getLogger(__name__)

MAX_CALLS_OF_SENDER = 16
"""Calls of one sender without a reply."""
MAX_CALLS_OF_USER = 32
"""Calls of one user without a reply, over all connections."""
MAX_CALLS_OF_USERS = 512
"""Calls of all users without a reply, without those of root. Beyond it, each user may have one: a
user with many uids (/etc/subuid) must not block the others."""
MAX_UNREAD_BYTES = 64 << 20
"""Bytes of replies that all callers together have not read. Only root gets more."""
MAX_UNREAD_BYTES_FOR_ERRORS = 80 << 20
"""Unread bytes above which a call that fails gets no error either."""
MAX_UNREAD_BYTES_FOR_FULL_SIGNALS = 32 << 20
"""Unread bytes above which signals are few and short: see `signals`."""
MAX_UNREAD_BYTES_FOR_SIGNALS = 96 << 20
"""Unread bytes above which no signals are sent. More than for replies and errors, so that callers
who do not read cannot stop the signals. The rest of the 127 MiB is for replies to root."""
MAX_UNIDENTIFIED_BYTES = 4 << 20
"""Bytes of all calls whose user is not known yet. Without this limit, 256 connections of one user
with 16 calls of 128 KiB each would need 512 MiB."""
CALL_OVERHEAD = 4 << 10
"""Bytes that a waiting call needs in addition to its arguments."""
STATS_INTERFACE = "org.freedesktop.DBus.Debug.Stats"


class Limits:
    """The counters of all senders and users of one connection."""

    def __init__(self) -> None:
        self._calls_of_sender: Counter[str] = Counter()
        self._calls_of_user: Counter[int] = Counter()
        self._calls_of_users: Counter[None] = Counter()
        self._unidentified_bytes: Counter[None] = Counter()
        self._non_root_lock = asyncio.Lock()
        self._user_locks: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._sent_bytes = 0
        self._read_bytes = 0
        """How many of the sent bytes have certainly been read."""
        self._question: asyncio.Task[None] | None = None
        """The question to the bus daemon that has no answer yet."""

    def sender_call(self, call: Call) -> contextlib.AbstractContextManager[None]:
        """Count a call of the sender during the context. Raises BusError if there are too many."""
        text = f"{MAX_CALLS_OF_SENDER} of your calls have no reply yet: wait for one"
        return counted(self._calls_of_sender, call.sender, MAX_CALLS_OF_SENDER, text)

    @contextlib.contextmanager
    def user_call(self, uid: int) -> Iterator[None]:
        """Count a call of the user during the context. Raises BusError if there are too many."""
        limit = MAX_CALLS_OF_USER if uid else sys.maxsize
        text = f"{limit} calls of your user have no reply yet: wait for one"
        limit_of_all = MAX_CALLS_OF_USERS if uid and self._calls_of_user[uid] else sys.maxsize
        text_of_all = f"{limit_of_all} calls of all users have no reply yet: try again"
        with (
            counted(self._calls_of_user, uid, limit, text),
            counted(self._calls_of_users, None, limit_of_all, text_of_all, cost=1 if uid else 0),
        ):
            yield

    def unidentified_call(self, call: Call) -> contextlib.AbstractContextManager[None]:
        """Count the call's bytes until its user is known. Raises BusError if there are too many.

        To be used inside `sender_call`. Beyond the limit, each sender may have one short call
        waiting: that keeps a way in for root, whose calls cannot be recognised yet.
        """
        cost = CALL_OVERHEAD + call.size
        first = self._calls_of_sender[call.sender] == 1 and call.size <= CALL_OVERHEAD
        limit = MAX_UNIDENTIFIED_BYTES * (4 if first else 1)
        text = "too many calls wait for the bus to name their user: try again"
        return counted(self._unidentified_bytes, None, limit, text, cost=cost)

    @contextlib.asynccontextmanager
    async def turn(self, uid: int) -> AsyncIterator[None]:
        """The user's turn for a long reply. A call first waits for the same user's other calls,
        then for other users' calls; so at most one call of each other user comes before it."""
        # A weak reference: the lock lives as long as a call holds it or waits for it.
        own = self._user_locks.setdefault(uid, asyncio.Lock())
        async with own, self._non_root_lock if uid else contextlib.nullcontext():
            yield

    def add_sent(self, size: int) -> None:
        """Count `size` bytes of messages to others."""
        self._sent_bytes += size

    def fits(self, size: int = 0) -> bool:
        """True if a reply of `size` bytes is certainly within the limit of unread bytes."""
        return self._unread_bytes + size <= MAX_UNREAD_BYTES

    def error_fits(self, connection: Connection) -> bool:
        """True if an error is certainly within its limit of unread bytes."""
        return self._certainly_fits(connection, MAX_UNREAD_BYTES_FOR_ERRORS)

    def signals_fit(self, connection: Connection, *, crowded: bool) -> bool:
        """True if signals are certainly within their limit; `crowded` for few and short ones."""
        limit = MAX_UNREAD_BYTES_FOR_SIGNALS if crowded else MAX_UNREAD_BYTES_FOR_FULL_SIGNALS
        return self._certainly_fits(connection, limit)

    async def count_unread(self, connection: Connection) -> None:
        """Wait until the bus daemon has told how much is unread, at most as long as for a call."""
        await asyncio.shield(self._start_count(connection))

    async def check_unread(self, call: Call, size: int = 0) -> None:
        """Raise BusError if too many messages are unread, and the caller is not root."""
        if self.fits(size):
            return
        if call.uid == 0:
            self._start_count(call.connection)
            return  # a flood may delay the answer
        await self.count_unread(call.connection)
        if not self.fits(size):
            text = f"callers have {self._unread_bytes >> 20} MiB of unread replies: try again"
            raise BusError(ERROR + "LimitsExceeded", text)

    @property
    def _unread_bytes(self) -> int:
        """Bytes of messages that may be unread. Without `count_unread` it only grows."""
        return self._sent_bytes - self._read_bytes

    def _certainly_fits(self, connection: Connection, limit: int) -> bool:
        """True if the unread bytes are certainly within the limit; never waits.

        The bus daemon is asked early, so that its answer is there before the limit is reached.
        """
        if self._unread_bytes > limit // 2:
            self._start_count(connection)
        return self._unread_bytes <= limit

    def _start_count(self, connection: Connection) -> asyncio.Task[None]:
        """Ask the bus daemon how many bytes of our messages it still stores; one question at a
        time."""
        if self._question is None or self._question.done():
            self._question = asyncio.create_task(self._ask(connection))
        return self._question

    async def _ask(self, connection: Connection) -> None:
        sent = self._sent_bytes
        question = (*BUS[:2], STATS_INTERFACE, "GetConnectionStats", "s", connection.unique_name)
        try:
            (stats,) = await connection.call(*question)
        except BusError as error:
            log.debug("cannot read how many messages are unread: %s", error)
            if error.name == ERROR + "NoReply":
                return
            stats = {}  # dbus-broker has no such interface, and limits of its own
        self._read_bytes = max(self._read_bytes, sent - int(stats.get("IncomingBytes", 0)))


@contextlib.contextmanager
def counted(counter: Counter[T], key: T, limit: int, text: str, *, cost: int = 1) -> Iterator[None]:
    """Add `cost` to a counter during the context. Raises BusError with `text` above `limit`."""
    if counter[key] + cost > limit:
        raise BusError(ERROR + "LimitsExceeded", text)
    counter[key] += cost
    try:
        yield
    finally:
        counter[key] -= cost
        if not counter[key]:
            del counter[key]
