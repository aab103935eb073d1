"""Divides many rules into small chains, so that a packet passes few rules and a change writes few.

A few rules stay in one chain, which is easiest to read. Of many, the ports or the bridge of a rule
determine its chain: adding or removing one rule moves no other rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPV6LENGTH, IPv6Network
from itertools import chain, groupby
from operator import itemgetter
from typing import NamedTuple

from ipv6natd.model import Protocol
from ipv6natd.netfilter.rules import PREFIX, Chains, Jump, Rule

MAX_FLAT_PORT_RULES = 100
"""Rules for ports that stay in one chain. A packet that passes them all needs about 2 µs."""
MAX_FLAT_BRIDGE_RULES = 32
"""Rules for bridges that stay in one chain."""
MAX_BRIDGES_IN_CHAIN = 32
"""Bridges with a common name prefix whose rules stay in one chain."""
MAX_SOURCES_IN_CHAIN = 16
"""Rules for source prefixes that stay in one chain."""
_MAX_CHAIN_NAME_BITS = 80
"""The hexadecimal digits that fit into the name of a chain, in bits."""
ALL_PORTS = 1 << 16
_BLOCK_SIZES = (32, 512, 4096, ALL_PORTS)
"""Ports of a block at each level. With all 65,535 ports published singly, a packet passes 36 rules
on average and 72 at most. A restore is as fast as with fewer, longer chains."""


@dataclass(frozen=True, slots=True)
class ChainTree:
    """The rules that replace a long list of rules, and the chains to which they jump."""

    rules: tuple[Rule, ...]
    chains: Chains = field(default_factory=dict)


def concat(*parts: Rule | ChainTree) -> ChainTree:
    """The rules and trees in this order."""
    trees = [part if isinstance(part, ChainTree) else ChainTree((part,)) for part in parts]
    return ChainTree(
        tuple(rule for tree in trees for rule in tree.rules),
        {name: rules for tree in trees for name, rules in tree.chains.items()},
    )


def sub_chain(name: str, *parts: Rule | ChainTree) -> ChainTree:
    """A chain of these parts, without the rule that jumps to it."""
    tree = concat(*parts)
    return ChainTree((), {name: tree.rules, **tree.chains})


class PortBlock(NamedTuple):
    """Ports that share a chain."""

    protocol: Protocol
    first: int
    size: int

    @property
    def ports(self) -> tuple[int, int]:
        """The first and the last port."""
        return self.first, self.first + self.size - 1


@cache
def _parent(block: PortBlock) -> PortBlock:
    """The next larger block, which contains this one."""
    size = _BLOCK_SIZES[_BLOCK_SIZES.index(block.size) + 1]
    return PortBlock(block.protocol, block.first - block.first % size, size)


BlockRules = tuple[tuple[PortBlock, Rule], ...]
"""Rules, each with the smallest block that contains all its ports."""


def assign_blocks(rules: Iterable[Rule]) -> BlockRules:
    """The rules with their blocks; every rule matches a protocol and ports."""
    return tuple((_smallest_block(rule), rule) for rule in rules)


def _smallest_block(rule: Rule) -> PortBlock:
    assert rule.protocol is not None
    assert rule.ports is not None
    first, last = rule.ports
    size = next(size for size in _BLOCK_SIZES if first // size == last // size)
    return PortBlock(rule.protocol, first - first % size, size)


def by_port(kind: str, groups: Iterable[BlockRules]) -> ChainTree:
    """The tree of rules by port. Of two rules for the same port, at most one may match a packet.

    A range of ports is in the smallest block that contains it, so it stays one rule. `kind` is part
    of the names of the chains.
    """
    assigned = list(chain.from_iterable(groups))
    if len(assigned) <= MAX_FLAT_PORT_RULES:
        return ChainTree(tuple(rule for _, rule in assigned))
    blocks: dict[PortBlock, list[Rule]] = {}
    for block, rules in groupby(assigned, itemgetter(0)):
        blocks.setdefault(block, []).extend(rule for _, rule in rules)
    for block in list(blocks):
        while block.size < ALL_PORTS and _parent(block) not in blocks:
            block = _parent(block)
            blocks[block] = []
    top_rules: list[Rule] = []
    ordered = sorted(blocks)
    for block in ordered:
        parent_rules = blocks[_parent(block)] if block.size < ALL_PORTS else top_rules
        parent_rules.append(_jump_to_block(kind, block))
    chains = {_block_chain_name(kind, block): tuple(blocks[block]) for block in ordered}
    return ChainTree(tuple(top_rules), chains)


@cache
def _jump_to_block(kind: str, block: PortBlock) -> Rule:
    ports = None if block.size == ALL_PORTS else block.ports
    return Rule(protocol=block.protocol, ports=ports, target=Jump(_block_chain_name(kind, block)))


@cache
def _block_chain_name(kind: str, block: PortBlock) -> str:
    """The name of the block's chain, which contains the ports: a reader can find the chain."""
    ports = "" if block.size == ALL_PORTS else "-{}-{}".format(*block.ports)
    return f"{PREFIX}{kind}{block.protocol.upper()}{ports}"


