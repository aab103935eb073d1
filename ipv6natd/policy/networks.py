"""Which networks are managed, and which network is a container's gateway for IPv6."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from typing import NamedTuple

from ipv6natd.model import (
    GWBRIDGE,
    LINK_LOCAL,
    Container,
    Endpoint,
    GatewayMode,
    Network,
    Policy,
    Route,
    Skipped,
    Snapshot,
)
from ipv6natd.netfilter.prefixes import MIN_PREFIX_LENGTH, PrefixIndex

_ROOTLESS = (
    "the engine is rootless: its bridges are in a network namespace of its own; "
    "point -endpoint at the engine that runs as root"
)
_ALL = (IPv6Network("::/0"),)


class Attachment(NamedTuple):
    """A container's endpoint and the network it is on."""

    endpoint: Endpoint
    network: Network


def decided_networks(
    snapshot: Snapshot, policy: Policy, engine_bridges: Set[str] = frozenset()
) -> list[Network]:
    """All networks, sorted by name. `problem` is set for each that has IPv6 and is not managed.

    `engine_bridges` are those whose rules the engine writes, for any subnet.
    """
    networks = sorted(snapshot.networks, key=network_order)
    if _is_rootless(snapshot):
        return [replace(network, problem=_ROOTLESS) for network in networks]
    bridges: dict[str, str] = {}
    decided: list[Network] = []
    for network in networks:
        if network.driver == "bridge":
            by_engine = network.bridge in engine_bridges
            prefixes = _ALL if by_engine else policy.nat_prefixes
            problem = _problem(network, prefixes, bridges) if network.enable_ipv6 else ""
            if problem != network.problem:
                network = replace(network, problem=problem)
            if network.managed:
                bridges[network.bridge] = network.name
                network = _with_usable_source(network, snapshot)
        decided.append(network)
    return _with_routes(decided, snapshot.routes)


def skipped_networks(decided: Iterable[Network], snapshot: Snapshot) -> list[Skipped]:
    """The networks with IPv6 that are not managed; one row for all of a rootless engine."""
    if _is_rootless(snapshot):
        return [Skipped(container_name="", network="", port="", reason=_ROOTLESS)]
    return [
        Skipped(container_name="", network=network.name, port="", reason=network.problem)
        for network in decided
        if network.problem
    ]


def other_closed_networks(decided: Iterable[Network], snapshot: Snapshot) -> Iterator[Network]:
    """The closed networks that are not managed, as in Desired.closed_networks.

    A bridge of a network without IPv6 may be the host's own, with other machines on it: then the
    host has a route to it.
    """
    if _is_rootless(snapshot):
        return
    known = {network.bridge for network in decided if network.managed}
    routed = known.union(route.interface for route in snapshot.routes if route.prefix not in _ALL)
    for network in decided:
        if network.driver != "bridge" or network.managed or not network.closed:
            continue
        if network.bridge and network.bridge not in (known if network.subnets else routed):
            yield replace(network, subnets=network.subnets or (LINK_LOCAL,))


def _is_rootless(snapshot: Snapshot) -> bool:
    return snapshot.engine is not None and snapshot.engine.rootless


def network_order(network: Network) -> tuple[str, str]:
    """A fixed order, independent of the order in the engine's answer."""
    return network.name, network.id


def attachments(container: Container, networks: Iterable[Network]) -> list[Attachment]:
    """The container's endpoints with their networks, in the order of `networks`.

    The endpoint of a swarm task on docker_gwbridge is listed only in the inspect of that network.
    """
    by_network = {endpoint.network_id: endpoint for endpoint in container.endpoints}
    attached = []
    for network in networks:
        endpoint = by_network.get(network.id)
        if endpoint is None and network.gateway_endpoints:
            endpoint = _gateway_endpoint(container.id, network)
        if endpoint is not None:
            attached.append(Attachment(endpoint, network))
    return attached


def gateway_attachment(attached: Iterable[Attachment]) -> Attachment | None:
    """The endpoint with the container's default route, to which published ports are forwarded.

    Docker's order (libnetwork, sandbox.go, Less): gateway priority, not docker_gwbridge, not
    internal, number of gateways, network name; the first with an IPv6 gateway. With DNAT to
    another endpoint, replies would leave by another interface than the requests came in by, and a
    reverse-path filter would drop them. Engines before 28 take the first with an IPv4 gateway; the
    result is the same, because all their networks have IPv4.
    """
    candidates = (attachment for attachment in attached if attachment.endpoint.has_gateway6)
    return min(candidates, key=gateway_order, default=None)


