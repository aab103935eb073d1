"""Reports changes of the host's addresses, routes and bridge ports to the loop; decides nothing.

The rules themselves check for each new flow if an address belongs to the host. A flow that began
before the host had the address bypasses the rules, so conntrack must be checked again. Routes
decide which source addresses are forged. The port of a container leaves its bridge when the
container's address becomes free for another container.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from ipv6natd.model import is_container_port
from ipv6natd.system.netlink import RECEIVE_SIZE, attributes, dump, messages

log = logging.getLogger(__name__)

# rtnetlink(7); the names are from linux/rtnetlink.h and linux/if_addr.h.
_RTMGRP_LINK, _RTMGRP_IPV6_IFADDR, _RTMGRP_IPV6_ROUTE = 0x1, 0x100, 0x400
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_DELADDR = 20, 21
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_RTN_UNICAST = 1
_STATIC_PROTOCOLS = (2, 3, 4)
"""RTPROT_KERNEL, RTPROT_BOOT and RTPROT_STATIC. Routes of routing daemons can change continuously:
they are read with the next change of a network or of a static route."""
_RTA_DST = 1
_IFLA_IFNAME, _IFLA_MASTER = 3, 10
_IFF_LOWER_UP = 1 << 16
_LIST_TIMEOUT = 1.0
"""Seconds to list the links."""
_IFA_ADDRESS = 1
_IFA_F_TENTATIVE = 0x40
_SCOPE_LINK = 253
_IFADDRMSG = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_IFINFOMSG = struct.Struct("=BBHiII")
_INDEX = struct.Struct("=I")


async def watch(
    on_address_change: Callable[[], None],
    on_route_change: Callable[[], None],
    on_port_removal: Callable[[str | None], None],
    on_port_addition: Callable[[str | None], None],
) -> None:
    """Call a function after each change of an address or a static route, on any link, and after the
    removal of a container's port from a bridge or its addition, with the name of the bridge or None
    if unknown. An addition is reported again when the other end is up.

    Runs until it is cancelled; listens from its first step on.
    """
    loop = asyncio.get_running_loop()
    known: set[tuple[int, bytes]] = set()
    try:
        with _subscribed() as netlink:
            # A port of an ending container changes before it leaves: that is no addition.
            ports = _present_ports()
            while True:
                try:
                    data = await loop.sock_recv(netlink, RECEIVE_SIZE)
                    addresses, routes = update_addresses(known, data), has_route_change(data)
                    removed = [_link_name(port.bridge) for port in removed_ports(data)]
                    added = [_link_name(port.bridge) for port in added_ports(ports, data)]
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    # The kernel dropped messages.
                    addresses, routes, removed, added = True, True, [None], []
                for bridge in added:
                    on_port_addition(bridge)
                for bridge in removed:
                    on_port_removal(bridge)
                if routes:
                    on_route_change()
                if addresses:
                    on_address_change()
    except OSError as error:
        log.warning("cannot follow addresses and routes of this host: %s", error.strerror)


def _subscribed() -> socket.socket:
    """A socket that receives the messages about links, addresses and routes. Raises OSError."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        netlink.setblocking(False)
        netlink.bind((0, _RTMGRP_LINK | _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV6_ROUTE))
    except OSError:
        netlink.close()
        raise
    return netlink


class _Port(NamedTuple):
    """A container's port on a bridge."""

    number: int
    """The index of the interface."""
    bridge: int
    """The index of the bridge."""
    is_up: bool
    """True if the other end is up too."""


def removed_ports(data: bytes) -> list[_Port]:
    """The containers' ports that left a bridge."""
    return [port for kind, port in _ports(data) if kind == _RTM_DELLINK]


def added_ports(known: dict[int, bool], data: bytes) -> list[_Port]:
    """The containers' ports that are new on a bridge or are up for the first time. Updates `known`:
    the index of a port -> whether it has been up."""
    added = []
    for kind, port in _ports(data):
        if kind == _RTM_DELLINK:
            known.pop(port.number, None)
        elif port.number not in known or (port.is_up and not known[port.number]):
            known[port.number] = port.is_up
            added.append(port)
    return added


def _ports(data: bytes) -> Iterator[tuple[int, _Port]]:
    """The type of each message about a container's port, and the port."""
    for kind, _flags, body in messages(data):
        if kind in (_RTM_NEWLINK, _RTM_DELLINK) and (port := _port(body)):
            yield kind, port


def _present_ports() -> dict[int, bool]:
    """The containers' ports on bridges, as `added_ports` knows them; without an answer none."""
    known = {}
    request, deadline = bytes(_IFINFOMSG.size), time.monotonic() + _LIST_TIMEOUT
    with suppress(OSError):
        for body in dump(socket.NETLINK_ROUTE, _RTM_GETLINK, request, deadline=deadline):
            if port := _port(body):
                known[port.number] = True
    return known


def _port(body: bytes) -> _Port | None:
    """The port in a message about a link; None for another link."""
    if len(body) < _IFINFOMSG.size:
        return None
    _family, _, _type, number, flags, _ = _IFINFOMSG.unpack_from(body)
    found = dict(attributes(body[_IFINFOMSG.size :]))
    master = found.get(_IFLA_MASTER, b"")
    name = found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
    if not is_container_port(name) or len(master) != _INDEX.size:
        return None
    (bridge,) = _INDEX.unpack(master)
    return _Port(number, bridge, bool(flags & _IFF_LOWER_UP))


def _link_name(index: int) -> str | None:
    """None if the interface was removed."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return None


def has_route_change(data: bytes) -> bool:
    """True if one of the messages adds or removes a static route that is not link-local."""
    for kind, _flags, body in messages(data):
        if kind in (_RTM_NEWROUTE, _RTM_DELROUTE) and len(body) >= _RTMSG.size:
            _family, _, _, _, _, protocol, _scope, type_, _flags = _RTMSG.unpack_from(body)
            prefix = dict(attributes(body[_RTMSG.size :])).get(_RTA_DST, b"")
            link_local = b"\xfe\x80" <= prefix[:2] < b"\xfe\xc0"
            if type_ == _RTN_UNICAST and protocol in _STATIC_PROTOCOLS and not link_local:
                return True
    return False


def update_addresses(known: set[tuple[int, bytes]], data: bytes) -> bool:
    """Apply messages to the known (link, address) pairs; return True if one was added or removed.

    Most messages change nothing: they are for link-local addresses, or a router advertisement has
    extended the lifetime of an address.
    """
    changed = False
    for kind, link, address in _addresses(data):
        if kind == _RTM_DELADDR:
            changed = True
            known.discard((link, address))
        elif (link, address) not in known:
            changed = True
            known.add((link, address))
    return changed


def _addresses(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(kind, link, address) of each address beyond link scope that is not tentative."""
    for kind, _flags, body in messages(data):
        if kind not in (_RTM_NEWADDR, _RTM_DELADDR) or len(body) < _IFADDRMSG.size:
            continue
        _family, _prefix, flags, scope, link = _IFADDRMSG.unpack_from(body)
        if scope >= _SCOPE_LINK or (kind == _RTM_NEWADDR and flags & _IFA_F_TENTATIVE):
            continue
        for attribute, value in attributes(body[_IFADDRMSG.size :]):
            if attribute == _IFA_ADDRESS:
                yield kind, link, value
