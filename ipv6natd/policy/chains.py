"""Many rules -> chains of a few each, so that neither a packet nor an update pays for the others.

A few rules stay flat, which is easiest to read. Of many, each stands where its own ports or its own
bridge say, so that one which comes or goes moves no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import chain, groupby
from operator import itemgetter

from ipv6natd.model import Protocol
from ipv6natd.netfilter.rules import PREFIX, Chain, Jump, Rule

FLAT_PORTS = 100
"""Rules for ports that stay in one chain: the last of them costs a packet about 2 µs."""
FLAT_BRIDGES = 32
FEW_BRIDGES = 16
"""Rules for bridges whose names begin alike that stay in one chain."""
EVERY = 1 << 16
_SIZES = (32, 512, 4096, EVERY)
"""Ports of a block at each level: a packet passes 36 rules of all 65,535 ports, 72 at most, and a
restore takes no longer than with fewer and longer chains."""


@dataclass(frozen=True, slots=True)
class Split:
    """What stands where all the rules would have stood, and the chains that it leads to."""

    rules: tuple[Rule, ...]
    chains: tuple[Chain, ...] = ()


def joined(*parts: Split) -> Split:
    """One behind the other."""
    return Split(
        tuple(rule for part in parts for rule in part.rules),
        tuple(chain for part in parts for chain in part.chains),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Ports that share a chain. There is one object of each: see `_block`."""

    protocol: Protocol
    first: int
    size: int

    @property
    def wider(self) -> Block:
        """The one that it is a part of."""
        return _block(self.protocol, self.first, _SIZES[_SIZES.index(self.size) + 1])


@cache
def _block(protocol: Protocol, port: int, size: int) -> Block:
    return _the_block(protocol, port - port % size, size)


_the_block = cache(Block)

Placed = tuple[tuple[Block, Rule], ...]
"""Rules, each with the smallest block that holds all its ports."""


def placed(rules: Iterable[Rule]) -> Placed:
    """Rules that each ask for a protocol and ports, with the blocks where they belong."""
    return tuple((_smallest(rule), rule) for rule in rules)


def _smallest(rule: Rule) -> Block:
    assert rule.protocol is not None
    assert rule.ports is not None
    first, last = rule.ports
    size = next(each for each in _SIZES if first // each == last // each)
    return _block(rule.protocol, first, size)


def by_port(kind: str, groups: Iterable[Placed]) -> Split:
    """Rules of which no packet fits two but by other matches than protocol and port.

    A run of ports stands in the smallest block that holds it whole, and so stays one rule. `kind`
    goes into the names of the chains.
    """
    every = list(chain.from_iterable(groups))
    if len(every) <= FLAT_PORTS:
        return Split(tuple(rule for _, rule in every))
    blocks: dict[Block, list[Rule]] = {}
    for block, rules in groupby(every, itemgetter(0)):
        blocks.setdefault(block, []).extend(rule for _, rule in rules)
    for block in list(blocks):
        while block.size < EVERY and block.wider not in blocks:
            block = block.wider
            blocks[block] = []
    tops: list[Rule] = []
    order = sorted(blocks, key=lambda each: (each.protocol, each.first, each.size))
    for block in order:
        (blocks[block.wider] if block.size < EVERY else tops).append(_to_block(kind, block))
    return Split(
        tuple(tops),
        tuple(Chain(name=_name(kind, each), rules=tuple(blocks[each])) for each in order),
    )


@cache
def _to_block(kind: str, block: Block) -> Rule:
    ports = None if block.size == EVERY else (block.first, block.first + block.size - 1)
    return Rule(protocol=block.protocol, ports=ports, target=Jump(_name(kind, block)))


@cache
def _name(kind: str, block: Block) -> str:
    """The chain's name: it says the ports, so that a person finds one."""
    ports = "" if block.size == EVERY else f"-{block.first}-{block.first + block.size - 1}"
    return f"{PREFIX}{kind}{block.protocol.upper()}{ports}"


def by_bridge(kind: str, rules: tuple[Rule, ...]) -> Split:
    """Rules that each ask for what goes out by one bridge, or for what comes in by one. Those for
    one bridge stay in their order, and what goes out by one of them is asked first."""
    if len(rules) <= FLAT_BRIDGES:
        return Split(rules)
    coming: dict[str, list[Rule]] = {}
    going: dict[str, list[Rule]] = {}
    for rule in rules:
        ways = coming if rule.in_interface else going
        ways.setdefault(rule.in_interface or rule.out_interface, []).append(rule)
    return joined(
        _by_letters(f"{kind}OUT-", going, lambda all_, to: Rule(out_interface=all_, target=to)),
        _by_letters(f"{kind}IN-", coming, lambda all_, to: Rule(in_interface=all_, target=to)),
    )


def _by_letters(
    kind: str, rules: dict[str, list[Rule]], jump: Callable[[str, Jump], Rule]
) -> Split:
    """Bridges whose names begin alike share a chain; `jump` makes the rule that leads there."""
    if len(rules) <= FEW_BRIDGES:
        return Split(tuple(chain.from_iterable(rules.values())))
    shared = _shared(min(rules), max(rules))
    groups: dict[str, dict[str, list[Rule]]] = {}
    for bridge, its in rules.items():
        groups.setdefault(bridge[: shared + 1], {})[bridge] = its
    here: list[Rule] = []
    chains: list[Chain] = []
    for begin, group in sorted(groups.items()):
        if len(group) == 1:
            here += chain.from_iterable(group.values())
            continue
        below = _by_letters(kind, group, jump)
        name = f"{PREFIX}{kind}{begin}"
        here.append(jump(f"{begin}+", Jump(name)))
        chains += Chain(name=name, rules=below.rules), *below.chains
    return Split(tuple(here), tuple(chains))


def _shared(one: str, other: str) -> int:
    """How many letters they begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
