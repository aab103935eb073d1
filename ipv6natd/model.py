"""The words of the domain: what Docker has, what is to be forwarded, what is not and why.

Pure values. Docker's field names stay in docker_facts, netfilter's rules in ruleset.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as Map
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from itertools import compress, count, islice
from operator import is_not

ANY = IPv6Address("::")
LOOPBACK = IPv6Address("::1")
LINK_LOCAL = IPv6Network("fe80::/10")
GWBRIDGE = "docker_gwbridge"

_MAX_NAME_BYTES = 15
_NAME = re.compile(r"(?!\.\.?$)[^\s/:\0]+")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}", re.ASCII)


def is_interface(name: str) -> bool:
    """True for a name that the kernel gives an interface: one part of a path, and no way out of it.

    It may still be `*` or `$(reboot)`; see is_plain_interface.
    """
    # A byte that is no text counts as one, as in the kernel.
    size = len(name.encode(errors="replace"))
    return size <= _MAX_NAME_BYTES and _NAME.fullmatch(name) is not None


def is_plain_interface(name: str) -> bool:
    """True for a name that can also stand in a rule, a file of sysctl.d and a command.

    No quote, backslash, blank or leading dash, no pattern, and no trailing "+", which iptables
    takes as "any that begins so".
    """
    return _PLAIN_NAME.fullmatch(name) is not None


class Protocol(StrEnum):
    """Transport protocols that Docker publishes."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


class GatewayMode(StrEnum):
    """Values of com.docker.network.bridge.gateway_mode_ipv6."""

    NAT = "nat"
    ROUTED = "routed"
    NAT_UNPROTECTED = "nat-unprotected"
    ISOLATED = "isolated"


