"""Flows that conntrack remembers, and which of them a change of mappings has made wrong.

Conntrack asks the nat table about the first packet of a flow only. A TCP connection ends, and the
next one meets the new rules, unless it is with a container that is gone; a UDP or SCTP peer that
goes on sending from one port stays with what held when it began: a container that is gone, the
userland proxy, or nobody. What is to be forgotten is decided here; conntrack does it.
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
"""Its number among the protocols (IANA)."""

# An entry of another zone belongs to who made that zone; our rules see the packets of none.
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
    """What the filter table let pass until now that it does not let pass any more."""

    NONE = 0
    OPEN = 1
    """Our rules may have been out: whoever has a route came in."""
    UNGUARDED = 2
    """Rules of a version stood that did not ask for the sources of what leaves: besides, somebody
    may have made conntrack take what he sends to a container for answers."""


class Tuple(NamedTuple):
    """What the kernel knows one direction of a flow by, in netfilter's word for it."""

    number: int
    """The protocol's."""
    source: IPv6Address
    destination: IPv6Address
    detail: tuple[int, ...] = ()
    """Source and destination port, or GRE's keys; type, code and id of ICMPv6; else nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One entry: who asked for what, and what an answer looks like when it comes.

    Where nothing was translated, the one who answers is the one who was asked, and he answers the
    one who asked.
    """

    original: Tuple
    reply: Tuple

    @property
    def protocol(self) -> Protocol | None:
        """None for one that nobody publishes a port of."""
        return _PROTOCOLS.get(self.original.number)

    @property
    def source(self) -> IPv6Address:
        """Who began it."""
        return self.original.source

    @property
    def destination(self) -> IPv6Address:
        """Who was asked."""
        return self.original.destination

    @property
    def destination_port(self) -> int:
        """What was asked for; only what has a protocol has one."""
        return self.original.detail[1]

    @property
    def translated(self) -> bool:
        """Whether its destination was rewritten."""
        original, reply = self.original, self.reply
        return (original.destination, original.detail[1:]) != (reply.source, reply.detail[:1])

    @property
    def reversed(self) -> Flow:
        """The same flow as if the other side had begun it; of one that is not translated."""
        return Flow(original=self.reply, reply=self.original)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Entries to look at: those that have all that is named here."""

    protocol: Protocol | None = None
    source: IPv6Network | None = None
    destination: IPv6Network | None = None
    reply_source: IPv6Address | None = None


class _Target(NamedTuple):
    """Who is behind a host port."""

    address: IPv6Address
    port: int
    network_id: str
    managed_by: ManagedBy


def parse_entries(text: str) -> Iterator[Flow]:
    """What `conntrack -L`, plain or extended, lists of IPv6, over whatever protocol.

    A line that is not understood is passed over: an entry that is left is no worse than before.
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


# Most entries name the same few hosts and containers, and to parse an address takes its time.
_parse_address = lru_cache(maxsize=4096)(IPv6Address)


def queries(
    old: Desired | None, new: Desired, *, exposure: Exposure = Exposure.NONE
) -> list[Query]:
    """Where in the table an entry may be wrong now; nowhere where nothing has to be read at all."""
    closed = newly_protected(old, new, exposure=exposure)
    senders = new.networks if exposure and _own_networks(new) else closed
    return [
        *(Query(destination=subnet) for network in closed for subnet in network.subnets),
        *(Query(source=subnet) for network in senders for subnet in network.subnets),
        *(Query(reply_source=address) for address in sorted(removed_addresses(old, new))),
        *(Query(protocol=protocol) for protocol in affected_protocols(old, new)),
    ]


def affected_protocols(old: Desired | None, new: Desired) -> list[Protocol]:
    """Those whose entries may be wrong now; none where no process has to be started at all."""
    changed = _changed_protocols(old, new)
    # A flow may have outlived the mapping that nobody knows of: of UDP there is a table always.
    unknown = {Protocol.UDP} if old is None and any(_own_networks(new)) else set()
    return [
        protocol
        for protocol in FLUSHED_PROTOCOLS
        if protocol in unknown
        or (protocol in changed and _forwarding(old, protocol) != _forwarding(new, protocol))
    ]


def _changed_protocols(old: Desired | None, new: Desired) -> set[Protocol]:
    """Protocols of which a mapping may be another: mostly none that is followed, and soon known."""
    if old is None or old.userland_proxy != new.userland_proxy:
        return set(FLUSHED_PROTOCOLS)
    return {
        mapping.protocol
        for mappings in mapping_changes(old.mappings, new.mappings)
        for mapping in mappings
    }


def affects_flows(old: Desired | None, new: Desired) -> bool:
    """Whether anything changed that can make an entry wrong, or a neighbour."""
    return bool(queries(old, new) or added_endpoints(old, new))


