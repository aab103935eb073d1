"""Notices that the host has got or lost an address or a route, so that the loop looks; decides
nothing.

Which addresses are the host's own is asked by our rules themselves, packet by packet. Flows are
not asked again: one that began while an address was not the host's goes on past the rules. Routes
say which sources are forged.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

# rtnetlink(7); the words are those of linux/rtnetlink.h and linux/if_addr.h.
_RTMGRP_IPV6_IFADDR, _RTMGRP_IPV6_ROUTE = 0x100, 0x400
_RTM_NEWADDR, _RTM_DELADDR = 20, 21
_RTM_NEWROUTE, _RTM_DELROUTE = 24, 25
_RTN_UNICAST = 1
_STATIC_PROTOCOLS = (2, 3, 4)
"""RTPROT_KERNEL, RTPROT_BOOT and RTPROT_STATIC. Those of routing daemons may change all the time:
they are read with the next change of a network or of one of these."""
_RTA_DST = 1
_IFA_ADDRESS = 1
_IFA_F_TENTATIVE = 0x40
_SCOPE_LINK = 253
_HEADER = struct.Struct("=IHHII")
_IFADDRMSG = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE_SIZE = 1 << 16


async def watch(moved: Callable[[], None], rerouted: Callable[[], None]) -> None:
    """Call `moved` when an address came or went, on any link, and `rerouted` when a route did. Runs
    until cancelled; listens from its first step on."""
    loop = asyncio.get_running_loop()
    known = KnownAddresses()
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            netlink.setblocking(False)
            netlink.bind((0, _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV6_ROUTE))
            while True:
                try:
                    said = await loop.sock_recv(netlink, _RECEIVE_SIZE)
                    addresses, routes = known.update(said), has_route_change(said)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    addresses = routes = True  # there were more than the kernel kept
                if routes:
                    rerouted()
                if addresses:
                    moved()
    except OSError as error:
        log.warning("cannot follow addresses and routes of this host: %s", error.strerror)


def has_route_change(said: bytes) -> bool:
    """Whether a route beyond a single link came or went that somebody made by hand."""
    for kind, body in _messages(said):
        if kind in (_RTM_NEWROUTE, _RTM_DELROUTE) and len(body) >= _RTMSG.size:
            _family, _, _, _, _, protocol, _scope, what, _flags = _RTMSG.unpack_from(body)
            prefix = dict(_attributes(body[_RTMSG.size :])).get(_RTA_DST, b"")
            link = b"\xfe\x80" <= prefix[:2] < b"\xfe\xc0"
            if what == _RTN_UNICAST and protocol in _STATIC_PROTOCOLS and not link:
                return True
    return False


class KnownAddresses:
    """What is known of the host's addresses from what the kernel said."""

    def __init__(self) -> None:
        self._present: set[tuple[int, bytes]] = set()

    def update(self, said: bytes) -> bool:
        """Whether some of these messages are news; most tell of addresses of single links, or that
        one lives on for a while, as each router advertisement does."""
        before = len(self._present)
        news = False
        for kind, link, address in _addresses(said):
            if kind == _RTM_NEWADDR:
                self._present.add((link, address))
            else:
                news = True
                self._present.discard((link, address))
        return news or len(self._present) != before


def _messages(said: bytes) -> Iterator[tuple[int, bytes]]:
    """The kind of each, and what follows its header."""
    while len(said) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(said)
        yield kind, said[_HEADER.size : length]
        said = said[_padded(max(length, _HEADER.size)) :]


def _addresses(said: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Kind, link and address, of those that may be used beyond their link, and can be by now."""
    for kind, body in _messages(said):
        if kind not in (_RTM_NEWADDR, _RTM_DELADDR) or len(body) < _IFADDRMSG.size:
            continue
        _family, _prefix, flags, scope, link = _IFADDRMSG.unpack_from(body)
        if scope >= _SCOPE_LINK or (kind == _RTM_NEWADDR and flags & _IFA_F_TENTATIVE):
            continue
        for attribute, value in _attributes(body[_IFADDRMSG.size :]):
            if attribute == _IFA_ADDRESS:
                yield kind, link, value


def _attributes(body: bytes) -> Iterator[tuple[int, bytes]]:
    while len(body) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(body)
        length = max(length, _ATTRIBUTE.size)
        yield kind, body[_ATTRIBUTE.size : length]
        body = body[_padded(length) :]


def _padded(length: int) -> int:
    return (length + 3) & ~3
