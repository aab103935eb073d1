"""Which conntrack entries are stale after a change of mappings, for one of five reasons.

Only the first packet of a flow passes the nat table. A UDP or SCTP client that keeps its port
keeps its entry, and with it the old destination: a removed container, the userland proxy or no
service. A TCP client opens a new connection, which meets the new rules; so only entries of removed
containers matter, and those of connections that began before the rule of a port: their next packet
must meet it. This module decides; `flush` lists and deletes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from enum import IntEnum
from ipaddress import IPv6Address, IPv6Network
from typing import NamedTuple

from ipv6natd.conntrack.entries import SCTP, TCP, UDP, Entry, Tuple
from ipv6natd.model import (
    ANY,
    LINK_LOCAL,
    LOOPBACK,
    Desired,
    ManagedBy,
    Network,
    OtherSource,
    Protocol,
    mapping_changes,
)
from ipv6natd.model import Mapping as PortMapping
from ipv6natd.netfilter.prefixes import MIN_PREFIX_LENGTH, PrefixIndex

_PROTOCOLS = {TCP: Protocol.TCP, UDP: Protocol.UDP, SCTP: Protocol.SCTP}
"""Number -> protocol, for the protocols with published ports."""
_DATAGRAMS = frozenset({Protocol.UDP, Protocol.SCTP})
"""The protocols whose entries follow a changed mapping."""


class Exposure(IntEnum):
    """What the tables accepted before the current rules were written."""

    NONE = 0
    OPEN = 1
    """Our rules may have been missing: every host with a route to a container could open flows."""
    UNGUARDED = 2
    """Besides, established packets were accepted without a check of their sources before conntrack,
    as in earlier versions: a forged source may have made conntrack treat packets to a container as
    replies."""


def affects_entries(old: Desired | None, new: Desired, exposure: Exposure) -> bool:
    """True if the change can make a conntrack entry stale."""
    return bool(
        newly_protected(old, new, exposure)
        or removed_addresses(old, new)
        or left_other_sources(old, new)
        or changes_ports(old, new)
    )


# Which entries can be stale.


def removed_addresses(old: Desired | None, new: Desired) -> frozenset[IPv6Address]:
    """Container addresses that had a published port and have none now; empty if `old` is None."""
    if old is None:
        return frozenset()
    removed, _ = mapping_changes(old.mappings, new.mappings)
    # The engine flushes the flows of its own mappings.
    addresses = {
        mapping.container_address for mapping in removed if mapping.managed_by is ManagedBy.IPV6NATD
    }
    if addresses:
        addresses -= {mapping.container_address for mapping in new.mappings}
    return frozenset(addresses)


def left_other_sources(old: Desired | None, new: Desired) -> frozenset[OtherSource]:
    """The sources that may no longer come in by the bridge of another network; if `old` is None,
    those that may: earlier versions accepted more than replies."""
    if old is None:
        return frozenset(new.other_sources)
    if old.other_sources == new.other_sources:
        return frozenset()  # at nearly each change
    return frozenset(old.other_sources) - frozenset(new.other_sources)


def changes_ports(old: Desired | None, new: Desired) -> bool:
    """True if entries can be stale because of changed ports."""
    if old is None:
        # Without a mapping, a UDP flow may have outlived an unknown one.
        return bool(_own_networks(new) or new.mappings)
    removed, added = mapping_changes(old.mappings, new.mappings)
    if _opened_ports(removed, added):
        return True
    if old.userland_proxy != new.userland_proxy:
        return bool(_targets(old.mappings) or _targets(new.mappings))
    return _targets(removed) != _targets(added)


def _opened_ports(removed: Iterable[PortMapping], added: Iterable[PortMapping]) -> _Targets:
    """The TCP ports of ours that lead to another container than before."""
    before = _targets(removed, {Protocol.TCP})
    return {
        port: target
        for port, target in _targets(added, {Protocol.TCP}).items()
        if target != before.get(port) and target.managed_by is not ManagedBy.ENGINE
    }


def newly_protected(
    old: Desired | None, new: Desired, exposure: Exposure
) -> dict[Network, tuple[IPv6Network, ...]]:
    """Our networks, and their prefixes that had no rules of ours before: all with `exposure`, none
    if `old` is None.

    A packet for an address of such a network that arrived before the rules was forwarded to the
    bridge, and waits up to three seconds for neighbour discovery. A container that gets the address
    in this time receives the packet, and its answer opens the flow.
    """
    known = [] if exposure else _own_networks(old or new)
    return dict(_gained_prefixes(known, _own_networks(new)))


def _gained_prefixes(
    old: Iterable[Network], new: Iterable[Network]
) -> Iterator[tuple[Network, tuple[IPv6Network, ...]]]:
    """The networks whose bridges get addresses that were not theirs before, and these prefixes.

    A route to a wide prefix does not say which hosts are there.
    """
    before = {network.bridge: network for network in old}
    for network in new:
        routed = {p for p in network.routed_prefixes if p.prefixlen >= MIN_PREFIX_LENGTH}
        prefixes = {*network.subnets, *routed}
        if known := before.get(network.bridge):
            prefixes -= {*known.subnets, *known.routed_prefixes}
        if prefixes:
            yield network, tuple(sorted(prefixes))


def added_endpoints(old: Desired | None, new: Desired) -> tuple[tuple[str, IPv6Address], ...]:
    """(bridge, address) of our containers that have published ports only now; none if `old` is
    None.

    Engines before Docker 28 give a container a new MAC address with each IPv4 address, and do not
    announce the change. For up to a minute the host would send to the old MAC address.
    """
    if old is None:
        return ()
    bridges = {network.id: network.bridge for network in _own_networks(new)}
    removed, added = mapping_changes(old.mappings, new.mappings)
    known = {mapping.container_address for mapping in removed}
    return tuple(
        dict.fromkeys(
            (bridges[mapping.network_id], mapping.container_address)
            for mapping in added
            if mapping.network_id in bridges and mapping.container_address not in known
        )
    )


def _own_networks(desired: Desired) -> list[Network]:
    return [network for network in desired.networks if network.managed_by is ManagedBy.IPV6NATD]


# Which entries are stale.


class _Target(NamedTuple):
    """The container behind a host port."""

    address: IPv6Address
    port: int
    network_id: str
    managed_by: ManagedBy


_Targets = Mapping[tuple[Protocol, IPv6Address, int], _Target]
"""Protocol, host address and host port -> target."""


class Change:
    """The change of the rules for `old` to those for `new`, as look-up tables for many entries.

    `old` is None if the previous mappings are unknown. It has many attributes, because each is
    computed once for a table that may have a million entries.
    """

    def __init__(
        self,
        old: Desired | None,
        new: Desired,
        host_addresses: frozenset[IPv6Address],
        exposure: Exposure,
    ) -> None:
        self.removed = removed_addresses(old, new)
        self.other_sources = {
            (source.address, source.default_bridge) for source in left_other_sources(old, new)
        }
        self.before = None if old is None else _targets(old.mappings)
        """The ports before; None if unknown. Then all mappings count as new, and a flow to one of
        our containers without a mapping as one whose mapping was removed."""
        self.after = _targets(new.mappings)
        self.ports = {port for _, _, port in (*(self.before or ()), *self.after)}
        """The host ports, to skip most entries soon: the table may have a million."""
        self.opened = _opened_ports(*mapping_changes(old.mappings if old else (), new.mappings))
        self.proxy = new.userland_proxy
        self.proxy_changed = old is not None and old.userland_proxy != new.userland_proxy
        self.host_addresses = host_addresses - {LOOPBACK}
        """Without loopback, for which no port is published."""
        self.networks = {subnet: network for network in new.networks for subnet in network.subnets}
        """By subnet, also the engine's."""
        self.subnets = PrefixIndex(self.networks)
        # Without a network of ours, the sources of the engine's networks were not checked.
        checked = old or new
        known = checked.networks if _own_networks(checked) else ()
        gained = dict(_gained_prefixes(known, _own_networks(new)))
        self.added = _addresses_in(gained, self.subnets, self.host_addresses)
        """True for an address in a prefix of ours whose sources were not checked before."""
        protected = newly_protected(old, new, exposure)
        self.protects = bool(protected)
        self.protected = _addresses_in(protected, self.subnets, self.host_addresses)
        """True for an address in a prefix of ours that had no rules of ours before."""
        self.exposure = exposure

    def network_of(self, address: IPv6Address) -> Network | None:
        """The network with a subnet that contains the address."""
        subnet = self.subnets.find(address)
        return None if subnet is None else self.networks[subnet]

    def senders_network(self, entry: Entry) -> Network | None:
        """The network of the bridge by which the entry's first packet came in, by its source. The
        bridge's own address is in the subnet too, but packets of the host arrive on no bridge."""
        source = entry.original.source
        return None if source in self.host_addresses else self.network_of(source)


