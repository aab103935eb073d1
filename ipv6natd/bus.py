"""The transport: one connection to the system bus, and values on their way to and from D-Bus.

The only file that imports dbus_next, a library that is asleep upstream: what it gets wrong is put
right here, in two small subclasses. What is served and asked lives in dbus_api and ctl.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import struct
import typing
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ipv6natd.status import Row

if not hasattr(typing, "no_type_check_decorator"):
    # Python 3.15 took it away, dbus_next still decorates with it.
    vars(typing)["no_type_check_decorator"] = lambda decorator: decorator

with warnings.catch_warnings():
    # The same decorator warns on 3.13 and 3.14, and so does PyGObject, which the library loads
    # where it finds it. Nobody who runs the daemon can act on either.
    warnings.simplefilter("ignore")
    from dbus_next import Message, MessageFlag, MessageType, Variant
    from dbus_next._private.marshaller import Marshaller
    from dbus_next._private.unmarshaller import Unmarshaller
    from dbus_next.aio import message_bus as aio

log = logging.getLogger(__name__)

ERROR = "org.freedesktop.DBus.Error."
SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
CONNECT_SECONDS = 10.0
CALL_SECONDS = 25.0
SMALL = 64 << 10
"""Bytes of the longest array that a service reads. Its callers have no reason to send more, and
the library takes a microsecond an element, during which nothing else runs."""
LARGE = 64 << 20
"""The longest array that D-Bus allows."""
BATCH = 64
"""Messages read before everything else in the loop has its turn."""

_UNSENDABLE = re.compile("[\0\ud800-\udfff]")


class BusError(Exception):
    """An error as D-Bus knows it: a dotted `name` for programs, a sentence for people."""

    def __init__(self, name: str, text: str) -> None:
        """Keep both parts."""
        super().__init__(text)
        self.name = name
        self.text = text


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A method call that somebody made; `args` are plain Python values."""

    connection: Connection
    sender: str
    path: str
    interface: str | None
    member: str
    signature: str
    args: list[Any]
    serial: int
    wants_reply: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A signal that we subscribed to; `args` are plain Python values."""

    sender: str
    path: str
    interface: str
    member: str
    args: list[Any]


def bus_text(text: str) -> str:
    """The text with every character replaced that D-Bus strings cannot hold.

    One NUL or lone surrogate in a container's name would otherwise end the whole connection.
    """
    return _UNSENDABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def variants(row: Row) -> dict[str, Any]:
    """The row as `a{sv}`."""
    return {name: Variant(signature, _sendable(value)) for name, (signature, value) in row.items()}


def _sendable(value: str | int | list[str]) -> str | int | list[str]:
    if isinstance(value, str):
        return bus_text(value)
    return [bus_text(each) for each in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """The value without variants."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


def marshal_rows(rows: Iterable[Row]) -> bytes:
    """The body of an `aa{sv}` answer, built row by row, so that 10,000 never stand in memory.

    A row begins with its length at a multiple of 4, its content follows at a multiple of 8.
    """
    body = bytearray(4)
    for row in rows:
        block = Marshaller("a{sv}", [variants(row)]).marshall()
        body += bytes(-len(body) % 4) + block[:4]
        body += bytes(-len(body) % 8) + block[8:]
    body[:4] = struct.pack("<I", len(body) - 4)
    return bytes(body)


class _Writer(aio._MessageWriter):  # type: ignore[misc]
    """The library's queue; but a full socket buffer means to wait, not to hang up."""

    buf: Any
    offset: int

    def write_callback(self) -> None:
        try:
            while self.buf is not None or not self.messages.empty():
                if self.buf is None:
                    data, _fds, _future = self.messages.get_nowait()
                    self.buf, self.offset = memoryview(data), 0
                self.offset += self.sock.send(self.buf[self.offset :])
                if self.offset == len(self.buf):
                    self.buf = None
            self.loop.remove_writer(self.fd)
        except (BlockingIOError, InterruptedError):
            return  # the loop calls again once the bus has read something
        except Exception as error:
            self.bus._finalize(error)


class _Reader(Unmarshaller):  # type: ignore[misc]
    """The library's parser, with a bound on what one message may cost."""

    limit = LARGE
    offset: int

    def read_array(self, type_: Any) -> Any:
        self.align(4)
        start = self.offset
        if self.read_uint32() > self.limit:
            raise ValueError("the array is too long")
        self.offset = start
        return super().read_array(type_)


