"""Snapshot -> Desired: which port belongs to whom, and what is skipped and why.

Every decision about who may be reached how is made here or in ruleset; the shell makes none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from itertools import groupby

from ipv6natd.model import (
    ANY,
    GWBRIDGE,
    LINK_LOCAL,
    LOOPBACK,
    Container,
    Desired,
    Endpoint,
    GatewayMode,
    Mapping,
    Network,
    Policy,
    PortBinding,
    Protocol,
    Refused,
    Skipped,
    Snapshot,
)

ANY_IPV4 = IPv4Address(0)


def desired(snapshot: Snapshot, policy: Policy) -> Desired:
    """What should hold, given what is.

    The order of everything in the answer depends on nothing but the facts, so that equal facts
    give equal rules to the byte.
    """
    networks, skipped = _managed(snapshot.networks, policy)
    claims: list[_Claim] = []
    for container in sorted(snapshot.containers, key=lambda each: (each.name, each.id)):
        wanted, left_out = _claims(container, snapshot, networks, policy)
        claims += wanted
        skipped += left_out
    claims, beaten = _settled(claims)
    forwarded = [each for each in claims if each.host_address != LOOPBACK]
    skipped += beaten
    if not snapshot.userland_proxy:
        skipped += [_loopback_skipped(each) for each in claims if each.host_address == LOOPBACK]
    return Desired(
        networks=tuple(networks.values()),
        mappings=tuple(_runs(forwarded)),
        refused=() if snapshot.userland_proxy else tuple(_refused(claims)),
        skipped=tuple(dict.fromkeys(skipped)),
        userland_proxy=snapshot.userland_proxy,
    )


def together(old: Desired, new: Desired) -> Desired:
    """`new`, and the networks of `old` besides: for the moment in which both have rules in nat."""
    bridges = {each.bridge for each in new.networks}
    kept = tuple(each for each in old.networks if each.bridge not in bridges)
    networks = sorted((*new.networks, *kept), key=_network_order)
    return replace(new, networks=tuple(networks))


def gateway6(container: Container, networks: dict[str, Network]) -> tuple[Endpoint, Network] | None:
    """The endpoint that is the container's way out, and so its published ports' way in.

    Docker's order (libnetwork, sandbox.go, Less): gateway priority, not docker_gwbridge, not
    internal, number of gateways, network name; the first with an IPv6 gateway. An address on
    another network would also receive, but answer by another interface than it was asked on,
    which a reverse-path filter drops.
    """
    usable = [
        (endpoint, networks[endpoint.network_id])
        for endpoint in container.endpoints
        if endpoint.network_id in networks and endpoint.has_gateway6
    ]
    return min(usable, key=_gateway_order, default=None)


def _gateway_order(place: tuple[Endpoint, Network]) -> tuple[int, bool, bool, int, str]:
    endpoint, network = place
    gateways = endpoint.has_gateway4 + endpoint.has_gateway6
    first = (-endpoint.gw_priority, network.name == GWBRIDGE, network.internal)
    return (*first, -gateways, network.name)


def _network_order(network: Network) -> tuple[str, str]:
    return network.name, network.id


def _managed(
    networks: Iterable[Network], policy: Policy
) -> tuple[dict[str, Network], list[Skipped]]:
    managed: dict[str, Network] = {}
    skipped: list[Skipped] = []
    bridges: dict[str, str] = {}
    for network in sorted(networks, key=_network_order):
        if network.driver != "bridge" or not network.enable_ipv6:
            continue
        reason = _unmanaged(network, policy)
        if not reason and network.bridge in bridges:
            reason = f"network '{bridges[network.bridge]}' already has its bridge {network.bridge}"
        if reason:
            skipped.append(Skipped(container_name="", network=network.name, port="", reason=reason))
            continue
        bridges[network.bridge] = network.name
        managed[network.id] = network
    return managed, skipped


def _unmanaged(network: Network, policy: Policy) -> str:
    if network.problem:
        return network.problem
    if not network.subnets:
        return "it has IPv6 but no IPv6 subnet that could be read; create it with --subnet"
    foreign = [each for each in network.subnets if not _within(each, policy)]
    if foreign:
        return (
            f"its subnet {foreign[0]} is not in nat_prefixes "
            f"({', '.join(map(str, policy.nat_prefixes))}); use a ULA subnet or widen nat_prefixes"
        )
    if network.gateway_mode is not GatewayMode.NAT:
        return (
            f"gateway_mode_ipv6={network.gateway_mode} is not handled by this version; "
            "no rule is written for it"
        )
    return ""


def _within(subnet: IPv6Network, policy: Policy) -> bool:
    return any(subnet.subnet_of(prefix) for prefix in policy.nat_prefixes)


@dataclass(frozen=True, slots=True)
class _Claim:
    """One host port that one container is to have."""

    container: Container
    network: Network
    address: IPv6Address
    protocol: Protocol
    host_address: IPv6Address
    host_port: int
    container_port: int


def _claims(
    container: Container, snapshot: Snapshot, managed: dict[str, Network], policy: Policy
) -> tuple[list[_Claim], list[Skipped]]:
    every = {each.id: each for each in snapshot.networks}
    place = gateway6(container, every)
    skipped = [_skip(container, place, port, reason) for port, reason in container.problems]
    claims: list[_Claim] = []
    for binding in container.bindings:
        network = place[1] if place else None
        host_address = _ipv6_side(binding, network, policy)
        if host_address is None or not binding.host_port:
            continue
        port = f"{binding.container_port}/{binding.protocol}"
        reason = _unreachable(container, place, managed, host_address)
        if reason:
            skipped.append(_skip(container, place, port, reason))
        elif place and place[1].id in managed and place[0].address and not place[1].internal:
            claims.append(
                _Claim(
                    container=container,
                    network=place[1],
                    address=place[0].address,
                    protocol=binding.protocol,
                    host_address=host_address,
                    host_port=binding.host_port,
                    container_port=binding.container_port,
                )
            )
    return claims, skipped


def _skip(
    container: Container, place: tuple[Endpoint, Network] | None, port: str, reason: str
) -> Skipped:
    name = place[1].name if place else ""
    return Skipped(container_name=container.name, network=name, port=port, reason=reason)


def _ipv6_side(binding: PortBinding, network: Network | None, policy: Policy) -> IPv6Address | None:
    """The IPv6 address that a binding is for, None where it is for IPv4 only.

    `::` is what Docker lists where the user named no address, so the network's own default for
    IPv6 bindings takes its place.
    """
    address = binding.host_address
    default = network.host_binding_ipv6 if network else None
    if isinstance(address, IPv4Address):
        any_counts = policy.ipv4_any_means_ipv6 and address == ANY_IPV4
        return (default or ANY) if any_counts else None
    if address is None or address == ANY:
        return default or ANY
    return address


def _unreachable(
    container: Container,
    place: tuple[Endpoint, Network] | None,
    managed: dict[str, Network],
    host_address: IPv6Address,
) -> str:
    """Why a binding that wants IPv6 cannot have it; empty where it can, or where nobody asked us.

    A container on IPv4 networks alone did not ask: Docker lists `::` for it only because its proxy
    can carry an IPv6 client to an IPv4 address.
    """
    if place is None or place[0].address is None:
        ours = [
            managed[each.network_id] for each in container.endpoints if each.network_id in managed
        ]
        if not ours or all(each.internal for each in ours):
            return ""
        return (
            f"the container has no IPv6 address on network '{ours[0].name}'; "
            "see whether a sysctl switches IPv6 off in it"
        )
    if place[1].id in managed and host_address in LINK_LOCAL:
        return f"{host_address} is link-local, and such clients cannot be forwarded; bind to `::`"
    return ""


def _loopback_skipped(claim: _Claim) -> Skipped:
    return Skipped(
        container_name=claim.container.name,
        network=claim.network.name,
        port=f"{claim.container_port}/{claim.protocol}",
        reason=(
            "[::1] cannot be forwarded to a container and the engine runs without its userland "
            "proxy; bind to 127.0.0.1 or to `::`"
        ),
    )


def _settled(claims: list[_Claim]) -> tuple[list[_Claim], list[Skipped]]:
    """One owner for each protocol, address and port: the container whose id sorts first."""
    owners: dict[tuple[Protocol, IPv6Address, int], _Claim] = {}
    beaten: list[Skipped] = []
    for claim in sorted(claims, key=lambda each: (each.container.id, each.container_port)):
        key = (claim.protocol, claim.host_address, claim.host_port)
        owner = owners.setdefault(key, claim)
        # `::` and, where that counts too, 0.0.0.0 of one port are one claim made twice.
        if owner != claim:
            beaten.append(
                Skipped(
                    container_name=claim.container.name,
                    network=claim.network.name,
                    port=f"{claim.container_port}/{claim.protocol}",
                    reason=(
                        f"[{claim.host_address}]:{claim.host_port} already belongs to container "
                        f"'{owner.container.name}'; publish one of them elsewhere"
                    ),
                )
            )
    return list(owners.values()), beaten


def _run_order(claim: _Claim) -> tuple[bool, IPv6Address, Protocol, int]:
    # A binding to an address precedes a wildcard: the first matching rule wins.
    return claim.host_address == ANY, claim.host_address, claim.protocol, claim.host_port


def _runs(claims: list[_Claim]) -> Iterator[Mapping]:
    """Claims -> Mappings, in the order in which their rules have to stand."""
    run: Mapping | None = None
    for claim in sorted(claims, key=_run_order):
        if run is not None and _continues(run, claim):
            run = replace(run, count=run.count + 1)
            continue
        if run is not None:
            yield run
        run = Mapping(
            container_id=claim.container.id,
            container_name=claim.container.name,
            network_id=claim.network.id,
            network_name=claim.network.name,
            bridge=claim.network.bridge,
            protocol=claim.protocol,
            host_address=claim.host_address,
            host_port=claim.host_port,
            container_address=claim.address,
            container_port=claim.container_port,
        )
    if run is not None:
        yield run


def _continues(run: Mapping, claim: _Claim) -> bool:
    return (
        run.container_id == claim.container.id
        and run.protocol is claim.protocol
        and run.host_address == claim.host_address
        and run.host_port_end + 1 == claim.host_port
        and run.container_port_end + 1 == claim.container_port
    )


def _refused(claims: list[_Claim]) -> Iterator[Refused]:
    ports = sorted({(each.host_address, each.protocol, each.host_port) for each in claims})
    for (host_address, protocol), group in groupby(ports, key=lambda each: each[:2]):
        first = last = -1
        for _, _, port in group:
            if port == last + 1:
                last = port
                continue
            if first >= 0:
                yield Refused(protocol=protocol, host_address=host_address, first=first, last=last)
            first = last = port
        yield Refused(protocol=protocol, host_address=host_address, first=first, last=last)
