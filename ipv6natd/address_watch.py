"""Notices that the host has got or lost an address, so that the loop looks; decides nothing.

Which addresses are the host's own is asked by our rules themselves, packet by packet. Flows are
not asked again: one that began while an address was not the host's goes on past the rules.
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
_RTMGRP_IPV6_IFADDR = 0x100
_RTM_NEWADDR, _RTM_DELADDR = 20, 21
_IFA_ADDRESS = 1
_IFA_F_TENTATIVE = 0x40
_SCOPE_LINK = 253
_HEADER = struct.Struct("=IHHII")
_IFADDRMSG = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_MESSAGES = 1 << 16


async def watch(changed: Callable[[], None]) -> None:
    """Call `changed` when an address came or went, on any link. Runs until cancelled; listens from
    its first step on."""
    loop = asyncio.get_running_loop()
    known = Addresses()
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            netlink.setblocking(False)
            netlink.bind((0, _RTMGRP_IPV6_IFADDR))
            while True:
                try:
                    news = known.changed_by(await loop.sock_recv(netlink, _MESSAGES))
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    news = True  # there were more than the kernel kept
                if news:
                    changed()
    except OSError as error:
        log.warning("cannot follow the addresses of this host: %s", error.strerror)


class Addresses:
    """What is known of the host's addresses from what the kernel said."""

    def __init__(self) -> None:
        self._there: set[tuple[int, bytes]] = set()

    def changed_by(self, said: bytes) -> bool:
        """Whether some of these messages are news; most tell of addresses of single links, or that
        one lives on for a while, as each router advertisement does."""
        before = len(self._there)
        news = False
        for kind, link, address in _messages(said):
            if kind == _RTM_NEWADDR:
                self._there.add((link, address))
            else:
                news = True
                self._there.discard((link, address))
        return news or len(self._there) != before


def _messages(said: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Kind, link and address, of those that may be used beyond their link, and can be by now."""
    while len(said) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(said)
        body, said = said[_HEADER.size : length], said[_padded(max(length, _HEADER.size)) :]
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
