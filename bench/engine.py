"""A simulated engine of any size: the fake engine of the tests, with recorded answers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from tests.harness.build import identity, recorded
from tests.harness.fake_engine import Answer, FakeEngine, event

PER_NETWORK = 1000
"""Containers on one network: a bridge has at most 1024 ports."""
ENDPOINT = "netx"

_ROW = next(each for each in recorded("list.json") if each["Names"] == ["/web"])
_INSPECT = recorded("inspect-web.json")
_NETWORK = next(each for each in recorded("networks.json") if each["Name"] == ENDPOINT)


def scattered(count: int) -> list[int]:
    """`count` host ports, not adjacent if the range is large enough."""
    step = min(5, 60_000 // count)
    return [5000 + number * step for number in range(count)]


def network(number: int, options: Mapping[str, str]) -> dict[str, Any]:
    """A network in the form of the engine's list."""
    made: dict[str, Any] = deepcopy(_NETWORK)
    name = f"net{number}"
    made.update(Id=identity(name), Name=name, Options=dict(options))
    made["IPAM"]["Config"] = [
        {"Subnet": f"{ipv4(number)}.0.0/16", "Gateway": f"{ipv4(number)}.0.1"},
        {"Subnet": f"fd00:{number:x}::/64"},
    ]
    return made


def ipv4(number: int) -> str:
    """The first half of a network's IPv4 addresses."""
    return f"{10 + number // 256}.{number % 256}"


def container(number: int, ports: Iterable[tuple[int, str]], *, on: int) -> dict[str, Any]:
    """A container in the form of an inspect, with these published (host port, protocol)."""
    made: dict[str, Any] = deepcopy(_INSPECT)
    name = f"c{number}"
    made.update(Id=identity(name), Name=f"/{name}")
    bound: dict[str, Any] = {}
    for port, protocol in ports:
        inside = f"{port if protocol == 'udp' else 80}/{protocol}"
        entries = [{"HostIp": each, "HostPort": str(port)} for each in ("0.0.0.0", "::")]
        bound.setdefault(inside, []).extend(entries)
    place = made["NetworkSettings"]["Networks"][ENDPOINT]
    place.update(
        NetworkID=identity(f"net{on}"),
        Gateway=f"{ipv4(on)}.0.1",
        IPv6Gateway=f"fd00:{on:x}::1",
        GlobalIPv6Address=f"fd00:{on:x}::{number + 2:x}",
    )
    made["NetworkSettings"]["Networks"] = {f"net{on}": place}
    made["NetworkSettings"]["Ports"] = bound
    made["HostConfig"]["PortBindings"] = {
        inside: [{"HostIp": "", "HostPort": entries[0]["HostPort"]}]
        for inside, entries in bound.items()
    }
    return made


def row(inspected: dict[str, Any]) -> dict[str, Any]:
    """The same container in the form of the engine's list."""
    settings = inspected["NetworkSettings"]
    ports = [
        {
            "IP": entry["HostIp"],
            "PrivatePort": int(inside.partition("/")[0]),
            "PublicPort": int(entry["HostPort"]),
            "Type": inside.partition("/")[2],
        }
        for inside, entries in settings["Ports"].items()
        for entry in entries
    ]
    listed: dict[str, Any] = _ROW | {
        "Id": inspected["Id"],
        "Names": [inspected["Name"]],
        "Ports": ports,
        "NetworkSettings": {"Networks": settings["Networks"]},
    }
    return listed


class Simulated(FakeEngine):
    """An engine whose answers are encoded once, so its own work is not measured."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.answered: dict[str, float] = {}
        """The time of the last answer for each path, by the monotonic clock."""
        self.count = 0
        self._rows: dict[str, bytes] = {}
        self._inspects: dict[str, bytes] = {}
        self._list = b""

    def fill(
        self, count: int, *, networks: int = 0, options: Mapping[str, str] | None = None
    ) -> None:
        """Create `count` containers with one scattered port each; `options` are the networks'."""
        networks = networks or -(-count // PER_NETWORK)
        made = [network(number, options or {}) for number in range(networks)]
        self.networks = {each["Id"]: each for each in made}
        self._rows.clear()
        self._inspects.clear()
        for number, port in enumerate(scattered(count)):
            self._keep(container(number, [(port, "tcp")], on=number % networks))
        self.count = count
        self._list = b""

    def add(self, port: int) -> str:
        """Start a container like an engine, first the fact and then the events; returns its id."""
        made = container(self.count, [(port, "tcp")], on=0)
        self._keep(made)
        self.count += 1
        self.emit(*self._events("start", made["Id"]))
        return str(made["Id"])

    def remove(self, identity: str) -> None:
        """Stop a container."""
        del self._rows[identity], self._inspects[identity]
        self._list = b""
        self.emit(*self._events("die", identity))

    def touch(self, identities: Iterable[str]) -> None:
        """Send events about containers that did not change."""
        self.emit(*(each for one in identities for each in self._events("start", one)))

    @property
    def identities(self) -> list[str]:
        """The ids of all containers."""
        return list(self._inspects)

    def answer(self, version: str, path: str) -> Answer:
        """See FakeEngine."""
        match path.strip("/").split("/"):
            case ["containers", "json"]:
                if not self._list:
                    self._list = b"[" + b",".join(self._rows.values()) + b"]"
                told: Answer = (200, self._list)
            case ["containers", one, "json"] if one in self._inspects:
                told = (200, self._inspects[one])
            case _:
                told = super().answer(version, path)
        self.answered[path] = time.monotonic()
        return told

    def _keep(self, inspected: dict[str, Any]) -> None:
        self._rows[inspected["Id"]] = json.dumps(row(inspected)).encode()
        self._inspects[inspected["Id"]] = json.dumps(inspected).encode()
        self._list = b""

    def _events(self, action: str, container_id: str) -> Iterator[dict[str, Any]]:
        told = event("container", action, "")
        told["Actor"]["ID"] = container_id
        yield told
