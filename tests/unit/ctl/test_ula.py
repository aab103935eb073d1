"""Unit tests of `ipv6natctl ula`: the choice of a prefix, and the parsed routes."""

from __future__ import annotations

import asyncio
import json
from ipaddress import IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipv6natd.ctl import ula
from ipv6natd.ctl.client import DaemonClient, Options

ULA = IPv6Network("fd00::/8")


def test_free_prefix_has_the_number_after_fd() -> None:
    assert ula.free_prefix([0x123456789A], ()) == IPv6Network("fd12:3456:789a::/48")


@pytest.mark.parametrize("route", ["fd12:3456:789a:7::/64", "fd12::/16", "fd12:3456:789a::/48"])
def test_free_prefix_skips_a_number_that_overlaps_a_route(route: str) -> None:
    prefix = ula.free_prefix([0x123456789A, 0x223456789A], [IPv6Network(route)])
    assert prefix == IPv6Network("fd22:3456:789a::/48")


def test_free_prefix_without_a_free_number_is_none() -> None:
    assert ula.free_prefix([1, 2, 3], [ULA]) is None


def test_ula_without_a_free_prefix_fails_with_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ula, "output_of", lambda *_, **_options: '[{"dst": "fd00::/8"}]')
    result = asyncio.run(ula.make(DaemonClient(), Options()))
    assert (result.value, result.text, result.code) == (None, "", 1)
    assert result.note == ("every prefix overlaps a route of this host: ip -6 route show table all")


def test_ula_warns_if_the_routes_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ula, "output_of", lambda *_, **_options: "")
    result = asyncio.run(ula.make(DaemonClient(), Options()))
    assert (result.code, result.note) == (
        0,
        "cannot run `ip`: the routes of this host were not checked",
    )


@given(st.integers(0, (1 << 40) - 1))
def test_free_prefix_is_of_rfc_4193_for_every_number(number: int) -> None:
    prefix = ula.free_prefix([number], ())
    assert prefix is not None
    assert prefix.subnet_of(ULA)
    assert prefix.prefixlen == 48


def test_routes_ignore_a_default_route(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["default", "fd00:a::/64", "fd00:b::1", "::/0", "multicast ff00::/8", "unreachable"]
    output = json.dumps([{"dst": word} for word in words])
    monkeypatch.setattr(ula, "output_of", lambda *_, **_options: output)
    assert ula._routes() == [IPv6Network("fd00:a::/64"), IPv6Network("fd00:b::1/128")]
