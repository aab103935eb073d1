"""find_unaccepted: which lists it requests. tests/integration/net has the sockets of a kernel."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv6Address

import pytest

from ipv6natd.conntrack.entries import TCP, Tuple
from ipv6natd.conntrack.sockets import MAX_LISTS, ends, find_unaccepted
from ipv6natd.system import sock_diag

HOST, CLIENT = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")
COOKIE = bytes(11) + b"7"


def connection(port: int, client_port: int = 40000) -> bytes:
    return ends(Tuple(b"", TCP, CLIENT, HOST, client_port, port))


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The port of each list. The host has unaccepted connections to the ports below 6000, and an
    accepted one to each."""
    ports: list[int] = []

    def sockets(_: sock_diag.Kind, *, port: int, deadline: float) -> Iterator[tuple[bytes, int]]:
        del deadline
        ports.append(port)
        for own_port in [port] if port else range(1, 6000):
            yield connection(own_port) + COOKIE, 0
            yield connection(own_port, 40001) + COOKIE, 5

    monkeypatch.setattr(sock_diag, "sockets", sockets)
    return ports


def test_sockets_of_few_ports_are_listed_by_port(lists: list[int]) -> None:
    wanted = {connection(port, client) for port in (80, 443) for client in (40000, 40001)}
    found = find_unaccepted(wanted, deadline=1)
    assert found == {connection(port): connection(port) + COOKIE for port in (80, 443)}
    assert lists == [80, 443]


def test_sockets_of_many_ports_are_listed_once(lists: list[int]) -> None:
    """A list for each of 5000 ports took the ten seconds of a scan."""
    for count in (MAX_LISTS, MAX_LISTS + 1, 5000):
        lists.clear()
        wanted = {connection(port, client) for port in range(1, count + 1) for client in (1, 40000)}
        found = find_unaccepted(wanted, deadline=1)
        assert sorted(found) == sorted(map(connection, range(1, count + 1)))
        assert len(lists) == (1 if count > MAX_LISTS else count)


def test_no_connection_needs_no_list(lists: list[int]) -> None:
    assert find_unaccepted(set(), deadline=1) == {}
    assert lists == []
