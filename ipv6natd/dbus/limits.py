"""What callers may have waiting: calls without an answer, and answers that they have not read.

Calls are counted by sender and by user: a user may have 256 connections, and gets no more by them.
Root is not counted as a user, so that nobody else can use up what root needs.

The bus takes an answer from us at once and keeps it until it is read, up to 127 MiB for each
connection: nothing that a caller does makes us wait, but it must not fill the memory of the bus.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator

from ipv6natd.dbus.connection import BUS, ERROR, BusError, Call

log = logging.getLogger(__name__)

MAX_UNANSWERED = 16
"""Calls of one sender."""
MAX_UNANSWERED_OF_USER = 32
"""Calls of one user, over all connections."""
MAX_UNREAD = 32 << 20
"""Bytes for one sender."""
MAX_KNOWN = 1000
"""Senders with an account."""
MAX_UNIDENTIFIED = 4 << 20
"""Bytes of all calls whose user the bus has not told yet."""
CALL_COST = 4 << 10
"""Bytes that a call takes while it waits, besides its arguments."""
STATS = "org.freedesktop.DBus.Debug.Stats"


class Limits:
    """The accounts of all senders on one connection after the other."""

    def __init__(self) -> None:
        """Nobody has anything waiting."""
        self._unanswered: Counter[str] = Counter()
        self._of_user: Counter[int] = Counter()
        self._unidentified = 0
        self._sent: Counter[str] = Counter()
        self._read: dict[str, int] = {}
        """Sender -> bytes of what was sent that are known to be read."""

    def clear(self) -> None:
        """The connection has ended, and with it all senders."""
        self._unanswered.clear()
        self._of_user.clear()
        self._unidentified = 0
        self._sent.clear()
        self._read.clear()

    def begin(self, call: Call) -> None:
        """A call that is not answered at once; `end` has to follow. BusError for one too many."""
        if self._unanswered[call.sender] >= MAX_UNANSWERED:
            text = f"{MAX_UNANSWERED} calls of yours wait for their answers: wait for one of them"
            raise BusError(ERROR + "LimitsExceeded", text)
        self._unanswered[call.sender] += 1

    def end(self, call: Call) -> None:
        """It was answered."""
        self._unanswered[call.sender] -= 1
        if self._unanswered[call.sender] <= 0:
            del self._unanswered[call.sender]

    @contextlib.contextmanager
    def unidentified(self, call: Call) -> Iterator[None]:
        """While the bus is asked for the call's user, after `begin`. BusError for one too many.

        Nothing is known then of whose call it is. So each sender may have one short call waiting
        when there is no room for others: what many others send must not stand in root's way.
        """
        cost = CALL_COST + call.size
        first = self._unanswered[call.sender] == 1 and call.size <= CALL_COST
        if self._unidentified + cost > MAX_UNIDENTIFIED * (4 if first else 1):
            text = "too many calls wait until the bus says whose they are: try again"
            raise BusError(ERROR + "LimitsExceeded", text)
        self._unidentified += cost
        try:
            yield
        finally:
            self._unidentified -= cost

    @contextlib.contextmanager
    def of_user(self, uid: int) -> Iterator[None]:
        """While a call of the user is answered. BusError for one too many."""
        if uid != 0 and self._of_user[uid] >= MAX_UNANSWERED_OF_USER:
            text = f"{MAX_UNANSWERED_OF_USER} calls of your user wait for their answers"
            raise BusError(ERROR + "LimitsExceeded", f"{text}: wait for one of them")
        self._of_user[uid] += 1
        try:
            yield
        finally:
            self._of_user[uid] -= 1
            if self._of_user[uid] <= 0:
                del self._of_user[uid]

    def sent(self, call: Call, size: int) -> None:
        """An answer of `size` bytes is on its way."""
        self._sent[call.sender] += size
        if len(self._sent) > MAX_KNOWN:
            self._forget()

    def _forget(self) -> None:
        """Forget half of the senders, those with the least unread: no account of a connection that
        has ended is kept for ever, and no sender gets rid of a large one by making connections."""
        read = self._read
        unread = Counter({who: sent - read.get(who, 0) for who, sent in self._sent.items()})
        kept = [sender for sender, _ in unread.most_common(MAX_KNOWN // 2)]
        self._sent = Counter({sender: self._sent[sender] for sender in kept})
        self._read = {sender: read[sender] for sender in kept if sender in read}

    def fits(self, call: Call, size: int = 0) -> bool:
        """Whether `size` bytes more are surely not too many."""
        unread = self._sent[call.sender] - self._read.get(call.sender, 0)
        return unread + size <= MAX_UNREAD

    async def wait_for_room(self, call: Call, size: int = 0) -> None:
        """Ask the bus what was read, if that matters. BusError when too much was not."""
        if self.fits(call, size):
            return
        sent = self._sent[call.sender]
        waiting = await _waiting(call)
        if self._sent[call.sender] >= sent:  # and not forgotten meanwhile
            self._read[call.sender] = max(self._read.get(call.sender, 0), sent - waiting)
        if not self.fits(call, size):
            text = f"answers of {waiting >> 20} MiB wait until you read them: read them first"
            raise BusError(ERROR + "LimitsExceeded", text)


async def _waiting(call: Call) -> int:
    """Bytes that the bus keeps for the caller, all that was sent before this among them."""
    try:
        (stats,) = await call.connection.call(
            *(*BUS[:2], STATS, "GetConnectionStats", "s", call.sender)
        )
        return int(stats["OutgoingBytes"])
    except (BusError, KeyError) as error:
        # dbus-broker does not say: it keeps accounts of its own. Or the caller has left.
        log.debug("the bus does not say what %s has read: %s", call.sender, error)
        return 0
