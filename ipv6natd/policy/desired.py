"""Snapshot -> Desired: which container owns which host port, what is skipped and why.

Every decision about reachability is made here and in `ruleset`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv6Address
from typing import NamedTuple

from ipv6natd.model import (
    LOOPBACK,
    Desired,
    DirectAccess,
    ManagedBy,
    Mapping,
    Network,
    Outcome,
    Policy,
    PortDecision,
    Protocol,
    RejectedPorts,
    Snapshot,
)
from ipv6natd.policy.cache import IdentityCache
from ipv6natd.policy.networks import (
    decided_networks,
    network_order,
    other_closed_networks,
    skipped_networks,
)
from ipv6natd.policy.port_bindings import (
    ANSWERS_ON_LOOPBACK,
    Changes,
    ContainerPorts,
    HostPortRequest,
    coalesce,
    container_ports,
    mapping_ranges,
    port_ranges,
    range_identity,
    range_mapping,
    refused,
    rejected_ranges,
    rejection,
    resolve_conflicts,
    skipped_ports,
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
_VACATED = (
    "the Docker engine is unavailable, and since then a container has left the network, so another "
    "container may have this one's address; the port is forwarded again when the engine answers"
)
_SCTP_UNSUPPORTED = (
    "this kernel cannot forward SCTP: its conntrack does not support SCTP; run a kernel with "
    "CONFIG_NF_CT_PROTO_SCTP"
)


class HostPorts(NamedTuple):
    """The host ports with one owner each, by what is done with them."""

    mappings: list[Mapping]
    rejected: list[RejectedPorts]
    """Clients that cannot be forwarded are rejected. Empty if the userland proxy serves them."""
    changes: Changes
    closed: list[HostPortRequest]
    """Those of a network that a container may have left. The userland proxy may listen on them."""


def desired(snapshot: Snapshot, policy: Policy, cache: IdentityCache | None = None) -> Desired:
    """The decisions for these facts.

    Everything in the result is sorted: the same facts in any order give the same rules, byte for
    byte.
    """
    cache = cache or IdentityCache()
    engine_bridges = _engine_bridges(snapshot)
    networks, ports, owned, conflicts = _requests(snapshot, policy, engine_bridges, cache)
    missing = tuple(_missing_engine_rules(owned, snapshot))
    if missing and not _engine_is_set_to_write(snapshot):
        # The other rules are stale, or somebody removed some: the engine is not in charge.
        engine_bridges = frozenset()
        networks, ports, owned, conflicts = _requests(snapshot, policy, engine_bridges, cache)
    host_ports = _host_ports(owned, engine_bridges, snapshot, cache)
    changes = conflicts | host_ports.changes
    noted = _with_messages(ports)
    skipped = (
        *skipped_networks(networks, snapshot),
        *(skipped for item in noted for skipped in item.skipped),
        *skipped_ports(changes.values()),
    )
    warnings = _warnings(noted, host_ports.mappings, snapshot.host_addresses)
    return Desired(
        networks=tuple(_managed_networks(networks, engine_bridges, warnings)),
        closed_networks=tuple(other_closed_networks(networks, snapshot)),
        mappings=tuple(host_ports.mappings),
        rejected=tuple(host_ports.rejected),
        direct_access=tuple(coalesce(_direct_access(ports, snapshot))),
        proxy_udp_ports=tuple(port_ranges(_proxy_udp_ports(ports, host_ports.closed))),
        other_sources=tuple(sorted({source for item in ports for source in item.other_sources})),
        skipped=tuple(dict.fromkeys(skipped)),
        decisions=_final_decisions(ports, changes),
        userland_proxy=snapshot.userland_proxy,
        accept_fwmark=policy.accept_fwmark,
        has_ipvlan=any(network.driver == "ipvlan" for network in networks),
        engine_writes=_engine_may_write(snapshot),
        missing_engine_rules=missing,
    )


class _Requests(NamedTuple):
    """What the containers request."""

    networks: list[Network]
    ports: list[ContainerPorts]
    owned: list[HostPortRequest]
    """One request for each host port."""
    conflicts: Changes


def _requests(
    snapshot: Snapshot, policy: Policy, engine_bridges: frozenset[str], cache: IdentityCache
) -> _Requests:
    networks = decided_networks(snapshot, policy, engine_bridges)
    ports = cache.map(
        "container ports",
        snapshot.containers,
        lambda container: container_ports(container, networks, policy),
        key=(networks, policy),
    )
    requests = (request for item in ports for request in item.requests)
    return _Requests(networks, ports, *resolve_conflicts(requests))


def _direct_access(ports: list[ContainerPorts], snapshot: Snapshot) -> Iterator[DirectAccess]:
    for item in ports:
        for access in item.direct_access:
            if access.bridge not in snapshot.vacated_bridges:
                yield access


def _host_ports(
    owned: list[HostPortRequest],
    engine_bridges: frozenset[str],
    snapshot: Snapshot,
    cache: IdentityCache,
) -> HostPorts:
    closed: list[HostPortRequest] = []
    if snapshot.vacated_bridges:
        # With the userland proxy, the proxy still answers while the process of the engine runs.
        vacated = [it for it in owned if it.mapping.bridge in snapshot.vacated_bridges]
        closed = _ours(vacated, engine_bridges)
    changes = refused(closed, _VACATED)
    if not snapshot.tracks_sctp:
        sctp = [request for request in owned if request.mapping.protocol is Protocol.SCTP]
        changes |= refused(_ours(sctp, engine_bridges), _SCTP_UNSUPPORTED)
    if changes:
        owned = [request for request in owned if request.decision not in changes]
    loopback = int(LOOPBACK)
    on_loopback = [request for request in owned if request.key[1] == loopback]
    forwarded = [request for request in owned if request.key[1] != loopback]
    if snapshot.userland_proxy:
        changes |= refused(on_loopback, ANSWERS_ON_LOOPBACK, Outcome.PROXY)
        rejected = []
    else:
        changes |= refused(on_loopback, _NO_LOOPBACK)
        rejected = _ours(owned, engine_bridges)
    return HostPorts(
        cache.map(
            "mappings",
            mapping_ranges(forwarded),
            lambda port_range: range_mapping(port_range, engine_bridges),
            key=engine_bridges,
            identity=range_identity,
        ),
        cache.map("rejected", rejected_ranges(rejected), rejection, identity=range_identity),
        changes,
        closed,
    )


def _proxy_udp_ports(ports: list[ContainerPorts], closed: list[HostPortRequest]) -> Iterator[int]:
    """The UDP ports without a mapping on which the userland proxy may listen."""
    for item in ports:
        yield from item.proxy_udp_ports
    for request in closed:
        if request.mapping.protocol is Protocol.UDP:
            yield request.mapping.host_port


def _ours(requests: list[HostPortRequest], engine_bridges: frozenset[str]) -> list[HostPortRequest]:
    return [request for request in requests if request.mapping.bridge not in engine_bridges]


def _with_messages(ports: list[ContainerPorts]) -> list[ContainerPorts]:
    """The ports of containers with skipped ports or warnings, sorted by container name."""
    return sorted(
        (item for item in ports if item.skipped or item.warnings),
        key=lambda item: (item.container.name, item.container.id),
    )


def _final_decisions(
    ports: list[ContainerPorts], changes: Changes
) -> dict[str, tuple[PortDecision, ...]]:
    """Container id -> its decisions, with the changed ones replaced."""
    decisions = {item.container.id: item.decisions for item in ports}
    for container_id in {decision.container.id for decision in changes}:
        decisions[container_id] = tuple(
            changes.get(decision, decision) for decision in decisions[container_id]
        )
    return decisions


def during_change(old: Desired, new: Desired) -> Desired:
    """The decisions for raw and filter until all tables are written.

    They have the networks of both, because nat may have rules for both. They have only the other
    sources that both have: raw lets no source in before filter drops its new packets.
    """
    new_bridges = {network.bridge for network in new.networks}
    removed = tuple(network for network in old.networks if network.bridge not in new_bridges)
    added_sources = set(new.other_sources).difference(old.other_sources)
    if not removed and not added_sources:
        return new
    return replace(
        new,
        networks=tuple(sorted((*new.networks, *removed), key=network_order)),
        other_sources=tuple(it for it in new.other_sources if it not in added_sources),
    )


def _engine_may_write(snapshot: Snapshot) -> bool:
    return snapshot.engine is not None and snapshot.engine.may_write_ipv6_rules


def _missing_engine_rules(
    requests: list[HostPortRequest], snapshot: Snapshot
) -> Iterator[tuple[Protocol, int]]:
    """The ports on the engine's bridges without a rule of the engine, if it may write them.

    The engine writes the rule of a port before the container's inspect shows the port, but not
    always before the network's inspect shows the container. Rules that cannot be read may be in
    force.
    """
    rules = snapshot.engine_rules
    if not _engine_may_write(snapshot) or not rules.complete:
        return
    for request in requests:
        port = request.mapping.protocol, request.mapping.host_port
        starting = request.decision.container.starting
        if request.mapping.bridge in rules.bridges and port not in rules.ports and not starting:
            yield port


def _engine_bridges(snapshot: Snapshot) -> frozenset[str]:
    """The bridges that the engine manages, by its rules in the kernel.

    An engine whose `ip6tables` was switched off leaves its rules, so they count only if it may
    write them.
    """
    return snapshot.engine_rules.bridges if _engine_may_write(snapshot) else frozenset()


def _engine_is_set_to_write(snapshot: Snapshot) -> bool:
    return snapshot.engine is not None and snapshot.engine.ip6tables is not None


def _warnings(
    noted: list[ContainerPorts],
    mappings: list[Mapping],
    host_addresses: frozenset[IPv6Address] | None,
) -> Iterator[tuple[str, str]]:
    """(network id, warning) for ports.

    The rules for an address that the host does not have are written nevertheless: they have an
    effect once the host has the address.
    """
    for item in noted:
        yield from item.warnings
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


def _managed_networks(
    decided: list[Network], engine_bridges: frozenset[str], warnings: Iterable[tuple[str, str]]
) -> Iterator[Network]:
    """The managed networks, each with the program that writes its rules and with its warnings.

    The engine may have failed to write the rules of one network, for example because the kernel
    lacked a table when the network was created.
    """
    by_network: dict[str, list[str]] = {}
    for network_id, warning in warnings:
        by_network.setdefault(network_id, []).append(warning)
    for network in decided:
        if not network.managed:
            continue
        more = by_network.get(network.id, [])[:MAX_WARNINGS_PER_NETWORK]
        if network.bridge in engine_bridges:
            network = replace(network, managed_by=ManagedBy.ENGINE)
        elif engine_bridges:
            more = [_NO_ENGINE_RULES, *more]
        yield replace(network, warnings=(*network.warnings, *more)) if more else network
