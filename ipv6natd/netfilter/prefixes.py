"""A set of prefixes with fast look-ups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv6Address, IPv6Network

MIN_PREFIX_LENGTH = 8
"""Bits. A route to a wider prefix is a part of a default route, as VPN clients write it, and does
not say which hosts are there. fd00::/8 is the widest prefix that does (RFC 4193)."""


class PrefixIndex:
    """Finds the prefix of an address with one dictionary look-up a prefix length."""

    def __init__(self, prefixes: Iterable[IPv6Network]) -> None:
        self._prefixes: dict[int, dict[int, IPv6Network]] = {}
        """Number of host bits -> network bits as a number -> prefix."""
        for prefix in prefixes:
            bits = prefix.max_prefixlen - prefix.prefixlen
            self._prefixes.setdefault(bits, {})[int(prefix.network_address) >> bits] = prefix

    def find(self, address: IPv6Address) -> IPv6Network | None:
        """The prefix that contains the address; either of two that overlap."""
        number = int(address)
        for bits, by_number in self._prefixes.items():
            if match := by_number.get(number >> bits):
                return match
        return None

    def supernets(self, prefix: IPv6Network) -> Iterator[IPv6Network]:
        """The prefixes that contain `prefix` and are larger."""
        number = int(prefix.network_address)
        for bits, by_number in self._prefixes.items():
            if bits > prefix.max_prefixlen - prefix.prefixlen and number >> bits in by_number:
                yield by_number[number >> bits]
