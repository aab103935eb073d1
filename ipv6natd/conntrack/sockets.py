"""Connections of the host's own TCP sockets that no process has accepted: finds and ends them.

`ss -K` does the same. The client gets a reset, and can connect again.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Set

from ipv6natd.conntrack.entries import Tuple
from ipv6natd.system import sock_diag
from ipv6natd.system.sock_diag import Kind

_TCP_ESTABLISHED, _TCP_SYN_RECV, _TCP_CLOSE_WAIT, _TCP_NEW_SYN_RECV = 1, 3, 8, 12
_STATES = (_TCP_ESTABLISHED, _TCP_SYN_RECV, _TCP_CLOSE_WAIT, _TCP_NEW_SYN_RECV)
_UNACCEPTED = Kind(socket.AF_INET6, socket.IPPROTO_TCP, sum(1 << state for state in _STATES))
"""The states of a connection before accept(); in the others, a socket without an inode is one that
its process has closed."""
_ENDS_SIZE = sock_diag.ENDS.size


MAX_LISTS = 4
"""Ports with a list each, which the kernel filters. With more ports, all sockets are listed once:
each list reads all sockets of the host."""


def find_unaccepted(wanted: Set[bytes], *, deadline: float) -> dict[bytes, bytes]:
    """Those of the connections with these `ends` that no process has accepted, each with the id of
    its socket. Raises OSError."""
    own_ports = sorted({int.from_bytes(known[:2], "big") for known in wanted})
    return {
        found[:_ENDS_SIZE]: found
        for port in (own_ports if len(own_ports) <= MAX_LISTS else [sock_diag.ANY_PORT])
        for found, inode in sock_diag.sockets(_UNACCEPTED, port=port, deadline=deadline)
        if inode == 0 and found[:_ENDS_SIZE] in wanted
    }


def ends(original: Tuple) -> bytes:
    """The ports and addresses of the host's socket for a client's connection: the beginning of the
    socket's id."""
    _, _, client, host, client_port, port = original
    return sock_diag.ENDS.pack(port, client_port, host.packed, client.packed)


def destroy(sockets: Iterable[bytes], *, deadline: float) -> int:
    """See sock_diag."""
    return sock_diag.destroy(_UNACCEPTED, sockets, deadline=deadline)
