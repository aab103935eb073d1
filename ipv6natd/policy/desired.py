"""Snapshot -> Desired: which port belongs to whom, and what is skipped and why.

Every decision about who may be reached how is made in the core; the shell makes none.
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
    PortRanges,
    coalesce,
    container_ports,
    extends_range,
    is_next_port,
    loopback_slice,
    port_mapping,
    rejected_ports,
    resolve_conflicts,
)

MAX_WARNINGS_PER_NETWORK = 5
"""Ports that are named for one network."""
_NO_LOOPBACK = (
    "[::1] cannot be forwarded to a container and the engine runs without its userland proxy; "
    "bind to 127.0.0.1 or to `::`"
)
_NO_ENGINE_RULES = (
    "the engine keeps IPv6 rules for other networks and none for this one, so ipv6natd does; to "
    "have it done by the engine: systemctl restart docker"
)
_SCTP_UNSUPPORTED = (
    "this kernel cannot forward SCTP: its conntrack does not know it; run a kernel that is built "
    "with CONFIG_NF_CT_PROTO_SCTP"
)


@dataclass(frozen=True, slots=True)
class DesiredCache:
    """What parts of the picture came to, for the next one, in which most of it is the same."""

    container_ports: IdentityCache[Container, ContainerPorts] = field(default_factory=IdentityCache)
    ranges: PortRanges = field(default_factory=lambda: PortRanges(extends_range))
    mappings: IdentityCache[PortRange, Mapping] = field(default_factory=IdentityCache)
    rejected_ranges: PortRanges = field(default_factory=lambda: PortRanges(is_next_port))
    rejected: IdentityCache[PortRange, RejectedPorts] = field(default_factory=IdentityCache)


def desired(snapshot: Snapshot, policy: Policy, cache: DesiredCache | None = None) -> Desired:
    """What should hold, given what is.

    The order of everything in the answer depends on nothing but the facts, so that equal facts
    give equal rules to the byte.
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
    if not snapshot.userland_proxy:
        on_loopback = requests[loopback_slice(requests)]
        skipped += [_skipped(request, _NO_LOOPBACK) for request in on_loopback]
    forwarded = requests.copy()
    del forwarded[loopback_slice(requests)]
    mappings = cache.mappings.map(
        cache.ranges.group(forwarded),
        lambda ports: port_mapping(ports, networks[ports[0].network.id].managed_by),
        key=our_bridges,
    )
    rejected: list[RejectedPorts] = []
    if not snapshot.userland_proxy:
        our_requests = [request for request in requests if request.network.bridge in our_bridges]
        ranges = cache.rejected_ranges.group(our_requests)
        rejected = cache.rejected.map(ranges, rejected_ports)
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
        skipped=tuple(dict.fromkeys(skipped)),
        userland_proxy=snapshot.userland_proxy,
        accept_fwmark=policy.accept_fwmark,
        engine_writes=engine_writes,
    )


def _with_messages(
    containers: Iterable[Container], ports: list[ContainerPorts]
) -> list[ContainerPorts]:
    """Those of which there is something to tell, in the order of the containers' names."""
    found = [
        (container.name, container.id, wanted)
        for container, wanted in zip(containers, ports, strict=True)
        if wanted.skipped or wanted.warnings
    ]
    return [wanted for _, _, wanted in sorted(found, key=itemgetter(0, 1))]


def with_old_networks(old: Desired, new: Desired) -> Desired:
    """`new`, and the networks of `old` besides: for the moment in which both have rules in nat."""
    new_bridges = {network.bridge for network in new.networks}
    removed = tuple(network for network in old.networks if network.bridge not in new_bridges)
    if not removed:
        return new
    networks = sorted((*new.networks, *removed), key=network_order)
    return replace(new, networks=tuple(networks))


def _engine_writes(requests: list[HostPortRequest], snapshot: Snapshot) -> bool:
    """Whether the engine keeps IPv6 rules, as far as anything tells.

    An engine that was switched off leaves its rules behind, so rules alone prove nothing. It
    forwards a port before inspect shows it: a port without its rule tells that nobody keeps the
    others either.
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
    """The networks, each with who writes its rules.

    Beside networks of the engine's there may be one that it failed to write rules for, say because
    the kernel lacked a table when it was made.
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
    """Bindings to addresses that the host does not have, with their networks' ids.

    Their rules are harmless, and come to life with the address.
    """
    if host_addresses is None:
        return
    for mapping in mappings:
        if not mapping.wildcard and mapping.host_address not in host_addresses:
            port = f"{mapping.host_port}/{mapping.protocol}"
            yield (
                mapping.network_id,
                f"port {port} of container '{mapping.container_name}' is bound to "
                f"{mapping.host_address}, which is no address of this host now",
            )


def _with_warnings(
    networks: dict[str, Network], warnings: list[tuple[str, str]]
) -> Iterator[Network]:
    """The networks, each with what there is to say of its ports."""
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