class _MarshalledReply(Message):  # type: ignore[misc]
    """An answer whose body stands ready as bytes."""

    data = b""

    def _marshall(self, negotiate_unix_fd: bool = False) -> bytes:  # noqa: ARG002
        fields = [[5, Variant("u", self.reply_serial)], [6, Variant("s", self.destination)]]
        fields.append([8, Variant("g", self.signature)])
        kind = MessageType.METHOD_RETURN.value
        head = [ord("l"), kind, 0, 1, len(self.data), self.serial, fields]
        header = Marshaller("yyyyuua(yv)", head)
        header.marshall()
        header.align(8)
        return bytes(header.buffer) + self.data


class _Bus(aio.MessageBus):  # type: ignore[misc]
    """The library's connection, made to survive a slow bus and to leave nothing behind."""

    _unmarshaller: Any

    def __init__(self, address: str, limit: int) -> None:
        self._limit = limit
        super().__init__(bus_address=address)
        self._writer = _Writer(self)

    def _setup_socket(self) -> None:
        # The library's own blocks the loop, keeps the sockets of failed tries, and fails on the
        # second address of a list although it answers.
        failure: Exception = ValueError("only unix:path= and unix:abstract= are understood")
        for transport, options in self._bus_address:
            place = options.get("path") or "\0" + options.get("abstract", "")
            if transport != "unix" or place == "\0":
                continue
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                sock.connect(place)
            except OSError as error:
                sock.close()
                failure = error
                continue
            self._sock, self._stream, self._fd = sock, sock.makefile("rwb"), sock.fileno()
            return
        raise failure

    async def _auth_readline(self) -> str:
        # The library's own spins for ever, and the loop with it, when the bus hangs up here.
        line = b""
        while not line.endswith(b"\r\n"):
            data = await self._loop.sock_recv(self._sock, 512)
            if not data or len(line) > 4096:
                raise EOFError("the bus hung up while it was told who we are")
            line += data
        return line[:-2].decode(errors="replace")

    def _create_unmarshaller(self) -> _Reader:
        reader = _Reader(self._stream)
        reader.limit = self._limit
        return reader

    def _message_reader(self) -> None:
        for _ in range(BATCH):
            if self._disconnected:
                return
            message = None
            try:
                message = self._unmarshaller.unmarshall()
                if message is None:
                    return
            except (EOFError, OSError) as error:
                self._finalize(error)
                return
            except Exception as error:
                # The whole message was read before it was parsed: the next one begins cleanly.
                log.debug("a message on the bus could not be read: %s", error)
            self._unmarshaller = self._create_unmarshaller()
            if message is not None:
                self._on_message(message)
        # What is left may stand in our own buffer, of which the loop knows nothing.
        self._loop.call_soon(self._message_reader)

    def send(self, msg: Message) -> None:
        if self._disconnected:
            return  # the descriptor may belong to somebody else by now
        msg.serial = msg.serial or self.next_serial()
        self._writer.schedule_write(msg)

    def disconnect(self) -> None:
        self._user_disconnect = True
        self._finalize()

    def _finalize(self, err: Exception | None = None) -> None:
        if self._disconnected:
            return
        super()._finalize(err)
        if not self._disconnect_future.cancelled():
            self._disconnect_future.exception()  # or asyncio complains that nobody looked
        for end in (self._stream, self._sock):
            with contextlib.suppress(OSError, ValueError):
                end.close()