def _addresses_in(
    gained: Mapping[Network, Iterable[IPv6Network]],
    subnets: PrefixIndex,
    host_addresses: Container[IPv6Address],
) -> Callable[[IPv6Address], bool]:
    """A test for addresses in these prefixes. An address of the host, or of a network or a LAN
    inside a prefix that is routed to a container, is not there."""
    prefixes = {prefix for of_network in gained.values() for prefix in of_network}
    index = PrefixIndex(prefixes)
    elsewhere = PrefixIndex(r.prefix for network in gained for r in network.routes_elsewhere)

    def within(address: IPv6Address) -> bool:
        if address in host_addresses or elsewhere.find(address):
            return False
        subnet = subnets.find(address)
        return index.find(address) is not None if subnet is None else subnet in prefixes

    return within


def is_stale(entry: Entry, change: Change, deleted_replies: Container[bytes] | None = None) -> bool:
    """True if the entry must go after the rules changed. A flow that the rules allow continues: its
    next packet creates a new entry.

    `deleted_replies` are the packed reply tuples of entries that were deleted before; None at the
    first scan. A reply that is in flight during the deletion creates a reversed entry, with the
    host or the container as originator. Conntrack then treats the client's further packets as
    replies, which skip the nat table. So later scans look for reversed entries, and for entries of
    changed mappings.
    """
    return (
        _is_of_removed_container(entry, change)
        or _is_by_other_bridge(entry, change)
        or _is_unserved(entry, change)
        or _is_for_changed_port(entry, change)
        or (
            _is_of_newly_protected_network(entry, change)
            if deleted_replies is None
            else entry.original.packed in deleted_replies
        )
    )


