"""The last known networks and containers, from lists and from inspects, which may overlap.

The inspect of a container waits for its lock until its start has ended. But the engine has opened
the ports by then. So the facts during a start come from other answers: the ports from the inspect
before the start, and the address from an inspect of the network. It has the container before the
engine opens its ports, and the connect event comes after that. Until this event, the start can fail
because a process of the host has one of the ports: then the facts are stored only with the event.
The container's inspect, which is requested at the same time, confirms or corrects these facts. In
the same way, the event of an end counts at once.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Map
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any, NamedTuple, TypeVar

from ipv6natd.engine import parse
from ipv6natd.engine.host_ports import HostPorts, all_free
from ipv6natd.engine.parse import Connection, Requested, Subject
from ipv6natd.model import GWBRIDGE, Container, Engine, Network

T = TypeVar("T", Network, Container)


MAX_REQUESTS = 1000
"""Containers whose requests are kept for their next start. The facts about another one come after
its start."""
NEVER = sys.maxsize
"""The number of an end that comes after all inspects."""


@dataclass(slots=True)
class Start:
    """A container between its first connection to a network and the inspect that shows it
    running."""

    connected: set[str] = field(default_factory=set)
    """The ids of its networks, from events and from inspects of the networks."""
    addresses: dict[str, IPv6Address | None] = field(default_factory=dict)
    """The same, from inspects of the networks since then."""
    announced: bool = False
    """True after a connect event: the engine has opened the ports."""
    ports_free: bool = False
    """True if no process of the host had the ports before the engine opened them."""


class Awaited(NamedTuple):
    """What an inspect is certain about, as of its beginning."""

    starts: Map[str, Start]
    """By container id. It has the addresses of these starts on a network, or the result of a
    container's start, for which it waits; nothing of a later start of the same container."""
    ends: int
    """The number of ends until then: the inspect of a network can still show a container that ends
    later."""
    ports_in_use: HostPorts | None
    """The ports of the host's processes; None if unknown."""


