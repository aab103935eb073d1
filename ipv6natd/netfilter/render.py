"""Rules and changes -> text: what `ip6tables-restore --noflush` reads, the same for both variants.

Text only: no function here runs a tool. The way back is in parse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network
from itertools import islice
from socket import AF_INET6, inet_ntop

from ipv6natd.netfilter.diff import TableChange
from ipv6natd.netfilter.rules import (
    DOCKER_USER,
    SYN,
    Dnat,
    Jump,
    Reject,
    Rule,
    Ruleset,
    Snat,
    Table,
    Target,
    Verdict,
)

_PIECE = 500
"""Lines; about as much as a pipe holds."""


def render(change: TableChange) -> str:
    """The change as `ip6tables-restore --noflush` reads it; empty steps leave no line."""
    return "".join(pieces(change))


def pieces(change: TableChange) -> Iterator[str]:
    """The same bit by bit, for a tool that reads one while the next is worded."""
    lines = _lines(change)
    while some := list(islice(lines, _PIECE)):
        yield "\n".join(some) + "\n"


def _lines(change: TableChange) -> Iterator[str]:
    yield f"*{change.table}"
    for jump in change.remove:
        yield f"-D {jump.base} {jump.text}"
    for name in change.create:
        yield f"-N {name}"
    # All chains before any rule: a rule may jump to a chain further down.
    for chain in change.chains:
        yield f":{chain.name} - [0:0]"
    for chain in change.chains:
        for rule in chain.rules:
            yield f"-A {chain.name} {words(rule)}"
    for insert in reversed([jump for jump in change.insert if jump.first]):
        yield f"-I {insert.base} 1 {words(insert.rule)}"
    for insert in change.insert:
        if not insert.first:
            yield f"-A {insert.base} {words(insert.rule)}"
    # Emptied first, all of them: a chain goes only when no rule jumps to it. DOCKER-USER is never
    # emptied, so that what a person put there makes the transaction fail instead of vanishing.
    for name in change.delete:
        if name != DOCKER_USER:
            yield f":{name} - [0:0]"
    for name in change.delete:
        yield f"-X {name}"
    yield "COMMIT"


def changed_rules(old: Ruleset, new: Ruleset) -> tuple[list[str], list[str]]:
    """(added, removed) rules between two rulesets, worded with table and chain."""
    before, after = Counter(_worded(old, new)), Counter(_worded(new, old))
    return list((after - before).elements()), list((before - after).elements())


def _worded(ruleset: Ruleset, other: Ruleset) -> Iterator[str]:
    """The jumps, and the rules of chains that the other has not alike."""
    for table in Table:
        rules = ruleset.table(table)
        for jump in rules.jumps:
            yield f"-t {table} -A {jump.base} {words(jump.rule)}"
        alike = {chain.name: chain for chain in other.table(table).chains}
        for chain in rules.chains:
            if alike.get(chain.name) != chain:
                for rule in chain.rules:
                    yield f"-t {table} -A {chain.name} {words(rule)}"


def full_text(ruleset: Ruleset) -> str:
    """The ruleset as text for ip6tables-restore, for people to read."""
    lines: list[str] = []
    for table in Table:
        rules = ruleset.table(table)
        if not rules.chains:
            continue
        lines.append(f"*{table}")
        lines += [f":{chain.name} - [0:0]" for chain in rules.chains]
        lines += [f"-A {jump.base} {words(jump.rule)}" for jump in rules.jumps]
        lines += [
            f"-A {chain.name} {words(rule)}" for chain in rules.chains for rule in chain.rules
        ]
        lines.append("COMMIT")
    return "".join(f"{line}\n" for line in lines)


def words(rule: Rule) -> str:
    """The rule as ip6tables-restore reads it, without the chain.

    Every string in it was checked where it entered: interface names, addresses and numbers only.
    """
    parts: list[str] = []
    if rule.source is not None:
        parts.append(f"-s {_network(rule.source)}")
    if rule.not_source is not None:
        parts.append(f"! -s {_network(rule.not_source)}")
    if rule.destination is not None:
        parts.append(f"-d {_network(rule.destination)}")
    if rule.not_destination is not None:
        parts.append(f"! -d {_network(rule.not_destination)}")
    if rule.in_interface:
        parts.append(f"-i {rule.in_interface}")
    if rule.not_in_interface:
        parts.append(f"! -i {rule.not_in_interface}")
    if rule.out_interface:
        parts.append(f"-o {rule.out_interface}")
    if rule.not_out_interface:
        parts.append(f"! -o {rule.not_out_interface}")
    if rule.protocol is not None:
        parts.append(f"-p {rule.protocol}")
        if rule.ports is not None:
            parts.append(f"-m {rule.protocol} --dport {span(*rule.ports)}")
    if rule.syn:
        parts.append(f"-m tcp --tcp-flags {' '.join(SYN)}")
    if rule.icmp:
        parts.append("-p ipv6-icmp")
    if rule.authentication:
        parts.append("-p ah")
    if rule.mark is not None:
        parts.append("-m mark --mark {:#x}/{:#x}".format(*rule.mark))
    if rule.source_local:
        parts.append("-m addrtype --src-type LOCAL")
    if rule.source_not_local:
        parts.append("-m addrtype ! --src-type LOCAL")
    if rule.destination_local:
        parts.append("-m addrtype --dst-type LOCAL")
    if rule.destination_not_local:
        parts.append("-m addrtype ! --dst-type LOCAL")
    if rule.flow is not None:
        protocol, first, last = rule.flow
        parts.append(f"-m conntrack --ctproto {protocol}")
        parts.append(f"-m conntrack --ctorigdstport {span(first, last)}")
    if rule.states:
        parts.append(f"-m conntrack --ctstate {','.join(rule.states)}")
    if rule.reply:
        parts.append("-m conntrack --ctdir REPLY")
    if rule.comment:
        parts.append(f"-m comment --comment {rule.comment}")
    parts.append(_target_words(rule.target))
    return " ".join(parts)


def span(first: int, last: int) -> str:
    """Ports as ip6tables takes them: one, or the first and the last."""
    return f"{first}" if first == last else f"{first}:{last}"


def _target_words(target: Target) -> str:
    match target:
        case Verdict():
            return f"-j {target}"
        case Jump(chain):
            return f"-j {chain}"
        case Dnat(address, None):
            return f"-j DNAT --to-destination {_text(address)}"
        case Dnat(address, port):
            return f"-j DNAT --to-destination [{_text(address)}]:{port}"
        case Snat(address):
            return f"-j SNAT --to-source {address}"
        case Reject(reject_with):
            return f"-j REJECT --reject-with {reject_with}"


def _network(network: IPv6Network) -> str:
    return f"{_text(network.network_address)}/{network.prefixlen}"


def _text(address: IPv6Address) -> str:
    """Ten times as quick as its own, which counts where there are as many addresses as rules, and
    the same in every Python: since 3.13 its own words addresses of IPv4 otherwise."""
    return inet_ntop(AF_INET6, address.packed)
