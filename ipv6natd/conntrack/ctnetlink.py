"""Deletes conntrack entries by netlink. No decision belongs here.

`conntrack -D` reads the whole table for each entry, with 262,144 buckets on a host of more than 4
GiB: 5 to 15 ms. By netlink the kernel finds an entry by its original tuple at once.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from ipv6natd.conntrack.stale import ICMPV6, Tuple

# Names as in linux/netlink.h and linux/netfilter/nfnetlink_conntrack.h.
_NETLINK_NETFILTER = 12
_NLMSG_ERROR = 2
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_CT_DELETE = 1 << 8 | 2
_NLA_F_NESTED = 1 << 15
_CTA_TUPLE_ORIG = 1
_CTA_TUPLE_IP, _CTA_TUPLE_PROTO = 1, 2
_CTA_IP_V6_SRC, _CTA_IP_V6_DST = 3, 4
_CTA_PROTO_NUM, _CTA_PROTO_SRC_PORT, _CTA_PROTO_DST_PORT = 1, 2, 3
_CTA_PROTO_ICMPV6_ID, _CTA_PROTO_ICMPV6_TYPE, _CTA_PROTO_ICMPV6_CODE = 7, 8, 9
_HEADER = struct.Struct("=IHHII")
_FAMILY = struct.pack("=BBH", socket.AF_INET6, 0, 0)
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
_BATCH_SIZE = 64
"""Requests in one send. The kernel queues their acknowledgements in the socket's buffer."""
_RECEIVE_SIZE = 1 << 16


def delete_entries(entries: Iterable[Tuple], *, timeout: float) -> int:
    """Delete entries by their original tuples. Returns the number of those that existed.

    Raises OSError, and TimeoutError if one response takes longer than `timeout` seconds. The
    entries before the error are deleted then.
    """
    deleted, remaining = 0, iter(entries)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        netlink.settimeout(timeout)
        while batch := list(islice(remaining, _BATCH_SIZE)):
            netlink.send(
                b"".join(delete_message(entry, number) for number, entry in enumerate(batch))
            )
            deleted += _deleted_count(netlink, len(batch))
    return deleted


def _deleted_count(netlink: socket.socket, expected: int) -> int:
    """The number of requests that deleted an entry. Raises OSError if a request failed."""
    codes: list[int] = []
    while len(codes) < expected:
        codes += _error_codes(netlink.recv(_RECEIVE_SIZE))
    for code in codes:
        if code not in (0, errno.ENOENT):
            raise OSError(code, os.strerror(code))
    return codes.count(0)


def _error_codes(data: bytes) -> Iterator[int]:
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        if kind == _NLMSG_ERROR:
            yield -_ERROR.unpack_from(data, _HEADER.size)[0]
        data = data[max(length, _HEADER.size) + 3 & ~3 :]


def delete_message(entry: Tuple, number: int) -> bytes:
    """A netlink message that deletes one entry and asks for an acknowledgement."""
    body = _FAMILY + _nested(
        _CTA_TUPLE_ORIG,
        _nested(
            _CTA_TUPLE_IP,
            _attribute(_CTA_IP_V6_SRC, entry.source.packed),
            _attribute(_CTA_IP_V6_DST, entry.destination.packed),
        ),
        _nested(
            _CTA_TUPLE_PROTO,
            _attribute(_CTA_PROTO_NUM, bytes([entry.number])),
            *_protocol_attributes(entry.number, entry.detail),
        ),
    )
    flags = _NLM_F_REQUEST | _NLM_F_ACK
    return _HEADER.pack(_HEADER.size + len(body), _CT_DELETE, flags, number, 0) + body


def _protocol_attributes(number: int, detail: Sequence[int]) -> Iterator[bytes]:
    match detail:
        case kind, code, echo if number == ICMPV6:
            yield _attribute(_CTA_PROTO_ICMPV6_TYPE, bytes([kind]))
            yield _attribute(_CTA_PROTO_ICMPV6_CODE, bytes([code]))
            yield _attribute(_CTA_PROTO_ICMPV6_ID, struct.pack("!H", echo))
        case source, destination:
            yield _attribute(_CTA_PROTO_SRC_PORT, struct.pack("!H", source))
            yield _attribute(_CTA_PROTO_DST_PORT, struct.pack("!H", destination))


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def _nested(kind: int, *parts: bytes) -> bytes:
    return _attribute(kind | _NLA_F_NESTED, b"".join(parts))
