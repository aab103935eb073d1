"""Desired -> Ruleset: which rules hold a wish, in which order and why.

Nothing here knows what the kernel holds now; that enters in plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv6Network

from ipv6natd.model import ANY, LINK_LOCAL, LOOPBACK, Desired, Mapping, Network, Protocol, Refused
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

FORWARD = f"{PREFIX}FORWARD"
CT = f"{PREFIX}CT"
INPUT = f"{PREFIX}INPUT"
DNAT = f"{PREFIX}DNAT"
POST = f"{PREFIX}POST"
_LOOPBACK_NET = IPv6Network(LOOPBACK)


def ruleset(desired: Desired) -> Ruleset:
    """All that has to stand in the kernel for `desired` to hold."""
    return Ruleset(
        filter=_table(
            {
                FORWARD: tuple(_forward(desired)),
                CT: tuple(_established(desired)),
                INPUT: tuple(_input(desired)),
            },
            _filter_jumps(),
        ),
        nat=_table(
            {DNAT: tuple(_dnat(desired)), POST: tuple(_post(desired))},
            _nat_jumps(),
        ),
    )


def _table(chains: dict[str, tuple[Rule, ...]], jumps: tuple[BaseJump, ...]) -> TableRules:
    """Chains that have rules, and the jumps to them. FORWARD stands always: users lean on
    DOCKER-USER, which it brings along."""
    filled = tuple(
        Chain(name=name, rules=rules) for name, rules in chains.items() if rules or name == FORWARD
    )
    names = {DOCKER_USER, *(chain.name for chain in filled)}
    return TableRules(chains=filled, jumps=tuple(jump for jump in jumps if jump.target in names))


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


def _forward(desired: Desired) -> Iterator[Rule]:
    internal = [each for each in desired.networks if each.internal]
    outgoing = [each for each in desired.networks if not each.internal]
    for network in internal:
        # Both ways and before all else: a container of an internal network can reach its own
        # bridge address, which is LOCAL, so it could be DNATed. By interface and not by address,
        # so that a forged source is dropped and NDP, which never leaves the bridge, is not.
        yield Rule(
            not_in_interface=network.bridge, out_interface=network.bridge, target=Verdict.DROP
        )
        yield Rule(
            in_interface=network.bridge, not_out_interface=network.bridge, target=Verdict.DROP
        )
    if outgoing:
        yield Rule(states=("RELATED", "ESTABLISHED"), target=Jump(CT))
    for network in outgoing:
        yield Rule(out_interface=network.bridge, states=("DNAT",), target=Verdict.ACCEPT)
        yield Rule(
            not_in_interface=network.bridge, out_interface=network.bridge, target=Verdict.DROP
        )
    for network in desired.networks:
        yield Rule(
            in_interface=network.bridge,
            out_interface=network.bridge,
            target=Verdict.ACCEPT if network.icc else Verdict.DROP,
        )
    for network in outgoing:
        if network.masquerade:
            # The kernel does not NAT what conntrack calls invalid: it would leave with its ULA.
            yield Rule(
                in_interface=network.bridge,
                not_out_interface=network.bridge,
                states=("INVALID",),
                target=Verdict.DROP,
            )
    for network in outgoing:
        yield Rule(in_interface=network.bridge, target=Verdict.ACCEPT)


def _established(desired: Desired) -> Iterator[Rule]:
    for network in desired.networks:
        if not network.internal:
            yield Rule(in_interface=network.bridge, target=Verdict.ACCEPT)
            yield Rule(out_interface=network.bridge, target=Verdict.ACCEPT)


def _input(desired: Desired) -> Iterator[Rule]:
    for refused in desired.refused:
        if refused.host_address in (ANY, LOOPBACK):
            yield _refusal(refused, destination=_LOOPBACK_NET)
        if refused.host_address == ANY:
            yield _refusal(refused, source=LINK_LOCAL)
        elif refused.host_address != LOOPBACK:
            host = IPv6Network(refused.host_address)
            yield _refusal(refused, source=LINK_LOCAL, destination=host)


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


def _dnat(desired: Desired) -> Iterator[Rule]:
    if not desired.mappings:
        return
    # The kernel does not forward link-local packets: DNAT could only lose them.
    yield Rule(source=LINK_LOCAL, target=Verdict.RETURN)
    for network in desired.networks:
        if network.internal:
            yield Rule(in_interface=network.bridge, target=Verdict.RETURN)
    for network in desired.networks:
        for subnet in network.subnets:
            # A source of ours that comes in elsewhere is forged: applications trust neighbours.
            yield Rule(
                source=subnet,
                not_in_interface=network.bridge,
                source_not_local=True,
                target=Verdict.RETURN,
            )
    special = [each for each in desired.mappings if not each.wildcard]
    general = [each for each in desired.mappings if each.wildcard]
    for mapping in special:
        yield from _forwarded(mapping, desired.userland_proxy)
    if desired.userland_proxy:
        yield from _left_to_proxy(special, general)
    for mapping in general:
        yield from _forwarded(mapping, desired.userland_proxy)


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
    for first, last, port in runs:
        yield Rule(
            destination=None if mapping.wildcard else IPv6Network(mapping.host_address),
            # With the proxy on, neighbours are its business: it answers on the bridge's address.
            not_in_interface=mapping.bridge if userland_proxy else "",
            protocol=mapping.protocol,
            ports=(first, last),
            target=Dnat(mapping.container_address, port),
        )


def _post(desired: Desired) -> Iterator[Rule]:
    for network in desired.networks:
        if not network.internal:
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
