"""Which bridges containers have left, and when the ports close because of it.

Another container can have the address of one that left. The engine reports that, unless it ends
before. While no list of its objects confirms who left, the ports of these bridges are not sure. An
event about the end of a container explains one departure from each of its bridges. A disconnect
event explains one departure from the bridge of its network. Then it is known which container left,
and no event has reported that another container has its address.

Docker 26 and newer removes the port of a container 40 ms before its event, Docker 20.10 100 ms
after it. If the engine ends in between, the port stays until the engine has started again. Then it
removes the ports of all containers that have ended before it starts one, so the numbers agree again
before an address has a new container.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ipv6natd.engine.client import EngineUnavailable
from ipv6natd.model import EngineState
from ipv6natd.sync.interfaces import EngineFacts, Host
from ipv6natd.system.threads import in_thread

ANSWER_TIME = 0.5
"""Seconds after a start in which an engine usually answers if it runs. Another one may start only
now: it gives addresses to its containers before it answers."""
LIST_TIME = 2.0
"""Seconds after a start in which an engine that has answered usually lists its objects, also on a
busy host. Until then a new container can get the address of one that has left, as it could while
ipv6natd did not run."""
CONFIRM_PAUSE = 1.0
"""Seconds from a container's end to the list that confirms it: one list for many of them."""
CONFIRM_LIMIT = 5.0
"""Seconds that this list may take. An engine that needs longer does not answer inspects either, but
its event stream can be open."""
UNCOUNTED = sys.maxsize
"""A number of departures that no number of ends explains."""


class Counts(NamedTuple):
    """Numbers by bridge."""

    left: Counter[str]
    ended: Counter[str]


class Departures:
    """The departures of containers from bridges that no list has confirmed yet."""

    def __init__(self, engine: EngineFacts, host: Host, changed: Callable[[], None]) -> None:
        """`changed` is called when the vacated bridges change."""
        self.engine = engine
        self._host = host
        self._changed = changed
        self._bridges: Counter[str] = Counter()
        """The departures from each bridge. An empty name stands for any bridge."""
        self._noted = asyncio.Event()
        self._overdue = False
        """True while a list takes longer than CONFIRM_LIMIT."""
        self._began = 0.0
        self.ports_closed = False
        """True after the ports were closed because the engine has not listed its objects."""

    def begin(self) -> None:
        """Note the time of the start."""
        self._began = asyncio.get_running_loop().time()

    def note(self, bridge: str | None) -> None:
        """A container left a bridge; None: it is not known which one."""
        if bridge:
            self._bridges[bridge] += 1
        else:
            bridges = {"", *(net.bridge for net in self.engine.networks.values())}
            self._bridges.update(dict.fromkeys(bridges, UNCOUNTED))
        self._noted.set()
        if not self.engine.current:
            self._changed()

    @property
    def confirmed(self) -> bool:
        """True if the engine's facts show each container that has left its bridge."""
        return not self._bridges

    @property
    def vacated_bridges(self) -> frozenset[str]:
        """See Snapshot; none while the engine reports each change and answers."""
        if self.engine.current:
            return frozenset(self._bridges if self._overdue else ())
        return frozenset(self._bridges - self.engine.ended)

    async def confirm(self) -> None:
        """List the engine's objects after a container has left a bridge, until cancelled."""
        while True:
            await self._noted.wait()
            old = self._counts()
            await asyncio.sleep(CONFIRM_PAUSE)
            await self.confirm_once(old)

    async def confirm_once(self, old: Counts | None = None) -> None:
        """List the engine's objects; then it is known who left before that.

        All `old` departures and ends are settled. A later departure is settled together with an end
        on the same bridge. Without one it waits for the next list, because the event of the end may
        still come; a later end without a departure waits for the port to leave.
        """
        self._noted.clear()
        left, ended = self._counts()
        old = old or Counts(left, ended)
        limit = asyncio.get_running_loop().call_later(CONFIRM_LIMIT, self._set_overdue, True)
        try:
            await self.engine.relist()
        except EngineUnavailable:
            self._noted.set()
            return
        finally:
            limit.cancel()
        self._bridges -= left & (old.left | ended)
        reported = self.engine.ended
        reported -= ended & (old.ended | left)
        if self._bridges:
            self._noted.set()
        self._set_overdue(False)

    def _counts(self) -> Counts:
        return Counts(left=self._bridges.copy(), ended=self.engine.ended.copy())

    def _set_overdue(self, overdue: bool) -> None:
        if overdue != self._overdue:
            self._overdue = overdue
            self._changed()

    async def closing_time(self, *, rules_are_ours: bool) -> float | None:
        """When all ports close if the engine has not listed its objects by then: a time of the
        loop, which may have passed. None if they stay open.

        `rules_are_ours` is False until the first pass: the rules are those of an earlier process.
        """
        if rules_are_ours:
            left: bool | None = not self.confirmed
        else:
            bridges = frozenset(self._bridges)
            left = await in_thread(partial(self._host.ports_have_left, bridges))
        if self.engine.state is EngineState.UNREACHABLE:
            return None if left is False else self._began
        answers = self.engine.engine is not None
        return self._began + (LIST_TIME if answers else ANSWER_TIME) if left else None
