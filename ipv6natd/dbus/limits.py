"""Limits for callers: calls without a reply, and replies that the caller has not read.

Calls are counted for each sender and for each user. One user can have 256 connections (the bus
daemon's max_connections_per_user), and gets no more calls by them. Calls of root are not counted
for the user, so that no other user can block root.

The bus daemon accepts our replies at once and stores them until the caller reads them, up to 127
MiB for each connection (its max_outgoing_bytes). So a slow caller never blocks us, but could fill
the bus daemon's memory.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator

from ipv6natd.dbus.connection import BUS, ERROR, BusError, Call

log = logging.getLogger(__name__)

MAX_CALLS_OF_SENDER = 16
"""Calls of one sender without a reply."""
MAX_CALLS_OF_USER = 32
"""Calls of one user without a reply, over all connections."""
MAX_UNREAD_BYTES = 32 << 20
"""Bytes of replies that one sender has not read."""
MAX_SENDERS = 1000
"""Senders whose sent bytes are counted."""
MAX_UNIDENTIFIED_BYTES = 4 << 20
"""Bytes of all calls whose user is not known yet."""
CALL_OVERHEAD = 4 << 10
"""Bytes that a waiting call needs in addition to its arguments."""
STATS_INTERFACE = "org.freedesktop.DBus.Debug.Stats"


class Limits:
    """The counters of all senders on the present connection."""

    def __init__(self) -> None:
        """Start with all counters at zero."""
        self._calls_of_sender: Counter[str] = Counter()
        self._calls_of_user: Counter[int] = Counter()
        self._unidentified_bytes = 0
        self._sent_bytes: Counter[str] = Counter()
        self._read_bytes: dict[str, int] = {}
        """Sender -> how many of the sent bytes it has certainly read."""

    def clear(self) -> None:
        """Reset all counters: the connection has ended, and its senders' names with it."""
        self._calls_of_sender.clear()
        self._calls_of_user.clear()
        self._unidentified_bytes = 0
        self._sent_bytes.clear()
        self._read_bytes.clear()

    def begin_call(self, call: Call) -> None:
        """Count a call until `end_call`. Raises BusError if the sender has too many calls."""
        if self._calls_of_sender[call.sender] >= MAX_CALLS_OF_SENDER:
            text = f"{MAX_CALLS_OF_SENDER} of your calls have no reply yet: wait for one"
            raise BusError(ERROR + "LimitsExceeded", text)
        self._calls_of_sender[call.sender] += 1

    def end_call(self, call: Call) -> None:
        """Remove a call that has its reply from the count."""
        self._calls_of_sender[call.sender] -= 1
        if self._calls_of_sender[call.sender] <= 0:
            del self._calls_of_sender[call.sender]

    @contextlib.contextmanager
    def unidentified_call(self, call: Call) -> Iterator[None]:
        """Count the call's bytes until its user is known. Raises BusError if there are too many.

        Call `begin_call` first. Beyond the limit, each sender may have one short call waiting: that
        keeps a way in for root, whose calls cannot be recognised yet.
        """
        cost = CALL_OVERHEAD + call.size
        first = self._calls_of_sender[call.sender] == 1 and call.size <= CALL_OVERHEAD
        if self._unidentified_bytes + cost > MAX_UNIDENTIFIED_BYTES * (4 if first else 1):
            text = "too many calls wait for the bus to name their user: try again"
            raise BusError(ERROR + "LimitsExceeded", text)
        self._unidentified_bytes += cost
        try:
            yield
        finally:
            self._unidentified_bytes -= cost

    @contextlib.contextmanager
    def user_call(self, uid: int) -> Iterator[None]:
        """Count a call of the user during the context. Raises BusError if there are too many."""
        if uid != 0 and self._calls_of_user[uid] >= MAX_CALLS_OF_USER:
            text = f"{MAX_CALLS_OF_USER} calls of your user have no reply yet: wait for one"
            raise BusError(ERROR + "LimitsExceeded", text)
        self._calls_of_user[uid] += 1
        try:
            yield
        finally:
            self._calls_of_user[uid] -= 1
            if self._calls_of_user[uid] <= 0:
                del self._calls_of_user[uid]

    def add_sent(self, call: Call, size: int) -> None:
        """Count a reply of `size` bytes to the caller."""
        self._sent_bytes[call.sender] += size
        if len(self._sent_bytes) > MAX_SENDERS:
            self._shrink()

    def _shrink(self) -> None:
        """Drop half of the senders, those with the fewest unread bytes. So the table stays
        bounded although senders leave, and new connections do not push out a sender that has
        much unread."""
        read = self._read_bytes
        unread = Counter(
            {sender: sent - read.get(sender, 0) for sender, sent in self._sent_bytes.items()}
        )
        senders = [sender for sender, _ in unread.most_common(MAX_SENDERS // 2)]
        self._sent_bytes = Counter({sender: self._sent_bytes[sender] for sender in senders})
        self._read_bytes = {sender: read[sender] for sender in senders if sender in read}

    def fits(self, call: Call, size: int = 0) -> bool:
        """True if `size` more bytes are certainly within the limit."""
        unread = self._sent_bytes[call.sender] - self._read_bytes.get(call.sender, 0)
        return unread + size <= MAX_UNREAD_BYTES

    async def check_unread(self, call: Call, size: int = 0) -> None:
        """Raise BusError if the caller has too many unread bytes. Asks the bus daemon only if our
        own counters do not suffice."""
        if self.fits(call, size):
            return
        sent = self._sent_bytes[call.sender]
        unread = await _unread_bytes(call)
        if self._sent_bytes[call.sender] >= sent:  # else `_shrink` has dropped the sender
            self._read_bytes[call.sender] = max(self._read_bytes.get(call.sender, 0), sent - unread)
        if not self.fits(call, size):
            text = f"you have {unread >> 20} MiB of unread replies: read them first"
            raise BusError(ERROR + "LimitsExceeded", text)


async def _unread_bytes(call: Call) -> int:
    """Bytes of earlier replies that the bus daemon still stores for the caller."""
    try:
        (stats,) = await call.connection.call(
            *(*BUS[:2], STATS_INTERFACE, "GetConnectionStats", "s", call.sender)
        )
        return int(stats["OutgoingBytes"])
    except (BusError, KeyError) as error:
        # dbus-broker has no such interface, and limits of its own. Or the caller has left.
        log.debug("cannot read how much %s has not read: %s", call.sender, error)
        return 0
