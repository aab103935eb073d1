"""Fuzzers of messages on the bus: bytes, and calls with arbitrary members and arguments."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from dataclasses import replace
from functools import cache
from typing import Any

from ipv6natd.dbus import connection as bus
from ipv6natd.dbus import service as dbus_api
from ipv6natd.dbus import wire as dbus_wire
from ipv6natd.dbus.connection import BusError, Call
from ipv6natd.dbus.members import METHODS, find_method
from ipv6natd.dbus.objects import MANAGER, PATH, PROPERTIES
from ipv6natd.dbus.service import BusService
from ipv6natd.dbus.values import without_variants
from ipv6natd.dbus.wire import Message, MessageType, Variant, marshalled
from tests.harness.outputs import texts
from tests.integration.bus.conftest import FakeSource, mapping, status
from tests.stress.fuzz.target import Target, at_end, read_json

_PING = Message(path=PATH, interface="org.freedesktop.DBus.Peer", member="Ping", serial=7)
_PING_BYTES = bytes(_PING._marshall())


def frame(data: bytes) -> bytes:
    """The bytes as one message with valid lengths: a bus daemon guarantees only these."""
    kind = b"B" if data[:1] == b"B" else b"l"
    order = ">" if kind == b"B" else "<"
    head = bytearray(data[:16].ljust(16, b"\0"))
    rest = data[16:]
    fields = struct.unpack(order + "I", head[12:16])[0] % (len(rest) + 1)
    padded = fields + -fields % 8
    rest = rest.ljust(padded, b"\0")
    head[:1], head[3:4] = kind, b"\1"
    head[4:8] = struct.pack(order + "I", len(rest) - padded)
    head[12:16] = struct.pack(order + "I", fields)
    return bytes(head) + rest


def wire(data: bytes) -> None:
    """After any message the next message is read unchanged, and a readable call reaches a method
    with the same signature, or gets an error."""
    stream = io.BytesIO(frame(data) + _PING_BYTES)
    reader = _reader(stream)
    try:
        read = reader.unmarshall()
    except Exception:  # the transport logs it and reads the next message
        read = None
    if read is not None and read.message_type is MessageType.METHOD_CALL:
        _assert_called(_call(read))
    ping = _reader(stream).unmarshall()
    assert ping is not None
    assert (ping.member, ping.serial, ping.sender) == ("Ping", 7, None)


def _reader(
    stream: io.BytesIO, max_message: int = bus.MAX_MESSAGE, max_arrays: int = bus.MAX_ARRAYS
) -> Any:
    return dbus_wire._Reader(stream, max_message, max(max_message, bus.MAX_REPLY), max_arrays)


def _call(message: Message) -> Call:
    return bus._call_from(None, message)  # type: ignore[arg-type]


def _assert_called(call: Call) -> None:
    try:
        method = find_method(call)
    except BusError as error:
        _assert_error(error)
        return
    assert method.in_signature == call.signature


def _assert_error(error: BusError) -> None:
    assert error.name.startswith(("org.freedesktop.DBus.Error.", "org.ipv6natd1.Error."))
    assert 0 < len(error.text) <= max(bus.MAX_ERROR_LENGTH, 40_000), error.text
    assert "Traceback" not in error.text


class _Line:
    """A connection that records the replies as bytes."""

    unsent = 0
    connected = True

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self._connection = bus.Connection(self)  # type: ignore[arg-type]
        self.reply = self._connection.reply
        self.reply_error = self._connection.reply_error

    def send(self, message: Message) -> int:
        message.serial = 1
        data = b"".join(marshalled(message))
        self.answers.append(data)
        return len(data)

    async def flush(self, _seconds: float) -> None:
        """All messages are sent."""


class _Everybody:
    def cached_uid(self, _call: Call) -> int:
        """The uid of a without_variants user, so that polkit is needed."""
        return 65534

    async def check(self, _call: Call, _action: object) -> None:
        """Permit everything, so that every member is reached."""


@cache
def _loop() -> asyncio.AbstractEventLoop:
    made = asyncio.new_event_loop()
    at_end(made.close)
    at_end(_loop.cache_clear)
    return made


def members(data: bytes) -> None:
    """Any call of any member gets exactly one reply, with the signature of the member or as a short
    error without a traceback, and a call without a wanted reply gets none."""
    said = read_json(data)
    if not isinstance(said, dict):
        return
    signature = said.get("signature")
    try:
        sent = Message(
            path=said.get("path"),
            interface=said.get("interface"),
            member=said.get("member"),
            signature=signature,
            body=[_value(each) for each in said.get("args", ())],
            serial=3,
            sender=":1.5",
        )
        read = _reader(io.BytesIO(bytes(sent._marshall()))).unmarshall()
    except Exception:  # no bus daemon would deliver it
        return
    line = _Line()
    call = replace(bus._call_from(line, read), sender=":1.5")  # type: ignore[arg-type]
    _loop().run_until_complete(_served(call))
    assert len(line.answers) == int(call.wants_reply)
    for answer in line.answers:
        reply = _reader(io.BytesIO(answer), bus.NO_LIMIT, bus.NO_LIMIT).unmarshall()
        assert reply is not None
        if reply.message_type is MessageType.ERROR:
            _assert_error(BusError(reply.error_name, reply.body[0]))
            assert reply.error_name != dbus_api.FAILED, reply.body
        else:
            assert reply.signature == find_method(call).out_signature
        for text in texts(without_variants(reply.body)):
            assert "\0" not in text


def _value(value: Any) -> Any:
    """JSON as values of the library: {"signature": ..., "value": ...} is a variant."""
    match value:
        case {"signature": str(signature), "value": inner}:
            return Variant(signature, _value(inner))
        case dict():
            return {key: _value(each) for key, each in value.items()}
        case list():
            return [_value(each) for each in value]
    return value


async def _served(call: Call) -> None:
    service = BusService(FakeSource(status(mapping(), mapping(1))))
    service._authority = _Everybody()  # type: ignore[assignment]
    service._on_call(call)
    while service._tasks:
        await asyncio.gather(*service._tasks)
        await asyncio.sleep(0)


def _said(interface: str, member: str, signature: str, *args: Any) -> bytes:
    parts = {"path": PATH, "interface": interface, "member": member, "signature": signature}
    return json.dumps({**parts, "args": args}).encode()


CALLS = (
    _said(MANAGER, "Explain", "s", "80/tcp"),
    _said(PROPERTIES, "Get", "ss", MANAGER, "State"),
    _said(PROPERTIES, "GetAll", "s", ""),
    _said(
        PROPERTIES,
        "Set",
        "ssv",
        "org.freedesktop.LogControl1",
        "LogLevel",
        {"signature": "s", "value": "debug"},
    ),
)


def _wired() -> tuple[bytes, ...]:
    found = []
    for (interface, member), method in METHODS.items():
        values: dict[str, list[Any]] = {
            "": [],
            "s": ["web"],
            "ss": [MANAGER, "State"],
            "ssv": [MANAGER, "LogLevel", Variant("s", "debug")],
        }
        body = values[method.in_signature]
        message = Message(
            path=PATH,
            interface=interface,
            member=member,
            signature=method.in_signature,
            body=body,
            serial=2,
            sender=":1.5",
        )
        found.append(bytes(message._marshall()))
    return tuple(found)


TARGETS = (
    Target(
        name="bus-bytes",
        check=wire,
        seeds=_wired(),
        words=(b"a{sv}", b"aaaaaaaa", b"((((", b"v\0", b"\1s\0", b"\1v\0", b"org.ipv6natd1"),
    ),
    Target(name="bus-members", check=members, seeds=CALLS, structured=True),
)
