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

MAX_CALLS_OF_SENDER = 16
"""Calls of one sender."""
MAX_CALLS_OF_USER = 32
"""Calls of one user, over all connections."""
MAX_UNREAD_BYTES = 32 << 20
"""Bytes for one sender."""
MAX_SENDERS = 1000
"""Senders with an account."""
MAX_UNIDENTIFIED_BYTES = 4 << 20
"""Bytes of all calls whose user the bus has not told yet."""
CALL_OVERHEAD = 4 << 10
"""Bytes that a call takes while it waits, besides its arguments."""
STATS_INTERFACE = "org.freedesktop.DBus.Debug.Stats"


class Limits:
    """The accounts of all senders on one connection after the other."""

    def __init__(self) -> None:
        """Nobody has anything waiting."""
        self._calls_of_sender: Counter[str] = Counter()
        self._calls_of_user: Counter[int] = Counter()
        self._unidentified_bytes = 0
        self._sent_bytes: Counter[str] = Counter()
        self._read_bytes: dict[str, int] = {}
        """Sender -> bytes of what was sent that are known to be read."""

    def clear(self) -> None:
        """The connection has ended, and with it all senders."""
        self._calls_of_sender.clear()
        self._calls_of_user.clear()
        self._unidentified_bytes = 0
        self._sent_bytes.clear()
        self._read_bytes.clear()

    def begin_call(self, call: Call) -> None:
        """Count a call until `end_call`. Raises BusError for one too many."""
        if self._calls_of_sender[call.sender] >= MAX_CALLS_OF_SENDER:
            text = (
                f"{MAX_CALLS_OF_SENDER} calls of yours wait for their answers: wait for one of them"
            )
            raise BusError(ERROR + "LimitsExceeded", text)
        self._calls_of_sender[call.sender] += 1

    def end_call(self, call: Call) -> None:
        """It was answered."""
        self._calls_of_sender[call.sender] -= 1
        if self._calls_of_sender[call.sender] <= 0:
            del self._calls_of_sender[call.sender]

    @contextlib.contextmanager
    def unidentified_call(self, call: Call) -> Iterator[None]:
        """While the bus is asked for the call's user, after `begin_call`. BusError if too many.

        Nothing is known then of whose call it is. So each sender may have one short call waiting
        when there is no room for others: what many others send must not stand in root's way.
        """
        cost = CALL_OVERHEAD + call.size
        first = self._calls_of_sender[call.sender] == 1 and call.size <= CALL_OVERHEAD
        if self._unidentified_bytes + cost > MAX_UNIDENTIFIED_BYTES * (4 if first else 1):
            text = "too many calls wait until the bus says whose they are: try again"
            raise BusError(ERROR + "LimitsExceeded", text)
        self._unidentified_bytes += cost
        try:
            yield
        finally:
            self._unidentified_bytes -= cost

    @contextlib.contextmanager
    def user_call(self, uid: int) -> Iterator[None]:
        """While a call of the user is answered. BusError for one too many."""
        if uid != 0 and self._calls_of_user[uid] >= MAX_CALLS_OF_USER:
            text = f"{MAX_CALLS_OF_USER} calls of your user wait for their answers"
            raise BusError(ERROR + "LimitsExceeded", f"{text}: wait for one of them")
        self._calls_of_user[uid] += 1
        try:
            yield
        finally:
            self._calls_of_user[uid] -= 1
            if self._calls_of_user[uid] <= 0:
                del self._calls_of_user[uid]

    def add_sent(self, call: Call, size: int) -> None:
        """An answer of `size` bytes is on its way."""
        self._sent_bytes[call.sender] += size
        if len(self._sent_bytes) > MAX_SENDERS:
            self._shrink()

    def _shrink(self) -> None:
        """Forget half of the senders, those with the least unread: no account of a connection that
        has ended is kept for ever, and no sender gets rid of a large one by making connections."""
        read = self._read_bytes
        unread = Counter(
            {sender: sent - read.get(sender, 0) for sender, sent in self._sent_bytes.items()}
        )
        senders = [sender for sender, _ in unread.most_common(MAX_SENDERS // 2)]
        self._sent_bytes = Counter({sender: self._sent_bytes[sender] for sender in senders})
        self._read_bytes = {sender: read[sender] for sender in senders if sender in read}

    def fits(self, call: Call, size: int = 0) -> bool:
        """Whether `size` bytes more are surely not too many."""
        unread = self._sent_bytes[call.sender] - self._read_bytes.get(call.sender, 0)
        return unread + size <= MAX_UNREAD_BYTES

    async def check_unread(self, call: Call, size: int = 0) -> None:
        """Ask the bus what was read, if that matters. BusError when too much was not."""
        if self.fits(call, size):
            return
        sent = self._sent_bytes[call.sender]
        unread = await _unread_bytes(call)
        if self._sent_bytes[call.sender] >= sent:  # and not forgotten meanwhile
            self._read_bytes[call.sender] = max(self._read_bytes.get(call.sender, 0), sent - unread)
        if not self.fits(call, size):
            text = f"answers of {unread >> 20} MiB wait until you read them: read them first"
            raise BusError(ERROR + "LimitsExceeded", text)


async def _unread_bytes(call: Call) -> int:
    """Bytes that the bus keeps for the caller, all that was sent before this among them."""
    try:
        (stats,) = await call.connection.call(
            *(*BUS[:2], STATS_INTERFACE, "GetConnectionStats", "s", call.sender)
        )
        return int(stats["OutgoingBytes"])
    except (BusError, KeyError) as error:
        # dbus-broker does not say: it keeps accounts of its own. Or the caller has left.
        log.debug("the bus does not say what %s has read: %s", call.sender, error)
        return 0
