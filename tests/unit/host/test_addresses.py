"""The host's addresses, as the kernel tells of them: which messages are news."""

from __future__ import annotations

import asyncio
import socket
import struct
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipv6natd.host.addresses import KnownAddresses, watch

NEW, GONE = 20, 21
TENTATIVE = 0x40


def message(
    kind: int = NEW, address: str = "2001:db8::1", *, link: int = 2, flags: int = 0, scope: int = 0
) -> bytes:
    """One of rtnetlink's, with another attribute before the address, as the kernel may have it."""
    packed = IPv6Address(address).packed
    cache = struct.pack("=HH16s", 20, 6, bytes(16))
    body = struct.pack("=BBBBI", 10, 64, flags, scope, link) + cache
    body += struct.pack("=HH16s", 20, 1, packed)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def test_an_address_is_news_once_and_again_when_it_comes_back() -> None:
    known = KnownAddresses()
    assert known.update(message())
    assert not known.update(message())  # a router advertisement has renewed it
    assert known.update(message(link=3))
    assert known.update(message(GONE))
    assert known.update(message())


def test_one_that_went_before_anybody_listened_is_news() -> None:
    assert KnownAddresses().update(message(GONE))


def test_an_address_is_there_when_nobody_else_was_found_to_have_it() -> None:
    known = KnownAddresses()
    assert not known.update(message(flags=TENTATIVE))
    assert known.update(message())


def test_what_is_for_one_link_alone_is_no_news() -> None:
    assert not KnownAddresses().update(message(address="fe80::1", scope=253))
    assert not KnownAddresses().update(message(address="::1", scope=254))


def test_a_piece_may_hold_several() -> None:
    assert KnownAddresses().update(message(address="fe80::1", scope=253) + message())
    assert not KnownAddresses().update(message(24) + message(address="fe80::1", scope=253))


@given(st.binary(max_size=200) | st.builds(lambda a, n: message()[:n] + a, st.binary(), st.just(9)))
def test_no_bytes_at_all_make_it_stumble(said: bytes) -> None:
    KnownAddresses().update(said)


def test_a_kernel_that_says_nothing_ends_the_watch_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(socket, "AF_NETLINK", 9999)  # as where seccomp refuses it
    asyncio.run(watch(lambda: None, lambda: None))
    assert "cannot follow addresses and routes of this host: Address family not supp" in caplog.text
