"""Keeps the facts of the engine current and wakes the loop after a change; decides nothing.

A thread reads the events, the objects that they name are inspected, and all objects are listed
periodically. An event only says which object to read again: a lost, doubled or late event can delay
a fact, but never change it. Only during a start, events decide too: see engine.facts.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial

from ipv6natd.engine import parse
from ipv6natd.engine.client import (
    CALL_TIMEOUT,
    AnswerTooLong,
    Client,
    EngineAddress,
    EngineUnavailable,
    Events,
    InspectFailed,
    WrongEngine,
    connect,
    inspect,
    list_all,
    one_line,
    subscribe,
)
from ipv6natd.engine.dockerd import stopped_unit
from ipv6natd.engine.endpoint import security_warnings
from ipv6natd.engine.facts import Facts
from ipv6natd.engine.inspects import CreatedInspects, InspectQueue, NetworkPolls
from ipv6natd.engine.parse import Subject
from ipv6natd.model import Container, Engine, EngineState, Network
from ipv6natd.system.messages import MessageId, log_fields
from ipv6natd.system.threads import in_thread

log = logging.getLogger(__name__)


MAX_PARALLEL_INSPECTS = 16
"""Inspects that began less than SLOW_INSPECT ago."""
SLOW_INSPECT = 0.5
"""Seconds after which an inspect no longer counts: it may hang, for example on a volume that does
not answer, and no other container must wait for it."""
MAX_NETWORK_INSPECTS = 4
"""Inspects of networks, which wait for no container."""
MAX_INSPECTS = 36
"""All other inspects, besides those of new containers: each a thread; TasksMax=64 in the unit."""
MIN_RETRY_DELAY, MAX_RETRY_DELAY = 0.1, 2.0
"""Seconds between two attempts to connect; the delay doubles."""
WRONG_ENGINE_RETRY_DELAY = 60.0
"""Seconds between two attempts while the endpoint is that of another program: each one may start
it."""
INSPECT_RETRY_DELAY = 1.0
"""Seconds before a failed inspect is repeated."""
MIN_STREAM_TIME = 5.0
"""Seconds. An event stream that ends after a longer time is opened again: proxies end idle ones."""
REOPEN_TIMEOUT = 2.0
"""Seconds to open it again. After a longer time the engine counts as lost."""


class EventStream:
    """The stream of the engine's events, which may be opened several times."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._events: Events | None = None

    async def subscribe(self, seconds: float) -> None:
        """Open the stream, or open it again. Raises EngineUnavailable."""
        self.close()
        try:
            async with asyncio.timeout(seconds):
                self._events = await in_thread(partial(subscribe, self._client))
        except TimeoutError:
            raise EngineUnavailable("it sends no events") from None

    async def read(self, handle: Callable[[object], None]) -> str:
        """Call `handle` for each event, in a thread of its own; return why the stream ended."""
        events = self._events
        assert events is not None

        def read() -> str:
            try:
                for event in events.read():
                    handle(event)
            except Exception as error:  # a broken stream raises many exceptions in the library
                return f"its event stream broke: {one_line(error)}"
            return "its event stream ended"

        return await in_thread(read)

    def close(self) -> None:
        """Close the stream: closing the client does not, and its reader would wait forever."""
        if self._events is not None:
            with suppress(Exception):
                self._events.close()


