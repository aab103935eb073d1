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

FOLLOWED = (Protocol.UDP, Protocol.SCTP)
ICMPV6 = 58
"""Its number among the protocols (IANA)."""

# An entry of another zone belongs to who made that zone; our rules see the packets of none.
_SIDE = (
    r"src=([0-9a-f:.]+) dst=([0-9a-f:.]+)"
    r"(?: (?:sport=(\d{1,5}) dport=(\d{1,5})|srckey=0x([0-9a-f]{1,4}) dstkey=0x([0-9a-f]{1,4})"
    r"|type=(\d{1,3}) code=(\d{1,3}) id=(\d{1,5})))?(?= )"
)
_ENTRY = re.compile(
    rf"^(?:ipv6 +10 +)?\w+ +(\d{{1,3}}) (?!.*\bzone(?:-orig|-reply)?=)[^=\n]*\b{_SIDE}.*? {_SIDE}",
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
        asked, answers = self.original, self.reply
        return (asked.destination, asked.detail[1:]) != (answers.source, answers.detail[:1])

    @property
    def turned(self) -> Flow:
        """The same flow as if the other side had begun it; of one that is not translated."""
        return Flow(original=self.reply, reply=self.original)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Entries to look at: those that have all that is named here."""

    protocol: Protocol | None = None
    source: IPv6Network | None = None
    destination: IPv6Network | None = None
    answered_by: IPv6Address | None = None


class _Target(NamedTuple):
    """Who is behind a host port."""

    address: IPv6Address
    port: int
    network_id: str
    managed_by: ManagedBy


def parse(text: str) -> Iterator[Flow]:
    """What `conntrack -L`, plain or extended, lists of IPv6, over whatever protocol.

    A line that is not understood is passed over: an entry that is left is no worse than before.
    """
    for found in _ENTRY.finditer(text):
        words = found.groups()
        number = int(words[0])
        try:
            original, reply = _tuple(number, *words[1:10]), _tuple(number, *words[10:])
        except AddressValueError:
            continue
        if len(original.detail) == len(reply.detail) == 2 or number not in _PROTOCOLS:
            yield Flow(original=original, reply=reply)


def _tuple(number: int, source: str, destination: str, *words: str | None) -> Tuple:
    sport, dport, srckey, dstkey, kind, code, echo = words
    detail: tuple[int, ...] = ()
    fits = number <= 0xFF
    if sport and dport:
        detail = (int(sport), int(dport))
        fits &= max(detail) <= 0xFFFF
    elif srckey and dstkey:
        detail = (int(srckey, 16), int(dstkey, 16))
    elif kind and code and echo:
        detail = (int(kind), int(code), int(echo))
        fits &= max(detail[:2]) <= 0xFF and detail[2] <= 0xFFFF
    if not fits:
        raise AddressValueError
    return Tuple(number, _address(source), _address(destination), detail)


# Most entries name the same few hosts and containers, and to parse an address takes its time.
_address = lru_cache(maxsize=4096)(IPv6Address)


def parts(old: Desired | None, new: Desired, *, exposure: Exposure = Exposure.NONE) -> list[Part]:
    """Where in the table an entry may be wrong now; nowhere where nothing has to be read at all."""
    closed = newly_closed(old, new, exposure=exposure)
    senders = new.networks if exposure and _ours(new) else closed
    return [
        *(Part(destination=subnet) for network in closed for subnet in network.subnets),
        *(Part(source=subnet) for network in senders for subnet in network.subnets),
        *(Part(answered_by=address) for address in sorted(gone(old, new))),
        *(Part(protocol=protocol) for protocol in protocols(old, new)),
    ]


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
    return {each.protocol for some in mapping_changes(old.mappings, new.mappings) for each in some}


def concerns(old: Desired | None, new: Desired) -> bool:
    """Whether anything changed that can make an entry wrong, or a neighbour."""
    return bool(parts(old, new) or came(old, new))


def newly_closed(
    old: Desired | None, new: Desired, *, exposure: Exposure = Exposure.NONE
) -> tuple[Network, ...]:
    """The networks of ours that nobody closed before, all of them where their rules were out; none
    where nobody knows what held.

    A packet that came for one of their addresses before its rules stood went on to the bridge, and
    waits there up to three seconds for somebody to have that address. Should a container get it, it
    gets the packet as well, answers, and has opened the way for all of that flow.
    """
    if exposure:
        return tuple(_ours(new))
    if old is None:
        return ()
    known = {each.bridge for each in _ours(old)}
    return tuple(each for each in _ours(new) if each.bridge not in known)


def wrong(
    flows: Iterable[Flow],
    old: Desired | None,
    new: Desired,
    host_addresses: frozenset[IPv6Address],
    *,
    exposure: Exposure = Exposure.NONE,
    answers: Container[Tuple] | None = None,
) -> Iterator[Flow]:
    """All that is to be forgotten now that the rules for `new` have taken the place of those for
    `old`, which is None where nobody knows what held before.

    What may go on all the same meets the rules again with its next packet.

    `answers`: the replies of what was forgotten by now. One that was under way just then is taken
    for the first packet of a flow, in which the host or a container asks the client; and what the
    client says next is taken for its answer, and goes to where it went before. Who else came in by
    a network that is closed has been found by then.
    """
    change = _Change(old=old, new=new, host_addresses=host_addresses - {LOOPBACK})
    closed = _inside(newly_closed(old, new, exposure=exposure))
    late = _inside(appeared(old, new))
    inside = _inside(new.networks if exposure and _ours(new) else ())

    def strange(flow: Flow) -> bool:
        if answers is not None:
            return flow.original in answers
        return (
            late.find(flow.source) is not None
            or (
                _entered(closed, flow)
                if flow.source not in host_addresses
                else flow.protocol is Protocol.UDP and inside.find(flow.reply.source) is not None
            )
            or _left(inside, flow, exposure)
        )

    return (flow for flow in flows if strange(flow) or change.has_made_wrong(flow))


def _inside(networks: Iterable[Network]) -> PrefixIndex:
    return PrefixIndex(subnet for network in networks for subnet in network.subnets)


def _left(inside: PrefixIndex, flow: Flow, exposure: Exposure) -> bool:
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


def _entered(closed: PrefixIndex, flow: Flow) -> bool:
    """Whether one who is no neighbour there began it towards an address of these networks."""
    subnet = closed.find(flow.destination)
    return subnet is not None and closed.find(flow.source) != subnet


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
    went, come = mapping_changes(old.mappings, new.mappings)
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
    """Addresses of containers that ports led to and no port leads to any more.

    All that they answered is over, TCP too: a client that goes on, or comes back with the port that
    it had, is to meet who is there now, and not somebody's silence. So Docker does it for IPv4.
    """
    if old is None:
        return frozenset()
    went, _ = mapping_changes(old.mappings, new.mappings)
    # What the engine forwards by rules of its own is its business, here too.
    left = {each.container_address for each in went if each.managed_by is ManagedBy.IPV6NATD}
    if left:
        left -= {each.container_address for each in new.mappings}
    return frozenset(left)


@dataclass(frozen=True, kw_only=True)
class _Change:
    """From one wish to the next, with what makes it quick to judge many flows."""

    old: Desired | None
    new: Desired
    host_addresses: frozenset[IPv6Address]

    def has_made_wrong(self, flow: Flow) -> bool:
        """Whether it is for a port whose mapping appeared, changed or went, and does not go where
        it should go now; or is answered by an address that left.

        An answer that began a flow counts as what it is, the client's: see `wrong`.

        With `old` None nobody knows what held: each mapping counts as one that appeared, and what
        was translated to a container of ours without one as a flow whose mapping went.
        """
        if flow.reply.source in self._gone:
            return True
        if flow.protocol not in FOLLOWED:
            return False
        return (
            self._makes_wrong(flow)
            or self._outlived(flow)
            or (self._is_answer(flow) and self._makes_wrong(flow.turned))
        )

    def _is_answer(self, flow: Flow) -> bool:
        """Whether who is asked would know it as one that came from a port that changed."""
        return (
            flow.reply.detail[1] in self._ports
            and flow.reply.destination in self.host_addresses
            and not flow.translated
        )

    def _makes_wrong(self, flow: Flow) -> bool:
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
        return (flow.reply.source, flow.reply.detail[0]) != (now.address, now.port)

    def _outlived(self, flow: Flow) -> bool:
        """Whether its mapping went while nobody looked: another container may be there by now."""
        return (
            self.old is None
            and flow.translated
            and flow.destination in self.host_addresses
            and flow.reply.source not in self.host_addresses
            and any(flow.reply.source in subnet for subnet in self._open)
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
        bridge = any(flow.reply.source in subnet for subnet in neighbours)
        return (
            flow.reply.source in self.host_addresses
            and flow.reply.detail[0] == flow.destination_port
            and (bridge or flow.protocol is not Protocol.UDP)
        )

    def _is_from(self, flow: Flow, subnets: tuple[IPv6Network, ...]) -> bool:
        # The bridge's own address lies in the network too, but what it sends comes in by no bridge.
        return flow.source not in self.host_addresses and any(
            flow.source in subnet for subnet in subnets
        )

    @cached_property
    def _gone(self) -> frozenset[IPv6Address]:
        return gone(self.old, self.new)

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
    protocol, port = flow.protocol, flow.destination_port
    assert protocol is not None
    return targets.get((protocol, flow.destination, port)) or targets.get((protocol, ANY, port))
