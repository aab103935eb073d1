"""The facts that are read from the host's interfaces and routes."""

from __future__ import annotations

import subprocess

import pytest

from ipv6natd.host.facts import read_host
from ipv6natd.netfilter.rules import Backend
from tests.harness.needs import need

UPLINKS = """
link add up0 type veth peer name peer0
link add up1 type veth peer name peer1
link add virbr0 type bridge
link set lo up
link set up0 up
link set up1 up
link set peer0 up
link set peer1 up
link set virbr0 up
address add 2001:db8:1::1/64 dev up0 nodad
address add 2001:db8:2::1/64 dev up1 nodad
address add fd12:3456::1/64 dev virbr0 nodad
route add unreachable default metric 4278198272
"""


@pytest.mark.parametrize(
    ("routes", "interfaces"),
    [
        ([], ("up0", "up1", "virbr0")),
        (["default via 2001:db8:1::2"], ("up0",)),
        (["default dev up0", "default via 2001:db8:2::2 metric 2000"], ("up0", "up1")),
        (["default nexthop via 2001:db8:1::2 nexthop via 2001:db8:2::2"], ("up0", "up1")),
        (["default via 2001:db8:2::2 proto ra expires 600"], ("up1",)),
        (["default via 2001:db8:1::2 table 77"], ("up0",)),
        (["2001:db8:9::/48 via 2001:db8:1::2"], ("up0", "up1", "virbr0")),
    ],
)
def test_clients_come_by_the_interfaces_with_a_default_route(
    namespace: str, routes: list[str], interfaces: tuple[str, ...]
) -> None:
    """Q4."""
    del namespace
    need("ip", "nft")
    batch = UPLINKS.strip() + "".join(f"\nroute add {route}" for route in routes) + "\n"
    subprocess.run(["ip", "-6", "-batch", "-"], input=batch, text=True, check=True)
    assert read_host((), Backend.NFT, None).client_interfaces == interfaces
