"""Desired -> Ruleset: which rules hold a wish, in which order and why.

Nothing here knows what the kernel holds now; that enters in plan.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Network
from itertools import groupby

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
    Route,
)
from ipv6natd.netfilter.rules import (
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
    Target,
    Verdict,
)
from ipv6natd.policy.cache import Remembered
from ipv6natd.policy.chains import Placed, Split, by_bridge, by_port, joined, placed

FORWARD = f"{PREFIX}FORWARD"
CT = f"{PREFIX}CT"
SOURCES = f"{PREFIX}SRC"
DESTINATIONS = f"{PREFIX}DST"
INPUT = f"{PREFIX}INPUT"
REFUSED = f"{PREFIX}REJ"
HOST = f"{PREFIX}HOST"
PROXY = f"{PREFIX}PROXY"
ARRIVED = f"{PREFIX}PRE"
DNAT = f"{PREFIX}DNAT"
POST = f"{PREFIX}POST"
_LOOPBACK_NET = IPv6Network(LOOPBACK)
_MAPPED = IPv6Network("::ffff:0:0/96")
"""IPv4 addresses as IPv6 programs see them (RFC 4291, 2.5.5.2); no packet has one."""
_LAST_PORT = 65535

_NO_ANSWER = Rule(
    not_in_interface="lo", protocol=Protocol.TCP, syn=True, reply=True, target=Verdict.DROP
)
"""Who sends to a client with an address of the host makes an entry, by which the client's own first
segment to a published port is an answer. No rule of nat sees answers: the proxy would get it."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Rules of mappings and refusals, for the next wish, in which most of them are the same."""

    forwarded: Remembered[Mapping, Placed] = field(default_factory=Remembered)
    refused: Remembered[Refused, Placed] = field(default_factory=Remembered)
    proxied: Remembered[Mapping, Placed] = field(default_factory=Remembered)


def ruleset(desired: Desired, memory: Memory | None = None) -> Ruleset:
    """All that has to stand in the kernel for `desired` to hold."""
    memory = memory or Memory()
    return Ruleset(filter=filter_rules(desired, memory), nat=_nat_rules(desired, memory))


def filter_rules(desired: Desired, memory: Memory) -> TableRules:
    """The part for the filter table."""
    chains = {
        FORWARD: _forward(desired),
        CT: _established(desired),
        SOURCES: Split(tuple(_sources(desired))),
        DESTINATIONS: Split(tuple(_destinations(desired))),
        INPUT: _input(desired, memory),
    }
    return _table(chains, _filter_jumps())


def asks_for_sources(chains: Container[str]) -> bool:
    """Whether a filter table with these chains asks for the sources of what leaves a network.

    The first versions wrote none that does.
    """
    return CT not in chains or SOURCES in chains


def shut(rules: TableRules) -> TableRules:
    """Filter rules for the same networks that let nothing in or out, open connections neither."""
    between = [
        rule
        for chain in rules.chains
        for rule in chain.rules
        if rule.in_interface and rule.in_interface == rule.out_interface
    ]
    closed = [way for rule in between for way in _cut(rule.in_interface)]
    return _table({FORWARD: Split((*closed, *between))}, _filter_jumps())


def _nat_rules(desired: Desired, memory: Memory) -> TableRules:
    dnat = _dnat(desired, memory)
    chains = {
        ARRIVED: Split(tuple(_arrived(desired)) if dnat.rules else ()),
        DNAT: dnat,
        POST: Split(tuple(_post(desired))),
    }
    return _table(chains, _nat_jumps())


