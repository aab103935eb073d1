"""The ports that processes of the host have: a container that wants one of them does not start."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterable

from ipv6natd.model import PortBinding, Protocol
from ipv6natd.system import sock_diag

log = logging.getLogger(__name__)

HostPorts = frozenset[tuple[Protocol, int]]
_TIMEOUT = 1.0
"""Seconds to list the sockets of the host."""
_PROTOCOLS = {socket.IPPROTO_TCP: Protocol.TCP, socket.IPPROTO_UDP: Protocol.UDP}


def ports_in_use() -> HostPorts | None:
    """The ports of listening TCP sockets and of UDP sockets, of any address; None if unknown."""
    try:
        found = sock_diag.bound_ports(deadline=time.monotonic() + _TIMEOUT)
        return frozenset((_PROTOCOLS[number], port) for number, port in found)
    except OSError as error:
        log.debug("cannot list the sockets of this host: %s", error.strerror)
        return None


def all_free(bindings: Iterable[PortBinding], in_use: HostPorts | None) -> bool:
    """True if no process of the host has one of these ports, as far as `in_use` shows all: the
    sockets of SCTP are not in it."""
    return in_use is not None and not any(
        binding.protocol is Protocol.SCTP or (binding.protocol, binding.host_port) in in_use
        for binding in bindings
    )