class Facts:
    """The objects by id. An inspect during a list is newer than the list."""

    def __init__(self) -> None:
        self.networks: dict[str, Network] = {}
        self.containers: dict[str, Container] = {}
        self._requests: dict[str, Requested] = {}
        """By container id, the latest last."""
        self._starts: dict[str, Start] = {}
        self._ends: dict[str, int] = {}
        """Container id -> the number of its last end, for those with a request."""
        self._end_count = 0
        self._inspected_since_list: set[str] = set()
        self.ended: Counter[str] = Counter()
        """See sync.interfaces."""
        self._counted: dict[str, set[str]] = {}
        """Container id -> its networks that are in `ended`, until it connects again. The events of
        an end and of its disconnects come in any order."""

    def store_created(self, container_id: str, raw: object) -> bool:
        """Store the response of an inspect before the start; return whether that changed
        anything."""
        self._store_request(container_id, raw)
        return self._store_start(container_id)

    def connection(self, told: Connection) -> bool:
        """Take a connect or disconnect event; return whether that changed anything."""
        if told.connected:
            self._counted.get(told.container, set()).discard(told.network)
            known = self.containers.get(told.container)
            if known is None or known.starting:
                start = self._starts.setdefault(told.container, Start())
                start.connected.add(told.network)
                start.announced = True
                return self._store_start(told.container)
            return False
        self._count_end(told)
        self._end_count += 1
        if told.container in self._requests:
            self._ends[told.container] = self._end_count
        if told.container in self._starts:
            start = self._starts[told.container]
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

    def _count_end(self, told: Connection) -> None:
        """Count, by bridge, the ports of a container that leave because of this event. Each network
        of the container counts once."""
        places: set[str] = set()
        if known := self.containers.get(told.container):
            places |= {endpoint.network_id for endpoint in known.endpoints}
        if start := self._starts.get(told.container):
            places |= start.connected
        if told.network:
            places &= {told.network}
        places -= self._counted.get(told.container, set())
        if not places:
            return
        self._counted.setdefault(told.container, set()).update(places)
        self.ended.update(
            network.bridge
            for network_id in places
            if (network := self.networks.get(network_id)) is not None and network.bridge
        )

    def named(self, container_id: str, name: str) -> None:
        """Take the new name of a container from an event, "" if it has none any more. The next
        container can have the former name at once, and a network can show it by its name only."""
        self._free_name(name, container_id)
        if not name:
            self._counted.pop(container_id, None)
        request = self._requests.get(container_id)
        if request is None:
            return
        if name:
            self._requests[container_id] = request._replace(name=name)
        else:
            self._forget_request(container_id)

    def _free_name(self, name: str, container_id: str) -> None:
        """Take the name from all other requests: their next inspect says what they are called."""
        for other, request in self._requests.items():
            if other != container_id and request.name == name:
                self._requests[other] = request._replace(name="")

    def forget_starts(self) -> None:
        """Forget the containers during their start: no event will tell whether they start, nor
        whether those that ended start again."""
        self._starts.clear()
        self._counted.clear()
        starting = [it.id for it in self.containers.values() if it.starting]
        for container_id in starting:
            del self.containers[container_id]

    def awaited(self, subject: Subject, in_use: HostPorts | None = None) -> Awaited:
        """What an inspect that begins now will be certain about."""
        starts = {
            container_id: start
            for container_id, start in self._starts.items()
            if subject.id in (container_id, *start.connected)
        }
        return Awaited(starts, self._end_count, in_use)

    def expects_start(self, network_id: str) -> bool:
        """True if a start may connect a container with requests to this network."""
        return any(self._may_be_added(container_id, network_id) for container_id in self._requests)

    def _may_be_added(self, container_id: str, network_id: str) -> bool:
        """True if a container does not run, and no event or inspect has shown it there."""
        start, known = self._starts.get(container_id), self.containers.get(container_id)
        return (known is None or known.starting) and (
            start is None or network_id not in start.connected
        )

    def _store_addresses(
        self, network_id: str, raw: object, awaited: Awaited
    ) -> tuple[bool, list[Subject]]:
        """Store the addresses of starting containers, also of those that no event has announced;
        return whether that changed anything, and the containers that are seen now."""
        attached = parse.attached(raw)
        seen = [*self._seen(network_id, attached, awaited)]
        for container_id in seen:
            free = all_free(self._requests[container_id].bindings, awaited.ports_in_use)
            start = self._starts.setdefault(container_id, Start(ports_free=free))
            start.connected.add(network_id)
        changed = False
        known = [it for it, start in awaited.starts.items() if self._starts.get(it) is start]
        for container_id in (*known, *seen):
            start = self._starts[container_id]
            if network_id in start.connected:
                shown = self._shown(container_id, attached)
                start.addresses[network_id] = attached[shown] if shown else None
                changed |= self._store_start(container_id)
        return changed, [Subject("container", container_id) for container_id in seen]

    def _seen(
        self, network_id: str, attached: Map[str, IPv6Address | None], awaited: Awaited
    ) -> Iterator[str]:
        """The containers that do not run and are on the network, and were not there before."""
        for container_id in self._requests:
            if (
                self._shown(container_id, attached)
                and self._may_be_added(container_id, network_id)
                and self._ends.get(container_id, 0) <= awaited.ends
            ):
                yield container_id

    def _shown(self, container_id: str, attached: Map[str, IPv6Address | None]) -> str:
        """The key of a container in the inspect of a network; "" if it is not there."""
        request = self._requests.get(container_id)
        keys = (container_id, f"/{request.name}") if request and request.name else (container_id,)
        return next((key for key in keys if key in attached), "")

    def _store_start(self, container_id: str) -> bool:
        """Store the facts of a starting container as far as they are certain."""
        start, request = self._starts.get(container_id), self._requests.get(container_id)
        found = None
        if (
            start is not None
            and request is not None
            and start.addresses.keys() == start.connected
            and (start.announced or start.ports_free)
        ):
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
        self, subject: Subject, raw: object, engine: Engine, *, awaited: Awaited
    ) -> tuple[bool, list[Subject]]:
        """Store the response of an inspect; `raw` is None for a removed object.

        Return whether that changed anything, and which inspects are needed now.
        """
        if subject.kind == "network":
            network = parse.network(raw)
            # By the id of the response: docker_gwbridge is inspected by name.
            identity = network.id if network else subject.id
            self._inspected_since_list.add(identity)
            changed = _put(self.networks, identity, network)
            started, seen = self._store_addresses(identity, raw, awaited)
            return changed or started, seen
        self._store_request(subject.id, raw)
        container = parse.container(raw, engine)
        start = self._starts.get(subject.id)
        if container is None and start is not None:
            if awaited.starts.get(subject.id) is not start:
                # From before the start.
                return self._store_start(subject.id), []
            if not start.announced:
                # The network may keep showing it: it is not seen again before its next end.
                self._ends[subject.id] = NEVER
        self._inspected_since_list.add(subject.id)
        self._starts.pop(subject.id, None)
        changed = _put(self.containers, subject.id, container)
        return changed, self._unknown_networks(container) if container else []

    def _store_request(self, container_id: str, raw: object) -> None:
        request = parse.requested(raw)
        if request is None or not request.bindings:
            self._forget_request(container_id)
            return
        self._free_name(request.name, container_id)
        self._requests.pop(container_id, None)
        self._requests[container_id] = request
        if len(self._requests) > MAX_REQUESTS:
            self._forget_request(next(iter(self._requests)))

    def _forget_request(self, container_id: str) -> None:
        self._requests.pop(container_id, None)
        self._ends.pop(container_id, None)

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
