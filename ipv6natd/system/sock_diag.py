"""Lists and ends sockets of the host, by netlink: the format of the requests and the answers."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ipv6natd.system import netlink

# Names as in linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h.
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_REQUEST = struct.Struct("=BBBxI")
"""inet_diag_req_v2 without the id of the socket: family, protocol, extensions, states."""
ID = struct.Struct("!HH16s16s12s")
"""inet_diag_sockid: own port, the other port, own address, the other address; interface, cookie."""
ENDS = struct.Struct("!HH16s16s")
"""The beginning of an inet_diag_sockid: ports and addresses."""
ANY_PORT = 0
_ID_START = 4
_ANSWER = struct.Struct(f"={_ID_START}x{ID.size}s16xI")
"""inet_diag_msg: the id of the socket, and its inode."""


class Kind(NamedTuple):
    """The sockets to list."""

    family: int
    protocol: int
    states: int
    """A bit for each state, numbered as in net/tcp_states.h."""


def sockets(kind: Kind, *, port: int = ANY_PORT, deadline: float) -> Iterator[tuple[bytes, int]]:
    """(id, inode) of each socket with this own port. Raises OSError."""
    request = _REQUEST.pack(kind.family, kind.protocol, 0, kind.states) + ID.pack(
        port, 0, bytes(16), bytes(16), bytes(12)
    )
    for body in netlink.dump(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, request, deadline=deadline):
        if len(body) >= _ANSWER.size:
            yield _ANSWER.unpack_from(body)


def destroy(kind: Kind, ids: Iterable[bytes], *, deadline: float) -> int:
    """End connections by the ids of their sockets; returns the number of those that existed.

    Raises OSError; EOPNOTSUPP if the kernel has no INET_DIAG_DESTROY.
    """
    head = _REQUEST.pack(kind.family, kind.protocol, 0, kind.states)
    bodies = (head + identity for identity in ids)
    return netlink.delete(_NETLINK_SOCK_DIAG, _SOCK_DESTROY, bodies, deadline=deadline)


_LISTEN = 1 << 10
_ANY_STATE = 0xFFFFFFFF
_BOUND = (
    Kind(socket.AF_INET6, socket.IPPROTO_TCP, _LISTEN),
    Kind(socket.AF_INET, socket.IPPROTO_TCP, _LISTEN),
    Kind(socket.AF_INET6, socket.IPPROTO_UDP, _ANY_STATE),
    Kind(socket.AF_INET, socket.IPPROTO_UDP, _ANY_STATE),
)


def bound_ports(*, deadline: float) -> Iterator[tuple[int, int]]:
    """(protocol number, port) of each listening TCP socket and each UDP socket. Raises OSError."""
    for kind in _BOUND:
        for identity, _ in sockets(kind, deadline=deadline):
            yield kind.protocol, ID.unpack(identity)[0]
