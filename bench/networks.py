"""A host with 300 networks of one gateway mode: rules, a first packet and the start.

The bridges of the additional networks need not exist. The measured one is the last network.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from statistics import median

from bench.control import ready
from bench.packets import INSIDE, PORT_INSIDE, container, load, mapped, other, tcp, wanted
from ipv6natd.model import Container, GatewayMode, Network, Protocol
from tests.harness.sandbox import HOST, Variant

FEW, MANY = 4, 300
ROUNDS = 5
TRUSTED = "ext9"
"""An interface for trusted_host_interfaces; it need not exist."""

_PORT = 7000
_LABEL = "com.docker.network.bridge."


@dataclass(frozen=True, kw_only=True)
class Mode:
    """Networks that differ in one option only."""

    name: str
    gateway: GatewayMode = GatewayMode.NAT
    trusted: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, str]:
        """The options of `docker network create`."""
        options = {f"{_LABEL}gateway_mode_ipv6": str(self.gateway)}
        if self.trusted:
            options[f"{_LABEL}trusted_host_interfaces"] = ":".join(self.trusted)
        return options

    def facts(self, count: int) -> list[tuple[Network, Container]]:
        """`count` networks with one container each, which publishes one port."""
        made = [_published(number) for number in range(count - 1)]
        made.append(mapped([_PORT], protocols=(Protocol.TCP,)))
        return [
            (replace(network, gateway_mode=self.gateway, trusted_interfaces=self.trusted), one)
            for network, one in made
        ]

    @property
    def server(self) -> tuple[IPv6Address, int]:
        """The address and port at which a client reaches the container of the last network."""
        if self.gateway is GatewayMode.ROUTED:
            return INSIDE, PORT_INSIDE
        return HOST, _PORT


MODES = (
    Mode(name="nat"),
    Mode(name="nat, trusted interface", trusted=(TRUSTED,)),
    Mode(name="nat-unprotected", gateway=GatewayMode.NAT_UNPROTECTED),
    Mode(name="routed", gateway=GatewayMode.ROUTED),
)
"""`isolated` has no published ports; its networks have half the rules of `nat`."""


@dataclass(frozen=True, kw_only=True)
class Many:
    """The figures of MANY networks of one mode, in seconds."""

    mode: str
    rules: float
    """Rules of the filter table for each network."""
    few_first: float
    """A new connection with FEW networks."""
    many_first: float
    ready: float
    """From exec to READY."""


def measured(variant: Variant) -> Iterator[Many]:
    """The figures of all modes."""
    for mode in MODES:
        chains = wanted(mode.facts(MANY)).filter.chains
        costs = first_packets(variant, mode)
        yield Many(
            mode=mode.name,
            rules=sum(map(len, chains.values())) / MANY,
            few_first=costs[FEW],
            many_first=costs[MANY],
            ready=ready(variant, MANY, mode.options),
        )


def first_packets(variant: Variant, mode: Mode) -> dict[int, float]:
    """Median seconds of a new connection to the last network, by the number of networks."""
    found: dict[int, list[float]] = {FEW: [], MANY: []}
    address, port = mode.server
    with (
        container(variant) as (sandbox, inside),
        inside.socket(socket.AF_INET6, socket.SOCK_STREAM) as server,
    ):
        server.bind(("::", PORT_INSIDE))
        server.listen(16)
        server.settimeout(1)
        sandbox.client.ip(f"route add fd00::/8 via {HOST} dev ext0")
        for _ in range(ROUNDS):
            for count, costs in found.items():
                load(sandbox, mode.facts(count))
                costs.append(median(tcp(sandbox.client, (str(address), port), server)))
            sandbox.host.run("conntrack", "-F", "-f", "ipv6", check=False)
    return {count: median(costs) for count, costs in found.items()}


def _published(number: int) -> tuple[Network, Container]:
    """One of the additional networks, and a container with a published port of its own."""
    network, _ = other(number)
    _, one = mapped([5000 + number], protocols=(Protocol.TCP,))
    endpoint = replace(one.endpoints[0], network_id=network.id, address=network.subnets[0][2])
    return network, replace(one, id=f"{number:064x}", name=f"c{number}", endpoints=(endpoint,))