def newly_protected(
    old: Desired | None, new: Desired, *, exposure: Exposure = Exposure.NONE
) -> tuple[Network, ...]:
    """The networks of ours that nobody closed before, all of them where their rules were out; none
    where nobody knows what held.

    A packet that came for one of their addresses before its rules stood went on to the bridge, and
    waits there up to three seconds for somebody to have that address. Should a container get it, it
    gets the packet as well, answers, and has opened the way for all of that flow.
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
    """All that is to be forgotten now that the rules for `new` have taken the place of those for
    `old`, which is None where nobody knows what held before.

    What may go on all the same meets the rules again with its next packet.

    `deleted_replies`: the replies of what was forgotten by now. One that was under way just then is
    taken for the first packet of a flow, in which the host or a container asks the client; and what
    the client says next is taken for its answer, and goes to where it went before. Who else came in
    by a network that is closed has been found by then.
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
    """Whether its source is in a network and what it asked for is not: it may be forged.

    A container's own flow looks the same. What it sends next begins another one. A TCP connection
    ends with that where the other side speaks first, so these are left to be what they are unless
    they were never guarded at all.
    """
    subnet = inside.find(flow.source)
    return (
        subnet is not None
        and flow.destination not in subnet
        and (exposure is Exposure.UNGUARDED or flow.protocol is not Protocol.TCP)
    )


def _is_from_outside(closed: PrefixIndex, flow: Flow) -> bool:
    """Whether one who is no neighbour there began it towards an address of these networks."""
    subnet = closed.find(flow.destination)
    return subnet is not None and closed.find(flow.source) != subnet


def added_networks(old: Desired | None, new: Desired) -> tuple[Network, ...]:
    """The networks of ours that were not there at all before; none where nobody knows what was.

    A flow from one of their addresses that is open by then was begun by somebody else, elsewhere.
    """
    if old is None:
        return ()
    known = {network.bridge for network in old.networks}
    return tuple(network for network in _own_networks(new) if network.bridge not in known)


def added_endpoints(old: Desired | None, new: Desired) -> tuple[tuple[str, IPv6Address], ...]:
    """(bridge, address) of the containers of ours that ports lead to now, and did not before; none
    where nobody knows what did.

    Engines before 28 give a container another MAC with each IPv4 address that it gets, and let no
    neighbour know: for up to a minute the host would send to where the address was before.
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
    """All that decides about where flows of a protocol go; None where nothing does."""
    if desired is None:
        return None
    mappings = [
        # Which container is behind an address matters to nobody here.
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
    """Addresses of containers that ports led to and no port leads to any more.

    All that they answered is over, TCP too: a client that goes on, or comes back with the port that
    it had, is to meet who is there now, and not somebody's silence. So Docker does it for IPv4.
    """
    if old is None:
        return frozenset()
    removed, _ = mapping_changes(old.mappings, new.mappings)
    # What the engine forwards by rules of its own is its business, here too.
    addresses = {
        mapping.container_address for mapping in removed if mapping.managed_by is ManagedBy.IPV6NATD
    }
    if addresses:
        addresses -= {mapping.container_address for mapping in new.mappings}
    return frozenset(addresses)


@dataclass(frozen=True, kw_only=True)
class _Change:
    """From one wish to the next, with what makes it quick to judge many flows."""

    old: Desired | None
    new: Desired
    host_addresses: frozenset[IPv6Address]

    def is_stale(self, flow: Flow) -> bool:
        """Whether it is for a port whose mapping appeared, changed or went, and does not go where
        it should go now; or is answered by an address that left.

        An answer that began a flow counts as what it is, the client's: see `wrong`.

        With `old` None nobody knows what held: each mapping counts as one that appeared, and what
        was translated to a container of ours without one as a flow whose mapping went.
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
        """Whether who is asked would know it as one that came from a port that changed."""
        return (
            flow.reply.detail[1] in self._host_ports
            and flow.reply.destination in self.host_addresses
            and not flow.translated
        )

    def _is_misdirected(self, flow: Flow) -> bool:
        """Whether a flow is for a port that changed, and does not go where that port leads now."""
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
        """Whether its mapping went while nobody looked: another container may be there by now."""
        return (
            self.old is None
            and flow.translated
            and flow.destination in self.host_addresses
            and flow.reply.source not in self.host_addresses
            and any(flow.reply.source in subnet for subnet in self._own_subnets)
            and _target_of(self._new_targets, flow) is None
        )

    def _is_never_forwarded(self, flow: Flow) -> bool:
        """Whether no rule of ours takes it to any container: see ruleset, which this matches."""
        return flow.source in LINK_LOCAL or self._is_from(flow, self._closed_subnets)

    def _ends_at_proxy(self, flow: Flow, neighbours: tuple[IPv6Network, ...]) -> bool:
        """Whether a neighbour's flow goes where our rules leave it.

        The proxy answers a datagram from the bridge's own address, whichever was asked: over UDP
        nothing else is of use to a neighbour.
        """
        from_bridge = any(flow.reply.source in subnet for subnet in neighbours)
        return (
            flow.reply.source in self.host_addresses
            and flow.reply.detail[0] == flow.destination_port
            and (from_bridge or flow.protocol is not Protocol.UDP)
        )

    def _is_from(self, flow: Flow, subnets: tuple[IPv6Network, ...]) -> bool:
        # The bridge's own address lies in the network too, but what it sends comes in by no bridge.
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
