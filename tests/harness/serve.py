"""Servers inside a namespace that answer with their name and the client's address."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address

from tests.harness.namespace import Namespace

PKTINFO = struct.Struct("16sI")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """An accepted connection or a received datagram."""

    protocol: str
    peer: IPv4Address | IPv6Address
    peer_port: int
    port: int
    data: bytes = b""
    """The data of a datagram."""


@dataclass(slots=True)
class Server:
    """A server; `received` has all connections and datagrams, answered or not."""

    name: str
    received: list[Arrival] = field(default_factory=list)

    def from_peer(self, peer: IPv4Address | IPv6Address) -> list[Arrival]:
        return [each for each in self.received if each.peer == peer]


@contextmanager
def serve(
    ns: Namespace, name: str, *, tcp: Iterable[int] = (), udp: Iterable[int] = ()
) -> Iterator[Server]:
    """Serve on all addresses of a namespace, IPv4 too, until the end of the context.

    The answer to each line or datagram is one line: the server's name, the peer's address and port,
    and the server's address and port.
    """
    server = Server(name)
    selector = selectors.DefaultSelector()
    stop, stopped = socket.socketpair()
    selector.register(stopped, selectors.EVENT_READ, "stop")

    def listen() -> None:
        for port in tcp:
            selector.register(listening(port, socket.SOCK_STREAM), selectors.EVENT_READ, "accept")
        for port in udp:
            selector.register(listening(port, socket.SOCK_DGRAM), selectors.EVENT_READ, "datagram")

    thread = threading.Thread(target=loop, args=(server, selector), daemon=True, name=name)
    try:
        ns.within(listen)
        thread.start()
        yield server
    finally:
        stop.close()
        if thread.is_alive():
            thread.join()
        for key in list(selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        selector.close()


def listening(port: int, kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    # The answer to a datagram must have the address to which the datagram was sent.
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    sock.setblocking(False)
    sock.bind(("::", port))
    if kind is socket.SOCK_STREAM:
        sock.listen(128)
    return sock


def loop(server: Server, selector: selectors.BaseSelector) -> None:
    while True:
        for key, _ in selector.select():
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            match key.data:
                case "stop":
                    return
                case "accept":
                    accept(server, selector, sock)
                case "datagram":
                    datagram(server, sock)
                case _:
                    line(server, selector, sock)


def accept(server: Server, selector: selectors.BaseSelector, sock: socket.socket) -> None:
    try:
        connection, peer = sock.accept()
    except OSError:
        return
    connection.setblocking(False)
    server.received.append(arrival("tcp", peer, sock.getsockname()[1]))
    selector.register(connection, selectors.EVENT_READ, "line")


def line(server: Server, selector: selectors.BaseSelector, sock: socket.socket) -> None:
    try:
        if sock.recv(4096):
            sock.send(answer(server, sock.getpeername(), sock.getsockname()))
            return
    except OSError:
        pass
    selector.unregister(sock)
    sock.close()


def datagram(server: Server, sock: socket.socket) -> None:
    try:
        data, cmsgs, _, peer = sock.recvmsg(65536, socket.CMSG_SPACE(PKTINFO.size))
        port = sock.getsockname()[1]
        server.received.append(arrival("udp", peer, port, data))
        info = next(data for _, kind, data in cmsgs if kind == socket.IPV6_PKTINFO)
        local = (str(IPv6Address(PKTINFO.unpack(info)[0])), port)
        reply = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)
        sock.sendmsg([answer(server, peer, local)], [reply], 0, peer)
    except OSError:
        # The client has closed its socket, or is not reachable, for example with a forged address.
        return


def arrival(protocol: str, peer: tuple[str, int], port: int, data: bytes = b"") -> Arrival:
    return Arrival(protocol=protocol, peer=plain(peer[0]), peer_port=peer[1], port=port, data=data)


def answer(server: Server, peer: tuple[str, int], local: tuple[str, int]) -> bytes:
    words = (server.name, plain(peer[0]), peer[1], plain(local[0]), local[1])
    return (" ".join(map(str, words)) + "\n").encode()


def plain(text: str) -> IPv4Address | IPv6Address:
    """An address without its scope; an IPv4-mapped address as IPv4."""
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
