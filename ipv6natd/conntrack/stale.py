"""Conntrack entries, and which of them are stale after a change of mappings.

Only the first packet of a flow passes the nat table. A TCP client opens a new connection, which
meets the new rules; only entries of removed containers matter. A UDP or SCTP client that keeps its
source port keeps its entry, and with it the old destination: a removed container, the userland
proxy or no service. This module decides; `entries` deletes.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache
from ipaddress import AddressValueError, IPv6Address, IPv6Network
from typing import NamedTuple

from ipv6natd.model import (
    ANY,
    LINK_LOCAL,
    LOOPBACK,
    Desired,
    ManagedBy,
    Network,
    Protocol,
    mapping_changes,
)
from ipv6natd.netfilter.prefixes import PrefixIndex

FLUSHED_PROTOCOLS = (Protocol.UDP, Protocol.SCTP)
ICMPV6 = 58
"""The protocol number (IANA)."""

# Entries with a conntrack zone belong to the program that configured the zone. Our rules use none.
_DIRECTION = (
    r"src=([0-9a-f:.]+) dst=([0-9a-f:.]+)"
    r"(?: (?:sport=(\d{1,5}) dport=(\d{1,5})|srckey=0x([0-9a-f]{1,4}) dstkey=0x([0-9a-f]{1,4})"
    r"|type=(\d{1,3}) code=(\d{1,3}) id=(\d{1,5})))?(?= )"
)
_ENTRY = re.compile(
    r"^(?:ipv6 +10 +)?\w+ +(\d{1,3}) (?!.*\bzone(?:-orig|-reply)?=)[^=\n]*\b"
    rf"{_DIRECTION}.*? {_DIRECTION}",
    re.MULTILINE,
)
_PROTOCOLS = {6: Protocol.TCP, 17: Protocol.UDP, 132: Protocol.SCTP}


class Exposure(IntEnum):
    """What the tables accepted before the current rules were written."""

    NONE = 0
    OPEN = 1
    """Our rules may have been missing: every host with a route to a container could open flows."""
    UNGUARDED = 2
    """Besides, established packets were accepted without a check of their sources before conntrack,
    as in earlier versions: a forged source may have made conntrack treat packets to a container as
    replies."""


class Tuple(NamedTuple):
    """One direction of an entry, in conntrack's word for it."""

    number: int
    """The protocol number."""
    source: IPv6Address
    destination: IPv6Address
    detail: tuple[int, ...] = ()
    """Source and destination port, or GRE's keys; type, code and id of ICMPv6; or empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A conntrack entry: the tuple of the original direction and the tuple of the reply direction.

    Without NAT the reply tuple is the original tuple with source and destination swapped.
    """

    original: Tuple
    reply: Tuple

    @property
    def protocol(self) -> Protocol | None:
        """None for a protocol whose ports cannot be published."""
        return _PROTOCOLS.get(self.original.number)

    @property
    def source(self) -> IPv6Address:
        """The source of the original direction."""
        return self.original.source

    @property
    def destination(self) -> IPv6Address:
        """The destination of the original direction."""
        return self.original.destination

    @property
    def destination_port(self) -> int:
        """The destination port of the original direction. Only if `protocol` is set."""
        return self.original.detail[1]

    @property
    def translated(self) -> bool:
        """True if DNAT rewrote the destination."""
        original, reply = self.original, self.reply
        return (original.destination, original.detail[1:]) != (reply.source, reply.detail[:1])

    @property
    def reversed(self) -> Flow:
        """The same flow with the other side as originator. Only for a flow without NAT."""
        return Flow(original=self.reply, reply=self.original)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Selects the entries that match all fields that are set."""

    protocol: Protocol | None = None
    source: IPv6Network | None = None
    destination: IPv6Network | None = None
    reply_source: IPv6Address | None = None


class _Target(NamedTuple):
    """The container behind a host port."""

    address: IPv6Address
    port: int
    network_id: str
    managed_by: ManagedBy


def parse_entries(text: str) -> Iterator[Flow]:
    """The IPv6 entries in the output of `conntrack -L`, plain or extended, of all protocols.

    Lines that do not parse are skipped: such an entry stays as it is.
    """
    for match in _ENTRY.finditer(text):
        fields = match.groups()
        number = int(fields[0])
        try:
            original, reply = (
                _parse_tuple(number, *fields[1:10]),
                _parse_tuple(number, *fields[10:]),
            )
        except AddressValueError:
            continue
        if len(original.detail) == len(reply.detail) == 2 or number not in _PROTOCOLS:
            yield Flow(original=original, reply=reply)


def _parse_tuple(number: int, source: str, destination: str, *fields: str | None) -> Tuple:
    sport, dport, srckey, dstkey, icmp_type, code, echo = fields
    detail: tuple[int, ...] = ()
    fits = number <= 0xFF
    if sport and dport:
        detail = (int(sport), int(dport))
        fits &= max(detail) <= 0xFFFF
    elif srckey and dstkey:
        detail = (int(srckey, 16), int(dstkey, 16))
    elif icmp_type and code and echo:
        detail = (int(icmp_type), int(code), int(echo))
        fits &= max(detail[:2]) <= 0xFF and detail[2] <= 0xFFFF
    if not fits:
        raise AddressValueError
    return Tuple(number, _parse_address(source), _parse_address(destination), detail)


# Most entries have the same few addresses, and parsing an address is slow.
_parse_address = lru_cache(maxsize=4096)(IPv6Address)


def queries(
    old: Desired | None, new: Desired, *, exposure: Exposure = Exposure.NONE
) -> list[Query]:
    """The queries for entries that may be stale; none if no entry can be stale."""
    closed = newly_protected(old, new, exposure=exposure)
    senders = new.networks if exposure and _own_networks(new) else closed
    return [
        *(Query(destination=subnet) for network in closed for subnet in network.subnets),
        *(Query(source=subnet) for network in senders for subnet in network.subnets),
        *(Query(reply_source=address) for address in sorted(removed_addresses(old, new))),
        *(Query(protocol=protocol) for protocol in affected_protocols(old, new)),
    ]


def affected_protocols(old: Desired | None, new: Desired) -> list[Protocol]:
    """The protocols with entries that may be stale because of changed mappings."""
    changed = _changed_protocols(old, new)
    # A UDP flow may have outlived an unknown mapping. SCTP needs a mapping in `new`: its conntrack
    # module may be missing.
    unknown = {Protocol.UDP} if old is None and any(_own_networks(new)) else set()
    return [
        protocol
        for protocol in FLUSHED_PROTOCOLS
        if protocol in unknown
        or (protocol in changed and _forwarding(old, protocol) != _forwarding(new, protocol))
    ]


def _changed_protocols(old: Desired | None, new: Desired) -> set[Protocol]:
    """The protocols of changed mappings. Cheap, and often without UDP and SCTP."""
    if old is None or old.userland_proxy != new.userland_proxy:
        return set(FLUSHED_PROTOCOLS)
    return {
        mapping.protocol
        for mappings in mapping_changes(old.mappings, new.mappings)
        for mapping in mappings
    }


def affects_flows(old: Desired | None, new: Desired) -> bool:
    """True if the change can make a conntrack entry or a neighbour entry stale."""
    return bool(queries(old, new) or added_endpoints(old, new))


def newly_protected(
    old: Desired | None, new: Desired, *, exposure: Exposure = Exposure.NONE
) -> tuple[Network, ...]:
    """Our networks that had no rules of ours before: all with `exposure`, none if `old` is None.

    A packet for an address of such a network that arrived before the rules was forwarded to the
    bridge, and waits up to three seconds for neighbour discovery. A container that gets the address
    in this time receives the packet, and its answer opens the flow.
    """
    if exposure:
        return tuple(_own_networks(new))
    if old is None:
        return ()
    known = {network.bridge for network in _own_networks(old)}
    return tuple(network for network in _own_networks(new) if network.bridge not in known)


def stale_entries(
    flows: Iterable[Flow],
    old: Desired | None,
    new: Desired,
    host_addresses: frozenset[IPv6Address],
    *,
    exposure: Exposure = Exposure.NONE,
    deleted_replies: Container[Tuple] | None = None,
) -> Iterator[Flow]:
    """The entries to delete after the rules for `new` replaced the rules for `old`.

    `old` is None if the previous mappings are unknown. A flow that the rules allow continues: its
    next packet creates a new entry.

    `deleted_replies` are the reply tuples of entries that were deleted before; None at the first
    scan. A reply that is in flight during the deletion creates a reversed entry, with the host or
    the container as originator. Conntrack then treats the client's further packets as replies,
    which skip the nat table. So later scans look for reversed entries, and for entries of changed
    mappings.
    """
    change = _Change(old=old, new=new, host_addresses=host_addresses - {LOOPBACK})
    protected = _prefix_index(newly_protected(old, new, exposure=exposure))
    added = _prefix_index(added_networks(old, new))
    inside = _prefix_index(new.networks if exposure and _own_networks(new) else ())

    def is_suspect(flow: Flow) -> bool:
        if deleted_replies is not None:
            return flow.original in deleted_replies
        return (
            added.find(flow.source) is not None
            or (
                _is_from_outside(protected, flow)
                if flow.source not in host_addresses
                else flow.protocol is Protocol.UDP and inside.find(flow.reply.source) is not None
            )
            or _may_be_forged(inside, flow, exposure)
        )

    return (flow for flow in flows if is_suspect(flow) or change.is_stale(flow))


def _prefix_index(networks: Iterable[Network]) -> PrefixIndex:
    return PrefixIndex(subnet for network in networks for subnet in network.subnets)


def _may_be_forged(inside: PrefixIndex, flow: Flow, exposure: Exposure) -> bool:
    """True if the source is in a network and the destination is not: the source may be forged.

    A container's own flow looks the same, and its next packet creates a new entry. A TCP connection
    in which the other side sends first would end, so TCP entries stay unless sources were never
    checked.
    """
    subnet = inside.find(flow.source)
    return (
        subnet is not None
        and flow.destination not in subnet
        and (exposure is Exposure.UNGUARDED or flow.protocol is not Protocol.TCP)
    )


def _is_from_outside(closed: PrefixIndex, flow: Flow) -> bool:
    """True if a source outside of the network opened the flow to an address in the network."""
    subnet = closed.find(flow.destination)
    return subnet is not None and closed.find(flow.source) != subnet


def added_networks(old: Desired | None, new: Desired) -> tuple[Network, ...]:
    """Our networks that did not exist before; none if `old` is None.

    A flow that already exists with a source in such a network was opened by another host.
    """
    if old is None:
        return ()
    known = {network.bridge for network in old.networks}
    return tuple(network for network in _own_networks(new) if network.bridge not in known)


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


def _forwarding(desired: Desired | None, protocol: Protocol) -> object:
    """The facts that decide where flows of a protocol go; None without mappings."""
    if desired is None:
        return None
    mappings = [
        # Without the container's name: a flow depends on addresses and ports only.
        (
            (mapping.host_address, mapping.host_port, mapping.count),
            (mapping.container_address, mapping.container_port, mapping.network_id),
            mapping.managed_by,
        )
        for mapping in desired.mappings
        if mapping.protocol is protocol
    ]
    return (mappings, desired.userland_proxy) if mappings else None


def removed_addresses(old: Desired | None, new: Desired) -> frozenset[IPv6Address]:
    """Container addresses that had a published port and have none now; empty if `old` is None.

    All entries with replies from them are stale, also TCP: a client that reuses its port must reach
    the new container and not an address without one. Docker does the same for IPv4.
    """
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


@dataclass(frozen=True, kw_only=True)
class _Change:
    """The change from `old` to `new`, with look-up tables for many flows."""

    old: Desired | None
    new: Desired
    host_addresses: frozenset[IPv6Address]

    def is_stale(self, flow: Flow) -> bool:
        """True if the flow is for a changed port and goes to another target than the mapping now
        says, or if its replies come from a removed address.

        A reversed reply counts as the client's flow: see `stale_entries`. If `old` is None, all
        mappings count as new, and a flow to one of our containers without a mapping as one whose
        mapping was removed.
        """
        if flow.reply.source in self._removed_addresses:
            return True
        if flow.protocol not in FLUSHED_PROTOCOLS:
            return False
        return (
            self._is_misdirected(flow)
            or self._mapping_removed_while_down(flow)
            or (self._is_reversed_reply(flow) and self._is_misdirected(flow.reversed))
        )

    def _is_reversed_reply(self, flow: Flow) -> bool:
        """True if a reply from a changed port created the entry."""
        return (
            flow.reply.detail[1] in self._host_ports
            and flow.reply.destination in self.host_addresses
            and not flow.translated
        )

    def _is_misdirected(self, flow: Flow) -> bool:
        """True if the flow is for a changed port and does not go to the port's current target."""
        if (
            flow.destination_port not in self._host_ports
            or flow.destination not in self.host_addresses
        ):
            return False
        old_target, new_target = (
            _target_of(self._old_targets, flow),
            _target_of(self._new_targets, flow),
        )
        if old_target == new_target and (new_target is None or self._same_proxy):
            return False
        owner = new_target or old_target
        if owner is None or owner.managed_by is ManagedBy.ENGINE:
            return False
        if new_target is None or self._is_never_forwarded(flow):
            return flow.translated
        neighbours = self._subnets_by_network.get(new_target.network_id, ())
        if self.new.userland_proxy and self._is_from(flow, neighbours):
            return not self._ends_at_proxy(flow, neighbours)
        return (flow.reply.source, flow.reply.detail[0]) != (new_target.address, new_target.port)

    def _mapping_removed_while_down(self, flow: Flow) -> bool:
        """True if the mapping was removed while ipv6natd was down; another container may have the
        address."""
        return (
            self.old is None
            and flow.translated
            and flow.destination in self.host_addresses
            and flow.reply.source not in self.host_addresses
            and any(flow.reply.source in subnet for subnet in self._own_subnets)
            and _target_of(self._new_targets, flow) is None
        )

    def _is_never_forwarded(self, flow: Flow) -> bool:
        """True if no rule forwards the flow to a container. Must agree with policy.ruleset."""
        return flow.source in LINK_LOCAL or self._is_from(flow, self._closed_subnets)

    def _ends_at_proxy(self, flow: Flow, neighbours: tuple[IPv6Network, ...]) -> bool:
        """True if a neighbour's flow ends at the userland proxy, as our rules require.

        The proxy answers a datagram from the bridge's own address, whatever its destination was. So
        for UDP only that address is useful to a neighbour.
        """
        from_bridge = any(flow.reply.source in subnet for subnet in neighbours)
        return (
            flow.reply.source in self.host_addresses
            and flow.reply.detail[0] == flow.destination_port
            and (from_bridge or flow.protocol is not Protocol.UDP)
        )

    def _is_from(self, flow: Flow, subnets: tuple[IPv6Network, ...]) -> bool:
        # The bridge's own address is in the subnet, but packets of the host arrive on no bridge.
        return flow.source not in self.host_addresses and any(
            flow.source in subnet for subnet in subnets
        )

    @cached_property
    def _removed_addresses(self) -> frozenset[IPv6Address]:
        return removed_addresses(self.old, self.new)

    @cached_property
    def _old_targets(self) -> dict[tuple[Protocol, IPv6Address, int], _Target]:
        return _targets(self.old)

    @cached_property
    def _new_targets(self) -> dict[tuple[Protocol, IPv6Address, int], _Target]:
        return _targets(self.new)

    @cached_property
    def _host_ports(self) -> frozenset[int]:
        return frozenset(
            port for table in (self._old_targets, self._new_targets) for _, _, port in table
        )

    @cached_property
    def _same_proxy(self) -> bool:
        return self.old is None or self.old.userland_proxy == self.new.userland_proxy

    @cached_property
    def _subnets_by_network(self) -> dict[str, tuple[IPv6Network, ...]]:
        return {network.id: network.subnets for network in self.new.networks}

    @cached_property
    def _own_subnets(self) -> tuple[IPv6Network, ...]:
        return tuple(subnet for network in _own_networks(self.new) for subnet in network.subnets)

    @cached_property
    def _closed_subnets(self) -> tuple[IPv6Network, ...]:
        return tuple(
            subnet for network in self.new.networks if network.closed for subnet in network.subnets
        )


def _targets(desired: Desired | None) -> dict[tuple[Protocol, IPv6Address, int], _Target]:
    return {
        (mapping.protocol, mapping.host_address, mapping.host_port + i): _Target(
            mapping.container_address,
            mapping.container_port + i,
            mapping.network_id,
            mapping.managed_by,
        )
        for mapping in (desired.mappings if desired else ())
        if mapping.protocol in FLUSHED_PROTOCOLS
        for i in range(mapping.count)
    }


def _target_of(
    targets: dict[tuple[Protocol, IPv6Address, int], _Target], flow: Flow
) -> _Target | None:
    # A binding to an address precedes a wildcard.
    protocol, port = flow.protocol, flow.destination_port
    assert protocol is not None
    return targets.get((protocol, flow.destination, port)) or targets.get((protocol, ANY, port))
