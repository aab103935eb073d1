"""Netlink messages: their format, and the two kinds of requests that are sent, lists and deletions.

The meaning of a message belongs to the caller. Times are those of time.monotonic(), in seconds.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Generator, Iterable, Iterator
from itertools import islice

# Names as in linux/netlink.h.
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP_INTR, _NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NESTED = 0x8000
"""Flag in the type of an attribute that contains attributes."""
RECEIVE_SIZE = 1 << 16
"""Bytes; more than the kernel sends at once."""
_MAX_LISTS = 3
"""Requests for one list."""
_BATCH_SIZE = 64
"""Requests in one send. The kernel queues their acknowledgements in the socket's buffer."""
_ABSENT = (errno.ENOENT, errno.ENODEV)

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_RESULT = struct.Struct("=i")


def dump(family: int, kind: int, body: bytes, *, deadline: float) -> Iterator[bytes]:
    """The bodies of the messages that list a table of the kernel.

    If the table changed meanwhile or a message was lost, the table is listed again, and a body can
    occur twice. Raises OSError; TimeoutError after `deadline`.
    """
    for _ in range(_MAX_LISTS):
        if (yield from _dump_once(family, _message(kind, _NLM_F_DUMP, body), deadline)):
            return
    raise InterruptedError(errno.EINTR, "the table changed during each of the lists")


def _dump_once(family: int, request: bytes, deadline: float) -> Generator[bytes, None, bool]:
    """One list; returns False if it can be incomplete."""
    complete = True
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family) as netlink:
        netlink.send(request)
        while True:
            try:
                data = _receive(netlink, deadline)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                return False
            for kind, flags, body in messages(data):
                complete &= not flags & _NLM_F_DUMP_INTR
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    _result(body)
                    return complete
                yield body


def delete(family: int, kind: int, bodies: Iterable[bytes], *, deadline: float) -> int:
    """Send a request for each object to delete. Returns the number of objects that existed.

    Raises OSError; TimeoutError after `deadline`. The objects before the error are deleted then.
    """
    deleted, remaining = 0, iter(bodies)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family) as netlink:
        while batch := list(islice(remaining, _BATCH_SIZE)):
            netlink.send(b"".join(_message(kind, _NLM_F_ACK, body) for body in batch))
            results: list[int] = []
            while len(results) < len(batch):
                acknowledgements = messages(_receive(netlink, deadline))
                results += (_result(body, *_ABSENT) for _, _, body in acknowledgements)
            deleted += results.count(0)
    return deleted


def _receive(netlink: socket.socket, deadline: float) -> bytes:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    netlink.settimeout(remaining)
    return netlink.recv(RECEIVE_SIZE)


def _result(body: bytes, *expected: int) -> int:
    """0 or an expected error number, from a message that ends a list or acknowledges a request."""
    result = -int(_RESULT.unpack_from(body)[0])
    if result and result not in expected:
        raise OSError(result, os.strerror(result))
    return result


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, 0, 0) + body


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, flags, body) of each message in received data."""
    start = 0
    while start + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, start)
        yield kind, flags, data[start + _HEADER.size : start + length]
        start += _aligned(max(length, _HEADER.size))


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute, with the padding that a following attribute needs."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each attribute."""
    start = 0
    while start + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        yield kind, data[start + _ATTRIBUTE.size : start + length]
        start += _aligned(max(length, _ATTRIBUTE.size))


def _aligned(length: int) -> int:
    return (length + 3) & ~3
