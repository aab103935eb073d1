"""Which prefix has an address, of many, by a look-up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv6Address, IPv6Network


class PrefixIndex:
    """Prefixes, asked by a look-up: which one has an address."""

    def __init__(self, prefixes: Iterable[IPv6Network]) -> None:
        self._prefixes: dict[int, dict[int, IPv6Network]] = {}
        """By the number of bits behind the prefix, then by the prefix."""
        for prefix in prefixes:
            bits = prefix.max_prefixlen - prefix.prefixlen
            self._prefixes.setdefault(bits, {})[int(prefix.network_address) >> bits] = prefix

    def find(self, address: IPv6Address) -> IPv6Network | None:
        """The subnet with this address; where one lies in another, either."""
        number = int(address)
        for bits, by_number in self._prefixes.items():
            if match := by_number.get(number >> bits):
                return match
        return None

    def supernets(self, prefix: IPv6Network) -> Iterator[IPv6Network]:
        """Those of which a prefix is a part, and not the whole."""
        number = int(prefix.network_address)
        for bits, by_number in self._prefixes.items():
            if bits > prefix.max_prefixlen - prefix.prefixlen and number >> bits in by_number:
                yield by_number[number >> bits]
