"""Desired -> Ruleset: the rules for these decisions, their order, and the reason for each.

The rules in the kernel have no influence here; `netfilter.diff` compares with them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import IPv6Network

from ipv6natd.model import (
    ANY,
    CONTAINER_PORT,
    LINK_LOCAL,
    LOOPBACK,
    Desired,
    DirectAccess,
    GatewayMode,
    ManagedBy,
    Mapping,
    Network,
    Protocol,
    RejectedPorts,
    Route,
)
from ipv6natd.netfilter.jumps import (
    DNAT,
    FORWARD,
    INPUT,
    JUMPS,
    LOOPBACK_NET,
    OUTPUT,
    POST,
    PRE,
    SOURCES,
)
from ipv6natd.netfilter.prefixes import MIN_PREFIX_LENGTH, PrefixIndex
from ipv6natd.netfilter.rules import (
    DOCKER_USER,
    PREFIX,
    BaseJump,
    Dnat,
    Jump,
    Match,
    Rule,
    Ruleset,
    Snat,
    Table,
    TableRules,
    Verdict,
)
from ipv6natd.policy.cache import IdentityCache
from ipv6natd.policy.chains import (
    ChainTree,
    assign_blocks,
    by_bridge,
    by_input,
    by_output,
    by_port,
    by_source,
    concat,
    sub_chain,
)

CT = f"{PREFIX}CT"
FRAMES = f"{SOURCES}-FRAMES"
OUTWARDS = f"{SOURCES}-OUT"
CONTAINER_SOURCES = f"{OUTPUT}-SRC"
REJECTED = f"{PREFIX}REJ"
HOST = f"{PREFIX}HOST"
PROXY = f"{PREFIX}PROXY"
_MULTICAST = IPv6Network("ff00::/8")
_IPV4_MAPPED = IPv6Network("::ffff:0:0/96")
"""IPv4 addresses as IPv6 programs see them (RFC 4291, 2.5.5.2); never in a genuine packet."""
_UNSPECIFIED = IPv6Network("::/128")
_LAST_PORT = 65535

_GUARDED = (Protocol.UDP, Protocol.SCTP)
"""The protocols whose packets to the proxy have rules for each port."""

_DROP_FORGED_SYN = tuple(
    Rule(
        not_in_interface="lo",
        protocol=Protocol.TCP,
        matches=(Match.SYN, match),
        target=Verdict.DROP,
    )
    for match in (Match.REPLY, Match.INVALID)
)
"""A packet to a client with a forged source, an address of the host, creates a conntrack entry. The
client's first segment to a published port then matches the entry's reply direction. Replies skip
the nat table, so the segment would go to the userland proxy. With a forged ACK, the client's own
SYN is INVALID to conntrack."""

_AUTHENTICATION_BY_BRIDGE = Rule(
    matches=(Match.AUTHENTICATION, Match.DESTINATION_LOCAL, Match.NO_FLOW), target=Jump(HOST)
)
"""A packet to the host in a frame for another port of a bridge passes FORWARD and not INPUT. Its
entry would be the same as in INPUT: see _authentication_rules."""


def ruleset(
    desired: Desired, cache: IdentityCache | None = None, *, raw_table: bool = True
) -> Ruleset:
    """All chains, rules and jumps for these decisions.

    Without `raw_table` the filter table checks the sources, of new packets only: better than no
    check on a kernel without raw.
    """
    cache = cache or IdentityCache()
    rules = guard_rules(desired, cache, raw_table=raw_table)
    return replace(rules, nat=_nat_rules(desired, cache))


def guard_rules(desired: Desired, cache: IdentityCache, *, raw_table: bool = True) -> Ruleset:
    """The ruleset without the nat table."""
    sources = {SOURCES: _source_chain(desired)}
    checked = raw_table or not _our_networks(desired)
    check = () if checked else (Rule(target=Jump(SOURCES)),)
    chains = {
        FORWARD: _forward_chain(desired, check),
        CT: _established_chain(desired),
        INPUT: _input_chain(desired, cache, check),
        OUTPUT: _output_chain(desired),
    }
    if not raw_table:
        return Ruleset(filter=_table(chains | sources, JUMPS[Table.FILTER]))
    return Ruleset(
        raw=_table(sources, JUMPS[Table.RAW]), filter=_table(chains, JUMPS[Table.FILTER])
    )


def checks_sources(raw_chains: Container[str], filter_chains: Container[str]) -> bool:
    """True if tables with these chains check sources as well as this version does.

    The first versions had no chain for it. The later ones, with the chain IPV6NAT-DST, had it in
    the filter table, where it belongs only on a kernel without raw.
    """
    return (
        CT not in filter_chains
        or SOURCES in raw_chains
        or (SOURCES in filter_chains and f"{PREFIX}DST" not in filter_chains)
    )


def checked_sources(rules: Ruleset) -> set[tuple[IPv6Network, str]]:
    """(prefix, bridge) for each prefix whose sources these rules accept from one bridge only."""
    return {
        (rule.source, rule.not_in_interface)
        for table in (rules.raw, rules.filter)
        for chain in table.chains.values()
        for rule in chain
        if rule.source and rule.not_in_interface
    }


def closed_guard(rules: Ruleset) -> Ruleset:
    """Rules for the same networks that drop everything in and out, even established."""
    within_bridge = [
        rule
        for chain in rules.filter.chains.values()
        for rule in chain
        if rule.in_interface and rule.in_interface == rule.out_interface
    ]
    isolation = (
        isolating for rule in within_bridge for isolating in _isolation_rules(rule.in_interface)
    )
    return Ruleset(
        filter=_table({FORWARD: concat(*isolation, *within_bridge)}, JUMPS[Table.FILTER])
    )


def _nat_rules(desired: Desired, cache: IdentityCache) -> TableRules:
    # With a network, and not with the first port: to add a jump takes several times as long as to
    # add a rule, and the client of a starting container would wait for it.
    publishes = any(net.uses_nat and not net.closed for net in _our_networks(desired))
    chains = {
        PRE: _prerouting_chain(desired) if publishes else concat(),
        DNAT: _dnat_chain(desired, cache),
        POST: _postrouting_chain(desired),
    }
    return _table(chains, JUMPS[Table.NAT], empty=[DNAT] if publishes else [])


def _table(
    chains: dict[str, ChainTree],
    jumps: tuple[BaseJump, ...],
    *,
    empty: Container[str] = (FORWARD, INPUT),
) -> TableRules:
    """The chains with rules and the jumps to them; those in `empty` exist also without rules.

    FORWARD always exists, because users rely on DOCKER-USER, which comes with it. INPUT always
    exists too, so no jump is added or removed with a network.
    """
    filled = {
        chain: rules
        for name, tree in chains.items()
        for chain, rules in sub_chain(name, tree).chains.items()
        if rules or name in empty
    }
    reached = tuple(jump for jump in jumps if jump.target in {DOCKER_USER, *filled})
    return TableRules(chains=filled, jumps=reached)


def _our_networks(desired: Desired) -> list[Network]:
    return [network for network in desired.networks if network.managed_by is ManagedBy.IPV6NATD]


def _guarded_networks(desired: Desired) -> tuple[Network, ...]:
    """All networks whose containers our rules keep from forging sources."""
    return (*desired.networks, *desired.closed_networks)


def _closed_bridges(desired: Desired) -> list[str]:
    return [network.bridge for network in _guarded_networks(desired) if network.closed]


def _our_mappings(desired: Desired) -> list[Mapping]:
    return [mapping for mapping in desired.mappings if mapping.managed_by is ManagedBy.IPV6NATD]


def _forward_chain(desired: Desired, check: tuple[Rule, ...]) -> ChainTree:
    ours = _our_networks(desired)
    guarded = _guarded_networks(desired) if ours else ()
    mark = desired.accept_fwmark
    has_open = any(not network.closed for network in ours)
    # Of all closed networks: our rules accept packets before the engine's.
    isolation = (
        rule for network in guarded if network.closed for rule in _isolation_rules(network.bridge)
    )
    # A forwarded packet to a container never has the host as its source. The rules match bridges,
    # because packets of the host to its virtual machines also pass FORWARD, on other bridges. A
    # closed network too: its entry would open a stateful INPUT of the host to the container.
    from_host = (
        Rule(
            not_source=LINK_LOCAL,
            matches=(Match.SOURCE_LOCAL,),
            out_interface=network.bridge,
            target=Verdict.DROP,
        )
        for network in guarded
    )
    return concat(
        *((Rule(mark=mark, target=Verdict.ACCEPT),) if mark else ()),
        by_bridge("C", isolation),
        *((Rule(matches=(Match.ESTABLISHED,), target=Jump(CT)),) if has_open else ()),
        by_bridge("L", from_host),
        *((_AUTHENTICATION_BY_BRIDGE,) if ours else ()),
        *check,
        _open_forward_rules(desired),
        *(ChainTree((), _own_source_check(network).chains) for network in guarded),
    )


def _open_forward_rules(desired: Desired) -> ChainTree:
    ours = _our_networks(desired)
    open_networks = [network for network in ours if not network.closed]
    if not open_networks:
        return by_output("I", map(_within_bridge, ours))
    # Only of packets that leave the bridge: within it, containers also use link-local sources.
    own_sources = (
        replace(rule, not_out_interface=network.bridge)
        for network in open_networks
        for rule in _own_source_check(network).rules
    )
    accesses = _accesses_by_bridge(desired)
    inbound = (
        rule
        for network in ours
        for rule in (*_inbound_rules(network, accesses), _within_bridge(network))
    )
    # The engine's own rules decide which packets enter its networks.
    natives = (
        Rule(out_interface=network.bridge, target=Verdict.RETURN)
        for network in desired.networks
        if network.managed_by is ManagedBy.ENGINE
    )
    invalid = (
        _drop_invalid(network)
        for network in open_networks
        if network.masquerade and network.uses_nat
    )
    outgoing = (
        Rule(in_interface=network.bridge, target=Verdict.ACCEPT) for network in open_networks
    )
    return concat(
        _other_source_checks(desired),
        by_input("O", own_sources),
        # An ICMPv6 error about an open flow has its own source, which may be forged too.
        Rule(matches=(Match.RELATED,), target=Jump(CT)),
        by_output("I", inbound),
        *natives,
        by_input("A", (*invalid, *outgoing)),
    )


def _other_source_checks(desired: Desired) -> ChainTree:
    """Drops new packets with a source of another network, which may come in for replies.

    Also within the bridge: such a packet to its sender by the gateway would create an entry that
    leads to whoever has the address later.
    """
    by_default: dict[str, list[IPv6Network]] = {}
    for source in desired.other_sources:
        by_default.setdefault(source.default_bridge, []).append(IPv6Network(source.address))
    chains = {bridge: f"{PREFIX}NEW-{bridge}" for bridge in by_default}
    return concat(
        by_input(
            "E",
            (
                Rule(in_interface=bridge, matches=(Match.NO_FLOW,), target=Jump(chain))
                for bridge, chain in chains.items()
            ),
        ),
        *(
            sub_chain(chains[bridge], *(Rule(source=s, target=Verdict.DROP) for s in sources))
            for bridge, sources in by_default.items()
        ),
    )


def _drop_invalid(network: Network) -> Rule:
    """The kernel does not NAT invalid packets: they would leave with a ULA as source."""
    return Rule(
        in_interface=network.bridge,
        not_out_interface=network.bridge,
        matches=(Match.INVALID,),
        target=Verdict.DROP,
    )


def _within_bridge(network: Network) -> Rule:
    return Rule(
        in_interface=network.bridge,
        out_interface=network.bridge,
        target=Verdict.ACCEPT if network.icc else Verdict.DROP,
    )


def _isolation_rules(bridge: str) -> Iterator[Rule]:
    """Closes a bridge in both directions, before all other rules.

    A container of an internal network can reach its bridge's address, which is LOCAL, so its
    packets get DNAT to published ports. The rules match interfaces and not addresses: forged
    sources are dropped, and NDP, which never leaves the bridge, is not.
    """
    yield Rule(not_in_interface=bridge, out_interface=bridge, target=Verdict.DROP)
    yield Rule(in_interface=bridge, not_out_interface=bridge, target=Verdict.DROP)


def _accesses_by_bridge(desired: Desired) -> dict[str, list[DirectAccess]]:
    accesses: dict[str, list[DirectAccess]] = {}
    for access in desired.direct_access:
        accesses.setdefault(access.bridge, []).append(access)
    return accesses


def _inbound_rules(network: Network, accesses: dict[str, list[DirectAccess]]) -> Iterator[Rule]:
    """Packets that may enter a network: with our DNAT, or by direct access. A closed network has
    its rules in front."""
    if network.closed:
        return
    bridge = network.bridge
    inbound = partial(Rule, not_in_interface=bridge, out_interface=bridge)
    if network.uses_nat:
        yield Rule(out_interface=bridge, matches=(Match.DNAT,), target=Verdict.ACCEPT)
    for access in accesses.get(bridge, ()):
        yield Rule(
            destination=IPv6Network(access.address),
            in_interface=access.in_interface,
            not_in_interface="" if access.in_interface else bridge,
            out_interface=bridge,
            protocol=access.protocol,
            ports=(access.first, access.last),
            target=Verdict.ACCEPT,
        )
    if not network.uses_nat:
        yield inbound(matches=(Match.ICMP,), target=Verdict.ACCEPT)
    unprotected = network.gateway_mode is GatewayMode.NAT_UNPROTECTED
    yield inbound(target=Verdict.ACCEPT if unprotected else Verdict.DROP)


def _source_chain(desired: Desired) -> ChainTree:
    """Drops packets with a forged source, before conntrack.

    An attacker could send a packet with a container's address as source to himself. For conntrack,
    all his later packets to that container would be replies. A check in the filter table comes too
    late: if bridged packets pass netfilter, a bridge confirms the conntrack entry of a broadcast
    frame before INPUT and FORWARD (br_nf_local_in), even if both drop the packet.

    The engine's networks are included, because packets from our networks can reach them.
    """
    if not _our_networks(desired):
        return concat()
    return concat(
        Rule(in_interface="lo", target=Verdict.RETURN),
        # A program takes this source for an IPv4 peer, as its gateway or 127.0.0.1.
        Rule(source=_IPV4_MAPPED, target=Verdict.DROP),
        # The kernel drops such a packet too, but not the entry that a bridge created for it. In the
        # reply direction of the entry, a packet to the group could reach a program of the host.
        Rule(source=_MULTICAST, target=Verdict.DROP),
        # Conntrack has put fragments together before raw, so this one was inside a fragment. The
        # kernel would do it once more, but behind INPUT and DNAT, which do not see its port. Before
        # conntrack a packet is INVALID, except the host's own multicast, which comes back, and what
        # another program gave a zone or does not track.
        Rule(not_destination=_MULTICAST, matches=(Match.FRAGMENT,), target=Verdict.DROP),
        Rule(matches=(Match.FRAGMENT, Match.INVALID), target=Verdict.DROP),
        _frame_checks(desired),
        # Such packets do not leave their link, where a router may have the link-local address that
        # the host has on another link.
        Rule(
            source=LINK_LOCAL,
            not_destination=_MULTICAST,
            matches=(Match.SOURCE_LOCAL_OR_ANYCAST_ON_LINK,),
            target=Verdict.DROP,
        ),
        Rule(source=LINK_LOCAL, target=Verdict.RETURN),
        _host_source_checks(desired),
        _sent_source_checks(desired),
        _network_source_checks(desired),
    )


def _frame_checks(desired: Desired) -> ChainTree:
    """Drops packets for one host in a frame for all.

    If bridged packets pass netfilter, a bridge confirms their entries, whatever the filter table
    does. So a container could create an entry as its neighbour, whose packets of the other
    direction would then be accepted.

    A bridge does not forward frames to 01:80:c2:00:00:0X, as of LLDP: their packets come in by the
    port of the container, and no rule for a bridge matches.

    On any bridge of the host, such a frame with an authentication header would create an entry for
    a published port: see _authentication_rules.
    """
    drops = [
        Rule(not_destination=_MULTICAST, matches=(kind,), target=Verdict.DROP)
        for kind in (Match.BROADCAST, Match.MULTICAST)
    ]
    bridges = [network.bridge for network in _guarded_networks(desired)]
    return concat(
        *(replace(drop, matches=(Match.AUTHENTICATION, *drop.matches)) for drop in drops),
        *(replace(drop, target=Jump(FRAMES)) for drop in drops),
        sub_chain(
            FRAMES,
            Rule(in_interface=f"{CONTAINER_PORT}+", target=Verdict.DROP),
            by_bridge("F", (Rule(in_interface=b, target=Verdict.DROP) for b in bridges)),
        ),
    )


def _host_source_checks(desired: Desired) -> ChainTree:
    """Drops packets of containers with a source of the host.

    The host's own multicast comes back by the interface on which the host sent it.
    """
    drop = Rule(
        matches=(Match.SOURCE_LOCAL_OR_ANYCAST,), not_destination=_MULTICAST, target=Verdict.DROP
    )
    rules = (replace(drop, in_interface=network.bridge) for network in _guarded_networks(desired))
    return _behind_gate(drop, f"{SOURCES}-HOST", by_bridge("S", rules))


def _sent_source_checks(desired: Desired) -> ChainTree:
    """Drops packets of containers with a source that is not theirs: to the host, because a bridge
    confirms their entries too, and from a closed network to any other network.

    The kernel answers a packet without a route, or whose hop limit is 1, before FORWARD. Its ICMPv6
    error has a part of the packet: with a forged source, data would leave a closed network. Within
    the network, a container may be the router of its neighbours, for other sources. No multicast
    leaves the network.
    Link-local sources have returned before; networks with a default route by a container have no
    such check.
    """
    sent = _sent_prefixes(desired)
    to_host = Rule(matches=(Match.DESTINATION_LOCAL,), target=Verdict.DROP)
    checks = concat(
        *(
            _drop_other_sources(
                replace(to_host, in_interface=network.bridge),
                sent[network.bridge],
                f"{PREFIX}SENT-{network.bridge}",
            )
            for network in _guarded_networks(desired)
        )
    )
    outwards = [*_outward_checks(desired, sent)]
    return concat(
        _behind_gate(to_host, f"{SOURCES}-TO-HOST", by_bridge("D", checks.rules)),
        *((Rule(not_destination=_MULTICAST, target=Jump(OUTWARDS)),) if outwards else ()),
        ChainTree((), checks.chains),
        *((sub_chain(OUTWARDS, by_bridge("N", outwards)),) if outwards else ()),
    )


def _outward_checks(desired: Desired, sent: dict[str, list[IPv6Network]]) -> Iterator[Rule]:
    """Not for a network with several prefixes: a rule has one source and one destination. Nor for
    one without a subnet, where containers may have any addresses among themselves."""
    for network in _guarded_networks(desired):
        if network.closed and len(sent[network.bridge]) == 1:
            (own,) = sent[network.bridge]
            if own == LINK_LOCAL:
                continue
            yield Rule(
                in_interface=network.bridge,
                not_source=own,
                not_destination=own,
                target=Verdict.DROP,
            )


def _drop_other_sources(drop: Rule, sources: Sequence[IPv6Network], chain: str) -> ChainTree:
    """Drops the packets of `drop` with other sources than these. Several need a chain.

    Nothing is dropped if one of several sources is a part of a default route.
    """
    if len(sources) == 1:
        return concat(replace(drop, not_source=sources[0]))
    if not all(map(_is_known, sources)):
        return concat()
    valid = (Rule(source=source, target=Verdict.RETURN) for source in sorted(sources))
    return concat(
        replace(drop, target=Jump(chain)), sub_chain(chain, *valid, Rule(target=Verdict.DROP))
    )


def _network_source_checks(desired: Desired) -> ChainTree:
    """Drops packets with a source inside a network that come in by another interface."""
    by_other_bridges = _sources_by_other_bridges(desired)
    chains = {bridge: f"{PREFIX}FROM-{bridge}" for bridge in by_other_bridges}
    rules = (
        Rule(
            source=prefix,
            not_in_interface=network.bridge,
            target=Jump(chains[network.bridge]) if network.bridge in chains else Verdict.DROP,
        )
        for network in desired.networks
        for prefix in _prefixes(network)
        if _is_known(prefix)
    )
    return concat(
        *_exceptions(desired, by_other_bridges),
        *(
            sub_chain(chains[bridge], *valid, Rule(target=Verdict.DROP))
            for bridge, valid in by_other_bridges.items()
        ),
        by_source(rules),
    )


def _behind_gate(condition: Rule, name: str, tree: ChainTree) -> ChainTree:
    """A large tree of rules with one common condition is behind a jump with this condition: one
    lookup of a route costs less than many comparisons of interfaces."""
    if not tree.chains:
        return tree
    return concat(replace(condition, target=Jump(name)), sub_chain(name, tree))


def _sent_prefixes(desired: Desired) -> dict[str, list[IPv6Network]]:
    """Bridge -> all sources of packets that containers send by it, replies included, sorted."""
    sent = {network.bridge: list(_prefixes(network)) for network in _guarded_networks(desired)}
    for source in desired.other_sources:
        if source.default_bridge in sent:
            sent[source.default_bridge].append(IPv6Network(source.address))
    return {bridge: sorted(prefixes) for bridge, prefixes in sent.items()}


def _sources_by_other_bridges(desired: Desired) -> dict[str, list[Rule]]:
    """Bridge -> the rules that let replies of its containers come in by another bridge.

    Every container on the other bridge can send with these sources. With br_netfilter, such packets
    enter open flows between two neighbours (SECURITY.md, known gaps).
    """
    rules: dict[str, list[Rule]] = {}
    bridges = {network.bridge for network in desired.networks}
    for address, bridge, default_bridge in desired.other_sources:
        if bridge in bridges:
            source = IPv6Network(address)
            rule = Rule(source=source, in_interface=default_bridge, target=Verdict.RETURN)
            rules.setdefault(bridge, []).append(rule)
    return rules


def _exceptions(desired: Desired, by_other_bridges: dict[str, list[Rule]]) -> Iterator[Rule]:
    """Prefixes inside others, the narrower first: parts of networks that are elsewhere, prefixes
    that the host routes to several interfaces, and the networks inside such a prefix."""
    routes = {route for network in desired.networks for route in network.routes_elsewhere}
    prefixes = {route.prefix for route in routes}
    routes |= {
        Route(prefix=prefix, interface=network.bridge)
        for network in desired.networks
        for prefix in prefixes.intersection(network.routed_prefixes)
    }
    valid: dict[IPv6Network, list[Rule]] = {}
    for route in sorted(routes):
        rule = Rule(source=route.prefix, in_interface=route.interface, target=Verdict.RETURN)
        valid.setdefault(route.prefix, []).append(rule)
    for prefix, network in _nested_prefixes(desired, prefixes):
        rule = Rule(source=prefix, in_interface=network.bridge, target=Verdict.RETURN)
        if prefix not in valid or prefix in network.subnets:
            valid[prefix] = [rule, *by_other_bridges.get(network.bridge, ())]
    for prefix in sorted(valid, key=lambda prefix: (-prefix.prefixlen, prefix)):
        yield from valid[prefix]
        yield Rule(source=prefix, target=Verdict.DROP)


def _is_known(prefix: IPv6Network) -> bool:
    """True if the prefix says which hosts are there; a part of a default route does not."""
    return prefix.prefixlen >= MIN_PREFIX_LENGTH


def _prefixes(network: Network) -> tuple[IPv6Network, ...]:
    """The subnets of a network and the prefixes that the host routes to its bridge."""
    return (*network.subnets, *network.routed_prefixes)


def _nested_prefixes(
    desired: Desired, prefixes: Iterable[IPv6Network]
) -> Iterator[tuple[IPv6Network, Network]]:
    """(prefix, its network) for each prefix of a network inside one of these, or inside one that is
    routed to a network, as fd00:a::/64 beside a container that is the router for fd00::/8."""
    routed = (prefix for network in desired.networks for prefix in network.routed_prefixes)
    wider = PrefixIndex((*prefixes, *routed))
    for network in desired.networks:
        for prefix in _prefixes(network):
            if _is_known(prefix) and any(map(_is_known, wider.supernets(prefix))):
                yield prefix, network


def _own_source_check(network: Network) -> ChainTree:
    """A container sends only with sources of its network or of prefixes that are routed to it.

    It cannot forge the address of a neighbour of the host.
    """
    drop = Rule(in_interface=network.bridge, target=Verdict.DROP)
    return _drop_other_sources(drop, _prefixes(network), f"{PREFIX}OWN-{network.bridge}")


def _established_chain(desired: Desired) -> ChainTree:
    """Accepts established packets, except to containers from addresses of the host, and from
    containers with other sources than theirs.

    An attacker could first send a packet to the host as the container, then one to the container as
    the host: for conntrack, the second is a reply. If bridged packets pass netfilter, a container
    could send both directions of a flow of other hosts in broadcast frames.
    """
    open_networks = [network for network in _our_networks(desired) if not network.closed]
    # None for all sources.
    sent: dict[str, Sequence[IPv6Network | None]] = {
        bridge: sources if all(map(_is_known, sources)) else [None]
        for bridge, sources in _sent_prefixes(desired).items()
    }
    inbound = (
        Rule(out_interface=network.bridge, matches=(Match.SOURCE_NOT_LOCAL,), target=Verdict.ACCEPT)
        for network in open_networks
    )
    outbound = (
        Rule(source=source, in_interface=network.bridge, target=Verdict.ACCEPT)
        for network in open_networks
        for source in sent[network.bridge]
    )
    return by_bridge("", (*inbound, *outbound))


def _input_chain(desired: Desired, cache: IdentityCache, check: tuple[Rule, ...]) -> ChainTree:
    if not desired.userland_proxy:
        return concat(_reject_chain(desired, cache), _host_guard(desired, check))
    syn = _DROP_FORGED_SYN if _our_networks(desired) else ()
    return concat(_proxy_guard(desired, cache, check), *syn, _host_guard(desired, check))


def _host_guard(desired: Desired, check: tuple[Rule, ...]) -> ChainTree:
    """Drops new packets to the host with a forged source.

    Such a packet creates a conntrack entry too. Others could send in the reply direction: with an
    address that the host has given up, or an ICMPv6 error about the flow.
    """
    if not _our_networks(desired):
        return concat()
    own_sources = (
        rule for network in _guarded_networks(desired) for rule in _own_source_check(network).rules
    )
    return concat(
        # To conntrack a datagram of length 0 is INVALID; a socket takes it, and its answer is NEW.
        # Neighbour discovery and multicast listeners are UNTRACKED; with an unknown option, the
        # host would answer with an error, which has a part of the packet.
        Rule(matches=(Match.NO_FLOW,), target=Jump(HOST)),
        sub_chain(
            HOST,
            Rule(in_interface="lo", target=Verdict.RETURN),
            # Packets of the host to itself come in by lo. Its own multicast comes back by another
            # interface, but with a destination that is not LOCAL.
            *_drop_host_sources(Match.DESTINATION_LOCAL),
            *check,
            *_authentication_rules(desired),
            Rule(source=LINK_LOCAL, target=Verdict.RETURN),
            # A host that has no address yet asks whether another one has it (RFC 4862, 5.4).
            Rule(source=_UNSPECIFIED, matches=(Match.ICMP,), target=Verdict.RETURN),
            # Also of packets to a multicast group.
            by_bridge("H", own_sources),
        ),
    )


def _output_chain(desired: Desired) -> ChainTree:
    """Drops new packets from or to a container that the host itself seems to send, with a source
    that is not the host's.

    The kernel sends the packets of an ipvlan network in the modes l3 and l3s in this way
    (drivers/net/ipvlan/ipvlan_core.c, ipvlan_process_v6_outbound). Replies with such a source, as
    of a REJECT rule of another program, belong to a flow.
    """
    if not desired.has_ipvlan or not _our_networks(desired):
        return concat()
    lans = {route.prefix for network in desired.networks for route in network.routes_elsewhere}
    subnets = (subnet for network in desired.networks for subnet in network.subnets)
    to_containers = (
        Rule(out_interface=network.bridge, target=Verdict.DROP)
        for network in _our_networks(desired)
    )
    return concat(
        Rule(matches=(Match.NO_FLOW, Match.SOURCE_NOT_LOCAL), target=Jump(CONTAINER_SOURCES)),
        sub_chain(
            CONTAINER_SOURCES,
            by_bridge("V", to_containers),
            *(Rule(source=prefix, target=Verdict.RETURN) for prefix in sorted(lans)),
            *(Rule(source=subnet, target=Verdict.DROP) for subnet in sorted(subnets)),
        ),
    )


def _drop_host_sources(*conditions: Match) -> tuple[Rule, Rule]:
    """Drops packets with a source of the host that come in by another interface than lo.

    A link-local address belongs to one link. Docker up to 26 gives fe80::1 to each bridge, and many
    routers have it on their links: the host must hear their neighbour discovery.
    """
    return (
        Rule(
            not_source=LINK_LOCAL,
            matches=(Match.SOURCE_LOCAL, *conditions),
            target=Verdict.DROP,
        ),
        Rule(
            source=LINK_LOCAL,
            matches=(Match.SOURCE_LOCAL_ON_LINK, *conditions),
            target=Verdict.DROP,
        ),
    )


def _authentication_rules(desired: Desired) -> Iterator[Rule]:
    """Drops new packets to published ports behind an authentication header.

    No DNAT rule of nf_tables matches such a packet, but conntrack creates an entry for the port.
    Later packets of the flow would go to the userland proxy, which hides the client's address, or
    without it to no program.

    The rule covers all ports from the highest power of two that is not above the lowest published
    port. So a new container rarely changes this chain; only attackers send such packets.
    """
    mappings = _our_mappings(desired)
    for protocol in Protocol:
        ports = [mapping.host_port for mapping in mappings if mapping.protocol is protocol]
        if ports:
            flow = (protocol, 1 << min(ports).bit_length() - 1, _LAST_PORT)
            yield Rule(matches=(Match.AUTHENTICATION,), flow=flow, target=Verdict.DROP)


def _reject_chain(desired: Desired, cache: IdentityCache) -> ChainTree:
    rules = cache.map(
        "reject rules", desired.rejected, lambda rejected: assign_blocks(_reject_rules(rejected))
    )
    tree = by_port("REJ-", rules)
    if not tree.chains:
        return tree
    return concat(
        # All other packets to the host, even of open connections, skip the rules for ports.
        Rule(destination=LOOPBACK_NET, target=Jump(REJECTED)),
        Rule(source=LINK_LOCAL, target=Jump(REJECTED)),
        sub_chain(REJECTED, tree),
    )


def _proxy_guard(desired: Desired, cache: IdentityCache, check: tuple[Rule, ...]) -> ChainTree:
    """Drops forged packets to the userland proxy, which would send them on as the gateway.

    Also a client's SCTP packets in the reply direction of a forged entry; for TCP, _DROP_FORGED_SYN
    does this. An attacker who does not get the replies cannot open a connection of both protocols.
    """
    mappings = [mapping for mapping in _our_mappings(desired) if mapping.protocol in _GUARDED]
    mapped = cache.map(
        "proxy jumps", mappings, lambda mapping: assign_blocks((_proxy_jump(mapping),))
    )
    unmapped = assign_blocks(
        Rule(protocol=Protocol.UDP, ports=ports, target=Jump(PROXY))
        for ports in desired.proxy_udp_ports
    )
    if not mapped and not unmapped:
        return concat()
    closed = (Rule(in_interface=bridge, target=Verdict.DROP) for bridge in _closed_bridges(desired))
    return concat(
        by_port("UP-", [*mapped, unmapped]),
        sub_chain(
            PROXY,
            Rule(in_interface="lo", target=Verdict.RETURN),
            # New packets get DNAT. A flow may be older than the rule of the port.
            by_bridge("X", closed),
            # Also established: on any bridge of the host, two forged frames make such an entry.
            *_drop_host_sources(),
            # To conntrack a datagram of UDP length 0 is invalid and gets no DNAT; a socket gets it.
            Rule(matches=(Match.INVALID,), target=Verdict.DROP),
            # A forged packet with an address of the host created the entry; see _DROP_FORGED_SYN.
            Rule(matches=(Match.REPLY,), target=Verdict.DROP),
            # Multicast and anycast get no DNAT, but a proxy on all addresses receives them.
            Rule(matches=(Match.DESTINATION_NOT_LOCAL,), target=Verdict.DROP),
            *check,
        ),
    )


def _proxy_jump(mapping: Mapping) -> Rule:
    return Rule(
        # On a network with host_binding_ipv6 the proxy may still listen on all addresses.
        destination=IPv6Network(mapping.host_address) if mapping.proxy_binds_address else None,
        protocol=mapping.protocol,
        ports=(mapping.host_port, mapping.host_port_end),
        target=Jump(PROXY),
    )


def _reject_rules(rejected: RejectedPorts) -> Iterator[Rule]:
    host = rejected.host_address
    is_tcp = rejected.protocol is Protocol.TCP
    reject = partial(
        Rule,
        protocol=rejected.protocol,
        ports=(rejected.first, rejected.last),
        target=Verdict.TCP_RESET if is_tcp else Verdict.PORT_UNREACHABLE,
    )
    if host in (ANY, LOOPBACK):
        yield reject(destination=LOOPBACK_NET)
    if host != LOOPBACK:
        yield reject(source=LINK_LOCAL, destination=None if host == ANY else IPv6Network(host))


def _dnat_chain(desired: Desired, cache: IdentityCache) -> ChainTree:
    mappings = _our_mappings(desired)
    if not mappings:
        return concat()
    proxy = desired.userland_proxy
    rules = cache.map(
        "DNAT rules",
        mappings,
        lambda mapping: assign_blocks(_dnat_rules(mapping, proxy)),
        key=proxy,
    )
    # Mappings are sorted: those for one address come before the wildcards.
    wildcards = bisect_left(mappings, True, key=lambda mapping: mapping.wildcard)
    on_address = [
        mapping for mapping in mappings[:wildcards] if mapping.protocol is not Protocol.UDP
    ]
    return concat(
        by_port("AT-", rules[:wildcards]),
        *(_proxy_return_rules(on_address, mappings[wildcards:]) if proxy else ()),
        by_port("", rules[wildcards:]),
    )


def _prerouting_chain(desired: Desired) -> ChainTree:
    """Packets that get no DNAT, for any port. Packets of the host itself do not pass this chain.

    Those of a closed network get DNAT, and FORWARD drops them. Else the userland proxy, a program
    of the host, would serve them.
    """
    closed = (
        Rule(source=LINK_LOCAL, in_interface=bridge, target=Jump(DNAT))
        for bridge in _closed_bridges(desired)
    )
    return concat(
        by_input("P", closed),
        # The kernel does not forward link-local sources: with DNAT such packets would be lost.
        Rule(source=LINK_LOCAL, target=Verdict.RETURN),
        # FORWARD drops these packets anyway, unless DOCKER-USER or the mark accepts them first.
        Rule(matches=(Match.SOURCE_LOCAL,), target=Verdict.RETURN),
        Rule(target=Jump(DNAT)),
    )


def _proxy_return_rules(on_address: list[Mapping], wildcards: list[Mapping]) -> Iterator[Rule]:
    """RETURN rules before the wildcard DNAT rules, for bindings to one address.

    With the proxy on, a container on the same bridge that connects to such a binding must reach the
    proxy, and not the wildcard binding of another network. Rare: engines refuse most such pairs.
    """
    if not on_address:
        return
    bridges = {
        (mapping.protocol, mapping.host_port + i): mapping.bridge
        for mapping in wildcards
        for i in range(mapping.count)
    }
    for mapping in on_address:
        ports = range(mapping.host_port, mapping.host_port_end + 1)
        targets = {bridges.get((mapping.protocol, port), mapping.bridge) for port in ports}
        if targets != {mapping.bridge}:
            yield Rule(
                destination=IPv6Network(mapping.host_address),
                in_interface=mapping.bridge,
                protocol=mapping.protocol,
                ports=(mapping.host_port, mapping.host_port_end),
                target=Verdict.RETURN,
            )


def _dnat_rules(mapping: Mapping, userland_proxy: bool) -> Iterator[Rule]:
    """One rule for a range with equal host and container ports; else one rule per port.

    With different ports in one rule, the kernel takes the next port of the range if a client
    connects from one source port to two addresses of the host. The packet would reach the wrong
    port.
    """
    host = None if mapping.wildcard else IPv6Network(mapping.host_address)
    if userland_proxy and mapping.protocol is Protocol.UDP and not mapping.proxy_binds_address:
        # A proxy on all addresses replies from the bridge's address, whatever address the container
        # sent to, and the container would drop the reply. With REDIRECT, conntrack restores the
        # address in the reply. A proxy on one address replies from this address.
        yield Rule(
            destination=host,
            in_interface=mapping.bridge,
            protocol=mapping.protocol,
            ports=(mapping.host_port, mapping.host_port_end),
            target=Verdict.REDIRECT,
        )
    size = mapping.count if mapping.host_port == mapping.container_port else 1
    for offset in range(0, mapping.count, size):
        first = mapping.host_port + offset
        port = mapping.container_port + offset if size == 1 else None
        yield Rule(
            destination=host,
            # With the proxy on, containers on the same bridge reach the proxy.
            not_in_interface=mapping.bridge if userland_proxy else "",
            protocol=mapping.protocol,
            ports=(first, first + size - 1),
            target=Dnat(mapping.container_address, port),
        )


def _postrouting_chain(desired: Desired) -> ChainTree:
    networks = [network for network in _our_networks(desired) if network.uses_nat]
    proxy = desired.userland_proxy
    bridges = {network.bridge for network in desired.networks}
    return concat(
        *(rule for network in networks for rule in _elsewhere_rules(network, bridges)),
        by_source(rule for network in networks for rule in _masquerade_rules(network, proxy)),
    )


def _hairpin(network: Network) -> Rule:
    return Rule(out_interface=network.bridge, matches=(Match.DNAT,), target=_source_nat(network))


def _source_nat(network: Network) -> Snat | Verdict:
    address = network.source_address
    return Verdict.MASQUERADE if address is None else Snat(address)


def _elsewhere_rules(network: Network, bridges: Container[str]) -> Iterator[Rule]:
    for route in network.routes_elsewhere:
        # Not for a LAN inside a routed prefix: its router knows the route to the LAN.
        if route.interface not in bridges and any(map(route.prefix.subnet_of, network.subnets)):
            # The LAN is inside the container's subnet, so replies to it would stay on the bridge.
            yield replace(_hairpin(network), source=route.prefix)
            yield Rule(source=route.prefix, target=Verdict.RETURN)


def _masquerade_rules(network: Network, userland_proxy: bool) -> Iterator[Rule]:
    """Translates what leaves a network to an address of the host.

    The kernel keeps the source port unless another entry has it, and does not look at sockets. So
    a container can use the port of a service of the host (SECURITY.md, known gaps).
    """
    for subnet in network.subnets:
        if network.masquerade:
            yield Rule(
                source=subnet,
                not_out_interface=network.bridge,
                matches=(Match.SOURCE_NOT_LOCAL,),
                target=_source_nat(network),
            )
        if not userland_proxy:
            # Else a container on the same bridge would reply directly, and DNAT is not undone.
            yield replace(_hairpin(network), source=subnet)
