"""A private prefix of one's own."""

from __future__ import annotations

from ipaddress import IPv6Network
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipv6natd.ctl import ula

ULA = IPv6Network("fd00::/8")


def test_the_number_stands_behind_fd() -> None:
    assert ula.free_prefix([0x123456789A], ()) == IPv6Network("fd12:3456:789a::/48")


@pytest.mark.parametrize("route", ["fd12:3456:789a:7::/64", "fd12::/16", "fd12:3456:789a::/48"])
def test_what_a_route_meets_is_left_out(route: str) -> None:
    prefix = ula.free_prefix([0x123456789A, 0x223456789A], [IPv6Network(route)])
    assert prefix == IPv6Network("fd22:3456:789a::/48")


def test_when_everything_is_taken_it_says_so() -> None:
    with pytest.raises(ValueError, match="overlaps a route"):
        ula.free_prefix(iter([1, 2, 3]), [ULA])


@given(st.integers(0, (1 << 40) - 1))
def test_every_number_makes_a_prefix_of_rfc_4193_with_its_networks_inside(number: int) -> None:
    prefix = ula.free_prefix([number], ())
    assert prefix.subnet_of(ULA)
    for subnet in islice(ula.subnets(prefix), 3):
        assert subnet.subnet_of(prefix)
        assert subnet.prefixlen == 64


@pytest.mark.parametrize("number", [-1, 1 << 40])
def test_more_than_40_bits_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="not 40 bits"):
        ula.free_prefix([number], ())


def test_routes_are_read_and_a_default_route_takes_nothing() -> None:
    words = ["default", "fd00:a::/64", "fd00:b::1", "::/0", "multicast ff00::/8", "unreachable"]
    assert ula.route_destinations(words) == {
        IPv6Network("fd00:a::/64"),
        IPv6Network("fd00:b::1/128"),
    }
