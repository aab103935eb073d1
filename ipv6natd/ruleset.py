"""Desired -> Ruleset: which rules hold a wish, in which order and why.

Nothing here knows what the kernel holds now; that enters in plan.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Network

from ipv6natd.model import (
    ANY,
    LINK_LOCAL,
    LOOPBACK,
    Desired,
    GatewayMode,
    ManagedBy,
    Mapping,
    Network,
    Protocol,
    Refused,
)
from ipv6natd.remember import Remembered
from ipv6natd.rules import (
    COMMENT,
    DOCKER_USER,
    PREFIX,
    BaseJump,
    Chain,
    Dnat,
    Jump,
    Reject,
    RejectWith,
    Rule,
    Ruleset,
    Snat,
    TableRules,
    Verdict,
)
from ipv6natd.split import Placed, Split, by_bridge, by_port, joined, placed

FORWARD = f"{PREFIX}FORWARD"
CT = f"{PREFIX}CT"
INPUT = f"{PREFIX}INPUT"
REFUSED = f"{PREFIX}REJ"
DNAT = f"{PREFIX}DNAT"
POST = f"{PREFIX}POST"
_LOOPBACK_NET = IPv6Network(LOOPBACK)


@dataclass(frozen=True, slots=True)
class Memory:
    """Rules of mappings and refusals, for the next wish, in which most of them are the same."""

    forwarded: Remembered[Mapping, Placed] = field(default_factory=Remembered)
    refused: Remembered[Refused, Placed] = field(default_factory=Remembered)


def ruleset(desired: Desired, memory: Memory | None = None) -> Ruleset:
    """All that has to stand in the kernel for `desired` to hold."""
    memory = memory or Memory()
    return Ruleset(filter=filter_rules(desired, memory), nat=_nat_rules(desired, memory))


def filter_rules(desired: Desired, memory: Memory) -> TableRules:
    """The part for the filter table."""
    chains = {
        FORWARD: _forward(desired),
        CT: _established(desired),
        INPUT: _input(desired, memory),
    }
    return _table(chains, _filter_jumps())


def _nat_rules(desired: Desired, memory: Memory) -> TableRules:
    chains = {DNAT: _dnat(desired, memory), POST: Split(tuple(_post(desired)))}
    return _table(chains, _nat_jumps())


def _table(chains: dict[str, Split], jumps: tuple[BaseJump, ...]) -> TableRules:
    """Chains that have rules, and the jumps to them. FORWARD stands always: users lean on
    DOCKER-USER, which it brings along."""
    filled = [
        chain
        for name, split in chains.items()
        for chain in (Chain(name=name, rules=split.rules), *split.chains)
        if chain.rules or name == FORWARD
    ]
    names = {DOCKER_USER, *(chain.name for chain in filled)}
    reached = tuple(jump for jump in jumps if jump.target in names)
    return TableRules(chains=tuple(filled), jumps=reached)


def _filter_jumps() -> tuple[BaseJump, ...]:
    return (
        BaseJump(base="FORWARD", first=True, rule=Rule(target=Jump(DOCKER_USER), comment=COMMENT)),
        BaseJump(base="FORWARD", first=True, rule=Rule(target=Jump(FORWARD), comment=COMMENT)),
        BaseJump(base="INPUT", first=True, rule=Rule(target=Jump(INPUT), comment=COMMENT)),
    )


def _nat_jumps() -> tuple[BaseJump, ...]:
    to_dnat = Jump(DNAT)
    return (
        BaseJump(
            base="PREROUTING",
            rule=Rule(target=to_dnat, destination_local=True, comment=COMMENT),
        ),
        BaseJump(
            base="OUTPUT",
            rule=Rule(
                # What is sent to ::1 also comes from ::1, and the kernel drops the answer to that
                # when it arrives from outside: DNAT of it can only hang.
                target=to_dnat,
                not_destination=_LOOPBACK_NET,
                destination_local=True,
                comment=COMMENT,
            ),
        ),
        BaseJump(base="POSTROUTING", rule=Rule(target=Jump(POST), comment=COMMENT)),
    )


def _ours(desired: Desired) -> list[Network]:
    return [each for each in desired.networks if each.managed_by is ManagedBy.IPV6NATD]


def _forward(desired: Desired) -> Split:
    mark = desired.accept_fwmark
    marked = () if mark is None else (Rule(mark=mark, target=Verdict.ACCEPT),)
    closed = (rule for each in _ours(desired) if each.closed for rule in _closed(each))
    return joined(Split(marked), by_bridge("C", tuple(closed)), Split(tuple(_not_closed(desired))))


def _not_closed(desired: Desired) -> Iterator[Rule]:
    ours = _ours(desired)
    outgoing = [each for each in ours if not each.closed]
    if outgoing:
        yield Rule(states=("RELATED", "ESTABLISHED"), target=Jump(CT))
    for network in outgoing:
        yield from _into(network, desired)
    for network in ours:
        yield Rule(
            in_interface=network.bridge,
            out_interface=network.bridge,
            target=Verdict.ACCEPT if network.icc else Verdict.DROP,
        )
    if outgoing:
        for network in desired.networks:
            if network.managed_by is ManagedBy.ENGINE:
                # Its own rules decide who comes in.
                yield Rule(out_interface=network.bridge, target=Verdict.RETURN)
    for network in outgoing:
        if network.masquerade and network.translated:
            # The kernel does not NAT what conntrack calls invalid: it would leave with its ULA.
            yield Rule(
                in_interface=network.bridge,
                not_out_interface=network.bridge,
                states=("INVALID",),
                target=Verdict.DROP,
            )
    for network in outgoing:
        yield Rule(in_interface=network.bridge, target=Verdict.ACCEPT)


def _closed(network: Network) -> Iterator[Rule]:
    """Both ways and before all else: a container of an internal network can reach its own bridge
    address, which is LOCAL, so it could be DNATed. By interface and not by address, so that a
    forged source is dropped and NDP, which never leaves the bridge, is not."""
    yield Rule(not_in_interface=network.bridge, out_interface=network.bridge, target=Verdict.DROP)
    yield Rule(in_interface=network.bridge, not_out_interface=network.bridge, target=Verdict.DROP)


def _into(network: Network, desired: Desired) -> Iterator[Rule]:
    """What may come in from elsewhere: what our DNAT let in, what the options open, no more."""
    bridge = network.bridge
    opened = [each for each in desired.opened if each.bridge == bridge]
    unprotected = network.gateway_mode is GatewayMode.NAT_UNPROTECTED
    if network.translated:
        yield Rule(out_interface=bridge, states=("DNAT",), target=Verdict.ACCEPT)
    if opened or unprotected or not network.translated:
        yield from _unforged(bridge, _ours(desired))
    for each in opened:
        yield Rule(
            destination=IPv6Network(each.address),
            in_interface=each.in_interface,
            not_in_interface="" if each.in_interface else bridge,
            out_interface=bridge,
            protocol=each.protocol,
            ports=(each.first, each.last),
            target=Verdict.ACCEPT,
        )
    if not network.translated:
        yield Rule(not_in_interface=bridge, out_interface=bridge, icmp=True, target=Verdict.ACCEPT)
    last = Verdict.ACCEPT if unprotected else Verdict.DROP
    yield Rule(not_in_interface=bridge, out_interface=bridge, target=last)


def _unforged(bridge: str, networks: list[Network]) -> Iterator[Rule]:
    """Where direct access is open, a source of ours that comes in by another interface than its
    own is still dropped: applications trust neighbours."""
    for network in networks:
        for subnet in network.subnets:
            yield Rule(
                source=subnet,
                not_in_interface=network.bridge,
                out_interface=bridge,
                target=Verdict.DROP,
            )


def _established(desired: Desired) -> Split:
    bridges = [each.bridge for each in _ours(desired) if not each.closed]
    return by_bridge(
        "",
        tuple(
            rule
            for bridge in bridges
            for rule in (
                Rule(in_interface=bridge, target=Verdict.ACCEPT),
                Rule(out_interface=bridge, target=Verdict.ACCEPT),
            )
        ),
    )


def _input(desired: Desired, memory: Memory) -> Split:
    refusals = by_port("REJ-", memory.refused.all(desired.refused, lambda r: placed(_refusals(r))))
    if not refusals.chains:
        return refusals
    # Everything else that the host hears, on open connections too, asks for no port here.
    to = Jump(REFUSED)
    return Split(
        (Rule(destination=_LOOPBACK_NET, target=to), Rule(source=LINK_LOCAL, target=to)),
        (Chain(name=REFUSED, rules=refusals.rules), *refusals.chains),
    )


def _refusals(refused: Refused) -> Iterator[Rule]:
    if refused.host_address in (ANY, LOOPBACK):
        yield _refusal(refused, destination=_LOOPBACK_NET)
    if refused.host_address == ANY:
        yield _refusal(refused, source=LINK_LOCAL)
    elif refused.host_address != LOOPBACK:
        yield _refusal(refused, source=LINK_LOCAL, destination=IPv6Network(refused.host_address))


def _refusal(
    refused: Refused,
    *,
    source: IPv6Network | None = None,
    destination: IPv6Network | None = None,
) -> Rule:
    reset = refused.protocol is Protocol.TCP
    return Rule(
        source=source,
        destination=destination,
        protocol=refused.protocol,
        ports=(refused.first, refused.last),
        target=Reject(RejectWith.TCP_RESET if reset else RejectWith.PORT_UNREACHABLE),
    )


def _dnat(desired: Desired, memory: Memory) -> Split:
    mappings = [each for each in desired.mappings if each.managed_by is ManagedBy.IPV6NATD]
    if not mappings:
        return Split(())
    proxy = desired.userland_proxy
    rules = memory.forwarded.all(mappings, lambda m: placed(_forwarded(m, proxy)), basis=proxy)
    # They stand in the order of their rules, so those for one address come first.
    first = bisect_left(mappings, True, key=lambda each: each.wildcard)
    streams = [each for each in mappings[:first] if each.protocol is not Protocol.UDP]
    return joined(
        Split(tuple(_never_dnated(desired))),
        by_port("AT-", rules[:first]),
        Split(tuple(_left_to_proxy(streams, mappings[first:])) if proxy else ()),
        by_port("", rules[first:]),
    )


def _never_dnated(desired: Desired) -> Iterator[Rule]:
    # The kernel does not forward link-local packets: DNAT could only lose them.
    yield Rule(source=LINK_LOCAL, target=Verdict.RETURN)
    for network in _ours(desired):
        if network.closed:
            yield Rule(in_interface=network.bridge, target=Verdict.RETURN)
    for network in _ours(desired):
        for subnet in network.subnets:
            # A source of ours that comes in elsewhere is forged: applications trust neighbours.
            yield Rule(
                source=subnet,
                not_in_interface=network.bridge,
                source_not_local=True,
                target=Verdict.RETURN,
            )


def _left_to_proxy(special: list[Mapping], general: list[Mapping]) -> Iterator[Rule]:
    """Neighbours that ask for an address are the proxy's business, as they are for a wildcard, so
    a wildcard of another network must not take them. Rare: engines refuse most such pairs."""
    if not special:
        return
    bridges = {
        (each.protocol, each.host_port + i): each.bridge
        for each in general
        for i in range(each.count)
    }
    for mapping in special:
        ports = range(mapping.host_port, mapping.host_port_end + 1)
        takers = {bridges.get((mapping.protocol, port), mapping.bridge) for port in ports}
        if takers != {mapping.bridge}:
            yield Rule(
                destination=IPv6Network(mapping.host_address),
                in_interface=mapping.bridge,
                protocol=mapping.protocol,
                ports=(mapping.host_port, mapping.host_port_end),
                target=Verdict.RETURN,
            )


def _forwarded(mapping: Mapping, userland_proxy: bool) -> Iterator[Rule]:
    """One rule for a run that keeps its numbers, one a port where they are shifted.

    With a shifted range in one rule the kernel takes the next port of the range when a client
    uses one source port towards two addresses of the host, and the packet arrives at the wrong
    port.
    """
    if mapping.host_port == mapping.container_port:
        single = mapping.count == 1
        port = mapping.container_port if single else None
        runs = [(mapping.host_port, mapping.host_port_end, port)]
    else:
        runs = [
            (mapping.host_port + i, mapping.host_port + i, mapping.container_port + i)
            for i in range(mapping.count)
        ]
    host = None if mapping.wildcard else IPv6Network(mapping.host_address)
    if userland_proxy and mapping.protocol is Protocol.UDP and not mapping.proxy_there:
        # A proxy for all addresses answers a datagram from the bridge's own, whichever was asked,
        # and the neighbour would not know the answer. Redirected, it is un-NATed on its way back.
        # One that listens on a single address answers from that, and is nowhere else.
        yield Rule(
            destination=host,
            in_interface=mapping.bridge,
            protocol=mapping.protocol,
            ports=(mapping.host_port, mapping.host_port_end),
            target=Verdict.REDIRECT,
        )
    for first, last, port in runs:
        yield Rule(
            destination=host,
            # With the proxy on, neighbours are its business: it answers on the bridge's address.
            not_in_interface=mapping.bridge if userland_proxy else "",
            protocol=mapping.protocol,
            ports=(first, last),
            target=Dnat(mapping.container_address, port),
        )


def _post(desired: Desired) -> Iterator[Rule]:
    for network in _ours(desired):
        if network.translated:
            yield from _rewritten(network, desired.userland_proxy)


def _rewritten(network: Network, userland_proxy: bool) -> Iterator[Rule]:
    address = network.source_address
    target = Verdict.MASQUERADE if address is None else Snat(address)
    for subnet in network.subnets:
        if network.masquerade:
            yield Rule(
                source=subnet,
                not_out_interface=network.bridge,
                source_not_local=True,
                target=target,
            )
        if not userland_proxy:
            # Hairpin: without it a neighbour on the same bridge would answer past us.
            yield Rule(source=subnet, out_interface=network.bridge, states=("DNAT",), target=target)
