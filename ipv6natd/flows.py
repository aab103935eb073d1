"""Flows that conntrack remembers, and which of them a change of mappings has made wrong.

Conntrack asks the nat table about the first packet of a flow only. A TCP connection ends, and the
next one meets the new rules; a UDP or SCTP peer that goes on sending from one port stays with what
held when it began: a container that is gone, the userland proxy, or nobody. What is to be forgotten
is decided here; conntrack does it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from ipaddress import AddressValueError, IPv6Address, IPv6Network
from typing import NamedTuple

from ipv6natd.model import (
    ANY,
    LINK_LOCAL,
    LOOPBACK,
    Desired,
    ManagedBy,
    Mapping,
    Network,
    Protocol,
    changes,
)

FOLLOWED = (Protocol.UDP, Protocol.SCTP)

# An entry of another zone belongs to who made that zone; our rules see the packets of none.
_ENTRY = re.compile(
    r"^(?:ipv6 +10 +)?(udp|sctp) +\d+ (?!.*\bzone(?:-orig|-reply)?=)[^=\n]*"
    r"\bsrc=([0-9a-f:.]+) dst=([0-9a-f:.]+) sport=(\d{1,5}) dport=(\d{1,5})\b.*?"
    r" src=([0-9a-f:.]+) dst=([0-9a-f:.]+) sport=(\d{1,5}) dport=(\d{1,5})(?: .*)?$",
    re.MULTILINE,
)
_ENDS = re.compile(
    r"^(?:ipv6 +10 +)?\w+ +\d+ (?!.*\bzone(?:-orig|-reply)?=)[^=\n]*"
    r"\bsrc=([0-9a-f:.]+) dst=([0-9a-f:.]+) ",
    re.MULTILINE,
)
_PROTOCOLS = {str(protocol): protocol for protocol in FOLLOWED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One entry: who asked for what, who answers, and where to.

    Where nothing was translated, the one who answers is the one who was asked, and he answers the
    one who asked.
    """

    protocol: Protocol
    source: IPv6Address
    source_port: int
    destination: IPv6Address
    destination_port: int
    reply_source: IPv6Address
    reply_source_port: int
    reply_destination: IPv6Address
    reply_destination_port: int

    @property
    def translated(self) -> bool:
        """Whether its destination was rewritten."""
        asked = (self.destination, self.destination_port)
        return asked != (self.reply_source, self.reply_source_port)

    @property
    def turned(self) -> Flow:
        """The same flow as if the other side had begun it; its destination is not translated."""
        return Flow(
            protocol=self.protocol,
            source=self.destination,
            source_port=self.destination_port,
            destination=self.reply_destination,
            destination_port=self.reply_destination_port,
            reply_source=self.source,
            reply_source_port=self.source_port,
            reply_destination=self.destination,
            reply_destination_port=self.destination_port,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Entries to forget: those that have all that is named here."""

    protocol: Protocol
    source: IPv6Address | None = None
    source_port: int | None = None
    destination: IPv6Address | None = None
    destination_port: int | None = None
    reply_source: IPv6Address | None = None
    reply_source_port: int | None = None


class _Target(NamedTuple):
    """Who is behind a host port."""

    address: IPv6Address
    port: int
    network_id: str
    managed_by: ManagedBy


def parse(text: str) -> Iterator[Flow]:
    """What `conntrack -L`, plain or extended, lists of UDP and SCTP over IPv6.

    A line that is not understood is passed over: an entry that is left is no worse than before.
    """
    for found in _ENTRY.finditer(text):
        protocol, source, destination, sport, dport, *reply = found.groups()
        try:
            yield Flow(
                protocol=_PROTOCOLS[protocol],
                source=_address(source),
                source_port=int(sport),
                destination=_address(destination),
                destination_port=int(dport),
                reply_source=_address(reply[0]),
                reply_source_port=int(reply[2]),
                reply_destination=_address(reply[1]),
                reply_destination_port=int(reply[3]),
            )
        except AddressValueError:
            continue


# Most entries name the same few hosts and containers, and to parse an address takes its time.
_address = lru_cache(maxsize=4096)(IPv6Address)


def protocols(old: Desired | None, new: Desired) -> list[Protocol]:
    """Those whose entries may be wrong now; none where no process has to be started at all."""
    touched = _touched(old, new)
    # A flow may have outlived the mapping that nobody knows of: of UDP there is a table always.
    unknown = {Protocol.UDP} if old is None and any(_ours(new)) else set()
    return [
        p for p in FOLLOWED if p in unknown or (p in touched and _runs(old, p) != _runs(new, p))
    ]


def _touched(old: Desired | None, new: Desired) -> set[Protocol]:
    """Protocols of which a mapping may be another: mostly none that is followed, and soon known."""
    if old is None or old.userland_proxy != new.userland_proxy:
        return set(FOLLOWED)
    return {each.protocol for some in changes(old.mappings, new.mappings) for each in some}


def concerns(old: Desired | None, new: Desired) -> bool:
    """Whether anything changed that can make an entry wrong, or a neighbour."""
    return any((protocols(old, new), newly_closed(old, new), came(old, new)))


def newly_closed(
    old: Desired | None, new: Desired, *, exposed: bool = False
) -> tuple[Network, ...]:
    """The networks of ours that nobody closed before, all of them where their rules were out
    (`exposed`); none where nobody knows what held.

    A packet that came for one of their addresses before its rules stood went on to the bridge, and
    waits there up to three seconds for somebody to have that address. Should a container get it, it
    gets the packet as well, answers, and has opened the way for all of that flow.
    """
    if exposed:
        return tuple(_ours(new))
    if old is None:
        return ()
    known = {each.bridge for each in _ours(old)}
    return tuple(each for each in _ours(new) if each.bridge not in known)


def intruders(
    text: str, networks: Iterable[Network], host_addresses: frozenset[IPv6Address]
) -> list[tuple[IPv6Address, IPv6Address]]:
    """(source, destination) of all that `conntrack -L` lists, of any protocol, that somebody began
    towards an address of these networks who is neither a neighbour there nor the host itself.

    What may come in all the same meets its rule again with the next packet.
    """
    inside = {(each.prefixlen, each.network_address): each for n in networks for each in n.subnets}
    lengths = {length for length, _ in inside}
    found: dict[tuple[IPv6Address, IPv6Address], None] = {}
    for pair in dict.fromkeys(_ENDS.findall(text)):
        try:
            source, destination = map(_address, pair)
        except AddressValueError:
            continue
        if source in host_addresses:
            continue
        for length in lengths:
            around = IPv6Network((destination, length), strict=False)
            subnet = inside.get((length, around.network_address))
            if subnet is not None and source not in subnet:
                found[source, destination] = None
    return list(found)


def appeared(old: Desired | None, new: Desired) -> tuple[Network, ...]:
    """The networks of ours that were not there at all before; none where nobody knows what was.

    A flow from one of their addresses that is open by then was begun by somebody else, elsewhere.
    """
    if old is None:
        return ()
    known = {each.bridge for each in old.networks}
    return tuple(each for each in _ours(new) if each.bridge not in known)


def came(old: Desired | None, new: Desired) -> tuple[tuple[str, IPv6Address], ...]:
    """(bridge, address) of the containers of ours that ports lead to now, and did not before; none
    where nobody knows what did.

    Engines before 28 give a container another MAC with each IPv4 address that it gets, and let no
    neighbour know: for up to a minute the host would send to where the address was before.
    """
    if old is None:
        return ()
    bridges = {each.id: each.bridge for each in _ours(new)}
    went, come = changes(old.mappings, new.mappings)
    known = {each.container_address for each in went}
    return tuple(
        dict.fromkeys(
            (bridges[each.network_id], each.container_address)
            for each in come
            if each.network_id in bridges and each.container_address not in known
        )
    )


def _ours(desired: Desired) -> list[Network]:
    return [each for each in desired.networks if each.managed_by is ManagedBy.IPV6NATD]


def _runs(desired: Desired | None, protocol: Protocol) -> object:
    """All that decides about where flows of a protocol go; None where nothing does."""
    if desired is None:
        return None
    runs = [
        # Which container is behind an address matters to nobody here.
        (
            (each.host_address, each.host_port, each.count),
            (each.container_address, each.container_port, each.network_id),
            each.managed_by,
        )
        for each in desired.mappings
        if each.protocol is protocol
    ]
    return (runs, desired.userland_proxy) if runs else None


def gone(old: Desired | None, new: Desired) -> frozenset[IPv6Address]:
    """Addresses of containers that left."""
    if old is None:
        return frozenset()
    before = {each.container_address for each in old.mappings if _followed(each)}
    return frozenset(before - {each.container_address for each in new.mappings})


def _followed(mapping: Mapping) -> bool:
    # What the engine forwards by rules of its own is its business, here too.
    return mapping.protocol in FOLLOWED and mapping.managed_by is ManagedBy.IPV6NATD


def stale(
    flows: Iterable[Flow],
    old: Desired | None,
    new: Desired,
    host_addresses: frozenset[IPv6Address],
) -> list[Flow]:
    """Flows to a port whose mapping appeared, changed or went, that do not go where they should
    go now; and flows that are answered by an address that left.

    An answer of the proxy's or of a container's that comes when the entry of its question is just
    forgotten makes a new entry, in which the host or the container asks the client; and the
    client's next question then is an answer, and goes to where it went before. Such a flow counts
    as what it is, the client's.

    With `old` None nobody knows what held: each mapping counts as one that appeared, and what was
    translated to a container of ours without one as a flow whose mapping went.
    """
    left = gone(old, new)
    change = _Change(old=old, new=new, host_addresses=host_addresses - {LOOPBACK})
    return [
        flow
        for flow in flows
        if flow.reply_source in left
        or change.makes_wrong(flow)
        or change.outlived(flow)
        or (change.is_answer(flow) and change.makes_wrong(flow.turned))
    ]


def removals(
    wrong: Iterable[Flow],
    flows: Iterable[Flow],
    left: frozenset[IPv6Address],
    host_addresses: frozenset[IPv6Address],
) -> list[Removal]:
    """How to forget the `wrong` ones among `flows` in few calls, and no others that it would cost
    anything.

    Each call reads the whole table of the kernel, so a thousand clients of one port must not be a
    thousand calls. All that goes to an address that `left` is one; so is what shares its way to a
    port, or comes from one, where none of it is right, or none of it is translated: what a port of
    the host's own answers is the proxy's, and meets the same rules again with its next packet.
    """
    calls: dict[Removal, None] = {}
    others: list[Flow] = []
    for flow in wrong:
        if flow.reply_source in left:
            calls[Removal(protocol=flow.protocol, reply_source=flow.reply_source)] = None
        else:
            others.append(flow)
    ports = {port for each in others for port in (each.destination_port, each.source_port)}
    ours = Counter(group for each in others for group in _groups(each))
    every, translated = Counter[Removal](), set[Removal]()
    for each in flows:
        if each.destination_port not in ports and each.source_port not in ports:
            continue
        for group in _groups(each):
            if group in ours:
                every[group] += 1
                if each.translated:
                    translated.add(group)

    def free(flow: Flow) -> Iterator[Removal]:
        for group, end in zip(_groups(flow), (flow.destination, flow.source), strict=True):
            proxys = end in host_addresses and group not in translated
            if ours[group] > 1 and (ours[group] == every[group] or proxys):
                yield group

    for flow in others:
        calls[next(free(flow), _exactly(flow))] = None
    return list(calls)


def _groups(flow: Flow) -> tuple[Removal, Removal]:
    """What it is one of: flows that go one way, and flows that come from one socket."""
    way = replace(_exactly(flow), source=None, source_port=None)
    socket = Removal(protocol=flow.protocol, source=flow.source, source_port=flow.source_port)
    return way, socket


def _exactly(flow: Flow) -> Removal:
    return Removal(
        protocol=flow.protocol,
        source=flow.source,
        source_port=flow.source_port,
        destination=flow.destination,
        destination_port=flow.destination_port,
        reply_source=flow.reply_source,
        reply_source_port=flow.reply_source_port,
    )


@dataclass(frozen=True, kw_only=True)
class _Change:
    """From one wish to the next, with what makes it quick to judge many flows."""

    old: Desired | None
    new: Desired
    host_addresses: frozenset[IPv6Address]

    def is_answer(self, flow: Flow) -> bool:
        """Whether who is asked would know it as one that came from a port that changed."""
        return (
            flow.reply_destination_port in self._ports
            and flow.reply_destination in self.host_addresses
            and not flow.translated
        )

    def makes_wrong(self, flow: Flow) -> bool:
        """Whether a flow is for a port that changed, and does not go where that port leads now."""
        if flow.destination_port not in self._ports or flow.destination not in self.host_addresses:
            return False
        before, now = _behind(self._before, flow), _behind(self._now, flow)
        if before == now and (now is None or self._same_proxy):
            return False
        owner = now or before
        if owner is None or owner.managed_by is ManagedBy.ENGINE:
            return False
        if now is None or self._left_alone(flow):
            return flow.translated
        neighbours = self._subnets.get(now.network_id, ())
        if self.new.userland_proxy and self._is_from(flow, neighbours):
            return not self._ends_at_proxy(flow, neighbours)
        return (flow.reply_source, flow.reply_source_port) != (now.address, now.port)

    def outlived(self, flow: Flow) -> bool:
        """Whether its mapping went while nobody looked: another container may be there by now."""
        return (
            self.old is None
            and flow.translated
            and flow.destination in self.host_addresses
            and flow.reply_source not in self.host_addresses
            and any(flow.reply_source in subnet for subnet in self._open)
            and _behind(self._now, flow) is None
        )

    def _left_alone(self, flow: Flow) -> bool:
        """Whether no rule of ours takes it to any container: see ruleset, which this matches."""
        return flow.source in LINK_LOCAL or self._is_from(flow, self._closed)

    def _ends_at_proxy(self, flow: Flow, neighbours: tuple[IPv6Network, ...]) -> bool:
        """Whether a neighbour's flow goes where our rules leave it.

        The proxy answers a datagram from the bridge's own address, whichever was asked: over UDP
        nothing else is of use to a neighbour.
        """
        bridge = any(flow.reply_source in subnet for subnet in neighbours)
        return (
            flow.reply_source in self.host_addresses
            and flow.reply_source_port == flow.destination_port
            and (bridge or flow.protocol is not Protocol.UDP)
        )

    def _is_from(self, flow: Flow, subnets: tuple[IPv6Network, ...]) -> bool:
        # The bridge's own address lies in the network too, but what it sends comes in by no bridge.
        return flow.source not in self.host_addresses and any(
            flow.source in subnet for subnet in subnets
        )

    @cached_property
    def _before(self) -> dict[tuple[Protocol, IPv6Address, int], _Target]:
        return _targets(self.old)

    @cached_property
    def _now(self) -> dict[tuple[Protocol, IPv6Address, int], _Target]:
        return _targets(self.new)

    @cached_property
    def _ports(self) -> frozenset[int]:
        return frozenset(port for table in (self._before, self._now) for _, _, port in table)

    @cached_property
    def _same_proxy(self) -> bool:
        return self.old is None or self.old.userland_proxy == self.new.userland_proxy

    @cached_property
    def _subnets(self) -> dict[str, tuple[IPv6Network, ...]]:
        return {network.id: network.subnets for network in self.new.networks}

    @cached_property
    def _open(self) -> tuple[IPv6Network, ...]:
        return tuple(subnet for network in _ours(self.new) for subnet in network.subnets)

    @cached_property
    def _closed(self) -> tuple[IPv6Network, ...]:
        return tuple(
            subnet for network in self.new.networks if network.closed for subnet in network.subnets
        )


def _targets(desired: Desired | None) -> dict[tuple[Protocol, IPv6Address, int], _Target]:
    return {
        (each.protocol, each.host_address, each.host_port + i): _Target(
            each.container_address, each.container_port + i, each.network_id, each.managed_by
        )
        for each in (desired.mappings if desired else ())
        if each.protocol in FOLLOWED
        for i in range(each.count)
    }


def _behind(
    targets: dict[tuple[Protocol, IPv6Address, int], _Target], flow: Flow
) -> _Target | None:
    # A binding to an address precedes a wildcard.
    return targets.get((flow.protocol, flow.destination, flow.destination_port)) or targets.get(
        (flow.protocol, ANY, flow.destination_port)
    )
