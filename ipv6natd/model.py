"""The values of the domain: Docker's networks and containers, and the decisions about their ports.

Pure values. The names in Docker's JSON stay in `engine.parse`, rules in `policy.ruleset`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as Map
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import NamedTuple

ANY = IPv6Address("::")
LOOPBACK = IPv6Address("::1")
LINK_LOCAL = IPv6Network("fe80::/10")
GWBRIDGE = "docker_gwbridge"
CONTAINER_PORT = "veth"
"""Docker's prefix for the host's end of a container's interface (libnetwork, bridge driver)."""
_DOCKER_PORT = re.compile(f"{CONTAINER_PORT}[0-9a-f]{{7}}")
MIN_ID_LENGTH = 4
"""Minimum number of characters of an id that select a container."""
BOOLEANS = dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "false", "FALSE", "False"), False
)
"""The words of Go's strconv.ParseBool, which Docker and docker-ipv6nat use."""

_MAX_NAME_BYTES = 15
_NAME = re.compile(r"(?!\.\.?$)[^\s/:\0]+")
_RELEASE = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})*")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}", re.ASCII)


def is_interface(name: str) -> bool:
    """True if the kernel accepts the name for an interface (net/core/dev.c, dev_valid_name).

    Such a name is safe as one part of a path. It may still be `*` or `$(reboot)`; see
    is_plain_interface.
    """
    # The kernel counts bytes. A surrogate stands for one byte that is not UTF-8.
    size = len(name.encode(errors="replace"))
    return size <= _MAX_NAME_BYTES and _NAME.fullmatch(name) is not None


def is_container_port(name: str) -> bool:
    """True if dockerd gives such a name to the bridge port of a container (libnetwork, bridge.go).

    Guests of other programs on the same bridge have other names: tap0, vnet3, veth100i0 (Proxmox),
    veth and six letters (LXC).
    """
    return _DOCKER_PORT.fullmatch(name) is not None


def is_plain_interface(name: str) -> bool:
    """True if the name is also safe in a rule, in a file of sysctl.d and in a command.

    It has no quote, backslash, blank, pattern or leading dash, and no "+" at the end: iptables
    reads "br+" as every name that begins with "br".
    """
    return _PLAIN_NAME.fullmatch(name) is not None


