"""Rules and changes -> text for `ip6tables-restore --noflush`, the same for both variants.

No function here runs a tool. The opposite direction is in `parse`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network
from socket import AF_INET6, inet_ntop

from ipv6natd.netfilter.diff import TableChange
from ipv6natd.netfilter.rules import (
    DOCKER_USER,
    Dnat,
    Jump,
    Rule,
    Ruleset,
    Snat,
    Table,
    Target,
    Verdict,
)


def format_change(change: TableChange) -> str:
    """The change as `ip6tables-restore --noflush` reads it."""
    return "".join(f"{line}\n" for line in _change_lines(change))


def _change_lines(change: TableChange) -> Iterator[str]:
    yield f"*{change.table}"
    for jump in change.remove:
        yield f"-D {jump.base} {jump.text}"
    for name in change.create:
        yield f"-N {name}"
    # All chains before all rules: a rule may jump to a chain that follows.
    for name in change.chains:
        yield f":{name} - [0:0]"
    for name, rules in change.chains.items():
        for rule in rules:
            yield f"-A {name} {format_rule(rule)}"
    for insert in reversed([jump for jump in change.insert if jump.first]):
        place = change.place if insert.base == "FORWARD" else 0
        yield f"-I {insert.base} {place + 1} {format_rule(insert.rule)}"
    for insert in change.insert:
        if not insert.first:
            yield f"-A {insert.base} {format_rule(insert.rule)}"
    # All chains are flushed first: the kernel deletes only chains without jumps to them.
    # DOCKER-USER is not flushed: with rules of the administrator in it the transaction must fail.
    for name in change.delete:
        if name != DOCKER_USER:
            yield f":{name} - [0:0]"
    for name in change.delete:
        yield f"-X {name}"
    yield "COMMIT"


def changed_rules(old: Ruleset, new: Ruleset) -> tuple[list[str], list[str]]:
    """(added, removed) rules between two rulesets, as text with table and chain."""
    old_rules, new_rules = Counter(_differing_rules(old, new)), Counter(_differing_rules(new, old))
    return list((new_rules - old_rules).elements()), list((old_rules - new_rules).elements())


def _differing_rules(ruleset: Ruleset, other: Ruleset) -> Iterator[str]:
    """All jumps, and the rules of chains that differ from the same chain in `other`."""
    for table in Table:
        for jump in ruleset.table(table).jumps:
            yield f"-t {table} -A {jump.base} {format_rule(jump.rule)}"
        others = other.table(table).chains
        for name, rules in ruleset.table(table).chains.items():
            if others.get(name) != rules:
                for rule in rules:
                    yield f"-t {table} -A {name} {format_rule(rule)}"


def format_ruleset(ruleset: Ruleset) -> str:
    """The ruleset as text for ip6tables-restore: for the administrator, and for the saved rules."""
    lines: list[str] = []
    for table in Table:
        chains = ruleset.table(table).chains
        if not chains:
            continue
        lines.append(f"*{table}")
        lines += [f":{name} - [0:0]" for name in chains]
        lines += [f"-A {j.base} {format_rule(j.rule)}" for j in ruleset.table(table).jumps]
        lines += [f"-A {name} {format_rule(rule)}" for name in chains for rule in chains[name]]
        lines.append("COMMIT")
    return "".join(f"{line}\n" for line in lines)


def format_rule(rule: Rule) -> str:
    """The rule as ip6tables-restore reads it, without the chain.

    Longer than other functions, but flat: a table of the options takes twice the time.
    All strings in a Rule were validated on input: interface names, addresses and numbers.
    """
    parts: list[str] = []
    if rule.source is not None:
        parts.append(f"-s {_format_network(rule.source)}")
    if rule.not_source is not None:
        parts.append(f"! -s {_format_network(rule.not_source)}")
    if rule.destination is not None:
        parts.append(f"-d {_format_network(rule.destination)}")
    if rule.not_destination is not None:
        parts.append(f"! -d {_format_network(rule.not_destination)}")
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
            parts.append(f"-m {rule.protocol} --dport {format_ports(*rule.ports)}")
    parts += rule.matches
    if rule.mark is not None:
        parts.append("-m mark --mark {:#x}/{:#x}".format(*rule.mark))
    if rule.flow is not None:
        protocol, first, last = rule.flow
        parts.append(f"-m conntrack --ctproto {protocol}")
        parts.append(f"-m conntrack --ctorigdstport {format_ports(first, last)}")
    parts.append(_format_target(rule.target))
    return " ".join(parts)


def format_ports(first: int, last: int) -> str:
    """A port or a range of ports as ip6tables takes it."""
    return f"{first}" if first == last else f"{first}:{last}"


def _format_target(target: Target) -> str:
    """The target of a rule. A pattern like `Dnat(address, None)` takes twice the time."""
    match target:
        case Dnat():
            address = _format_address(target.address)
            if target.port is not None:
                address = f"[{address}]:{target.port}"
            return f"-j DNAT --to-destination {address}"
        case Jump():
            return f"-j {target.chain}"
        case Snat():
            return f"-j SNAT --to-source {target.address}"
        case Verdict():
            return f"-j {target}"


def _format_network(network: IPv6Network) -> str:
    return f"{_format_address(network.network_address)}/{network.prefixlen}"


def _format_address(address: IPv6Address) -> str:
    """The text of an address. Ten times as fast as str(), which matters with one address a rule.
    Since Python 3.13 str() formats IPv4-mapped addresses differently."""
    return inet_ntop(AF_INET6, address.packed)
