"""Connections that nobody accepted end with a reset; all others of the host go on."""

from __future__ import annotations

import errno
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv6Address

import pytest

from ipv6natd.conntrack.entries import TCP, Tuple
from ipv6natd.conntrack.sockets import MAX_LISTS, destroy, ends, find_unaccepted
from ipv6natd.engine.host_ports import ports_in_use
from ipv6natd.model import Protocol
from ipv6natd.system import netlink, sock_diag
from tests.harness import until

HOST, CLIENT, LINK_LOCAL = "fd00::1", "fd00::2", "fe80::9%d0"
PORT, OTHER_PORT = 8080, 8081
SETUP = f"""\
link set lo up
addr add {HOST}/128 dev lo nodad
addr add {CLIENT}/128 dev lo nodad
link add d0 type veth peer name d1
link set d0 up
link set d1 up
addr add fe80::9/64 dev d0 nodad
"""


class Host:
    """Listens on PORT, and has clients; all sockets are closed at the end."""

    def __init__(self, stack: ExitStack) -> None:
        subprocess.run(["ip", "-batch", "-"], input=SETUP, text=True, check=True)
        self._stack = stack
        self._listeners: dict[int, socket.socket] = {}
        self.listen(PORT)

    def listen(self, port: int) -> None:
        listener = socket.create_server(
            ("::", port), family=socket.AF_INET6, backlog=500, dualstack_ipv6=True
        )
        self._listeners[port] = self._stack.enter_context(listener)

    def connect(self, host: str = HOST, port: int = PORT, source: str = CLIENT) -> socket.socket:
        # The kernel adds the routes to new addresses a little later.
        client = until(lambda: opened(host, port, source), lambda made: made is not None)
        assert client
        return self._stack.enter_context(client)

    def accept(self) -> socket.socket:
        return self._stack.enter_context(self._listeners[PORT].accept()[0])


def opened(host: str, port: int, source: str) -> socket.socket | None:
    """A connection from this source; None if there is no route."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    client = socket.socket(family, socket.SOCK_STREAM)
    client.settimeout(5)
    client.bind(socket.getaddrinfo(source, 0, family, socket.SOCK_STREAM)[0][4])
    try:
        client.connect(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4])
    except OSError as error:
        client.close()
        if error.errno != errno.ENETUNREACH:
            raise
        return None
    return client


@pytest.fixture
def host(namespace: None) -> Iterator[Host]:  # noqa: ARG001
    with ExitStack() as stack:
        yield Host(stack)


def original(connection: socket.socket) -> Tuple:
    """The tuple in the client's direction."""
    (source, source_port), (destination, port) = (
        name[:2] for name in (connection.getsockname(), connection.getpeername())
    )
    client, host = (IPv6Address(text.partition("%")[0]) for text in (source, destination))
    return Tuple(b"", TCP, client, host, source_port, port)


def end(*connections: socket.socket) -> int:
    deadline = time.monotonic() + 5
    found = find_unaccepted({ends(original(it)) for it in connections}, deadline=deadline)
    return destroy(found.values(), deadline=deadline)


def is_reset(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False


def test_only_the_given_connection_ends(host: Host) -> None:
    first, second = host.connect(), host.connect()
    assert end(first) == 1
    assert is_reset(first)
    assert not is_reset(second)
    host.accept()  # the first is still in the queue
    accepted = host.accept()
    assert accepted.getpeername() == second.getsockname()
    second.send(b"x")
    assert accepted.recv(1) == b"x"


def test_connection_whose_client_has_finished_ends(host: Host) -> None:
    client = host.connect()
    client.send(b"question")
    client.shutdown(socket.SHUT_WR)
    assert end(client) == 1
    assert is_reset(client)


def test_accepted_connection_goes_on(host: Host) -> None:
    """Also after its process has closed it, as long as it still sends."""
    client = host.connect()
    accepted = host.accept()
    assert end(client) == 0
    accepted.send(b"xy")
    assert client.recv(1) == b"x"
    accepted.close()
    assert end(client) == 0
    assert client.recv(1) == b"y"


def test_many_connections_of_several_ports_end(host: Host) -> None:
    host.listen(OTHER_PORT)
    ended = [host.connect(port=port) for port in (PORT, OTHER_PORT) for _ in range(200)]
    kept = host.connect(port=OTHER_PORT)
    assert end(*ended) == len(ended)
    assert all(map(is_reset, ended))
    assert not is_reset(kept)


def test_connections_of_many_ports_are_found_with_one_list(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[int] = []
    dump = netlink.dump

    def counted(family: int, kind: int, body: bytes, *, deadline: float) -> Iterator[bytes]:
        requests.append(kind)
        return dump(family, kind, body, deadline=deadline)

    ports = range(OTHER_PORT, OTHER_PORT + MAX_LISTS + 1)
    for port in ports:
        host.listen(port)
    ended = [host.connect(port=port) for port in ports]
    kept = host.connect()
    monkeypatch.setattr(netlink, "dump", counted)
    assert end(*ended) == len(ended)
    assert len(requests) == 1
    assert all(map(is_reset, ended))
    assert not is_reset(kept)


def test_connection_over_ipv4_goes_on(host: Host) -> None:
    """The kernel lists it with the addresses ::ffff:127.0.0.1 and ::ffff:127.0.0.2."""
    client, over_ipv6 = host.connect("127.0.0.1", source="127.0.0.2"), host.connect()
    assert end(over_ipv6) == 1
    assert not is_reset(client)


def test_connection_of_a_link_local_client_ends(host: Host) -> None:
    """Its socket belongs to an interface, which conntrack does not know."""
    client = host.connect(LINK_LOCAL, source=LINK_LOCAL)
    assert end(client) == 1
    assert is_reset(client)


def test_kernel_without_the_request_raises(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    client = host.connect()
    monkeypatch.setattr(sock_diag, "_SOCK_DESTROY", 99)
    with pytest.raises(OSError, match="Invalid argument"):
        end(client)


def test_ports_in_use_are_those_of_listeners_and_of_udp_sockets(host: Host) -> None:
    before = ports_in_use()
    client = host.connect()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", OTHER_PORT))
        found = ports_in_use()
    listening = (Protocol.TCP, PORT)
    assert before == frozenset({listening})
    assert found == frozenset({listening, (Protocol.UDP, OTHER_PORT)})
    assert client.getsockname()[1] not in (PORT, OTHER_PORT)