class Protocol(StrEnum):
    """Transport protocols that Docker publishes."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"

    # Large dictionaries have a protocol in their keys, and the hash of Enum is slow Python code.
    __hash__ = str.__hash__


class GatewayMode(StrEnum):
    """Values of com.docker.network.bridge.gateway_mode_ipv6."""

    NAT = "nat"
    ROUTED = "routed"
    NAT_UNPROTECTED = "nat-unprotected"
    ISOLATED = "isolated"


class ManagedBy(StrEnum):
    """The program that writes the rules of a network."""

    IPV6NATD = "ipv6natd"
    ENGINE = "engine"


class EngineState(Enum):
    """What is known of the engine."""

    STARTING = auto()
    """Not known yet whether it answers."""
    UNREACHABLE = auto()
    """It never listed its objects, and the reason is known."""
    CONNECTED = auto()
    """Its objects are listed and followed."""
    LOST = auto()
    """The objects are the last known ones."""

    @property
    def has_facts(self) -> bool:
        """True if the engine has listed its objects."""
        return self in (EngineState.CONNECTED, EngineState.LOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The connected engine."""

    version: str
    rootless: bool = False
    experimental: bool = False
    ip6tables: bool | None = None
    """The value of `ip6tables` in the engine's configuration; None if it is not set."""

    @property
    def release(self) -> tuple[int, ...]:
        """The leading numbers of the version: "20.10.24+dfsg1" is (20, 10, 24)."""
        numbers = _RELEASE.match(self.version)
        return tuple(map(int, numbers[0].split("."))) if numbers else ()

    @property
    def may_write_ipv6_rules(self) -> bool:
        """True if this engine can write IPv6 rules itself.

        Up to version 26 it does so only with `experimental` and `ip6tables`; from 27 on, by
        default.
        """
        if self.ip6tables is not None:
            return self.ip6tables
        return self.release >= (27,) or self.experimental


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Route:
    """A route of the host: the prefix and the outgoing interface."""

    prefix: IPv6Network
    interface: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A Docker network, with one field for each option and fact that decides about its rules.

    `subnets` holds its IPv6 subnets only.
    """

    id: str
    name: str
    driver: str
    bridge: str
    enable_ipv6: bool = False
    subnets: tuple[IPv6Network, ...] = ()
    gateway: IPv6Address | None = None
    """The bridge's IPv6 address, which containers use as router; None if unknown."""
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
    """Why ipv6natd cannot manage this network; empty if it can."""
    routes_elsewhere: tuple[Route, ...] = ()
    """Routes of the host by other interfaces: to the same routed prefixes, and to parts of the
    subnets, for example to a LAN. No container of this network has an address in the LAN."""
    routed_prefixes: tuple[IPv6Network, ...] = ()
    """Prefixes outside the subnets that the host routes to the bridge. A container is the router
    of such a prefix."""
    gateway_endpoints: tuple[tuple[str, IPv6Address], ...] = ()
    """(container id, address) of swarm tasks on docker_gwbridge. Only the inspect of that network
    lists them."""

    @property
    def managed(self) -> bool:
        """True if ipv6natd manages this network: a decided one, see policy.networks."""
        return self.driver == "bridge" and self.enable_ipv6 and not self.problem

    @property
    def closed(self) -> bool:
        """True if no packet may enter or leave the network."""
        return self.internal or self.gateway_mode is GatewayMode.ISOLATED

    @property
    def uses_nat(self) -> bool:
        """True if published ports get DNAT and outgoing packets may be masqueraded."""
        return not self.closed and self.gateway_mode is not GatewayMode.ROUTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A container's endpoint on a network; `address` is None if it has no IPv6 address there."""

    network_id: str
    address: IPv6Address | None = None
    has_gateway4: bool = False
    has_gateway6: bool = False
    gw_priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PortBinding:
    """One binding of the engine; `host_address` is None if the engine named no address."""

    protocol: Protocol
    container_port: int
    host_address: IPv4Address | IPv6Address | None
    host_port: int
    explicit_address: bool = True
    """False if the user named no address and the engine chose this one (known for old engines)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A running container: its endpoints, its port bindings, and those that are not in force."""

    id: str
    name: str
    endpoints: tuple[Endpoint, ...] = ()
    bindings: tuple[PortBinding, ...] = ()
    unpublished: tuple[PortBinding, ...] = ()
    """The requests for ports that the engine publishes on no host port."""
    problems: tuple[tuple[str, str], ...] = ()
    """(port in Docker's form, reason) of each binding that could not be parsed."""
    starting: bool = False
    """True if these are the facts during its start, which its inspect confirms or corrects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings that decide which ports are forwarded."""

    nat_prefixes: tuple[IPv6Network, ...] = (IPv6Network("fc00::/7"),)
    ipv4_any_means_ipv6: bool = False
    address_map: Map[IPv4Address, IPv6Address] = field(default_factory=dict)
    """A binding to the IPv4 address is also a binding to the IPv6 address."""
    allow_direct_routing: bool = False
    accept_fwmark: tuple[int, int] | None = None
    """Mark and mask of packets that are accepted for every destination."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRules:
    """The engine's own IPv6 rules in the kernel, in force or left over."""

    bridges: frozenset[str] = frozenset()
    ports: frozenset[tuple[Protocol, int]] = frozenset()
    """Host ports that these rules forward."""
    complete: bool = True
    """False if the rules cannot be read; then `bridges` has all that may have some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All facts that decide about rules, read at one time."""

    engine: Engine | None = None
    networks: tuple[Network, ...] = ()
    containers: tuple[Container, ...] = ()
    userland_proxy: bool = True
    host_addresses: frozenset[IPv6Address] | None = None
    """The addresses of the host; None if unknown."""
    routed_sources: frozenset[IPv6Address] = frozenset()
    """Source addresses of networks that no interface has and that are on no link: a router may send
    them to this host."""
    routes: tuple[Route, ...] = ()
    """The host's routes to parts of subnets and to bridges of networks."""
    engine_rules: EngineRules = EngineRules()
    vacated_bridges: frozenset[str] = frozenset()
    """Bridges that a container left while the engine reported no changes: another container may
    have its address by now."""
    tracks_sctp: bool = True
    """True if the kernel's conntrack supports SCTP. Without it DNAT of SCTP ports is impossible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A range of `count` host ports, forwarded to `count` ports of one container.

    Host port `host_port + i` goes to container port `container_port + i`. It has all fields of its
    row on the bus, so that no list of containers or networks is needed to show it.
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
    """True if the userland proxy, if it runs, listens on `host_address` and on no other address."""
    count: int = 1
    managed_by: ManagedBy = ManagedBy.IPV6NATD

    @property
    def host_port_end(self) -> int:
        """The last host port of the range."""
        return self.host_port + self.count - 1

    @property
    def container_port_end(self) -> int:
        """The last container port of the range."""
        return self.container_port + self.count - 1

    @property
    def wildcard(self) -> bool:
        """True if the mapping is for every address of the host."""
        return self.host_address == ANY


def mapping_changes(
    old: Sequence[Mapping], new: Sequence[Mapping]
) -> tuple[list[Mapping], list[Mapping]]:
    """The removed and the added mappings, each in their order.

    Only mappings that are not the same object in both are compared: a comparison is slow.
    """
    old_ids, new_ids = set(map(id, old)), set(map(id, new))
    removed = [mapping for mapping in old if id(mapping) not in new_ids]
    added = [mapping for mapping in new if id(mapping) not in old_ids]
    removed_set, added_set = set(removed), set(added)
    return (
        [mapping for mapping in removed if mapping not in added_set],
        [mapping for mapping in added if mapping not in removed_set],
    )


class Outcome(StrEnum):
    """What happens to a port binding."""

    FORWARDED = "forwarded"
    """By a mapping, whose rules are ours."""
    NATIVE = "native"
    """By a mapping, whose rules are the engine's."""
    DIRECT = "direct"
    IPV4_ONLY = "ipv4-only"
    SKIPPED = "skipped"
    """It has a row of its own in Desired.skipped."""
    UNMANAGED = "unmanaged"
    """Its network has a row in Desired.skipped."""
    PENDING = "pending"
    PROXY = "proxy"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PortDecision:
    """The outcome of one port binding of a container, and the reason unless it is forwarded."""

    container: Container
    network: Network | None
    """The network of the container's gateway."""
    binding: PortBinding
    host_address: IPv6Address | None
    """The host's IPv6 address that the binding is for; None if it is for IPv4 only."""
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A requested port that is not forwarded; `reason` says why and what to do."""

    container_name: str
    network: str
    port: str
    """In Docker's form, "80/tcp"; empty for a whole network."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class RejectedPorts:
    """Published host ports that reject the clients whose packets cannot be forwarded.

    `host_address` is the address of the binding. `::` rejects clients of [::1] and link-local
    clients, `::1` only clients of [::1], another address only its link-local clients.
    """

    protocol: Protocol
    host_address: IPv6Address
    first: int
    last: int