def _targets(
    mappings: Iterable[PortMapping], protocols: Collection[Protocol] = _DATAGRAMS
) -> _Targets:
    return {
        (mapping.protocol, mapping.host_address, mapping.host_port + i): _Target(
            mapping.container_address,
            mapping.container_port + i,
            mapping.network_id,
            mapping.managed_by,
        )
        for mapping in mappings
        if mapping.protocol in protocols
        for i in range(mapping.count)
    }


def _target(targets: _Targets | None, asked: Tuple) -> _Target | None:
    """The target of the port to which the packets of a direction go."""
    if targets is None:
        return None
    protocol, port = _PROTOCOLS[asked.protocol], asked.destination_port
    # A binding to an address precedes a wildcard.
    return targets.get((protocol, asked.destination, port)) or targets.get((protocol, ANY, port))


def _is_of_removed_container(entry: Entry, change: Change) -> bool:
    """Reply direction: the packets come from the address of a removed container.

    Also with TCP: a client that reuses its port must reach the new container and not an address
    without one. Docker does the same for IPv4.
    """
    return bool(change.removed) and entry.reply.source in change.removed


def _is_by_other_bridge(entry: Entry, change: Change) -> bool:
    """Original direction: a neighbour on the default route sent a packet back into this network,
    from the container's address on another one. What the container itself sends there has its
    address there."""
    if not change.other_sources:
        return False
    receiver = change.network_of(entry.original.destination)
    return receiver is not None and (
        (entry.original.source, receiver.bridge) in change.other_sources
    )


def _is_unserved(entry: Entry, change: Change) -> bool:
    """Original direction: a client has connected to a port of the host before its rule was written.

    Without the userland proxy, a socket of the engine holds the port, and nobody reads it. With it,
    the proxy serves each connection that it answers; an engine that drops the first packet until
    the container runs (Docker 29) leaves an entry without an answer. A closed network reaches no
    port.
    """
    original = entry.original
    return (
        original.protocol == TCP
        and not entry.translated
        and original.destination in change.host_addresses
        and _target(change.opened, original) is not None
        and not (change.proxy and entry.answered and not _is_of_closed_network(entry, change))
    )


def _is_of_closed_network(entry: Entry, change: Change) -> bool:
    network = change.senders_network(entry)
    return network is not None and network.closed


