"""A private prefix of one's own: RFC 4193, fd and 40 random bits, that no route of the host meets.

Pure: the caller brings the random bits and the routes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv6Network

_FIRST = 0xFD << 120
_GLOBAL_ID_BITS = 40
_SUBNETS = 1 << 16


def prefix(numbers: Iterable[int], taken: Collection[IPv6Network]) -> IPv6Network:
    """The first /48 of these numbers, 40 bits each, that overlaps nothing that is taken.

    ValueError when they run out.
    """
    for number in numbers:
        if not 0 <= number < 1 << _GLOBAL_ID_BITS:
            raise ValueError(f"not {_GLOBAL_ID_BITS} bits: {number}")
        found = IPv6Network((_FIRST | number << 80, 48))
        if not any(found.overlaps(each) for each in taken):
            return found
    raise ValueError("every prefix overlaps a route of this host")


def subnets(within: IPv6Network) -> Iterator[IPv6Network]:
    """Its /64 networks, in order: one for each Docker network."""
    for number in range(_SUBNETS):
        yield IPv6Network((int(within.network_address) | number << 64, 64))


def routed(words: Iterable[str]) -> frozenset[IPv6Network]:
    """The destinations of routes, as `ip -json` words them; a default route takes nothing."""
    found = set()
    for word in words:
        if word == "default":
            continue
        try:
            found.add(IPv6Network(word, strict=False))
        except ValueError:
            continue  # a word of some newer ip
    return frozenset(each for each in found if each.prefixlen)
