"""The last known networks and containers, from lists and from inspects, which may overlap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from ipv6natd.engine import parse
from ipv6natd.engine.parse import Subject
from ipv6natd.model import GWBRIDGE, Container, Engine, Network

T = TypeVar("T", Network, Container)


class Facts:
    """The objects by id. An inspect during a list is newer than the list."""

    def __init__(self) -> None:
        self.networks: dict[str, Network] = {}
        self.containers: dict[str, Container] = {}
        self._inspected_since_list: set[str] = set()

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

    def store(self, subject: Subject, raw: object, engine: Engine) -> tuple[bool, list[Subject]]:
        """Store the response of an inspect; `raw` is None for a removed object.

        Return whether that changed anything, and the unknown networks of a container.
        """
        if subject.kind == "network":
            network = parse.network(raw)
            # By the id of the response: docker_gwbridge is inspected by name.
            identity = network.id if network else subject.id
            self._inspected_since_list.add(identity)
            return _put(self.networks, identity, network), []
        self._inspected_since_list.add(subject.id)
        container = parse.container(raw, engine)
        changed = _put(self.containers, subject.id, container)
        return changed, self._unknown_networks(container) if container else []

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