class ManagedBy(StrEnum):
    """Who writes the rules of a network."""

    IPV6NATD = "ipv6natd"
    ENGINE = "engine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The engine that answered: its version and the API version in use."""

    version: str
    api_version: str
    rootless: bool = False
    experimental: bool = False
    ip6tables: bool | None = None
    """What its own configuration says of `ip6tables`; None where nothing says anything."""

    @property
    def release(self) -> tuple[int, ...]:
        """The leading numbers of the version: "20.10.24+dfsg1" is (20, 10, 24)."""
        numbers: list[int] = []
        for part in self.version.split("."):
            digits = part[: len(part) - len(part.lstrip("0123456789"))]
            if not digits:
                break
            numbers.append(int(digits[:9]))
            if digits != part:
                break
        return tuple(numbers)

    @property
    def may_write_ipv6_rules(self) -> bool:
        """Whether it can be one that does IPv6 NAT itself.

        Up to 26 only started as experimental and told to; from 27 on unless told not to.
        """
        if self.ip6tables is not None:
            return self.ip6tables
        return self.release >= (27,) or self.experimental


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Route:
    """A route of the host: the prefix, and the interface that leads there."""

    prefix: IPv6Network
    interface: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A Docker network. `subnets` holds its IPv6 subnets only."""

    id: str
    name: str
    driver: str
    bridge: str
    enable_ipv6: bool = False
    subnets: tuple[IPv6Network, ...] = ()
    internal: bool = False
    icc: bool = True
    masquerade: bool = True
    gateway_mode: GatewayMode = GatewayMode.NAT
    host_binding_ipv4: IPv4Address | IPv6Address | None = None
    host_binding_ipv6: IPv6Address | None = None
    source_address: IPv6Address | None = None
    trusted_interfaces: tuple[str, ...] = ()
    managed_by: ManagedBy = ManagedBy.IPV6NATD
    warnings: tuple[str, ...] = ()
    problem: str = ""
    """Why this network cannot be handled at all; empty when it can."""
    routes_elsewhere: tuple[Route, ...] = ()
    """Parts of its subnets that the host routes to other interfaces, as to a LAN: no container of
    this network is there."""
    routed_prefixes: tuple[IPv6Network, ...] = ()
    """Prefixes beside its subnets that the host routes to its bridge: a container is their
    router."""
    gateway_endpoints: tuple[tuple[str, IPv6Address], ...] = ()
    """(container id, address) of swarm tasks on docker_gwbridge, known from its inspect alone."""

    @property
    def closed(self) -> bool:
        """Whether nothing goes in or out."""
        return self.internal or self.gateway_mode is GatewayMode.ISOLATED

    @property
    def uses_nat(self) -> bool:
        """Whether published ports are forwarded by NAT and what goes out may be masqueraded."""
        return not self.closed and self.gateway_mode is not GatewayMode.ROUTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A container's place on a network; `address` is None without IPv6 there."""

    network_id: str
    address: IPv6Address | None = None
    has_gateway4: bool = False
    has_gateway6: bool = False
    gw_priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PortBinding:
    """One binding as the engine made it: `host_address` None where it named no address at all."""

    protocol: Protocol
    container_port: int
    host_address: IPv4Address | IPv6Address | None
    host_port: int
    explicit_address: bool = True
    """Whether the user asked for this very address; only known, and only needed, on old engines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A running container: its endpoints, its effective port bindings, what could not be read."""

    id: str
    name: str
    endpoints: tuple[Endpoint, ...] = ()
    bindings: tuple[PortBinding, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()
    """(port as Docker words it, reason) for each binding that could not be understood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings that decide about what is wanted."""

    nat_prefixes: tuple[IPv6Network, ...] = (IPv6Network("fc00::/7"),)
    ipv4_any_means_ipv6: bool = False
    address_map: Map[IPv4Address, IPv6Address] = field(default_factory=dict)
    """A binding to the one counts as a binding to the other besides."""
    allow_direct_routing: bool = False
    accept_fwmark: tuple[int, int] | None = None
    """Mark and mask of packets that are accepted whatever they are for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRules:
    """What an engine's own IPv6 rules in the kernel say, be they in force or left over."""

    bridges: frozenset[str] = frozenset()
    ports: frozenset[tuple[Protocol, int]] = frozenset()
    """Host ports that they forward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that decides about rules, read at one time."""

    engine: Engine | None = None
    networks: tuple[Network, ...] = ()
    containers: tuple[Container, ...] = ()
    userland_proxy: bool = True
    host_addresses: frozenset[IPv6Address] | None = None
    """The host's own; None where they are not known."""
    routes: tuple[Route, ...] = ()
    """The host's routes into a part of a subnet, and those to a network's bridge."""
    engine_rules: EngineRules = EngineRules()
    tracks_sctp: bool = True
    """Whether the kernel's conntrack knows SCTP, without which its ports cannot be translated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A run of `count` host ports that is forwarded to as many ports of one container.

    Host port `host_port + i` goes to container port `container_port + i`.
    """

    container_id: str
    container_name: str
    network_id: str
    network_name: str
    bridge: str
    protocol: Protocol
    host_address: IPv6Address
    """`::` for every address of the host."""
    host_port: int
    container_address: IPv6Address
    container_port: int
    proxy_binds_address: bool = False
    """Whether `host_address` is one address, and the engine's proxy, if it runs, listens there."""
    count: int = 1
    managed_by: ManagedBy = ManagedBy.IPV6NATD

    @property
    def host_port_end(self) -> int:
        """The last host port of the run."""
        return self.host_port + self.count - 1

    @property
    def container_port_end(self) -> int:
        """The last container port of the run."""
        return self.container_port + self.count - 1

    @property
    def wildcard(self) -> bool:
        """Whether it serves every address of the host."""
        return self.host_address == ANY


def common_ends(old: Sequence[object], new: Sequence[object]) -> tuple[int, int]:
    """How many of the first, and how many of the last, are the very same objects in both.

    None is counted twice.
    """
    shorter = min(len(old), len(new))
    head = _common_length(old, new, shorter)
    return head, _common_length(reversed(old), reversed(new), shorter - head)


def _common_length(one: Iterable[object], other: Iterable[object], limit: int) -> int:
    return next(compress(count(), islice(map(is_not, one, other), limit)), limit)


def mapping_changes(
    old: Sequence[Mapping], new: Sequence[Mapping]
) -> tuple[list[Mapping], list[Mapping]]:
    """The mappings that were removed and those that were added, in their order.

    Most stay, and are the very objects they were: only the others are compared, which takes long.
    """
    head, tail = common_ends(old, new)
    old, new = old[head : len(old) - tail], new[head : len(new) - tail]
    unchanged = set(map(id, old)) & set(map(id, new))
    removed = [mapping for mapping in old if id(mapping) not in unchanged]
    added = [mapping for mapping in new if id(mapping) not in unchanged]
    removed_set, added_set = set(removed), set(added)
    return (
        [mapping for mapping in removed if mapping not in added_set],
        [mapping for mapping in added if mapping not in removed_set],
    )


def port_ranges(ports: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of all runs of ports in a row, in their order; a port may be there twice."""
    ranges: list[tuple[int, int]] = []
    for port in sorted(set(ports)):
        if ranges and port == ranges[-1][1] + 1:
            ranges[-1] = ranges[-1][0], port
        else:
            ranges.append((port, port))
    return ranges


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Something that was wanted and is not forwarded; `reason` says what to do about it."""

    container_name: str
    network: str
    port: str
    """As Docker words it, "80/tcp"; empty where a whole network is meant."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class RejectedPorts:
    """Published host ports that some clients cannot be forwarded to, so they are told at once.

    `host_address` is that of the binding: `::` refuses [::1] and link-local clients, `::1` only
    [::1], another address only link-local clients of that address.
    """

    protocol: Protocol
    host_address: IPv6Address
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectAccess:
    """Ports of a container's own address that may be reached without DNAT."""

    bridge: str
    in_interface: str
    """The only interface that opens them; empty for any."""
    address: IPv6Address
    protocol: Protocol
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What should hold: networks and what is forwarded, ours and the engine's, and what is not."""

    networks: tuple[Network, ...] = ()
    mappings: tuple[Mapping, ...] = ()
    rejected: tuple[RejectedPorts, ...] = ()
    """Empty where a userland proxy answers those clients."""
    direct_access: tuple[DirectAccess, ...] = ()
    proxy_udp_ports: tuple[tuple[int, int], ...] = ()
    """First and last of UDP host ports that no mapping forwards, as their network is not
    translated. Engines before 27 let their proxy listen there all the same."""
    skipped: tuple[Skipped, ...] = ()
    userland_proxy: bool = True
    accept_fwmark: tuple[int, int] | None = None
    engine_writes: bool = False
    """Whether the engine may keep IPv6 rules itself: then what stands of them is no leftover."""