def gateway_order(attachment: Attachment) -> tuple[int, bool, bool, int, str, str]:
    """Docker's order, see gateway_attachment; valid for endpoints with an IPv6 gateway."""
    endpoint, network = attachment
    gateways = endpoint.has_gateway4 + endpoint.has_gateway6
    first = (-endpoint.gw_priority, network.name == GWBRIDGE, network.internal)
    return (*first, -gateways, network.name, network.id)


def _gateway_endpoint(container_id: str, network: Network) -> Endpoint | None:
    address = dict(network.gateway_endpoints).get(container_id)
    if address is None:
        return None
    return Endpoint(network_id=network.id, address=address, has_gateway4=True, has_gateway6=True)


def _problem(network: Network, prefixes: Sequence[IPv6Network], bridges: dict[str, str]) -> str:
    """Why a network with IPv6 is not managed. Its subnets must be in `prefixes`; `bridges` are
    those of the networks before it."""
    if network.problem:
        return network.problem
    if not network.subnets:
        return "it has IPv6 enabled but no valid IPv6 subnet; recreate it with --subnet"
    foreign = [subnet for subnet in network.subnets if not any(map(subnet.subnet_of, prefixes))]
    if not foreign:
        other = bridges.get(network.bridge)
        return f"its bridge {network.bridge} belongs to network '{other}'" if other else ""
    reason = (
        f"its subnet {foreign[0]} is not in nat_prefixes "
        f"({', '.join(map(str, prefixes))}); use a ULA subnet or widen nat_prefixes"
    )
    if network.closed:
        reason = f"it is closed only while ipv6natd manages another network: {reason}"
    elif network.gateway_mode is GatewayMode.ROUTED:
        reason = f"gateway_mode_ipv6=routed has no effect: {reason}"
    return reason


def _with_routes(networks: list[Network], routes: Iterable[Route]) -> list[Network]:
    """The networks; managed ones with the routes from which valid source addresses follow."""
    routes = sorted(routes)
    managed = [network for network in networks if network.managed]
    prefixes = {
        network.id: (*network.subnets, *_routed_prefixes(network, routes)) for network in managed
    }
    known = PrefixIndex(prefix for group in prefixes.values() for prefix in group)
    routed = {p for network in managed for p in prefixes[network.id][len(network.subnets) :]}
    parts: dict[IPv6Network, list[Route]] = {}
    for route in routes:
        for whole in known.supernets(route.prefix):
            parts.setdefault(whole, []).append(route)
        if route.prefix in routed and route.prefix.prefixlen >= MIN_PREFIX_LENGTH:
            parts.setdefault(route.prefix, []).append(route)
    return [
        replace(
            network,
            routed_prefixes=prefixes[network.id][len(network.subnets) :],
            routes_elsewhere=tuple(
                route
                for prefix in prefixes[network.id]
                for route in parts.get(prefix, ())
                if route.interface != network.bridge
            ),
        )
        if routes and network.id in prefixes
        else network
        for network in networks
    ]


def _routed_prefixes(network: Network, routes: Iterable[Route]) -> Iterator[IPv6Network]:
    for route in routes:
        if route.interface == network.bridge and not any(
            map(route.prefix.subnet_of, network.subnets)
        ):
            yield route.prefix


def _with_usable_source(network: Network, snapshot: Snapshot) -> Network:
    """Drops a source address whose replies would not reach the host."""
    address, own = network.source_address, snapshot.host_addresses
    if address is None:
        return network
    reason = _never_a_source(address, network, own or frozenset())
    advice = "; recreate the network with a global address of this host, or without the option"
    if not reason:
        if own is None or address in own or address in snapshot.routed_sources:
            return network
        reason = "is on a link of this host, but is no address of this host"
        advice = f" until it is: ip address add {address}/128 dev lo"
    option = f"com.docker.network.host_ipv6={address}"
    warning = f"{option} {reason}; outgoing packets are masqueraded{advice}"
    return replace(network, source_address=None, warnings=(*network.warnings, warning))


def _never_a_source(address: IPv6Address, network: Network, own: Set[IPv6Address]) -> str:
    """Why no other host can answer to the address; "" if some can. `own` are those of this host,
    which can have one on a LAN inside the subnet."""
    for subnet in network.subnets:
        if address in subnet and (address == network.gateway or address not in own):
            return f"is in the network's own subnet {subnet}, and not outside of it"
    unusable = (
        (address.is_unspecified, "is no address of a host"),
        (address.is_loopback, "is the loopback address, which other hosts cannot answer to"),
        (address.is_link_local, "is link-local, and hosts behind a router cannot answer to it"),
        (address.is_multicast, "is a multicast address, which no packet has as its source"),
    )
    return next((reason for applies, reason in unusable if applies), "")
