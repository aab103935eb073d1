"""Which objects of the engine are inspected next, and containers as soon as they are created."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from ipv6natd.engine.client import Client, EngineUnavailable, InspectFailed, inspect
from ipv6natd.engine.host_ports import HostPorts, ports_in_use
from ipv6natd.engine.parse import Subject
from ipv6natd.system.threads import in_thread, start_thread

MAX_CREATED_INSPECTS = 8
"""Inspects of new containers. One that comes too late waits for the end of the start."""
MAX_POLLS, POLL_PAUSE = 12, 0.008
"""Inspects of a network after a port was added to its bridge, and seconds between them. Docker
28 may need 50 ms until it shows the container."""
POLL_TIMEOUT = 0.25
"""Seconds for one inspect of each network. A network that takes longer, or whose inspect fails, is
not polled any more: the others do not wait for it."""
MAX_PORTS_AGE = 0.1
"""Seconds for which a list of the host's ports is used."""


class InspectQueue:
    """The objects to inspect again, and those whose inspect runs.

    Never two inspects of one object at a time: the older response could arrive last.
    """

    def __init__(self) -> None:
        self._waiting: dict[Subject, bool] = {}
        """True if the last event of the object was an end."""
        self._running: set[Subject] = set()
        self._failures: dict[Subject, str] = {}
        self._changed = asyncio.Event()

    def add(self, subject: Subject, *, ended: bool = False) -> None:
        """Request an inspect; a request of the same object that still waits is replaced."""
        self._waiting[subject] = ended
        self._changed.set()

    async def next(self, kind: str) -> tuple[Subject, bool]:
        """Wait for an object of this kind whose inspect may start, and whether its last event was
        an end."""
        while True:
            for subject in self._waiting:
                if subject.kind == kind and subject not in self._running:
                    self._running.add(subject)
                    return subject, self._waiting.pop(subject)
            self._changed.clear()
            await self._changed.wait()

    def note_result(self, subject: Subject, failure: str = "") -> bool:
        """Note why an inspect failed, "" if it succeeded; False if it is as the time before."""
        before = self._failures.pop(subject, "")
        if failure:
            self._failures[subject] = failure
        return failure != before

    def unsettled(self, subjects: Iterable[Subject]) -> set[Subject]:
        """Those of these objects that are or wait to be inspected."""
        return set(subjects) & (self._running | self._waiting.keys())

    async def settled(self, subjects: Iterable[Subject]) -> None:
        """Wait until none of these objects is or waits to be inspected."""
        while self.unsettled(subjects):
            self._changed.clear()
            await self._changed.wait()

    def done(self, subject: Subject) -> None:
        """End an inspect."""
        self._running.discard(subject)
        self._changed.set()


class NetworkPolls:
    """Inspects networks repeatedly for a short time, because a container may be connected.

    A container's port is added to the bridge before the engine shows the container on the network,
    and before the ports of the host are open. No event tells of either.
    """

    def __init__(self, queue: InspectQueue) -> None:
        self._queue = queue
        self._left: dict[str, int] = {}
        """Network id -> the number of inspects that are left."""
        self._begun = asyncio.Event()
        self.ports_in_use: HostPorts | None = None
        """The ports of the host from before the inspect that runs: without the ports that the
        engine opens after the inspect shows the container. None if unknown."""
        self._listed = 0.0
        """When they were listed, by the clock of the loop."""

    def begin(self, network_id: str) -> None:
        """Begin, or begin again."""
        self._left[network_id] = MAX_POLLS
        self._begun.set()

    def end(self, network_id: str) -> None:
        """The container was seen."""
        self._left.pop(network_id, None)

    async def run(self) -> None:
        """Request the inspects until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._begun.wait()
            began = loop.time()
            if self.ports_in_use is None or began > self._listed + MAX_PORTS_AGE:
                self.ports_in_use, self._listed = await in_thread(ports_in_use), began
            subjects = [Subject("network", network_id) for network_id in self._left]
            for subject in subjects:
                self._queue.add(subject)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_TIMEOUT):
                    await self._queue.settled(subjects)
            late = self._queue.unsettled(subjects)
            for subject in late:
                self.end(subject.id)
            self._left = {key: left - 1 for key, left in self._left.items() if left > 1}
            if not self._left:
                self._begun.clear()
                self.ports_in_use = None
            # The engine is not kept busy by long answers.
            await asyncio.sleep(POLL_PAUSE if late else max(POLL_PAUSE, 3 * (loop.time() - began)))


class CreatedInspects:
    """Inspects each container when it is created.

    `docker run` starts it a millisecond later, and from then on an inspect waits for the end of the
    start. So the thread that reads the events asks, and not the loop.
    """

    def __init__(self, client: Client, store: Callable[[str, object], None]) -> None:
        """`store` is called in the loop with the id and the answer of each inspect that
        succeeds."""
        self._client = client
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._slots = threading.BoundedSemaphore(MAX_CREATED_INSPECTS)

    def request(self, container_id: str) -> bool:
        """Inspect the container now; False if too many of these inspects wait. From any thread."""
        if not self._slots.acquire(blocking=False):
            return False
        try:
            start_thread(partial(self._inspect, container_id), "inspect")
        except RuntimeError:
            self._slots.release()
            return False
        return True

    def _inspect(self, container_id: str) -> None:
        # RuntimeError if the loop is closed. Without an answer, the facts come after the start.
        try:
            with suppress(EngineUnavailable, InspectFailed, RuntimeError):
                raw = inspect(self._client, "container", container_id)
                self._loop.call_soon_threadsafe(self._store, container_id, raw)
        finally:
            self._slots.release()