class EngineWatcher:
    """Follows one engine while run() runs.

    `networks` and `containers` have the last known facts by id, also while the engine is
    unavailable. They must not be used in a state without facts.

    It has many attributes: four that others read, and the parts of a session.
    """

    def __init__(
        self, address: EngineAddress, wake: Callable[[], None], *, resync_interval: float
    ) -> None:
        self.state = EngineState.STARTING
        self.current = False
        """See sync.interfaces."""
        self.waiting_for = "not connected yet"
        self.engine: Engine | None = None
        self._facts = Facts()
        self._address = address
        self._logged_warnings: set[str] = set()
        self._wake = wake
        self._resync_interval = resync_interval
        self._client: Client | None = None
        self._inspects = InspectQueue()
        self._polls = NetworkPolls(self._inspects)
        self._list_lock = asyncio.Lock()

    @property
    def networks(self) -> dict[str, Network]:
        """The networks by id."""
        return self._facts.networks

    @property
    def containers(self) -> dict[str, Container]:
        """The running containers by id."""
        return self._facts.containers

    @property
    def ended(self) -> Counter[str]:
        """See sync.interfaces."""
        return self._facts.ended

    async def run(self, *, retry: bool) -> None:
        """Follow the engine forever; without `retry`, raise EngineUnavailable at a failure."""
        delay = MIN_RETRY_DELAY
        while True:
            try:
                await self._session()
            except EngineUnavailable as error:
                delay = MIN_RETRY_DELAY if self.state is EngineState.CONNECTED else delay
                if isinstance(error, WrongEngine):
                    delay = WRONG_ENGINE_RETRY_DELAY
                self._set_unavailable(str(error))
                if not retry:
                    raise
            await asyncio.sleep(delay)
            delay = min(delay * 2, MAX_RETRY_DELAY)

    async def relist(self) -> None:
        """List all objects now. Raises EngineUnavailable, also while it is not connected."""
        if self._client is None:
            raise EngineUnavailable(self.waiting_for)
        await self._raise_if_stopped()
        await self._list(self._client)

    def port_added(self, bridge: str | None) -> None:
        """A container may be starting: its port was added to a bridge; None if unknown which."""
        if self.current:
            for network in self.networks.values():
                if network.bridge == bridge and self._facts.expects_start(network.id):
                    self._polls.begin(network.id)

    async def _raise_if_stopped(self) -> None:
        """Raise EngineUnavailable if a connect would start an engine that an administrator stopped.

        A stopping engine does not listen any more, but still sends the events of ending containers.
        A call at this time waits in the socket of systemd, which then starts the engine again.
        """
        reason = await in_thread(partial(stopped_unit, self._address.endpoint))
        if reason:
            raise EngineUnavailable(reason)

    def _set_unavailable(self, reason: str) -> None:
        was_connected = self.state is EngineState.CONNECTED
        changed = was_connected or reason != self.waiting_for
        if was_connected:
            extra = log_fields(MessageId.ENGINE_LOST, reason=reason)
            log.warning("lost the Docker engine: %s; the rules stay", reason, extra=extra)
        elif changed:
            log.info("waiting for the Docker engine: %s", reason)
        self.state = EngineState.LOST if self.state.has_facts else EngineState.UNREACHABLE
        self.waiting_for = reason
        if changed:
            self._wake()

    async def _session(self) -> None:
        """Connect, and follow the engine until a call fails or the event stream ends.

        Always raises EngineUnavailable.
        """
        await self._raise_if_stopped()
        client, engine = await in_thread(partial(connect, self._address))
        self.engine = engine
        log.info("connected to Docker %s", engine.version)
        self._log_security_warnings(
            security_warnings(self._address.endpoint, verified=client.verified)
        )
        self._inspects = InspectQueue()
        self._polls = NetworkPolls(self._inspects)
        with closing(client):
            events = EventStream(client)
            # Before the list: then events report every change after the list.
            await events.subscribe(CALL_TIMEOUT)
            tasks = [asyncio.create_task(self._follow_events(client, events))]
            try:
                await self._list(client)
                self._set_connected(client)
                slots = asyncio.Semaphore(MAX_PARALLEL_INSPECTS)
                works = [self._inspect_containers(client, slots) for _ in range(MAX_INSPECTS)]
                works += [self._inspect_networks(client) for _ in range(MAX_NETWORK_INSPECTS)]
                works += [self._polls.run(), self._list_periodically(client)]
                tasks += map(asyncio.create_task, works)
                # Not a TaskGroup: up to Python 3.12, a TaskGroup loses its own cancellation if a
                # task fails at the same moment. Then this would run forever.
                failed, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                failed.pop().result()
            finally:
                self._client, self.current = None, False
                self._facts.forget_starts()
                events.close()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _set_connected(self, client: Client) -> None:
        self._client = client
        self.state, self.waiting_for = EngineState.CONNECTED, ""
        self.current = True
        self._wake()

    def _log_security_warnings(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            # As a warning once, and not after every connect.
            repeated = warning in self._logged_warnings
            log.log(logging.DEBUG if repeated else logging.WARNING, "%s", warning)
            self._logged_warnings.add(warning)

    async def _follow_events(self, client: Client, events: EventStream) -> None:
        """Request an inspect for each event, until the engine opens no event stream any more.

        Always raises EngineUnavailable.
        """
        loop = asyncio.get_running_loop()
        created = CreatedInspects(client, self._store_created)

        def handle(event: object) -> None:
            container_id = parse.created(event)
            if container_id and not created.request(container_id):
                subject = Subject("container", container_id)
                loop.call_soon_threadsafe(self._inspects.add, subject)
            loop.call_soon_threadsafe(self._mark_for_inspect, event)

        while True:
            opened = loop.time()
            reason = await events.read(handle)
            self.current = False
            self._facts.forget_starts()
            if loop.time() - opened < MIN_STREAM_TIME:
                raise EngineUnavailable(reason)
            await self._raise_if_stopped()
            log.debug("%s; it is opened again", reason)
            try:
                await events.subscribe(REOPEN_TIMEOUT)
            except EngineUnavailable:
                raise EngineUnavailable(reason) from None
            # For the changes since the end of the stream.
            await self._list(client)
            self.current = True
            self._wake()

    def _store_created(self, container_id: str, raw: object) -> None:
        self._stored(self._facts.store_created(container_id, raw), ())

    def _mark_for_inspect(self, event: object) -> None:
        if named := parse.named(event):
            self._facts.named(*named)
        if told := parse.connection(event):
            self._polls.end(told.network)
            if self._facts.connection(told):
                self._wake()
        for subject in parse.event_subjects(event):
            self._inspects.add(subject, ended=parse.is_end(event))

    async def _list_periodically(self, client: Client) -> None:
        while True:
            await asyncio.sleep(self._resync_interval)
            await self._raise_if_stopped()
            await self._list(client)

    async def _inspect_containers(self, client: Client, slots: asyncio.Semaphore) -> None:
        while True:
            await slots.acquire()
            subject, ended = await self._inspects.next("container")
            with _held(slots):
                await self._inspect(client, subject, ended)

    async def _inspect_networks(self, client: Client) -> None:
        while True:
            await self._inspect(client, *await self._inspects.next("network"))

    async def _inspect(self, client: Client, subject: Subject, ended: bool) -> None:
        assert self.engine is not None
        try:
            if ended:
                await self._raise_if_stopped()
            awaited = self._facts.awaited(subject, self._polls.ports_in_use)
            raw = await in_thread(partial(inspect, client, *subject))
            self._inspects.note_result(subject)
            changed, missing = self._facts.store(subject, raw, self.engine, awaited=awaited)
            self._stored(changed, missing)
            if any(it.kind == "container" for it in missing):
                self._polls.end(subject.id)
        except AnswerTooLong as error:
            # Not repeated: the next event or list requests it. The last known address may be
            # another container's by then; a network stays protected as it was.
            self._log_failure(subject, f"{error}")
            if subject.kind == "container":
                self._stored(*self._facts.store(subject, None, self.engine, awaited=awaited))
        except InspectFailed as error:
            self._log_failure(subject, f"{error}; retrying")
            await asyncio.sleep(INSPECT_RETRY_DELAY)
            self._inspects.add(subject, ended=ended)
        finally:
            self._inspects.done(subject)

    def _log_failure(self, subject: Subject, reason: str) -> None:
        is_new = self._inspects.note_result(subject, reason)
        level = logging.WARNING if is_new else logging.DEBUG
        log.log(level, "cannot inspect %s %.12s: %s", *subject, reason)

    async def _list(self, client: Client) -> None:
        """Read all objects with two calls. An inspect during the calls is newer and is kept."""
        assert self.engine is not None
        async with self._list_lock:
            self._facts.begin_list()
            lists = await in_thread(partial(list_all, client, self.engine))
            self._stored(*self._facts.store_lists(*lists, self.engine))

    def _stored(self, changed: bool, missing: Iterable[Subject]) -> None:
        for subject in missing:
            self._inspects.add(subject)
        if changed:
            self._wake()


@contextmanager
def _held(slots: asyncio.Semaphore) -> Iterator[None]:
    """Hold a slot until the end of the block, but for at most SLOW_INSPECT seconds."""
    held = True

    def release() -> None:
        nonlocal held
        if held:
            held = False
            slots.release()

    timer = asyncio.get_running_loop().call_later(SLOW_INSPECT, release)
    try:
        yield
    finally:
        timer.cancel()
        release()
