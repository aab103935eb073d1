"""The tracer of the package, strict: in the rules of a test nothing may be unknown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import IPv6Address

from ipv6natd.netfilter import trace as tracer
from ipv6natd.netfilter.trace import (
    BUILT_IN,
    Chain,
    Chains,
    Fate,
    Host,
    Link,
    Packet,
    Rule,
    State,
    Tables,
    Target,
    Walker,
)

__all__ = [
    "BUILT_IN",
    "DELIVERED",
    "DROPPED",
    "REFUSED",
    "Fate",
    "Host",
    "Link",
    "Packet",
    "Rule",
    "State",
    "Verdict",
    "parse",
    "trace",
    "walk",
]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of a packet; for a forwarded packet, its destination and source."""

    fate: Fate
    address: IPv6Address | None = None
    port: int = 0
    source: IPv6Address | None = None


DROPPED, REFUSED, DELIVERED = Verdict(Fate.DROPPED), Verdict(Fate.REFUSED), Verdict(Fate.HOST)


def trace(text: str, packet: Packet, host: Host) -> Verdict:
    """The verdict of these rules for a packet. ValueError if one of them is not known."""
    found = tracer.trace(parse(text), packet, host)
    if found.doubt is not None:
        raise ValueError(f"the verdict depends on {found.doubt}")
    return Verdict(found.fate, found.address, found.port, found.source)


@lru_cache(maxsize=8)
def parse(text: str) -> Tables:
    """The tables. ValueError for a rule that is not known, and for one in another table."""
    tables = tracer.parse(text)
    for table, chains in tables.items():
        for name, chain in chains.items():
            for rule in chain.rules:
                if rule.unknown or table not in BUILT_IN:
                    words = " ".join(rule.unknown)
                    raise ValueError(f"{words} in table {table}: -A {name} {rule.text}")
    return tables


def walk(
    chains: Chains,
    base: str,
    packet: Packet,
    host: Host,
    seen: Callable[[Rule], None] = lambda _: None,
) -> Target:
    """The target that ends the packet's way through a base chain. `seen` gets each rule."""

    def spied(rule: Rule) -> Rule:
        def spy(*_: object) -> bool:
            seen(rule)
            return True

        return replace(rule, matches=(spy, *rule.matches))

    watched = {name: Chain(c.policy, list(map(spied, c.rules))) for name, c in chains.items()}
    return Walker({"": watched}, host).decide("", base, packet)
