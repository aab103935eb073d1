"""Connections of the host's own TCP sockets that no process has accepted: finds and ends them.

`ss -K` does the same. The client gets a reset, and can connect again.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator

from ipv6natd.conntrack.entries import Tuple
from ipv6natd.system import netlink

# Names as in linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h and net/tcp_states.h.
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_TCP_ESTABLISHED, _TCP_SYN_RECV, _TCP_CLOSE_WAIT, _TCP_NEW_SYN_RECV = 1, 3, 8, 12
_STATES = (_TCP_ESTABLISHED, _TCP_SYN_RECV, _TCP_CLOSE_WAIT, _TCP_NEW_SYN_RECV)
_UNACCEPTED = sum(1 << state for state in _STATES)
"""The states of a connection before accept(); in the others, a socket without an inode is one that
its process has closed."""
_REQUEST = struct.Struct("=BBBxI")
"""inet_diag_req_v2 without the id of the socket: family, protocol, extensions, states."""
_ID = struct.Struct("!HH16s16s12s")
"""inet_diag_sockid: own port, the other port, own address, the other address; interface, cookie."""
_ID_START = 4
_ANSWER = struct.Struct(f"={_ID_START}x{_ID.size}s16xI")
"""inet_diag_msg: the id of the socket, and its inode."""


def find_unaccepted(originals: Iterable[Tuple], *, deadline: float) -> dict[Tuple, bytes]:
    """Those of the connections with these original tuples that no process has accepted, each with
    the id of its socket. Raises OSError."""
    wanted = {_ends(original): original for original in originals}
    return {
        wanted[ends]: found
        for port in sorted({own_port for own_port, *_ in wanted})
        for found in _unaccepted(port, deadline)
        if (ends := _ID.unpack(found)[:4]) in wanted
    }


def _ends(original: Tuple) -> tuple[int, int, bytes, bytes]:
    """The ports and addresses of the host's socket, in the order of _ID."""
    _, _, client, host, client_port, port = original
    return port, client_port, host.packed, client.packed


def destroy(sockets: Iterable[bytes], *, deadline: float) -> int:
    """End connections by the ids of their sockets; returns the number of those that existed.

    Raises OSError; EOPNOTSUPP if the kernel has no INET_DIAG_DESTROY.
    """
    bodies = map(_request, sockets)
    return netlink.delete(_NETLINK_SOCK_DIAG, _SOCK_DESTROY, bodies, deadline=deadline)


def _unaccepted(port: int, deadline: float) -> Iterator[bytes]:
    """The ids of the connections to this port of the host that no process has accepted."""
    request = _request(_ID.pack(port, 0, bytes(16), bytes(16), bytes(12)))
    for body in netlink.dump(_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, request, deadline=deadline):
        if len(body) >= _ANSWER.size:
            found, inode = _ANSWER.unpack_from(body)
            if inode == 0:
                yield found


def _request(identity: bytes) -> bytes:
    return _REQUEST.pack(socket.AF_INET6, socket.IPPROTO_TCP, 0, _UNACCEPTED) + identity
