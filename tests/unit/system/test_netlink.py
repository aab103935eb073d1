"""Netlink: lists and deletions with a kernel in memory, and the format of messages."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipv6natd.system import netlink

ERROR, DONE, ROW = 2, 3, 20
INTERRUPTED = 0x10
END = (DONE, 0, bytes(4))
Message = tuple[int, int, bytes]
Answer = list[Message] | OSError


def row(text: str) -> Message:
    return ROW, 0, text.encode()


def result(number: int) -> Message:
    return ERROR, 0, struct.pack("=i", -number)


class Kernel:
    """Answers the receive calls in their order; an error is raised."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.requests: list[Message] = []
        self.sockets = self.sends = 0

    def socket(self, *_: object) -> Kernel:
        self.sockets += 1
        return self

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def settimeout(self, seconds: float) -> None:
        assert 0 < seconds <= 5

    def send(self, data: bytes) -> None:
        self.sends += 1
        self.requests += netlink.messages(data)

    def recv(self, _: int) -> bytes:
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return b"".join(
            struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body + bytes(-len(body) % 4)
            for kind, flags, body in answer
        )


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(socket, "socket", made.socket)
    return made


def dump() -> Iterator[bytes]:
    return netlink.dump(12, 257, b"body", deadline=time.monotonic() + 5)


def delete(count: int) -> int:
    bodies = (b"%04d" % number for number in range(count))
    return netlink.delete(12, 258, bodies, deadline=time.monotonic() + 5)


def test_dump_returns_the_bodies_of_all_messages(kernel: Kernel) -> None:
    kernel.answers = [[row("a"), row("bcdef")], [row("g"), END]]
    assert list(dump()) == [b"a", b"bcdef", b"g"]
    assert kernel.requests == [(257, 0x301, b"body")]


@pytest.mark.parametrize(
    "first",
    [
        [[row("a")], [(ROW, INTERRUPTED, b"b"), END]],
        [[row("a"), (DONE, INTERRUPTED, bytes(4))]],
        [[row("a")], OSError(errno.ENOBUFS, "")],
    ],
)
def test_incomplete_list_is_requested_again(kernel: Kernel, first: list[Answer]) -> None:
    kernel.answers = [*first, [row("a"), row("b"), END]]
    assert set(dump()) == {b"a", b"b"}
    assert kernel.sockets == 2


def test_list_that_stays_incomplete_is_an_error(kernel: Kernel) -> None:
    kernel.answers = [[row("a"), (DONE, INTERRUPTED, bytes(4))] for _ in range(9)]
    with pytest.raises(OSError, match="the table changed"):
        list(dump())
    assert kernel.sockets == 3


@pytest.mark.parametrize("answer", [result(errno.EPERM), (DONE, 0, struct.pack("=i", -1))])
def test_refused_list_raises_the_error_of_the_kernel(kernel: Kernel, answer: Message) -> None:
    kernel.answers = [[answer]]
    with pytest.raises(PermissionError, match="Operation not permitted"):
        list(dump())


def test_slow_list_raises_timeout_error(kernel: Kernel) -> None:
    kernel.answers = [[row("a")], TimeoutError("timed out")]
    with pytest.raises(TimeoutError):
        list(dump())


def test_delete_counts_the_objects_that_existed(kernel: Kernel) -> None:
    kernel.answers = [[result(0), result(errno.ENOENT)], [result(0)]]
    assert delete(3) == 2
    assert kernel.requests == [(258, 0x5, b"%04d" % number) for number in range(3)]


def test_delete_sends_many_requests_in_batches(kernel: Kernel) -> None:
    kernel.answers = [[result(0)] * 64, [result(0)] * 64, [result(0)] * 2]
    assert delete(130) == 130
    assert (kernel.sends, kernel.sockets) == (3, 1)
    assert delete(0) == 0


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOBUFS, errno.EINVAL])
def test_delete_raises_the_error_of_the_kernel(kernel: Kernel, number: int) -> None:
    kernel.answers = [[result(0), result(number)]]
    with pytest.raises(OSError, match=os.strerror(number)):
        delete(2)
    kernel.answers = [OSError(number, os.strerror(number))]
    with pytest.raises(OSError, match=os.strerror(number)):
        delete(2)


def test_attributes_are_read_as_they_are_written() -> None:
    written = [(1, b""), (2, b"a"), (3 | netlink.NESTED, b"abcd"), (4, b"abcde")]
    data = b"".join(netlink.attribute(kind, value) for kind, value in written)
    assert list(netlink.attributes(data)) == written


@given(st.binary(max_size=100))
def test_any_bytes_end(data: bytes) -> None:
    assert sum(16 for _ in netlink.messages(data)) <= len(data)
    assert sum(4 for _ in netlink.attributes(data)) <= len(data)
