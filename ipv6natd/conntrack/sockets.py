"""Connections of the host's own TCP sockets that no process has accepted: finds and ends them.

`ss -K` does the same. The client gets a reset, and can connect again.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

from ipv6natd.conntrack.entries import Tuple
from ipv6natd.system import sock_diag
from ipv6natd.system.sock_diag import Kind

_TCP_ESTABLISHED, _TCP_SYN_RECV, _TCP_CLOSE_WAIT, _TCP_NEW_SYN_RECV = 1, 3, 8, 12
_STATES = (_TCP_ESTABLISHED, _TCP_SYN_RECV, _TCP_CLOSE_WAIT, _TCP_NEW_SYN_RECV)
_UNACCEPTED = Kind(socket.AF_INET6, socket.IPPROTO_TCP, sum(1 << state for state in _STATES))
"""The states of a connection before accept(); in the others, a socket without an inode is one that
its process has closed."""


def find_unaccepted(originals: Iterable[Tuple], *, deadline: float) -> dict[Tuple, bytes]:
    """Those of the connections with these original tuples that no process has accepted, each with
    the id of its socket. Raises OSError."""
    wanted = {_ends(original): original for original in originals}
    return {
        wanted[ends]: found
        for port in sorted({own_port for own_port, *_ in wanted})
        for found, inode in sock_diag.sockets(_UNACCEPTED, port=port, deadline=deadline)
        if inode == 0 and (ends := sock_diag.ID.unpack(found)[:4]) in wanted
    }


def _ends(original: Tuple) -> tuple[int, int, bytes, bytes]:
    """The ports and addresses of the host's socket, in the order of sock_diag.ID."""
    _, _, client, host, client_port, port = original
    return port, client_port, host.packed, client.packed


def destroy(sockets: Iterable[bytes], *, deadline: float) -> int:
    """See sock_diag."""
    return sock_diag.destroy(_UNACCEPTED, sockets, deadline=deadline)
