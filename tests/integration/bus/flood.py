"""A caller that sends without waiting for replies."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections import Counter
from typing import Any

from ipv6natd.dbus.connection import BUS
from ipv6natd.dbus.objects import MANAGER, NAME, PATH
from ipv6natd.dbus.wire import Message

RETURN, ERROR = 2, 3


def flood(path: str, member: str, count: int, *, uid: int) -> Counter[str]:
    """Send `count` calls of the member at once; return the number of each kind of reply."""
    outcomes: Counter[str] = Counter()
    with connected(path, uid) as sock:
        sender = threading.Thread(target=sock.sendall, args=(_calls(member, count),))
        sender.start()
        stream = sock.makefile("rb")
        while outcomes.total() < count + 1:  # and the reply to Hello
            head = stream.read(16)
            body, _serial, fields = struct.unpack("<III", head[4:])
            rest = stream.read(fields + -fields % 8 + body)
            if head[1] == RETURN:
                outcomes[member] += 1
            elif head[1] == ERROR:
                names = ("LimitsExceeded", "AccessDenied")
                outcomes[next((it for it in names if it.encode() in rest), str(rest))] += 1
        sender.join()
        stream.close()
    outcomes[member] -= 1
    return outcomes


def send(sock: socket.socket, call: bytes, times: int, *, first: int = 2) -> None:
    """Send the call `times` times, each with a new serial, which the bus daemon requires."""
    sock.settimeout(120)
    for serial in range(first, first + times):
        sock.sendall(call[:8] + struct.pack("<I", serial) + call[12:])


def answer_to(sock: socket.socket, words: bytes) -> bytes:
    """The received bytes, up to these words at least."""
    sock.settimeout(30)
    received = b""
    while words not in received:
        data = sock.recv(4096)
        assert data
        received += data
    return received


def connected(path: str, uid: int) -> socket.socket:
    """A registered connection of the user that reads nothing."""
    sock = socket.socket(socket.AF_UNIX)
    os.setresuid(uid, uid, 0)
    try:
        sock.connect(path)
    finally:
        os.setresuid(0, 0, 0)
    sock.sendall(b"\0AUTH EXTERNAL " + str(uid).encode().hex().encode() + b"\r\n")
    assert sock.recv(512).startswith(b"OK")
    sock.sendall(
        b"BEGIN\r\n"
        + message(destination=BUS[0], path=BUS[1], interface=BUS[2], member="Hello", serial=1)
    )
    return sock


def _calls(member: str, count: int) -> bytes:
    one = message(destination=NAME, path=PATH, interface=MANAGER, member=member, serial=1)
    serials = range(2, count + 2)
    return b"".join(one[:8] + struct.pack("<I", serial) + one[12:] for serial in serials)


def message(**parts: Any) -> bytes:
    """The bytes of the message."""
    return bytes(Message(**parts)._marshall())
