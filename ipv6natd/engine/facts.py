"""The last known networks and containers, from lists and from inspects, which may overlap.

The inspect of a container waits for its lock until its start has ended. But the engine has opened
the ports by then. So the facts during a start come from other answers: the ports from the inspect
before the start, and the address from the inspect of the network after its connect event. The
container's inspect, which the same event requests, confirms or corrects them. In the same way, the
event of an end counts at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any, TypeVar

from ipv6natd.engine import parse
from ipv6natd.engine.parse import Connection, Requested, Subject
from ipv6natd.model import GWBRIDGE, Container, Engine, Network

T = TypeVar("T", Network, Container)


MAX_REQUESTS = 1000
"""Containers whose requests are kept for their next start. The facts about another one come after
its start."""


@dataclass(slots=True)
class Start:
    """A container between its first connect event and the inspect that shows it running."""

    connected: set[str] = field(default_factory=set)
    """The ids of its networks, from events."""
    addresses: dict[str, IPv6Address | None] = field(default_factory=dict)
    """The same, from inspects of the networks after these events."""


class Facts:
    """The objects by id. An inspect during a list is newer than the list."""

    def __init__(self) -> None:
        self.networks: dict[str, Network] = {}
        self.containers: dict[str, Container] = {}
        self._requests: dict[str, Requested] = {}
        """By container id, the latest last."""
        self._starts: dict[str, Start] = {}
        self._inspected_since_list: set[str] = set()

    def store_created(self, container_id: str, raw: object) -> bool:
        """Store the response of an inspect before the start; return whether that changed
        anything."""
        self._store_request(container_id, raw)
        return self._store_start(container_id)

    def connection(self, told: Connection) -> bool:
        """Take a connect or disconnect event; return whether that changed anything."""
        if told.connected:
            known = self.containers.get(told.container)
            if known is None or known.starting:
                self._starts.setdefault(told.container, Start()).connected.add(told.network)
                return self._store_start(told.container)
            return False
        if start := self._starts.get(told.container):
            gone = {told.network} if told.network else set(start.connected)
            start.connected -= gone
            for network_id in gone:
                start.addresses.pop(network_id, None)
            if not start.connected:
                del self._starts[told.container]
        if not told.network:
            # Another container can have its address before its own inspect is answered.
            self._inspected_since_list.add(told.container)
            return _put(self.containers, told.container, None)
        return self._store_start(told.container)

    def forget_starts(self) -> None:
        """Forget the containers during their start: no event will tell whether they start."""
        self._starts.clear()
        starting = [it.id for it in self.containers.values() if it.starting]
        for container_id in starting:
            del self.containers[container_id]

    def awaited(self, subject: Subject) -> frozenset[str]:
        """The starting containers about which an inspect that begins now is certain: it has the
        addresses of those on a network, and the result of a container's start, for which it
        waits."""
        if subject.kind == "container":
            return frozenset({subject.id} & self._starts.keys())
        return frozenset(
            container_id
            for container_id, start in self._starts.items()
            if subject.id in start.connected
        )

    def _store_addresses(self, network_id: str, raw: object, awaited: Set[str]) -> bool:
        """Store the addresses of those starting containers that are still connected."""
        changed = False
        for container_id in sorted(awaited):
            start = self._starts.get(container_id)
            if start is not None and network_id in start.connected:
                start.addresses[network_id] = parse.address_in(raw, container_id)
                changed |= self._store_start(container_id)
        return changed

    def _store_start(self, container_id: str) -> bool:
        """Store the facts of a starting container as far as they are certain."""
        start, request = self._starts.get(container_id), self._requests.get(container_id)
        found = None
        if start is not None and request is not None and start.addresses.keys() == start.connected:
            found = parse.starting(container_id, request, start.addresses, self.networks)
        known = self.containers.get(container_id)
        nothing_to_store = found is None if known is None else not known.starting
        if nothing_to_store:
            return False
        self._inspected_since_list.add(container_id)
        return _put(self.containers, container_id, found)

    def begin_list(self) -> None:
        """Begin a list of all objects; store_lists ends it. One at a time."""
        self._inspected_since_list.clear()

    def store_lists(
        self, raw_networks: list[Any], containers: list[Container], engine: Engine
    ) -> tuple[bool, list[Subject]]:
        """Store the lists; return whether that changed anything, and what they lack."""
        old = self.networks, self.containers
        self.networks = self._merge(
            self.networks, (parse.listed_network(raw, self.networks) for raw in raw_networks)
        )
        for listed in containers:
            if listed.id not in self._inspected_since_list:
                self._starts.pop(listed.id, None)
        # The list has only those whose start has ended.
        self._inspected_since_list |= self._starts.keys()
        missing = [subject for listed in containers for subject in self._missing(listed, engine)]
        self.containers = self._merge(self.containers, containers)
        return old != (self.networks, self.containers), missing

    def _missing(self, listed: Container, engine: Engine) -> Iterator[Subject]:
        """The inspects that a listed container needs, except for facts already known."""
        yield from self._unknown_networks(listed)
        if parse.needs_inspect(listed, engine, self.networks):
            if parse.matches_inspect(listed, self.containers.get(listed.id)):
                self._inspected_since_list.add(listed.id)
            else:
                yield Subject("container", listed.id)

    def _merge(self, known: dict[str, T], listed: Iterable[T | None]) -> dict[str, T]:
        # An unchanged object keeps its identity: later steps compare identities first.
        fresh = {
            item.id: known[item.id] if known.get(item.id) == item else item
            for item in listed
            if item and item.id not in self._inspected_since_list
        }
        newer = {key: item for key, item in known.items() if key in self._inspected_since_list}
        return fresh | newer

    def store(
        self, subject: Subject, raw: object, engine: Engine, *, awaited: Set[str] = frozenset()
    ) -> tuple[bool, list[Subject]]:
        """Store the response of an inspect; `raw` is None for a removed object. For `awaited` see
        there.

        Return whether that changed anything, and the unknown networks of a container.
        """
        if subject.kind == "network":
            network = parse.network(raw)
            # By the id of the response: docker_gwbridge is inspected by name.
            identity = network.id if network else subject.id
            self._inspected_since_list.add(identity)
            changed = _put(self.networks, identity, network)
            return self._store_addresses(identity, raw, awaited) or changed, []
        self._store_request(subject.id, raw)
        container = parse.container(raw, engine)
        if container is None and subject.id in self._starts and subject.id not in awaited:
            # From before the start.
            return self._store_start(subject.id), []
        self._inspected_since_list.add(subject.id)
        self._starts.pop(subject.id, None)
        changed = _put(self.containers, subject.id, container)
        return changed, self._unknown_networks(container) if container else []

    def _store_request(self, container_id: str, raw: object) -> None:
        self._requests.pop(container_id, None)
        request = parse.requested(raw)
        if request is not None and request.bindings:
            self._requests[container_id] = request
            if len(self._requests) > MAX_REQUESTS:
                del self._requests[next(iter(self._requests))]

    def _unknown_networks(self, container: Container) -> list[Subject]:
        ids = [endpoint.network_id for endpoint in container.endpoints]
        if parse.on_gwbridge(container, self.networks):
            ids.append(GWBRIDGE)
        return [
            Subject("network", network_id) for network_id in ids if network_id not in self.networks
        ]


def _put(known: dict[str, T], identity: str, value: T | None) -> bool:
    """Store or remove an object; return True if that changed anything."""
    if known.get(identity) == value:
        return False
    if value is None:
        del known[identity]
    else:
        known[identity] = value
    return True
