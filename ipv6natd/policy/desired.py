"""Snapshot -> Desired: which container owns which host port, what is skipped and why.

Every decision about reachability is made here and in `ruleset`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from itertools import compress
from operator import itemgetter

from ipv6natd.model import (
    Container,
    Desired,
    EngineRules,
    ManagedBy,
    Mapping,
    Network,
    Policy,
    Protocol,
    RejectedPorts,
    Skipped,
    Snapshot,
    port_ranges,
)
from ipv6natd.policy.cache import IdentityCache
from ipv6natd.policy.networks import managed_networks, network_order
from ipv6natd.policy.port_bindings import (
    ContainerPorts,
    HostPortRequest,
    PortRange,
    coalesce,
    container_ports,
    forwarded_ranges,
    host_port_ranges,
    port_mapping,
    range_identity,
    rejected_ports,
    resolve_conflicts,
    split_loopback,
)

MAX_WARNINGS_PER_NETWORK = 5
"""More warnings about ports of one network are not reported."""
_NO_LOOPBACK = (
    "[::1] cannot be forwarded to a container and the engine runs without its userland proxy; "
    "bind to 127.0.0.1 or to `::`"
)
_NO_ENGINE_RULES = (
    "the engine has IPv6 rules for other networks but none for this one, so ipv6natd writes them; "
    "to let the engine write them: systemctl restart docker"
)
_SCTP_UNSUPPORTED = (
    "this kernel cannot forward SCTP: its conntrack does not support SCTP; run a kernel with "
    "CONFIG_NF_CT_PROTO_SCTP"
)


@dataclass(frozen=True, slots=True)
class DesiredCache:
    """Intermediate results of `desired`, for the next call with mostly the same facts."""

    container_ports: IdentityCache[Container, ContainerPorts] = field(default_factory=IdentityCache)
    mappings: IdentityCache[PortRange, Mapping] = field(
        default_factory=lambda: IdentityCache(range_identity)
    )
    rejected: IdentityCache[PortRange, RejectedPorts] = field(
        default_factory=lambda: IdentityCache(range_identity)
    )


def desired(snapshot: Snapshot, policy: Policy, cache: DesiredCache | None = None) -> Desired:
    """The decisions for these facts.

    Everything in the result is sorted: the same facts in any order give the same rules, byte for
    byte.
    """
    cache = cache or DesiredCache()
    networks, skipped = managed_networks(snapshot, policy)
    all_networks = sorted(snapshot.networks, key=network_order)
    ports = cache.container_ports.map(
        snapshot.containers,
        lambda container: container_ports(container, all_networks, networks, policy),
        key=(all_networks, networks, policy),
    )
    requests, conflicting = resolve_conflicts(
        [request for wanted in ports for request in wanted.requests]
    )
    engine_writes = _engine_writes(requests, snapshot)
    if engine_writes:
        networks = _with_managed_by(networks, snapshot.engine_rules)
    our_bridges = {
        network.bridge for network in networks.values() if network.managed_by is ManagedBy.IPV6NATD
    }
    direct_access = [
        access
        for wanted in ports
        for access in wanted.direct_access
        if access.bridge in our_bridges
    ]
    with_messages = _with_messages(snapshot.containers, ports)
    skipped += [skip for wanted in with_messages for skip in wanted.skipped] + conflicting
    if not snapshot.tracks_sctp:
        sctp = [
            request.protocol is Protocol.SCTP and request.network.bridge in our_bridges
            for request in requests
        ]
        skipped += [_skipped(request, _SCTP_UNSUPPORTED) for request in compress(requests, sctp)]
        requests = [request for request, is_sctp in zip(requests, sctp, strict=True) if not is_sctp]
    on_loopback, forwarded = split_loopback(requests)
    if not snapshot.userland_proxy:
        skipped += [_skipped(request, _NO_LOOPBACK) for request in on_loopback]
    mappings = cache.mappings.map(
        forwarded_ranges(forwarded),
        lambda port_range: port_mapping(port_range, networks[port_range[0].network.id].managed_by),
        key=our_bridges,
    )
    rejected: list[RejectedPorts] = []
    if not snapshot.userland_proxy:
        our_requests = [request for request in requests if request.network.bridge in our_bridges]
        rejected = cache.rejected.map(host_port_ranges(our_requests), rejected_ports)
    warnings = [warning for wanted in with_messages for warning in wanted.warnings]
    warnings += _missing_address_warnings(mappings, snapshot.host_addresses)
    return Desired(
        networks=tuple(_with_warnings(networks, warnings)),
        mappings=tuple(mappings),
        rejected=tuple(rejected),
        direct_access=tuple(coalesce(direct_access)),
        proxy_udp_ports=tuple(
            port_ranges(port for wanted in ports for port in wanted.proxy_udp_ports)
        ),
        other_sources=tuple(
            sorted({source for wanted in ports for source in wanted.other_sources})
        ),
        skipped=tuple(dict.fromkeys(skipped)),
        userland_proxy=snapshot.userland_proxy,
        accept_fwmark=policy.accept_fwmark,
        engine_writes=engine_writes,
    )


def _with_messages(
    containers: Iterable[Container], ports: list[ContainerPorts]
) -> list[ContainerPorts]:
    """The containers' ports with skipped ports or warnings, sorted by container name."""
    found = [
        (container.name, container.id, wanted)
        for container, wanted in zip(containers, ports, strict=True)
        if wanted.skipped or wanted.warnings
    ]
    return [wanted for _, _, wanted in sorted(found, key=itemgetter(0, 1))]


