"""What one caller may have waiting: calls without an answer, and answers that it has not read.

The bus takes an answer from us at once and keeps it until it is read, up to 127 MiB for each
connection: nothing that a caller does makes us wait, but it must not fill the memory of the bus.
"""

from __future__ import annotations

import logging
from collections import Counter

from ipv6natd.bus import BUS, ERROR, BusError, Call, Connection

log = logging.getLogger(__name__)

MAX_UNANSWERED = 16
"""Calls of one sender."""
MAX_UNREAD = 32 << 20
"""Bytes for one sender."""
MAX_KNOWN = 1000
"""Senders before those who left are forgotten."""
STATS = "org.freedesktop.DBus.Debug.Stats"


class Limits:
    """The accounts of all senders on one connection after the other."""

    def __init__(self) -> None:
        """Nobody has anything waiting."""
        self._unanswered: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()
        self._read: dict[str, int] = {}
        """Sender -> bytes of what was sent that are known to be read."""

    def clear(self) -> None:
        """The connection has ended, and with it all senders."""
        self._unanswered.clear()
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

    def sent(self, call: Call, size: int) -> None:
        """An answer of `size` bytes is on its way."""
        self._sent[call.sender] += size

    def fits(self, call: Call, size: int = 0) -> bool:
        """Whether `size` bytes more are surely not too many."""
        unread = self._sent[call.sender] - self._read.get(call.sender, 0)
        return unread + size <= MAX_UNREAD

    async def wait_for_room(self, call: Call, size: int = 0) -> None:
        """Ask the bus what was read, if that matters. BusError when too much was not."""
        if len(self._sent) > MAX_KNOWN:
            await self._forget_who_left(call.connection)
        if self.fits(call, size):
            return
        sent = self._sent[call.sender]
        waiting = await _waiting(call)
        self._read[call.sender] = max(self._read.get(call.sender, 0), sent - waiting)
        if not self.fits(call, size):
            text = f"answers of {waiting >> 20} MiB wait until you read them: read them first"
            raise BusError(ERROR + "LimitsExceeded", text)

    async def _forget_who_left(self, connection: Connection) -> None:
        (names,) = await connection.call(*BUS, "ListNames")
        for sender in self._sent.keys() - set(names):
            del self._sent[sender]
            self._read.pop(sender, None)


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
