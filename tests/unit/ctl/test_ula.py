"""Unit tests of `ipv6natctl ula`: the choice of a prefix, its subnets, and the parsed routes."""

from __future__ import annotations

from ipaddress import IPv6Network
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipv6natd.ctl import ula

ULA = IPv6Network("fd00::/8")


def test_free_prefix_has_the_number_after_fd() -> None:
    assert ula.free_prefix([0x123456789A], ()) == IPv6Network("fd12:3456:789a::/48")


@pytest.mark.parametrize("route", ["fd12:3456:789a:7::/64", "fd12::/16", "fd12:3456:789a::/48"])
def test_free_prefix_skips_a_number_that_overlaps_a_route(route: str) -> None:
    prefix = ula.free_prefix([0x123456789A, 0x223456789A], [IPv6Network(route)])
    assert prefix == IPv6Network("fd22:3456:789a::/48")


def test_free_prefix_without_a_free_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="overlaps a route"):
        ula.free_prefix(iter([1, 2, 3]), [ULA])


@given(st.integers(0, (1 << 40) - 1))
def test_free_prefix_and_subnets_are_of_rfc_4193_for_every_number(number: int) -> None:
    prefix = ula.free_prefix([number], ())
    assert prefix.subnet_of(ULA)
    for subnet in islice(ula.subnets(prefix), 3):
        assert subnet.subnet_of(prefix)
        assert subnet.prefixlen == 64


@pytest.mark.parametrize("number", [-1, 1 << 40])
def test_free_prefix_rejects_more_than_40_bits(number: int) -> None:
    with pytest.raises(ValueError, match="not 40 bits"):
        ula.free_prefix([number], ())


def test_route_destinations_ignore_a_default_route() -> None:
    words = ["default", "fd00:a::/64", "fd00:b::1", "::/0", "multicast ff00::/8", "unreachable"]
    assert ula.route_destinations(words) == {
        IPv6Network("fd00:a::/64"),
        IPv6Network("fd00:b::1/128"),
    }