def with_old_networks(old: Desired, new: Desired) -> Desired:
    """`new` with the networks of `old` added: during a change, nat still has rules for both."""
    new_bridges = {network.bridge for network in new.networks}
    removed = tuple(network for network in old.networks if network.bridge not in new_bridges)
    if not removed:
        return new
    networks = sorted((*new.networks, *removed), key=network_order)
    return replace(new, networks=tuple(networks))


def _engine_writes(requests: list[HostPortRequest], snapshot: Snapshot) -> bool:
    """True if the engine writes IPv6 rules: by its configuration, else by its rules in the kernel.

    Rules in the kernel alone prove nothing, because an engine whose `ip6tables` was switched off
    leaves its rules. But the engine writes the rule of a port before inspect shows the port: a port
    without a rule proves that the other rules are stale.
    """
    engine, rules = snapshot.engine, snapshot.engine_rules
    if engine is None or not engine.may_write_ipv6_rules:
        return False
    return engine.ip6tables is not None or all(
        (request.protocol, request.host_port) in rules.ports
        for request in requests
        if request.network.bridge in rules.bridges
    )


def _with_managed_by(networks: dict[str, Network], rules: EngineRules) -> dict[str, Network]:
    """The networks, each with the program that writes its rules.

    The engine may have failed to write the rules of one network, for example because the kernel
    lacked a table when the network was created.
    """
    warnings = (_NO_ENGINE_RULES,) if rules.bridges else ()
    return {
        key: replace(network, managed_by=ManagedBy.ENGINE)
        if network.bridge in rules.bridges
        else replace(network, warnings=(*network.warnings, *warnings))
        for key, network in networks.items()
    }


def _missing_address_warnings(
    mappings: list[Mapping], host_addresses: frozenset[IPv6Address] | None
) -> Iterator[tuple[str, str]]:
    """(network id, warning) for each binding to an address that the host does not have.

    The rules are written nevertheless: they have an effect once the host has the address.
    """
    if host_addresses is None:
        return
    for mapping in mappings:
        if not mapping.wildcard and mapping.host_address not in host_addresses:
            port = f"{mapping.host_port}/{mapping.protocol}"
            yield (
                mapping.network_id,
                f"port {port} of container '{mapping.container_name}' is bound to "
                f"{mapping.host_address}, which is not an address of this host",
            )


def _with_warnings(
    networks: dict[str, Network], warnings: list[tuple[str, str]]
) -> Iterator[Network]:
    """The networks with the warnings about their ports added."""
    by_network: dict[str, list[str]] = {}
    for network_id, warning in warnings:
        by_network.setdefault(network_id, []).append(warning)
    for network in networks.values():
        more = by_network.get(network.id, [])[:MAX_WARNINGS_PER_NETWORK]
        yield replace(network, warnings=(*network.warnings, *more)) if more else network


def _skipped(request: HostPortRequest, reason: str) -> Skipped:
    return Skipped(
        container_name=request.container.name,
        network=request.network.name,
        port=f"{request.container_port}/{request.protocol}",
        reason=reason,
    )