class DirectAccess(NamedTuple):
    """Ports of a container's own address that are reachable without DNAT."""

    bridge: str
    in_interface: str
    """The only interface from which the ports are reachable; empty for any."""
    address: IPv6Address
    protocol: Protocol
    first: int
    last: int


class OtherSource(NamedTuple):
    """An address of a container on several networks, on a network without its default route.

    Replies from this address leave by the default route.
    """

    address: IPv6Address
    bridge: str
    """The bridge of the address's network."""
    default_bridge: str
    """The bridge of the default route."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """The decisions: managed networks, forwarded ports (ours and the engine's), skipped ports.

    It has many fields: the rules, the rows on the bus and the flush of flows read nothing else.
    """

    networks: tuple[Network, ...] = ()
    closed_networks: tuple[Network, ...] = ()
    """Other networks that are closed: without IPv6, or outside of `nat_prefixes`. A container can
    send IPv6 packets there too. Those without a subnet have the link-local one."""
    mappings: tuple[Mapping, ...] = ()
    rejected: tuple[RejectedPorts, ...] = ()
    """Empty if the userland proxy serves these clients."""
    direct_access: tuple[DirectAccess, ...] = ()
    proxy_udp_ports: tuple[tuple[int, int], ...] = ()
    """(first, last) of UDP host ports of networks without NAT: no mapping forwards them, but
    engines before 27 let the userland proxy listen on them."""
    other_sources: tuple[OtherSource, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    decisions: Map[str, tuple[PortDecision, ...]] = field(default_factory=dict, compare=False)
    """Container id -> the decisions about its bindings, without the bindings for IPv4 that the
    engine also lists for IPv6. A decision is equal only to itself."""
    userland_proxy: bool = True
    accept_fwmark: tuple[int, int] | None = None
    has_ipvlan: bool = False
    """True if the engine has an ipvlan network, whose packets may pass no chain but OUTPUT."""
    engine_writes: bool = False
    """True if the engine writes IPv6 rules itself, or may: then its rules are not stale."""
    missing_engine_rules: tuple[tuple[Protocol, int], ...] = ()
    """Published ports whose rule of the engine is missing although the engine may write it."""
