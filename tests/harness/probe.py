"""Requests of a peer over the network, each with a time-out."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeVar

from tests.harness.namespace import Namespace
from tests.harness.serve import plain

T = TypeVar("T")
Address = IPv4Address | IPv6Address

PATIENCE = 3.0
"""Seconds. An answer takes milliseconds here. But a busy machine may lose the first packet of a TCP
connection, which the kernel sends again after one second. Tests in which no packet may be lost give
a shorter time, or count."""

IPV6_TRANSPARENT = 75
ETH_P_IPV6 = 0x86DD
NUMBERS = {"tcp": 6, "udp": 17, "icmp6": 58}
NAMES = {number: name for name, number in NUMBERS.items()}


class Failure(StrEnum):
    """The reason for a missing answer."""

    REFUSED = "refused"
    """A reset or an ICMP port unreachable."""
    CLOSED = "closed"
    """The connection opened and ended without data, as with a proxy without a target."""
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer of a server."""

    server: str
    peer: Address
    """The client's address, as the server saw it."""
    peer_port: int
    local: Address
    """The server's own address of the connection."""
    port: int


class Conversation:
    """An open TCP connection, or a UDP socket with one peer."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def ask(self, *, timeout: float = PATIENCE) -> Answer | Failure:
        """Send a line and read the answer."""
        try:
            self.socket.settimeout(timeout)
            self.socket.send(b"?\n")
            return parsed(self.socket.recv(4096))
        except OSError as error:
            return failure(error)


def tcp(
    ns: Namespace,
    address: Address | str,
    port: int,
    *,
    source: Address | str | None = None,
    source_port: int = 0,
    forged: bool = False,
    timeout: float = PATIENCE,
) -> Answer | Failure:
    """Ask over a new TCP connection. With `forged` the source may be any address."""
    kind = socket.SOCK_STREAM
    return once(ns, kind, address, port, source, source_port, forged, timeout)


def udp(
    ns: Namespace,
    address: Address | str,
    port: int,
    *,
    source: Address | str | None = None,
    source_port: int = 0,
    forged: bool = False,
    timeout: float = PATIENCE,
) -> Answer | Failure:
    """Ask with one datagram. With `forged` the source may be any address."""
    kind = socket.SOCK_DGRAM
    return once(ns, kind, address, port, source, source_port, forged, timeout)


@contextmanager
def connect(
    ns: Namespace,
    address: Address | str,
    port: int,
    *,
    kind: socket.SocketKind = socket.SOCK_STREAM,
    source: Address | str | None = None,
    source_port: int = 0,
    forged: bool = False,
    timeout: float = PATIENCE,
) -> Iterator[Conversation]:
    """An open connection for several requests; raises OSError if it cannot be opened."""
    target = ip_address(address)
    with socket_for(ns, target, kind) as sock:
        sock.settimeout(timeout)
        if forged:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        if source_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if source is not None or source_port:
            any_address = "::" if target.version == 6 else "0.0.0.0"
            sock.bind((str(source or any_address), source_port))
        sock.connect(destination(ns, target, port))
        yield Conversation(sock)


def ping(ns: Namespace, address: IPv6Address | str, *, timeout: float = PATIENCE) -> bool:
    """True if an ICMPv6 echo request is answered."""
    target = ip_address(address)
    token = os.urandom(8)
    request = struct.pack("!BBHHH", 128, 0, 0, os.getpid() & 0xFFFF, 1) + token
    deadline = time.monotonic() + timeout
    with ns.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        try:
            sock.sendto(request, destination(ns, target, 0))
            while (left := deadline - time.monotonic()) > 0:
                sock.settimeout(left)
                reply = sock.recv(4096)
                if reply[0] == 129 and reply[8:] == token:
                    return True
        except OSError:
            return False
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """An IPv6 packet on a link of a namespace."""

    source: IPv6Address
    destination: IPv6Address
    protocol: str
    source_port: int
    port: int
    """0 without ports; for ICMPv6 the type."""
    outgoing: bool


@contextmanager
def watch(ns: Namespace) -> Iterator[Callable[[], list[Packet]]]:
    """Record the packets on a namespace's links. The yielded function returns them.

    The record includes packets that the namespace's own rules drop. So it shows the difference
    between a packet that was dropped on the way and one that arrived without an answer.
    """
    seen: list[Packet] = []
    with ns.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IPV6)) as sock:

        def packets() -> list[Packet]:
            with selectors.DefaultSelector() as selector:
                selector.register(sock, selectors.EVENT_READ)
                while selector.select(0):
                    data, where = sock.recvfrom(65536)
                    seen.append(dissected(data, outgoing=where[2] == socket.PACKET_OUTGOING))
            return list(seen)

        yield packets


def until(
    ask: Callable[[], T],
    wanted: Callable[[T], bool] | T,
    *,
    timeout: float = 10,
    pause: float | None = None,
) -> T:
    """Call `ask` until its result is the wanted one, or a time-out; returns the last result.

    Without `pause` the pauses grow, because most questions start processes.
    """
    deadline = time.monotonic() + timeout
    next_pause = pause or 0.01
    while True:
        answer = ask()
        if (wanted(answer) if callable(wanted) else answer == wanted) or (
            time.monotonic() > deadline
        ):
            return answer
        time.sleep(next_pause)
        if pause is None:
            next_pause = min(1.5 * next_pause, 0.1)


def once(
    ns: Namespace,
    kind: socket.SocketKind,
    address: Address | str,
    port: int,
    source: Address | str | None,
    source_port: int,
    forged: bool,
    timeout: float,
) -> Answer | Failure:
    try:
        with connect(
            ns,
            address,
            port,
            kind=kind,
            source=source,
            source_port=source_port,
            forged=forged,
            timeout=timeout,
        ) as conversation:
            return conversation.ask(timeout=timeout)
    except OSError as error:
        return failure(error)


def socket_for(ns: Namespace, target: Address, kind: socket.SocketKind) -> socket.socket:
    return ns.socket(socket.AF_INET6 if target.version == 6 else socket.AF_INET, kind)


def destination(
    ns: Namespace, target: Address, port: int
) -> tuple[str, int] | tuple[str, int, int, int]:
    """The socket address. A link-local address needs the index of its link in the namespace."""
    if isinstance(target, IPv4Address):
        return str(target), port
    scope = target.scope_id
    number = 0 if scope is None else ns.within(lambda: socket.if_nametoindex(scope))
    return str(target).partition("%")[0], port, 0, number


def parsed(data: bytes) -> Answer | Failure:
    if not data:
        return Failure.CLOSED
    server, peer, peer_port, local, port = data.decode().split()
    return Answer(
        server=server,
        peer=plain(peer),
        peer_port=int(peer_port),
        local=plain(local),
        port=int(port),
    )


def failure(error: OSError) -> Failure:
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return Failure.TIMEOUT
    if isinstance(error, ConnectionError):
        return Failure.REFUSED
    if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES):
        return Failure.UNREACHABLE
    raise error


def dissected(data: bytes, *, outgoing: bool) -> Packet:
    protocol = NAMES.get(data[6], str(data[6]))
    source_port = port = 0
    if protocol in ("tcp", "udp") and len(data) >= 44:
        source_port, port = struct.unpack("!HH", data[40:44])
    elif protocol == "icmp6":
        port = data[40]
    return Packet(
        source=IPv6Address(data[8:24]),
        destination=IPv6Address(data[24:40]),
        protocol=protocol,
        source_port=source_port,
        port=port,
        outgoing=outgoing,
    )
