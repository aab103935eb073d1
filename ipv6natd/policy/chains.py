"""Divides many rules into small chains, so that a packet passes few rules and a change writes few.

A few rules stay in one chain, which is easiest to read. Of many, the ports or the bridge of a rule
determine its chain: adding or removing one rule moves no other rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from ipaddress import IPV6LENGTH, IPv6Network
from itertools import chain, groupby
from operator import itemgetter

from ipv6natd.model import Protocol
from ipv6natd.netfilter.rules import PREFIX, Chain, Jump, Rule

MAX_FLAT_PORT_RULES = 100
"""Rules for ports that stay in one chain. A packet that passes them all needs about 2 µs."""
MAX_FLAT_BRIDGE_RULES = 32
"""Rules for bridges that stay in one chain."""
MAX_BRIDGES_IN_CHAIN = 16
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
    chains: tuple[Chain, ...] = ()


def concat(*trees: ChainTree) -> ChainTree:
    """The trees in this order."""
    return ChainTree(
        tuple(rule for tree in trees for rule in tree.rules),
        tuple(chain for tree in trees for chain in tree.chains),
    )


@dataclass(frozen=True, slots=True, eq=False)
class PortBlock:
    """Ports that share a chain. Equal blocks are the same object: see `_block`."""

    protocol: Protocol
    first: int
    size: int

    @property
    def parent(self) -> PortBlock:
        """The next larger block, which contains this one."""
        return _block(self.protocol, self.first, _BLOCK_SIZES[_BLOCK_SIZES.index(self.size) + 1])


@cache
def _block(protocol: Protocol, port: int, size: int) -> PortBlock:
    return _new_block(protocol, port - port % size, size)


_new_block = cache(PortBlock)

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
    return _block(rule.protocol, first, size)


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
        while block.size < ALL_PORTS and block.parent not in blocks:
            block = block.parent
            blocks[block] = []
    top_rules: list[Rule] = []
    ordered = sorted(blocks, key=lambda block: (block.protocol, block.first, block.size))
    for block in ordered:
        (blocks[block.parent] if block.size < ALL_PORTS else top_rules).append(
            _jump_to_block(kind, block)
        )
    return ChainTree(
        tuple(top_rules),
        tuple(
            Chain(name=_block_chain_name(kind, block), rules=tuple(blocks[block]))
            for block in ordered
        ),
    )


@cache
def _jump_to_block(kind: str, block: PortBlock) -> Rule:
    ports = None if block.size == ALL_PORTS else (block.first, block.first + block.size - 1)
    return Rule(protocol=block.protocol, ports=ports, target=Jump(_block_chain_name(kind, block)))


@cache
def _block_chain_name(kind: str, block: PortBlock) -> str:
    """The name of the block's chain, which contains the ports: a reader can find the chain."""
    ports = "" if block.size == ALL_PORTS else f"-{block.first}-{block.first + block.size - 1}"
    return f"{PREFIX}{kind}{block.protocol.upper()}{ports}"


def by_bridge(kind: str, rules: tuple[Rule, ...]) -> ChainTree:
    """The tree of rules that each match one bridge, as output or as input interface.

    Rules of one bridge keep their order. All rules for output interfaces come first. Packets of
    other interfaces pass one rule for each first part of a name that all bridges share.
    """
    if len(rules) <= MAX_FLAT_BRIDGE_RULES:
        return ChainTree(rules)
    incoming: dict[str, list[Rule]] = {}
    outgoing: dict[str, list[Rule]] = {}
    for rule in rules:
        by_name = incoming if rule.in_interface else outgoing
        by_name.setdefault(rule.in_interface or rule.out_interface, []).append(rule)
    return concat(
        _by_name_prefix(
            f"{kind}OUT-", outgoing, lambda names, jump: Rule(out_interface=names, target=jump)
        ),
        _by_name_prefix(
            f"{kind}IN-", incoming, lambda names, jump: Rule(in_interface=names, target=jump)
        ),
    )


def _by_name_prefix(
    kind: str,
    rules: dict[str, list[Rule]],
    jump_rule: Callable[[str, Jump], Rule],
    known: int = 0,
) -> ChainTree:
    """Bridges with a common name prefix share a chain; `jump_rule` makes the jump to it.

    `known` characters at the start of all names are those of the jump to these rules.
    """
    if len(rules) <= MAX_BRIDGES_IN_CHAIN:
        return ChainTree(tuple(chain.from_iterable(rules.values())))
    common = _common_prefix_length(min(rules), max(rules))
    length = common if common > known else common + 1
    groups: dict[str, dict[str, list[Rule]]] = {}
    for bridge, bridge_rules in rules.items():
        groups.setdefault(bridge[:length], {})[bridge] = bridge_rules
    top_rules: list[Rule] = []
    chains: list[Chain] = []
    for prefix, group in sorted(groups.items()):
        if len(group) == 1:
            top_rules += chain.from_iterable(group.values())
            continue
        subtree = _by_name_prefix(kind, group, jump_rule, len(prefix))
        name = f"{PREFIX}{kind}{prefix}"
        top_rules.append(jump_rule(f"{prefix}+", Jump(name)))
        chains += Chain(name=name, rules=subtree.rules), *subtree.chains
    return ChainTree(tuple(top_rules), tuple(chains))


def _common_prefix_length(one: str, other: str) -> int:
    """The number of equal characters at the start of both."""
    pairs = zip(one, other, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def by_source(rules: tuple[Rule, ...]) -> ChainTree:
    """The tree of rules that each match a source prefix. Their order does not matter, because all
    of them drop what comes in by a wrong interface.

    The packets of a host outside all prefixes pass one rule.
    """
    if len(rules) <= MAX_SOURCES_IN_CHAIN:
        return ChainTree(rules)
    keyed = sorted((_source_bits(rule) for rule in rules), key=itemgetter(0, 1))
    return _by_first_bits(keyed, max(_common_bits(keyed), 4))


_KeyedRule = tuple[int, int, Rule]
"""The address of a rule's source prefix as a number, its length in bits, and the rule."""


def _source_bits(rule: Rule) -> _KeyedRule:
    assert rule.source is not None
    return int(rule.source.network_address), rule.source.prefixlen, rule


def _common_bits(keyed: list[_KeyedRule]) -> int:
    """The number of equal bits at the start of all addresses, down to a hexadecimal digit."""
    differing = (keyed[0][0] ^ keyed[-1][0]).bit_length()
    return (IPV6LENGTH - differing) // 4 * 4


def _by_first_bits(keyed: list[_KeyedRule], bits: int) -> ChainTree:
    """Sources with the same first `bits` share a chain."""
    if len(keyed) <= MAX_SOURCES_IN_CHAIN or bits > _MAX_CHAIN_NAME_BITS:
        return ChainTree(tuple(rule for _, _, rule in keyed))
    top_rules = [rule for _, length, rule in keyed if length < bits]
    chains: list[Chain] = []
    narrow = (item for item in keyed if item[1] >= bits)
    for value, items in groupby(narrow, lambda item: item[0] >> (IPV6LENGTH - bits)):
        group = list(items)
        if len(group) == 1:
            top_rules.append(group[0][2])
            continue
        name = f"{PREFIX}{value:0{bits // 4}x}"
        prefix = IPv6Network((value << (IPV6LENGTH - bits), bits))
        subtree = _by_first_bits(group, _common_bits(group) + 4)
        top_rules.append(Rule(source=prefix, target=Jump(name)))
        chains += Chain(name=name, rules=subtree.rules), *subtree.chains
    return ChainTree(tuple(top_rules), tuple(chains))
