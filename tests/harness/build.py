"""Facts with defaults, so that a test names only the values that it needs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from hashlib import sha256
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any

from ipv6natd.model import (
    Container,
    Desired,
    Endpoint,
    Mapping,
    Network,
    PortBinding,
    Protocol,
    Snapshot,
)
from tests import ROOT

RECORDED = ROOT / "tests" / "data" / "engine-20.10"


def recorded(name: str) -> Any:
    """A recorded answer of a real engine 20.10."""
    return json.loads((RECORDED / name).read_text())


def identity(word: str) -> str:
    """An id in the format of the engine, the same for the same word."""
    return sha256(word.encode()).hexdigest()


def network(*, name: str = "x", subnet: str = "fd00:a::/64", **fields: Any) -> Network:
    """A bridge network with IPv6. `subnet` has zero or more subnets."""
    facts: dict[str, Any] = {
        "id": identity(name),
        "name": name,
        "driver": "bridge",
        "bridge": f"br-{name}",
        "enable_ipv6": True,
        "subnets": tuple(map(IPv6Network, subnet.split())),
    }
    return Network(**facts | fields)


def endpoint(
    *, on: Network, address: str = "", gateways: str = "46", priority: int = 0
) -> Endpoint:
    """An endpoint. Without `address`, the address ::2 of the network's first subnet."""
    return Endpoint(
        network_id=on.id,
        address=IPv6Address(address) if address else on.subnets[0][2],
        has_gateway4="4" in gateways,
        has_gateway6="6" in gateways,
        gw_priority=priority,
    )


def container(
    *,
    name: str = "web",
    on: Iterable[Network | Endpoint] = (),
    ports: Iterable[str | PortBinding] = (),
    **fields: Any,
) -> Container:
    """A running container; `ports` are bindings, or texts for published()."""
    endpoints = (e if isinstance(e, Endpoint) else endpoint(on=e) for e in on)
    bindings: list[PortBinding] = []
    for port in ports:
        bindings += [port] if isinstance(port, PortBinding) else published(port)
    facts: dict[str, Any] = {
        "id": identity(name),
        "name": name,
        "endpoints": tuple(endpoints),
        "bindings": tuple(bindings),
    }
    return Container(**facts | fields)


def binding(
    *,
    host_port: int = 8080,
    container_port: int = 80,
    protocol: Protocol = Protocol.TCP,
    address: str = "::",
) -> PortBinding:
    """One binding; "" means a binding without an address."""
    return PortBinding(
        protocol=protocol,
        container_port=container_port,
        host_address=ip_address(address) if address else None,
        host_port=host_port,
    )


def published(spec: str) -> Iterator[PortBinding]:
    """The bindings for `[ADDRESS:]HOST[-HOST]:CONTAINER[-CONTAINER][/PROTOCOL]`.

    Without an address the engine creates a binding to 0.0.0.0 and one to `::`.
    """
    ports, _, protocol = spec.partition("/")
    *address, host, inside = ports.rsplit(":", 2)
    first, _, last = host.partition("-")
    offset = int(inside.partition("-")[0]) - int(first)
    for port in range(int(first), int(last or first) + 1):
        for where in address or ("0.0.0.0", "::"):
            yield binding(
                host_port=port,
                container_port=port + offset,
                protocol=Protocol(protocol or "tcp"),
                address=where.strip("[]"),
            )


def snapshot(*facts: Network | Container, userland_proxy: bool = True) -> Snapshot:
    """A snapshot of these networks and containers, in this order."""
    return Snapshot(
        networks=tuple(fact for fact in facts if isinstance(fact, Network)),
        containers=tuple(fact for fact in facts if isinstance(fact, Container)),
        userland_proxy=userland_proxy,
    )


def line(mapping: Mapping) -> str:
    """A mapping in one line: "tcp [::]:8080 -> web [fd00:a::2]:80", ranges as "8000-8001"."""
    more = mapping.count > 1
    host = f"{mapping.host_port}" + f"-{mapping.host_port_end}" * more
    inside = f"{mapping.container_port}" + f"-{mapping.container_port_end}" * more
    where = f"{mapping.protocol} [{mapping.host_address}]:{host}"
    return f"{where} -> {mapping.container_name} [{mapping.container_address}]:{inside}"


def lines(desired: Desired) -> list[str]:
    """All mappings in their order, one line each."""
    return [line(mapping) for mapping in desired.mappings]
