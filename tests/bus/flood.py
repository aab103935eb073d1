"""A caller who sends without waiting, as fast as a socket takes it."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections import Counter
from typing import Any

from ipv6natd.bus import BUS
from ipv6natd.dbus_objects import MANAGER, NAME, PATH
from ipv6natd.dbus_wire import Message

RETURN, ERROR = 2, 3


def flood(path: str, member: str, count: int, *, uid: int) -> Counter[str]:
    """Call the member that often in one go; how often it was answered, and with what."""
    outcomes: Counter[str] = Counter()
    with _connected(path, uid) as sock:
        sender = threading.Thread(target=sock.sendall, args=(_calls(member, count),))
        sender.start()
        stream = sock.makefile("rb")
        while outcomes.total() < count + 1:  # and hello
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


def _connected(path: str, uid: int) -> socket.socket:
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
        + _message(destination=BUS[0], path=BUS[1], interface=BUS[2], member="Hello", serial=1)
    )
    return sock


def _calls(member: str, count: int) -> bytes:
    one = _message(destination=NAME, path=PATH, interface=MANAGER, member=member, serial=1)
    serials = range(2, count + 2)
    return b"".join(one[:8] + struct.pack("<I", serial) + one[12:] for serial in serials)


def _message(**parts: Any) -> bytes:
    return bytes(Message(**parts)._marshall())