def _table(chains: dict[str, Split], jumps: tuple[BaseJump, ...]) -> TableRules:
    """Chains that have rules, and the jumps to them. FORWARD stands always: users lean on
    DOCKER-USER, which it brings along. So does INPUT: no jump comes or goes with a network."""
    filled = [
        chain
        for name, split in chains.items()
        for chain in (Chain(name=name, rules=split.rules), *split.chains)
        if chain.rules or name in (FORWARD, INPUT)
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
    return (
        BaseJump(
            base="PREROUTING",
            rule=Rule(target=Jump(ARRIVED), destination_local=True, comment=COMMENT),
        ),
        BaseJump(
            base="OUTPUT",
            rule=Rule(
                # What is sent to ::1 also comes from ::1, and the kernel drops the answer to that
                # when it arrives from outside: DNAT of it can only hang.
                target=Jump(DNAT),
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
    ours = _ours(desired)
    closed = (rule for each in ours if each.closed for rule in _cut(each.bridge))
    open_ = [each.bridge for each in ours if not each.closed]
    established = (Rule(states=("ESTABLISHED",), target=Jump(CT)),) if open_ else ()
    # What goes to a container by forwarding never comes from the host itself. By bridge: what the
    # host sends to its guests passes FORWARD, too, on bridges that are not ours.
    from_host = (
        Rule(source_local=True, out_interface=bridge, target=Verdict.DROP) for bridge in open_
    )
    return joined(
        Split(marked),
        by_bridge("C", tuple(closed)),
        Split(established),
        by_bridge("L", tuple(from_host)),
        Split(tuple(_not_closed(desired)), tuple(_own_sources(desired))),
    )


def _not_closed(desired: Desired) -> Iterator[Rule]:
    ours = _ours(desired)
    outgoing = [each for each in ours if not each.closed]
    if ours:
        yield Rule(target=Jump(SOURCES))
        yield Rule(target=Jump(DESTINATIONS))
    for network in outgoing:
        yield Rule(
            source_local=True,
            in_interface=network.bridge,
            not_out_interface=network.bridge,
            target=Verdict.DROP,
        )
        yield from _only_own(network)
    if outgoing:
        # An error about an open flow has a source of its own, which may be forged as well.
        yield Rule(states=("RELATED",), target=Jump(CT))
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


def _cut(bridge: str) -> Iterator[Rule]:
    """Both ways and before all else: a container of an internal network can reach its own bridge
    address, which is LOCAL, so it could be DNATed. By interface and not by address, so that a
    forged source is dropped and NDP, which never leaves the bridge, is not."""
    yield Rule(not_in_interface=bridge, out_interface=bridge, target=Verdict.DROP)
    yield Rule(in_interface=bridge, not_out_interface=bridge, target=Verdict.DROP)


def _into(network: Network, desired: Desired) -> Iterator[Rule]:
    """What may come in from elsewhere: what our DNAT let in, what the options open, no more."""
    bridge = network.bridge
    opened = [each for each in desired.opened if each.bridge == bridge]
    unprotected = network.gateway_mode is GatewayMode.NAT_UNPROTECTED
    if network.translated:
        yield Rule(out_interface=bridge, states=("DNAT",), target=Verdict.ACCEPT)
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


def _sources(desired: Desired) -> Iterator[Rule]:
    """Who nobody can be here: behind what is established, before everything that accepts.

    A first packet with the source of a container, sent by somebody else to himself, would make
    conntrack take all that he then sends to that container for answers.
    """
    if _ours(desired):
        yield from _by_source(desired, honest=Verdict.RETURN, forged=Verdict.DROP)


def _by_source(desired: Desired, *, honest: Target, forged: Target) -> Iterator[Rule]:
    """What tells a forged source of something that came in: what is in a network comes in by its
    bridge, or by where the host routes that part of it.

    Networks of the engine's are in here, too: what we let out of ours reaches them.
    """
    # To a program such a peer is one of IPv4, and may be its own gateway there, or 127.0.0.1.
    yield Rule(source=_MAPPED, target=forged)
    for prefix, group in _elsewhere(desired):
        for route in group:
            yield Rule(source=prefix, in_interface=route.interface, target=honest)
        yield Rule(source=prefix, target=forged)
    for network in desired.networks:
        for subnet in (*network.subnets, *network.behind):
            if subnet.prefixlen:
                yield Rule(source=subnet, not_in_interface=network.bridge, target=forged)


def _destinations(desired: Desired) -> Iterator[Rule]:
    """What is for a network goes out by its bridge. Where bridged packets pass netfilter, two
    neighbours elsewhere could say to each other what makes an entry for a container here."""
    if not _ours(desired):
        return
    for prefix, group in _elsewhere(desired):
        for route in group:
            yield Rule(destination=prefix, out_interface=route.interface, target=Verdict.RETURN)
    for network in desired.networks:
        for subnet in (*network.subnets, *network.behind):
            if subnet.prefixlen:
                yield Rule(
                    destination=subnet, not_out_interface=network.bridge, target=Verdict.DROP
                )


def _elsewhere(desired: Desired) -> Iterable[tuple[IPv6Network, Iterator[Route]]]:
    """The routes into a part of a network that lead elsewhere, the narrowest prefix first."""
    routes = {route for network in desired.networks for route in network.elsewhere}
    narrow_first = sorted(routes, key=lambda route: (-route.prefix.prefixlen, route))
    return groupby(narrow_first, key=lambda route: route.prefix)


def _only_own(network: Network) -> Iterator[Rule]:
    """A container sends with its own network's sources, and with those that the host routes to it,
    and so with no neighbour's of the host. Only what leaves the bridge is asked: neighbours talk
    with link-local addresses, too."""
    sources = (*network.subnets, *network.behind)
    match sources:
        case [subnet]:
            yield Rule(
                not_source=subnet,
                in_interface=network.bridge,
                not_out_interface=network.bridge,
                target=Verdict.DROP,
            )
        case _ if all(source.prefixlen for source in sources):
            yield Rule(
                in_interface=network.bridge,
                not_out_interface=network.bridge,
                target=Jump(_own_chain(network)),
            )


def _own_chain(network: Network) -> str:
    return f"{PREFIX}OWN-{network.bridge}"


def _own_sources(desired: Desired) -> Iterator[Chain]:
    """The chains for networks with more than one prefix."""
    for network in _ours(desired):
        rules = list(_only_own(network))
        if not network.closed and rules and isinstance(rules[0].target, Jump):
            sources = sorted((*network.subnets, *network.behind))
            passed = tuple(Rule(source=each, target=Verdict.RETURN) for each in sources)
            yield Chain(name=_own_chain(network), rules=(*passed, Rule(target=Verdict.DROP)))


def _established(desired: Desired) -> Split:
    """Not from the host's own addresses: whoever poses as a container first, and then as the host
    that it asked, would be taken for the host's answer."""
    open_ = [each for each in _ours(desired) if not each.closed]
    rules: list[Rule] = []
    for network in open_:
        rules += _from_elsewhere(network)
        rules.append(
            Rule(out_interface=network.bridge, source_not_local=True, target=Verdict.ACCEPT)
        )
    rules += (
        Rule(in_interface=network.bridge, source_not_local=True, target=Verdict.ACCEPT)
        for network in open_
    )
    return by_bridge("", tuple(rules))


def _from_elsewhere(network: Network) -> Iterator[Rule]:
    """Where bridged packets pass netfilter conntrack knows what neighbours say to each other, and
    would take as a part of it what somebody else sends as one of them."""
    match (*network.subnets, *network.behind):
        case [subnet] if subnet.prefixlen and not network.elsewhere:
            yield Rule(
                source=subnet,
                not_in_interface=network.bridge,
                out_interface=network.bridge,
                target=Verdict.DROP,
            )
        case _:
            yield Rule(out_interface=network.bridge, target=Jump(SOURCES))


def _input(desired: Desired, memory: Memory) -> Split:
    if not desired.userland_proxy:
        return joined(_refused(desired, memory), _to_host(desired))
    no_answer = (_NO_ANSWER,) if _ours(desired) else ()
    return joined(_to_proxy(desired, memory), Split(no_answer), _to_host(desired))


def _to_host(desired: Desired) -> Split:
    """A forged first packet to the host makes an entry as well, and the host's side of it may be
    anybody's: an address that leaves the host, or an error about it."""
    if not _ours(desired):
        return Split(())
    asked = (
        Rule(in_interface="lo", target=Verdict.RETURN),
        # What the host sends to its own address comes by lo; what it sends to a group comes back.
        Rule(source_local=True, destination_local=True, target=Verdict.DROP),
        Rule(target=Jump(SOURCES)),
        *(_untranslated(desired) if desired.userland_proxy else ()),
    )
    return Split((Rule(states=("NEW",), target=Jump(HOST)),), (Chain(name=HOST, rules=asked),))


def _untranslated(desired: Desired) -> Iterator[Rule]:
    """What no rule of nat translates in nf_tables, and conntrack takes for a first packet to a
    published port: all that follow would go to the proxy, which hides who asks.

    All ports are meant from the lowest published one up, or some below it: what nobody but an
    attacker sends is to cost no container that starts a change of this chain.
    """
    for protocol in Protocol:
        ports = [
            each.host_port
            for each in desired.mappings
            if each.protocol is protocol and each.managed_by is ManagedBy.IPV6NATD
        ]
        if ports:
            flow = (protocol, 1 << min(ports).bit_length() - 1, _LAST_PORT)
            yield Rule(authentication=True, flow=flow, target=Verdict.DROP)


def _refused(desired: Desired, memory: Memory) -> Split:
    refusals = by_port("REJ-", memory.refused.all(desired.refused, lambda r: placed(_refusals(r))))
    if not refusals.chains:
        return refusals
    # Everything else that the host hears, on open connections too, asks for no port here.
    to = Jump(REFUSED)
    return Split(
        (Rule(destination=_LOOPBACK_NET, target=to), Rule(source=LINK_LOCAL, target=to)),
        (Chain(name=REFUSED, rules=refusals.rules), *refusals.chains),
    )


def _to_proxy(desired: Desired, memory: Memory) -> Split:
    """What comes to the proxy by UDP, which it hands on to the container as if the gateway had
    sent it. Over TCP and SCTP nobody opens a connection with a source whose answers he misses."""
    mappings = [
        each
        for each in desired.mappings
        if each.protocol is Protocol.UDP and each.managed_by is ManagedBy.IPV6NATD
    ]
    if not mappings and not desired.proxied:
        return Split(())
    at = memory.proxied.all(mappings, lambda m: placed((_proxied(m),)))
    besides = placed(
        Rule(protocol=Protocol.UDP, ports=each, target=Jump(PROXY)) for each in desired.proxied
    )
    listening = by_port("UP-", [*at, besides])
    guard = (
        Rule(in_interface="lo", target=Verdict.RETURN),
        # To conntrack a datagram of length 0 is none, so nothing translates it; to a socket it is.
        Rule(states=("INVALID",), target=Verdict.DROP),
        # Somebody began a flow from here with our address; see _NO_ANSWER.
        Rule(reply=True, target=Verdict.DROP),
        # Groups and anycast addresses are not translated, and a proxy on all addresses hears them.
        Rule(destination_not_local=True, target=Verdict.DROP),
        Rule(target=Jump(SOURCES)),
    )
    return joined(listening, Split((), (Chain(name=PROXY, rules=guard),)))


def _proxied(mapping: Mapping) -> Rule:
    return Rule(
        # On a network with host_binding_ipv6 the proxy may listen on all addresses all the same.
        destination=IPv6Network(mapping.host_address) if mapping.proxy_there else None,
        protocol=mapping.protocol,
        ports=(mapping.host_port, mapping.host_port_end),
        target=Jump(PROXY),
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
        # The kernel does not forward link-local packets: DNAT could only lose them.
        Split((Rule(source=LINK_LOCAL, target=Verdict.RETURN),)),
        by_port("AT-", rules[:first]),
        Split(tuple(_left_to_proxy(streams, mappings[first:])) if proxy else ()),
        by_port("", rules[first:]),
    )


def _arrived(desired: Desired) -> Iterator[Rule]:
    """What came in by an interface and is not translated, whatever port it asks for. What the host
    itself sends does not pass here."""
    for network in _ours(desired):
        if network.closed:
            yield Rule(in_interface=network.bridge, target=Verdict.RETURN)
    # They are dropped in FORWARD anyway, unless DOCKER-USER or a mark accepts them before.
    yield Rule(source_local=True, target=Verdict.RETURN)
    yield from _by_source(desired, honest=Jump(DNAT), forged=Verdict.RETURN)
    yield Rule(target=Jump(DNAT))


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
    bridges = {network.bridge for network in desired.networks}
    for network in _ours(desired):
        if network.translated:
            lans = [
                each.prefix
                for each in network.elsewhere
                if each.interface not in bridges
                # A container that is a router for more knows what is not behind it.
                and any(each.prefix.subnet_of(subnet) for subnet in network.subnets)
            ]
            yield from _rewritten(network, lans, desired.userland_proxy)


def _rewritten(
    network: Network, lans: Sequence[IPv6Network], userland_proxy: bool
) -> Iterator[Rule]:
    address = network.source_address
    target = Verdict.MASQUERADE if address is None else Snat(address)
    for lan in lans:
        # By its prefix the container takes it for a neighbour, and would answer on its own link.
        yield _hairpin(network, lan, target)
        yield Rule(source=lan, target=Verdict.RETURN)
    for subnet in network.subnets:
        if network.masquerade:
            yield Rule(
                source=subnet,
                not_out_interface=network.bridge,
                source_not_local=True,
                target=target,
            )
        if not userland_proxy:
            # Without it a neighbour on the same bridge would answer past us.
            yield _hairpin(network, subnet, target)


def _hairpin(network: Network, source: IPv6Network, target: Target) -> Rule:
    return Rule(source=source, out_interface=network.bridge, states=("DNAT",), target=target)
