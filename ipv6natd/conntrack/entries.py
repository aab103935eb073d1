"""Conntrack entries of IPv6: lists and deletes them by netlink. `stale` decides which are stale.

pyroute2 would need 12 MB of memory. The `conntrack` tool would read the table for each deletion.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv6Address
from typing import NamedTuple

from ipv6natd.system import netlink

TCP, UDP, SCTP = socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_SCTP

# Names as in linux/netlink.h and linux/netfilter/nfnetlink_conntrack.h.
_NETLINK_NETFILTER = 12
_CT_GET, _CT_DELETE = 1 << 8 | 1, 1 << 8 | 2
_CTA_TUPLE_ORIG, _CTA_STATUS = 1, 3
_SEEN_REPLY = 1 << 1
_CTA_TUPLE_IP, _CTA_IP_V6_SRC = 1, 3
_FAMILY = struct.pack("=BBH", socket.AF_INET6, 0, 0)
# The kernel writes the attributes of a message always in the same order, so an entry needs no
# search (net/netfilter/nf_conntrack_netlink.c, ctnetlink_fill_info).
_TUPLE = struct.Struct("=H2x8s16s4x16sH2x4xB")
"""Length, header of the addresses, source, destination, length of the protocol, its number."""
_ADDRESSES = struct.pack("=HHHH", 44, netlink.NESTED | _CTA_TUPLE_IP, 20, _CTA_IP_V6_SRC)
_PORTS = struct.Struct("!H6xH")
_PROTOCOL_START, _PORTS_START = 48, 64
"""Bytes from the start of the tuple."""
_LENGTH_WITH_PORTS = 28
"""Bytes of the protocol's attributes if they are its number and two ports."""
_ATTRIBUTE = struct.Struct("=HH")
_STATUS = struct.Struct("!I")


class Tuple(NamedTuple):
    """One direction of an entry, in conntrack's word for it."""

    packed: bytes
    """The tuple in the kernel's format. Two tuples are equal if this is equal."""
    protocol: int
    """The protocol number."""
    source: IPv6Address
    destination: IPv6Address
    source_port: int = 0
    """With GRE, a key. 0 if the protocol has no ports."""
    destination_port: int = 0


class Entry(NamedTuple):
    """The tuple of the original direction and the tuple of the reply direction.

    Without NAT the reply tuple is the original tuple with source and destination swapped.
    """

    original: Tuple
    reply: Tuple
    answered: bool = True
    """True if a packet of the reply direction was seen."""

    @property
    def translated(self) -> bool:
        """True if DNAT rewrote the destination."""
        _, _, _, destination, _, port = self.original
        return (destination, port) != (self.reply.source, self.reply.source_port)


def list_entries(*, deadline: float) -> Iterator[Entry]:
    """The entries of all protocols without a zone, some of them twice. Raises OSError.

    Entries with a zone belong to the program that configured the zone. Our rules use none.
    """
    for body in netlink.dump(_NETLINK_NETFILTER, _CT_GET, _FAMILY, deadline=deadline):
        if entry := parse_entry(body):
            yield entry


def delete_entries(originals: Iterable[bytes], *, deadline: float) -> int:
    """Delete entries by their packed original tuples. Returns the number of those that existed.

    Raises OSError. The entries before the error are deleted then.
    """
    bodies = (
        _FAMILY + netlink.attribute(netlink.NESTED | _CTA_TUPLE_ORIG, packed)
        for packed in originals
    )
    return netlink.delete(_NETLINK_NETFILTER, _CT_DELETE, bodies, deadline=deadline)


def parse_entry(body: bytes) -> Entry | None:
    """The entry in the body of a message; None if it has a zone or another format."""
    try:
        original = _parse_tuple(body, len(_FAMILY))
        reply_start = len(_FAMILY) + _ATTRIBUTE.size + len(original.packed)
        reply = _parse_tuple(body, reply_start)
        end = reply_start + _ATTRIBUTE.size + len(reply.packed)
        _, next_attribute = _ATTRIBUTE.unpack_from(body, end)
        if next_attribute != _CTA_STATUS:  # a zone
            return None
        (status,) = _STATUS.unpack_from(body, end + _ATTRIBUTE.size)
    except (struct.error, ValueError):
        return None
    return Entry(original, reply, bool(status & _SEEN_REPLY))


def _parse_tuple(body: bytes, start: int) -> Tuple:
    """Raises ValueError for a tuple with a zone or in another format."""
    length, addresses, source, destination, protocol_length, number = _TUPLE.unpack_from(
        body, start
    )
    # The zone of one direction would follow the protocol.
    if addresses != _ADDRESSES or length != _PROTOCOL_START + protocol_length:
        raise ValueError
    ports = (0, 0)
    if protocol_length == _LENGTH_WITH_PORTS:
        ports = _PORTS.unpack_from(body, start + _PORTS_START)
    packed = body[start + _ATTRIBUTE.size : start + length]
    return Tuple(packed, number, _address(source), _address(destination), *ports)


# Most entries have the same few addresses, and the constructor is slow.
_address = lru_cache(maxsize=4096)(IPv6Address)
