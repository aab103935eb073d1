"""The host's addresses, as the kernel reports them: which messages are changes."""

from __future__ import annotations

import asyncio
import socket
import struct
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipv6natd.host.addresses import added_ports, removed_ports, update_addresses, watch

ADDED, REMOVED = 20, 21
TENTATIVE = 0x40


def nothing(*_: object) -> None:
    """Ignore the report."""


def message(
    kind: int = ADDED,
    address: str = "2001:db8::1",
    *,
    link: int = 2,
    flags: int = 0,
    scope: int = 0,
) -> bytes:
    """A message of rtnetlink with another attribute before the address."""
    packed = IPv6Address(address).packed
    cache = struct.pack("=HH16s", 20, 6, bytes(16))
    body = struct.pack("=BBBBI", 10, 64, flags, scope, link) + cache
    body += struct.pack("=HH16s", 20, 1, packed)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def test_update_reports_an_address_once_and_again_after_its_removal() -> None:
    known: set[tuple[int, bytes]] = set()
    assert update_addresses(known, message())
    assert not update_addresses(known, message())  # a router advertisement has renewed it
    assert update_addresses(known, message(link=3))
    assert update_addresses(known, message(REMOVED))
    assert update_addresses(known, message())


def test_update_reports_the_removal_of_an_unknown_address() -> None:
    assert update_addresses(set(), message(REMOVED))


def test_update_reports_a_tentative_address_only_when_it_is_usable() -> None:
    known: set[tuple[int, bytes]] = set()
    assert not update_addresses(known, message(flags=TENTATIVE))
    assert update_addresses(known, message())


def test_update_ignores_link_and_host_scope() -> None:
    assert not update_addresses(set(), message(address="fe80::1", scope=253))
    assert not update_addresses(set(), message(address="::1", scope=254))


def test_update_reads_several_messages() -> None:
    assert update_addresses(set(), message(address="fe80::1", scope=253) + message())
    assert not update_addresses(set(), message(24) + message(address="fe80::1", scope=253))


@given(st.binary(max_size=200) | st.builds(lambda a, n: message()[:n] + a, st.binary(), st.just(9)))
def test_update_with_any_bytes_does_not_raise(data: bytes) -> None:
    update_addresses(set(), data)
    removed_ports(data)
    added_ports({}, data)


def test_watch_without_netlink_ends_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(socket, "AF_NETLINK", 9999)  # as if seccomp forbids it
    asyncio.run(watch(nothing, nothing, nothing, nothing))
    assert "cannot follow addresses and routes of this host: Address family not supp" in caplog.text