class Connection:
    """A connection that said hello. Made by `connect`, ended by `close` or by the bus."""

    def __init__(self, bus: _Bus) -> None:
        """Wrap the library's connection."""
        self._bus = bus

    @property
    def unique_name(self) -> str:
        """What the bus calls us, ":1.42"."""
        return str(self._bus.unique_name)

    @property
    def connected(self) -> bool:
        """Whether the bus is still there."""
        return bool(self._bus.connected)

    @property
    def unsent(self) -> int:
        """Messages that the bus has not taken yet."""
        return int(self._bus._writer.messages.qsize())

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *args: Any,
        timeout: float = CALL_SECONDS,  # noqa: ASYNC109 - it is part of every call's meaning
    ) -> list[Any]:
        """Call a method and return what it answers; BusError for everything else."""
        message = Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(args),
            flags=MessageFlag.NO_AUTOSTART,
            serial=self._bus.next_serial(),
        )
        gone = BusError(ERROR + "Disconnected", "the system bus closed the connection")
        if not self.connected:
            raise gone
        try:
            reply = await asyncio.wait_for(self._bus.call(message), timeout)
        except TimeoutError:
            raise BusError(
                ERROR + "NoReply", f"{destination} did not answer {member} within {timeout:g} s"
            ) from None
        except (EOFError, OSError):
            raise gone from None
        finally:
            self._bus._method_return_handlers.pop(message.serial, None)
        if reply is None:
            raise gone
        if reply.message_type is MessageType.ERROR:
            text = reply.body[0] if reply.signature.startswith("s") else reply.error_name
            raise BusError(reply.error_name, text)
        return typing.cast("list[Any]", plain(reply.body))

    def reply(self, call: Call, signature: str, values: list[Any]) -> None:
        """Answer the call with values that fit the signature."""
        self._answer(call, signature=signature, body=values)

    def reply_marshalled(self, call: Call, signature: str, data: bytes) -> None:
        """Answer the call with a body that `marshal_rows` made."""
        message = _MarshalledReply(
            message_type=MessageType.METHOD_RETURN,
            reply_serial=call.serial,
            destination=call.sender,
            signature=signature,
        )
        message.data = data
        if call.wants_reply:
            self._bus.send(message)

    def refuse(self, call: Call, error: BusError) -> None:
        """Answer the call with an error."""
        self._answer(
            call,
            message_type=MessageType.ERROR,
            error_name=error.name,
            signature="s",
            body=[bus_text(error.text)],
        )

    def _answer(self, call: Call, **parts: Any) -> None:
        parts.setdefault("message_type", MessageType.METHOD_RETURN)
        if call.wants_reply:
            self._bus.send(Message(reply_serial=call.serial, destination=call.sender, **parts))

    def emit(self, path: str, interface: str, member: str, signature: str, *values: Any) -> None:
        """Send a signal to whoever listens; nothing when the bus is gone."""
        self._bus.send(Message.new_signal(path, interface, member, signature, list(values)))

    async def closed(self) -> None:
        """Wait until the connection has ended, whoever ended it."""
        await asyncio.wait([self._bus._disconnect_future])

    async def flush(self, seconds: float) -> None:
        """Wait until the bus took everything, but no longer than that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                writer = self._bus._writer
                while self.connected and (self.unsent or writer.buf is not None):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    def close(self) -> None:
        """End the connection. What was not sent is lost; calls that wait fail."""
        self._bus.disconnect()


OnCall = Callable[[Call], None]
OnSignal = Callable[[Signal], None]


async def connect(
    address: str | None = None,
    *,
    on_call: OnCall | None = None,
    on_signal: OnSignal | None = None,
    limit: int = LARGE,
    seconds: float = CONNECT_SECONDS,
) -> Connection:
    """Connect to `address`, $DBUS_SYSTEM_BUS_ADDRESS or the system bus; BusError if that fails.

    The handlers run between two messages and must not wait. Messages with an array of more than
    `limit` bytes are dropped.
    """
    address = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS
    bus = None
    try:
        bus = _Bus(address, limit)
        connection = Connection(bus)
        bus.add_message_handler(lambda message: _hand_on(connection, message, on_call, on_signal))
        await asyncio.wait_for(bus.connect(), seconds)
    except BaseException as error:
        if bus is not None:
            bus.disconnect()
        if not isinstance(error, Exception):
            raise
        reason = getattr(error, "strerror", None) or str(error) or f"no answer within {seconds:g} s"
        text = f"cannot reach the system bus at {address}: {reason}"
        raise BusError(ERROR + "NoServer", text) from None
    return connection


def _hand_on(
    connection: Connection, message: Message, on_call: OnCall | None, on_signal: OnSignal | None
) -> bool:
    """Whether the message was ours; what is not, the library looks at itself."""
    kind = message.message_type
    try:
        if kind is MessageType.METHOD_CALL and on_call is not None:
            on_call(_call(connection, message))
            return True
        if kind is MessageType.SIGNAL and on_signal is not None:
            on_signal(_signal(message))
    except Exception:
        # Past this point the library would send the traceback to the caller.
        log.exception("a message on the bus could not be handled")
        return True
    return False


def _call(connection: Connection, message: Message) -> Call:
    return Call(
        connection=connection,
        sender=message.sender or "",
        path=message.path,
        interface=message.interface,
        member=message.member,
        signature=message.signature,
        args=plain(message.body),
        serial=message.serial,
        wants_reply=not message.flags & MessageFlag.NO_REPLY_EXPECTED,
    )


def _signal(message: Message) -> Signal:
    return Signal(
        sender=message.sender or "",
        path=message.path,
        interface=message.interface,
        member=message.member,
        args=plain(message.body),
    )
