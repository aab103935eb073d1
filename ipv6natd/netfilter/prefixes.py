"""Which prefix has an address, of many, by a look-up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv6Address, IPv6Network


class Subnets:
    """Prefixes, asked by a look-up: which one has an address."""

    def __init__(self, prefixes: Iterable[IPv6Network]) -> None:
        self._subnets: dict[int, dict[int, IPv6Network]] = {}
        """By the number of bits behind the prefix, then by the prefix."""
        for subnet in prefixes:
            bits = subnet.max_prefixlen - subnet.prefixlen
            self._subnets.setdefault(bits, {})[int(subnet.network_address) >> bits] = subnet

    def of(self, address: IPv6Address) -> IPv6Network | None:
        """The subnet with this address; where one lies in another, either."""
        number = int(address)
        for bits, subnets in self._subnets.items():
            if found := subnets.get(number >> bits):
                return found
        return None

    def around(self, prefix: IPv6Network) -> Iterator[IPv6Network]:
        """Those of which a prefix is a part, and not the whole."""
        number = int(prefix.network_address)
        for bits, subnets in self._subnets.items():
            if bits > prefix.max_prefixlen - prefix.prefixlen and number >> bits in subnets:
                yield subnets[number >> bits]
