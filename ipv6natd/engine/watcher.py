"""Keeps the facts of the engine current and wakes the loop after a change; decides nothing.

A thread reads the events, the objects that they name are inspected, and all objects are listed
periodically. An event only says which object to read again: a lost, doubled or late event can delay
a fact, but never change it.
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
"""Seconds between two attempts to connect; the delay doubles."""
INSPECT_RETRY_DELAY = 1.0
"""Seconds before a failed inspect is repeated."""


class EngineWatcher:
    """Follows one engine while run() runs.

    `networks` and `containers` have the last known facts by id, also while the engine is
    unavailable. They must not be used before `listed`.
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
        # (kind, id) of each object to read again -> True if its last event was an end.
        self._to_inspect: dict[tuple[str, str], bool] = {}
        self._in_flight: set[tuple[str, str]] = set()
        self._inspected_since_list: set[str] = set()
        self._inspects_wanted = asyncio.Event()
        self._list_lock = asyncio.Lock()

    async def run(self, *, retry: bool) -> None:
        """Follow the engine forever; without `retry`, raise EngineUnavailable at a failure."""
        delay = MIN_RETRY_DELAY
        while True:
            try:
                await self._session()
            except EngineUnavailable as error:
                delay = MIN_RETRY_DELAY if self.connected else delay
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

    async def _raise_if_stopped(self) -> None:
        """Raise EngineUnavailable if a connect would start an engine that an administrator stopped.

        A stopping engine does not listen any more, but still sends the events of ending containers.
        A call at this time waits in the socket of systemd, which then starts the engine again.
        """
        reason = await in_thread(partial(stopped_unit, self._address.endpoint))
        if reason:
            raise EngineUnavailable(reason)

    def _set_unavailable(self, reason: str) -> None:
        if self.connected:
            extra = log_fields(MessageId.ENGINE_LOST, reason=reason)
            log.warning("lost the Docker engine: %s; the rules stay", reason, extra=extra)
        elif reason != self.waiting_for:
            log.info("waiting for the Docker engine: %s", reason)
        changed = self.connected or reason != self.waiting_for
        self.tried, self.connected, self.waiting_for = True, False, reason
        if changed:
            self._wake()

    async def _session(self) -> None:
        """Connect and follow the event stream to its end. Always raises EngineUnavailable."""
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
                # Closing the client does not close the stream; its reader would wait forever.
                with suppress(Exception):
                    events.close()
            client.close()

    def _log_security_warnings(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            # As a warning once, and not after every connect.
            repeated = warning in self._logged_warnings
            log.log(logging.DEBUG if repeated else logging.WARNING, "%s", warning)
            self._logged_warnings.add(warning)

    async def _subscribe(self, client: Client) -> tuple[Any, asyncio.Future[str]]:
        """Subscribe; return the stream, and a future that gets the reason of its end.

        Subscribe before the list: then events report every change after the list.
        """
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Any] = loop.create_future()
        ended: asyncio.Future[str] = loop.create_future()

        def read() -> None:
            reason = "its event stream ended"
            try:
                events = client.events(filters=parse.EVENTS, decode=True)
                with closing(events):
                    loop.call_soon_threadsafe(_resolve, opened, events)
                    for event in events:
                        loop.call_soon_threadsafe(self._mark_for_inspect, event)
            except Exception as error:  # a broken stream raises many exceptions in the library
                reason = f"its event stream broke: {one_line(error)}"
            try:
                loop.call_soon_threadsafe(_resolve, ended, reason)
            except RuntimeError:
                return  # the loop is closed

        await start_thread("docker-events", read)
        await asyncio.wait(
            (opened, ended), return_when=asyncio.FIRST_COMPLETED, timeout=CALL_TIMEOUT
        )
        if not opened.done():
            raise EngineUnavailable(ended.result() if ended.done() else "it sends no events")
        return opened.result(), ended

    def _mark_for_inspect(self, event: object) -> None:
        container_id, network_id = parse.event_subjects(event)
        for kind, subject in (("container", container_id), ("network", network_id)):
            if subject:
                self._to_inspect[kind, subject] = parse.is_end(event)
                self._inspects_wanted.set()

    async def _follow(self, client: Client, ended: asyncio.Future[str]) -> None:
        """List and inspect until the stream ends or a call fails.

        Not a TaskGroup: up to Python 3.12, a TaskGroup loses its own cancellation if a task fails
        at the same moment. Then this would run forever.
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
        """Start an inspect for each object of `_to_inspect`.

        Never two of one object at a time: the older response could arrive last.
        """
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
            log.warning("cannot inspect %s %.12s: %s; retrying", *subject, error)
            await asyncio.sleep(INSPECT_RETRY_DELAY)
            self._to_inspect[subject] = ended
        finally:
            self._in_flight.discard(subject)
            self._inspects_wanted.set()

    def _store(self, subject: tuple[str, str], raw: object) -> None:
        """Store the response of an inspect; `raw` is None for a removed object."""
        kind, identity = subject
        if kind == "network":
            network = parse.network(raw)
            # By the id of the response: docker_gwbridge is inspected by name.
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
        """Request an inspect of each unknown network of a container."""
        for endpoint in container.endpoints:
            if endpoint.network_id not in self.networks:
                self._to_inspect["network", endpoint.network_id] = False
        if parse.on_gwbridge(container, self.networks):
            self._to_inspect["network", GWBRIDGE] = False

    async def _list(self, client: Client) -> None:
        """Read all objects with two calls. An inspect during the calls is newer and is kept."""
        # One at a time, because all lists share `_inspected_since_list`.
        async with self._list_lock:
            await self._list_once(client)

    async def _list_once(self, client: Client) -> None:
        self._inspected_since_list.clear()
        assert self.engine is not None
        networks, containers = await in_thread(partial(list_all, client, self.engine))
        old = self.networks, self.containers
        self.networks = self._merge(
            self.networks,
            (parse.listed_network(network, self.networks) for network in networks),
        )
        for container in containers:
            self._request_inspect(container, self.engine)
        self.containers = self._merge(self.containers, containers)
        if old != (self.networks, self.containers):
            self._wake()

    def _request_inspect(self, listed: Container, engine: Engine) -> None:
        """Request the inspects that a listed container needs, except for facts already known."""
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
        # An unchanged object keeps its identity: later steps compare identities first.
        fresh = {
            item.id: known[item.id] if known.get(item.id) == item else item
            for item in listed
            if item and item.id not in self._inspected_since_list
        }
        newer = {key: item for key, item in known.items() if key in self._inspected_since_list}
        return fresh | newer


async def _run_until_unavailable(work: Work, ended: asyncio.Future[str]) -> None:
    """Run a task of a session; its failure ends the session."""
    try:
        await work()
    except EngineUnavailable as error:
        _resolve(ended, str(error))
    except Exception as error:
        if not ended.done():
            ended.set_exception(error)


def _put(known: dict[str, T], identity: str, value: T | None) -> bool:
    """Store or remove an object; return True if that changed anything."""
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
