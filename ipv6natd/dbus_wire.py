"""dbus_next, with what it gets wrong put right in small subclasses.

The only file that imports the library, which is asleep upstream: 0.2.3 of 2021 is its last release.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import typing
import warnings
from typing import Any

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
    from dbus_next.signature import SignatureTree

__all__ = [
    "Bus",
    "MarshalledReply",
    "Marshaller",
    "Message",
    "MessageFlag",
    "MessageType",
    "Variant",
]

log = logging.getLogger(__name__)

BATCH = 64
"""Messages read before everything else in the loop has its turn."""


_HEAD = 16
"""Bytes of the part of a message that tells its length."""


class _Signatures(dict[str, Any]):
    """The library keeps each signature that it meets, for ever; whoever may send could fill the
    memory with them."""

    MOST = 256

    def __setitem__(self, signature: str, tree: Any) -> None:
        if len(self) >= self.MOST:
            self.clear()
        super().__setitem__(signature, tree)


if hasattr(SignatureTree, "_cache"):
    SignatureTree._cache = _Signatures()


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
    """The library's parser, with a bound on what one message may cost.

    The whole message is read before any of it is looked at, and nothing beyond its end: one that
    cannot be understood would else leave the reader in its middle, where whoever sent it may have
    put the bytes of another message, in anybody's name.
    """

    left = 0
    """Bytes that the arrays of the message may still have; one in another counts twice."""
    offset: int
    buf: bytearray
    _end = 0

    def _unmarshall(self) -> None:
        self.offset = self._end = 0
        self.read(_HEAD, prefetch=True)
        order = "<" if self.buf[:1] == b"l" else ">"
        body, fields = struct.unpack_from(f"{order}4xI4xI", self.buf)
        end = _HEAD + fields + -fields % 8 + body
        self.read(end, prefetch=True)
        self._end = end
        super()._unmarshall()

    def read(self, n: int, prefetch: bool = False) -> int:
        # What is read ahead is there by then, and the library takes its length for another one.
        if self._end and not prefetch and self.offset + n > self._end:
            raise ValueError("it goes on beyond its end")
        if self._end and prefetch:
            return self.offset
        return int(super().read(n, prefetch))

    def read_array(self, type_: Any) -> Any:
        self.align(4)
        start = self.offset
        self.left -= self.read_uint32()
        if self.left < 0:
            raise ValueError("the arrays are too long")
        self.offset = start
        return super().read_array(type_)


class MarshalledReply(Message):  # type: ignore[misc]
    """An answer whose body stands ready as bytes, and goes out without being copied."""

    data = b""

    def _marshall(self, negotiate_unix_fd: bool = False) -> bytes:  # noqa: ARG002
        fields = [[5, Variant("u", self.reply_serial)], [6, Variant("s", self.destination)]]
        fields.append([8, Variant("g", self.signature)])
        kind = MessageType.METHOD_RETURN.value
        head = [ord("l"), kind, 0, 1, len(self.data), self.serial, fields]
        header = Marshaller("yyyyuua(yv)", head)
        header.marshall()
        header.align(8)
        return bytes(header.buffer)


class Bus(aio.MessageBus):  # type: ignore[misc]
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
        reader.left = self._limit
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

    def send(self, msg: Message) -> int:
        """Put it into the queue; its size in bytes, or 0 when the connection is gone."""
        if self._disconnected:
            return 0  # the descriptor may belong to somebody else by now
        msg.serial = msg.serial or self.next_serial()
        parts = [msg._marshall()]
        if isinstance(msg, MarshalledReply):
            parts.append(msg.data)
        for part in parts:
            self._writer.messages.put_nowait((part, None, None))
        self._writer.schedule_write()
        return sum(map(len, parts))

    def disconnect(self) -> None:
        """End the connection, also one that never began."""
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
