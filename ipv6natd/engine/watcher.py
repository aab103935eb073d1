"""The engine's facts, kept current: a reader of events, inspects of what they name, a list now
and then. Wakes the loop when something changed; decides nothing.

An event is a hint about what to read again, never news in itself: losing, doubling or reordering
events may change when something is seen, not what.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from contextlib import closing, suppress
from functools import partial
from typing import Any, TypeVar

from ipv6natd.engine import parse
from ipv6natd.engine.client import (
    CALL_TIMEOUT,
    Client,
    EngineAddress,
    EngineUnavailable,
    InspectFailed,
    connect,
    inspect,
    list_all,
    one_line,
)
from ipv6natd.engine.dockerd import stopped_unit
from ipv6natd.engine.endpoint import security_warnings
from ipv6natd.model import GWBRIDGE, Container, Engine, Network
from ipv6natd.system.messages import MessageId, log_fields
from ipv6natd.system.threads import in_thread, start_thread

log = logging.getLogger(__name__)

T = TypeVar("T", Network, Container)
Work = Callable[[], Coroutine[Any, Any, None]]

MAX_PARALLEL_INSPECTS = 16
MIN_RETRY_DELAY, MAX_RETRY_DELAY = 0.1, 2.0
INSPECT_RETRY_DELAY = 1.0


class EngineWatcher:
    """One engine, followed as long as run() runs.

    `networks` and `containers` hold the last known facts by id; while the engine is away they
    stay as they were. Before `listed` they hold nothing that could be acted on.
    """

    def __init__(
        self, address: EngineAddress, wake: Callable[[], None], *, resync_interval: float
    ) -> None:
        self.tried = False
        self.connected = False
        self.listed = False
        self.waiting_for = "not connected yet"
        self.engine: Engine | None = None
        self.networks: dict[str, Network] = {}
        self.containers: dict[str, Container] = {}
        self._address = address
        self._logged_warnings: set[str] = set()
        self._wake = wake
        self._resync_interval = resync_interval
        self._client: Client | None = None
        # What is to be read again, and whether the last that was heard of it was an end.
        self._to_inspect: dict[tuple[str, str], bool] = {}
        self._in_flight: set[tuple[str, str]] = set()
        self._inspected_since_list: set[str] = set()
        self._inspects_wanted = asyncio.Event()
        self._list_lock = asyncio.Lock()

    async def run(self, *, retry: bool) -> None:
        """Follow the engine for ever; without `retry` raise EngineUnavailable when it is away."""
        pause = MIN_RETRY_DELAY
        while True:
            try:
                await self._session()
            except EngineUnavailable as error:
                pause = MIN_RETRY_DELAY if self.connected else pause
                self._set_unavailable(str(error))
                if not retry:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_RETRY_DELAY)

    async def relist(self) -> None:
        """Read everything again, now. Raises EngineUnavailable, also without a connection."""
        if self._client is None:
            raise EngineUnavailable(self.waiting_for)
        await self._raise_if_stopped()
        await self._list(self._client)

    async def _raise_if_stopped(self) -> None:
        """Raise EngineUnavailable where a connect now would start an engine that somebody stopped.

        While an engine stops it no longer listens, but still tells of containers that end: a call
        made then waits in systemd's socket, which starts the engine again as soon as it has ended.
        """
        reason = await in_thread(partial(stopped_unit, self._address.endpoint))
        if reason:
            raise EngineUnavailable(reason)

    def _set_unavailable(self, reason: str) -> None:
        if self.connected:
            extra = log_fields(MessageId.ENGINE_LOST, reason=reason)
            log.warning("lost the Docker engine: %s; its rules stay", reason, extra=extra)
        elif reason != self.waiting_for:
            log.info("waiting for the Docker engine: %s", reason)
        changed = self.connected or reason != self.waiting_for
        self.tried, self.connected, self.waiting_for = True, False, reason
        if changed:
            self._wake()

    async def _session(self) -> None:
        """From one connect to the end of its event stream. Always ends with EngineUnavailable."""
        await self._raise_if_stopped()
        client, engine = await in_thread(partial(connect, self._address))
        log.info("connected to Docker %s", engine.version)
        self.engine = engine
        self._log_security_warnings(
            security_warnings(self._address.endpoint, verified=client.verified)
        )
        self._to_inspect.clear()
        self._in_flight.clear()
        events = None
        try:
            events, ended = await self._subscribe(client)
            await self._list(client)
            self._client = client
            self.tried, self.connected, self.listed, self.waiting_for = True, True, True, ""
            self._wake()
            await self._follow(client, ended)
        finally:
            self._client = None
            if events is not None:
                # Closing the client leaves the stream open, and its reader waiting.
                with suppress(Exception):
                    events.close()
            client.close()

    def _log_security_warnings(self, found: Iterable[str]) -> None:
        for doubt in found:
            # Once, not once for each connect.
            log.log(
                logging.DEBUG if doubt in self._logged_warnings else logging.WARNING, "%s", doubt
            )
            self._logged_warnings.add(doubt)

    async def _subscribe(self, client: Client) -> tuple[Any, asyncio.Future[str]]:
        """Subscribe, then return the stream and a future that ends with it: a list made now misses
        nothing, since what happens meanwhile is already hinted at."""
        loop = asyncio.get_running_loop()
        open_: asyncio.Future[Any] = loop.create_future()
        ended: asyncio.Future[str] = loop.create_future()

        def read() -> None:
            reason = "its event stream ended"
            try:
                events = client.events(filters=parse.EVENTS, decode=True)
                with closing(events):
                    loop.call_soon_threadsafe(_resolve, open_, events)
                    for event in events:
                        loop.call_soon_threadsafe(self._note_event, event)
            except Exception as error:  # whatever the library raises on a stream cut anywhere
                reason = f"its event stream broke: {one_line(error)}"
            try:
                loop.call_soon_threadsafe(_resolve, ended, reason)
            except RuntimeError:
                return  # the loop is closed

        await start_thread("docker-events", read)
        await asyncio.wait(
            (open_, ended), return_when=asyncio.FIRST_COMPLETED, timeout=CALL_TIMEOUT
        )
        if not open_.done():
            raise EngineUnavailable(ended.result() if ended.done() else "it sends no events")
        return open_.result(), ended

    def _note_event(self, event: object) -> None:
        container_id, network_id = parse.event_subjects(event)
        for kind, subject in (("container", container_id), ("network", network_id)):
            if subject:
                self._to_inspect[kind, subject] = parse.is_end(event)
                self._inspects_wanted.set()

    async def _follow(self, client: Client, ended: asyncio.Future[str]) -> None:
        """List and inspect until the stream ends or a call finds the engine gone.

        Not a TaskGroup: up to Python 3.12 one whose task fails at the moment in which it is
        cancelled itself forgets that it was, and this would go on for ever.
        """
        tasks: set[asyncio.Task[None]] = set()

        def start(work: Work) -> None:
            task = asyncio.create_task(_run_until_unavailable(work, ended))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        start(partial(self._list_periodically, client))
        start(partial(self._start_inspects, client, start))
        try:
            raise EngineUnavailable(await ended)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _list_periodically(self, client: Client) -> None:
        while True:
            await asyncio.sleep(self._resync_interval)
            await self._raise_if_stopped()
            await self._list(client)

    async def _start_inspects(self, client: Client, start: Callable[[Work], None]) -> None:
        """Start a read for each hinted subject, never two of one at a time: the older answer
        might come last."""
        while True:
            await self._inspects_wanted.wait()
            self._inspects_wanted.clear()
            for subject in list(self._to_inspect):
                if len(self._in_flight) >= MAX_PARALLEL_INSPECTS:
                    break
                if subject not in self._in_flight:
                    ended = self._to_inspect.pop(subject)
                    self._in_flight.add(subject)
                    start(partial(self._inspect, client, subject, ended))

    async def _inspect(self, client: Client, subject: tuple[str, str], ended: bool) -> None:
        try:
            if ended:
                await self._raise_if_stopped()
            self._store(subject, await in_thread(partial(inspect, client, *subject)))
        except InspectFailed as error:
            log.warning("cannot read %s %.12s: %s; trying again", *subject, error)
            await asyncio.sleep(INSPECT_RETRY_DELAY)
            self._to_inspect[subject] = ended
        finally:
            self._in_flight.discard(subject)
            self._inspects_wanted.set()

    def _store(self, subject: tuple[str, str], raw: object) -> None:
        """Keep what an inspect said; `raw` None: it is gone."""
        kind, identity = subject
        if kind == "network":
            network = parse.network(raw)
            # By its own id: docker_gwbridge was asked for by name.
            identity = network.id if network else identity
            self._inspected_since_list.add(identity)
            changed = _put(self.networks, identity, network)
        else:
            assert self.engine is not None
            self._inspected_since_list.add(identity)
            container = parse.container(raw, self.engine)
            changed = _put(self.containers, identity, container)
            if container is not None:
                self._request_unknown_networks(container)
        if changed:
            self._wake()

    def _request_unknown_networks(self, container: Container) -> None:
        """Have the networks read that the container is on and no event told of."""
        for endpoint in container.endpoints:
            if endpoint.network_id not in self.networks:
                self._to_inspect["network", endpoint.network_id] = False
        if parse.on_gwbridge(container, self.networks):
            self._to_inspect["network", GWBRIDGE] = False

    async def _list(self, client: Client) -> None:
        """The whole picture in two calls. What was inspected while they ran is newer and stays."""
        # One at a time: they share the note of what was inspected since they began.
        async with self._list_lock:
            await self._list_once(client)

    async def _list_once(self, client: Client) -> None:
        self._inspected_since_list.clear()
        assert self.engine is not None
        networks, containers = await in_thread(partial(list_all, client, self.engine))
        before = self.networks, self.containers
        self.networks = self._merge(
            self.networks,
            (parse.listed_network(each, self.networks) for each in networks),
        )
        for container in containers:
            self._request_inspect(container, self.engine)
        self.containers = self._merge(self.containers, containers)
        if before != (self.networks, self.containers):
            self._wake()

    def _request_inspect(self, listed: Container, engine: Engine) -> None:
        """Have inspected what the list does not tell of, unless it is known from before."""
        if parse.on_gwbridge(listed, self.networks):
            self._to_inspect["network", GWBRIDGE] = False
        if parse.needs_inspect(listed, engine, self.networks):
            if parse.matches_inspect(listed, self.containers.get(listed.id)):
                self._inspected_since_list.add(listed.id)
            else:
                self._to_inspect["container", listed.id] = False
        if self._to_inspect:
            self._inspects_wanted.set()

    def _merge(self, known: dict[str, T], listed: Iterable[T | None]) -> dict[str, T]:
        # What is as it was stays the object it was: nobody then has to look at it again.
        fresh = {
            each.id: known[each.id] if known.get(each.id) == each else each
            for each in listed
            if each and each.id not in self._inspected_since_list
        }
        kept = {key: value for key, value in known.items() if key in self._inspected_since_list}
        return fresh | kept


async def _run_until_unavailable(work: Work, ended: asyncio.Future[str]) -> None:
    """Do the work; what it fails with is how the session ends."""
    try:
        await work()
    except EngineUnavailable as error:
        _resolve(ended, str(error))
    except Exception as error:
        if not ended.done():
            ended.set_exception(error)


def _put(known: dict[str, T], identity: str, value: T | None) -> bool:
    """Store or drop; tells whether that changed anything."""
    if known.get(identity) == value:
        return False
    if value is None:
        del known[identity]
    else:
        known[identity] = value
    return True


def _resolve(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():
        future.set_result(value)