def may_wait_for_accept(entry: Entry, change: Change) -> bool:
    """True if the engine's socket may have the connection, or get it: its first packet may be
    answered after the entry was listed."""
    return _is_unserved(entry, change) and not change.proxy


def may_be_served(entry: Entry, change: Change) -> bool:
    """True if the entry is stale only if no process has accepted the connection. A service of the
    host may have had the port before, and still serve its clients."""
    return (
        entry.answered
        and _is_unserved(entry, change)
        and not (change.proxy and _is_of_closed_network(entry, change))
        and not _is_of_newly_protected_network(entry, change)
    )


def _is_for_changed_port(entry: Entry, change: Change) -> bool:
    """Original direction: a client sends to a port of the host. Reply direction: the answers come
    from another source than the target that the mapping now has.

    If a reply created the entry, the directions are reversed: see `is_stale`.
    """
    if entry.original.protocol not in (UDP, SCTP):
        return False
    return (
        _is_misdirected(entry, change)
        or _is_of_unknown_mapping(entry, change)
        or (not entry.translated and _is_misdirected(Entry(entry.reply, entry.original), change))
    )


def _is_misdirected(entry: Entry, change: Change) -> bool:
    """True if a port has changed and the client's packets do not go to its current target."""
    original, reply = entry[:2]
    if original.destination_port not in change.ports:
        return False
    if original.destination not in change.host_addresses:
        return False
    before, after = _target(change.before, original), _target(change.after, original)
    if before == after and not (after and change.proxy_changed):
        return False
    owner = after or before
    if owner is None or owner.managed_by is ManagedBy.ENGINE:
        return False
    network = change.senders_network(entry)
    # Must agree with policy.ruleset: no packet of a closed network reaches a port, and none with a
    # link-local source is forwarded.
    if after is not None and network is not None and network.closed:
        return True
    if after is None or original.source in LINK_LOCAL:
        return entry.translated
    if change.proxy and network is not None and network.id == after.network_id:
        return not _ends_at_proxy(entry, change, network)
    return (reply.source, reply.source_port) != (after.address, after.port)


def _ends_at_proxy(entry: Entry, change: Change, network: Network) -> bool:
    """True if the packets of a neighbour go to the userland proxy, as our rules require.

    The proxy answers a datagram from the bridge's own address, whatever its destination was. So for
    UDP only that address is useful to a neighbour.
    """
    original, reply = entry[:2]
    return (
        reply.source in change.host_addresses
        and reply.source_port == original.destination_port
        and (original.protocol != UDP or change.network_of(reply.source) is network)
    )


def _is_of_unknown_mapping(entry: Entry, change: Change) -> bool:
    """True if the mapping was removed while ipv6natd was down; another container may have the
    address."""
    original, reply = entry[:2]
    if change.before is not None or not entry.translated:
        return False
    network = change.network_of(reply.source)
    return (
        network is not None
        and network.managed_by is ManagedBy.IPV6NATD
        and reply.source not in change.host_addresses
        and original.destination in change.host_addresses
        and _target(change.after, original) is None
    )


def _is_of_newly_protected_network(entry: Entry, change: Change) -> bool:
    """Original direction: another host sends to an address in the network, or has forged a source.

    A source in a prefix is forged if the prefix was in no network before, and may be forged after
    exposure. So may be a source of this host; the reply direction then comes from a container.
    """
    if not change.protects:
        return False
    original, reply = entry[:2]
    sender = change.network_of(original.source)
    receiver = change.network_of(original.destination)
    # A container's own flow looks like a forged one, and its next packet creates a new entry. A TCP
    # connection in which the other side sends first would end, so it stays unless sources were
    # never checked.
    suspect = change.exposure and (
        change.exposure is Exposure.UNGUARDED or original.protocol != TCP
    )
    # A prefix that is routed to a container is in no network.
    routed = sender is None and change.protected(original.source)
    if change.added(original.source) or (
        suspect and (routed or (sender is not None and receiver is not sender))
    ):
        return True
    if original.source in change.host_addresses or original.source == LOOPBACK:
        return (
            change.exposure is not Exposure.NONE
            and original.protocol == UDP
            and change.network_of(reply.source) is not None
        )
    return change.protected(original.destination) and (receiver is None or receiver is not sender)