def by_bridge(kind: str, rules: Iterable[Rule]) -> ChainTree:
    """The tree of rules that each match one bridge, as output or as input interface.

    Rules of one bridge keep their order. All rules for output interfaces come first. Packets of
    other interfaces pass one rule for each first part of a name that all bridges share.
    """
    rules = tuple(rules)
    if len(rules) <= MAX_FLAT_BRIDGE_RULES:
        return ChainTree(rules)
    return concat(
        by_output(kind, (rule for rule in rules if not rule.in_interface), flat=0),
        by_input(kind, (rule for rule in rules if rule.in_interface), flat=0),
    )


def by_output(kind: str, rules: Iterable[Rule], *, flat: int = MAX_FLAT_BRIDGE_RULES) -> ChainTree:
    """Like `by_bridge`, by the output interface, whatever the rules match besides. At most `flat`
    rules stay in one chain."""
    return _by_interface(f"{PREFIX}{kind}OUT-", rules, flat, incoming=False)


def by_input(kind: str, rules: Iterable[Rule], *, flat: int = MAX_FLAT_BRIDGE_RULES) -> ChainTree:
    """Like `by_output`, by the input interface."""
    return _by_interface(f"{PREFIX}{kind}IN-", rules, flat, incoming=True)


def _by_interface(kind: str, rules: Iterable[Rule], flat: int, *, incoming: bool) -> ChainTree:
    rules = tuple(rules)
    if len(rules) <= flat:
        return ChainTree(rules)
    by_name: dict[str, list[Rule]] = {}
    for rule in rules:
        name = rule.in_interface if incoming else rule.out_interface
        by_name.setdefault(name, []).append(rule)
    return _by_name_prefix(kind, by_name, incoming=incoming)


def _by_name_prefix(
    kind: str, rules: dict[str, list[Rule]], *, incoming: bool, known: int = 0
) -> ChainTree:
    """Bridges with a common name prefix share a chain.

    `known` characters at the start of all names are those of the jump to these rules.
    """
    if len(rules) <= MAX_BRIDGES_IN_CHAIN:
        return concat(*chain.from_iterable(rules.values()))
    common = _common_prefix_length(min(rules), max(rules))
    length = common if common > known else common + 1
    groups: dict[str, dict[str, list[Rule]]] = {}
    for bridge, bridge_rules in rules.items():
        groups.setdefault(bridge[:length], {})[bridge] = bridge_rules
    parts: list[Rule | ChainTree] = []
    for prefix, group in sorted(groups.items()):
        if len(group) == 1:
            parts += chain.from_iterable(group.values())
        else:
            names, name = f"{prefix}+", f"{kind}{prefix}"
            tree = _by_name_prefix(kind, group, incoming=incoming, known=len(prefix))
            jump = Rule(out_interface=names, target=Jump(name))
            if incoming:
                jump = Rule(in_interface=names, target=Jump(name))
            parts += jump, sub_chain(name, tree)
    return concat(*parts)


def _common_prefix_length(one: str, other: str) -> int:
    """The number of equal characters at the start of both."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def by_source(rules: Iterable[Rule]) -> ChainTree:
    """The tree of rules that each match a source prefix. Only rules of one prefix keep their order:
    no rule of another one may depend on it.

    The packets of a host outside all prefixes pass one rule.
    """
    rules = tuple(rules)
    if len(rules) <= MAX_SOURCES_IN_CHAIN:
        return ChainTree(rules)
    ordered = sorted(rules, key=_source)
    return _by_first_bits(ordered, max(_common_bits(ordered), 4))


def _source(rule: Rule) -> IPv6Network:
    assert rule.source is not None
    return rule.source


def _common_bits(ordered: list[Rule]) -> int:
    """The number of equal bits at the start of all sources, down to a hexadecimal digit."""
    first, last = (int(_source(rule).network_address) for rule in (ordered[0], ordered[-1]))
    return (IPV6LENGTH - (first ^ last).bit_length()) // 4 * 4


def _by_first_bits(ordered: list[Rule], bits: int) -> ChainTree:
    """Sources with the same first `bits` share a chain."""
    if len(ordered) <= MAX_SOURCES_IN_CHAIN or bits > _MAX_CHAIN_NAME_BITS:
        return concat(*ordered)
    wide = [rule for rule in ordered if _source(rule).prefixlen < bits]
    narrow = [rule for rule in ordered if _source(rule).prefixlen >= bits]
    parts: list[Rule | ChainTree] = []
    for prefix, rules in groupby(narrow, lambda rule: _source(rule).supernet(new_prefix=bits)):
        group = list(rules)
        if len(group) == 1:
            parts += group
        else:
            digits = prefix.network_address.exploded.replace(":", "")[: bits // 4]
            name = f"{PREFIX}{digits}"
            parts.append(Rule(source=prefix, target=Jump(name)))
            parts.append(sub_chain(name, _by_first_bits(group, _common_bits(group) + 4)))
    return concat(*wide, *parts)
