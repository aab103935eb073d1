"""dbus_next, with its faults corrected in small subclasses.

The only file that imports the library. Its last release is 0.2.3 of 2021.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import struct
import time
import typing
import warnings
from functools import lru_cache
from typing import Any

if not hasattr(typing, "no_type_check_decorator"):
    # Python 3.15 removed it; dbus_next still uses it.
    vars(typing)["no_type_check_decorator"] = lambda decorator: decorator

with warnings.catch_warnings():
    # On 3.13 and 3.14 the same decorator warns. So does PyGObject, which the library imports if
    # it is installed. The user of the daemon can do nothing about these warnings.
    warnings.simplefilter("ignore")
    from dbus_next import Message, MessageFlag, MessageType, Variant
    from dbus_next._private.marshaller import Marshaller
    from dbus_next._private.unmarshaller import MarshallerStreamEndError, Unmarshaller
    from dbus_next.aio import message_bus as aio
    from dbus_next.signature import SignatureTree

__all__ = ["Bus", "Marshaller", "Message", "MessageFlag", "MessageType", "Variant"]

log = logging.getLogger(__name__)

MAX_BATCH = 64
"""Messages to read before other tasks of the event loop may run."""
MAX_NO_REPLY_CALLS = 20
"""Calls of all senders in one second that want no reply. The bus daemon bounds only the calls that
wait for a reply, so one sender could send more than we can parse, and all others would wait."""
MAX_SIGNATURES = 256
"""Parsed signatures in the cache."""
_FIXED_HEADER_SIZE = 16
"""Bytes of the part of a message that contains its length."""
_CALL, _NO_REPLY = MessageType.METHOD_CALL.value, MessageFlag.NO_REPLY_EXPECTED.value
_REPLIES = (MessageType.METHOD_RETURN.value, MessageType.ERROR.value)
CHUNK_SIZE = 64 << 10
"""Bytes to read at a time of a message that is dropped."""


# The library keeps each received signature for ever, so any sender could fill the memory.
SignatureTree._get = lru_cache(MAX_SIGNATURES)(SignatureTree)


class _PatientSocket:
    """Sends nothing into a full buffer. The library waits then, and disconnects on an error."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, data: memoryview) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0


class _TooLongError(ValueError):
    """The arrays of a message have too many bytes."""


class _Reader(Unmarshaller):  # type: ignore[misc]
    """The library's parser, with bounds for one message.

    The whole message is read before the parser starts, and nothing after its end. Otherwise a
    message that cannot be parsed would leave the reader in the middle of it, where its sender can
    place the bytes of another message, with a forged sender.

    A call or a reply that is too long is `truncated`: it has a header and no body. The body is read
    in chunks and dropped. Other messages of this length are dropped whole.
    """

    _array_budget = 0.0
    """Bytes that the arrays of this message may still have; a nested array counts twice."""
    message: Any
    _end = 0
    _bytes_kept = 0
    _bytes_dropped = 0
    _second = _no_reply_calls = 0

    def __init__(self, stream: Any, max_message: int, max_reply: int, max_arrays: int) -> None:
        super().__init__(stream)
        self._max_message, self._max_reply, self._max_arrays = max_message, max_reply, max_arrays

    def reset(self) -> None:
        """Prepare for the next message."""
        self.buf, self.message = bytearray(), None
        self._bytes_kept = self._bytes_dropped = 0

    def _unmarshall(self) -> None:
        self.offset = self._end = 0
        self.read(_FIXED_HEADER_SIZE, prefetch=True)
        order = "<" if self.buf[:1] == b"l" else ">"
        body, fields = struct.unpack_from(f"{order}4xI4xI", self.buf)
        header = _FIXED_HEADER_SIZE + fields + -fields % 8
        size = header + body
        self._bytes_kept = self._bytes_kept or self._bytes_to_keep(header, size)
        self.read(self._bytes_kept, prefetch=True)
        self._discard(size - self._bytes_kept)
        if self._bytes_kept < header:
            raise ValueError(f"dropped, {size} bytes")
        self._end = self._bytes_kept
        self._parse(truncated=self._bytes_kept < size)
        self.message.size = size

    def _bytes_to_keep(self, header: int, size: int) -> int:
        """Bytes to keep: the whole message, its header, or only the fixed part of its header."""
        kind, flags = self.buf[1:3]
        if kind == _CALL and flags & _NO_REPLY:
            if (second := int(time.monotonic())) != self._second:
                self._second, self._no_reply_calls = second, 0
            self._no_reply_calls += 1
            if self._no_reply_calls > MAX_NO_REPLY_CALLS:
                return _FIXED_HEADER_SIZE
        limit = self._max_reply if kind in _REPLIES else self._max_message
        if size <= limit:
            return size
        truncated = header <= limit and kind in (_CALL, *_REPLIES)
        return header if truncated else _FIXED_HEADER_SIZE

    def _parse(self, *, truncated: bool) -> None:
        # The bus daemon delivers only replies to our own calls, and we call only trusted services.
        self._array_budget = math.inf if self.buf[1] in _REPLIES else self._max_arrays
        self.offset = 0
        if truncated:
            self.buf[4:8] = bytes(4)  # the length of the body
        try:
            super()._unmarshall()
        except _TooLongError:
            if truncated:
                raise
            self._parse(truncated=True)
        else:
            self.message.truncated = truncated

    def _discard(self, count: int) -> None:
        """Read the rest of the message in chunks. Called again when more data has arrived."""
        while self._bytes_dropped < count:
            data = self.stream.read(min(count - self._bytes_dropped, CHUNK_SIZE))
            if data is None:
                raise MarshallerStreamEndError
            if not data:
                raise EOFError
            self._bytes_dropped += len(data)

    def read(self, n: int, prefetch: bool = False) -> int:
        # The whole message is in the buffer; the library would prefetch by a wrong length.
        if self._end and not prefetch and self.offset + n > self._end:
            raise ValueError("a value ends beyond the end of the message")
        if self._end and prefetch:
            return self.offset
        return int(super().read(n, prefetch))

    def read_array(self, type_: Any) -> Any:
        self.align(4)
        start = self.offset
        self._array_budget -= self.read_uint32()
        if self._array_budget < 0:
            raise _TooLongError("the arrays are too long")
        self.offset = start
        return super().read_array(type_)


def marshalled(message: Message) -> list[bytes]:
    """The parts of the message. A body of bytes is marshalled already, and not copied."""
    if not isinstance(message.body, bytes):
        return [message._marshall()]
    fields = [[5, Variant("u", message.reply_serial)], [6, Variant("s", message.destination)]]
    fields.append([8, Variant("g", message.signature)])
    kind = message.message_type.value
    header_values = [ord("l"), kind, 0, 1, len(message.body), message.serial, fields]
    header = Marshaller("yyyyuua(yv)", header_values)
    header.marshall()
    header.align(8)
    return [bytes(header.buffer), message.body]


class Bus(aio.MessageBus):  # type: ignore[misc]
    """The library's connection; survives a slow bus and leaves no descriptor open."""

    _batch_is_due = False
    """True if the event loop will read the next batch without being told that data has arrived."""

    def __init__(self, address: str, max_message: int, max_reply: int, max_arrays: int) -> None:
        super().__init__(bus_address=address)
        self._writer.sock = _PatientSocket(self._sock)
        self._unmarshaller = _Reader(self._stream, max_message, max_reply, max_arrays)

    def _setup_socket(self) -> None:
        # The library's own blocks the event loop, leaks the sockets of failed attempts, and does
        # not use the second address of a list if the first one fails.
        failure: Exception = ValueError("only unix:path= and unix:abstract= are understood")
        for transport, options in self._bus_address:
            path = options.get("path") or "\0" + options.get("abstract", "")
            if transport != "unix" or path == "\0":
                continue
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                sock.connect(path)
            except OSError as error:
                sock.close()
                failure = error
            else:
                self._sock, self._stream, self._fd = sock, sock.makefile("rwb"), sock.fileno()
                return
        raise failure

    async def _auth_readline(self) -> str:
        # The library's own loops for ever if the bus closes the connection here.
        line = b""
        while not line.endswith(b"\r\n"):
            data = await self._loop.sock_recv(self._sock, 512)
            if not data or len(line) > 4096:
                raise EOFError("the bus closed the connection during authentication")
            line += data
        return line[:-2].decode(errors="replace")

    def _message_reader(self) -> None:
        # While messages arrive, the event loop calls this in each turn, beside the next batch.
        if not self._batch_is_due:
            self._read_batch()

    def _read_batch(self) -> None:
        self._batch_is_due = False
        for _ in range(MAX_BATCH):
            if self._disconnected:
                return
            try:
                message = self._unmarshaller.unmarshall()
            except (EOFError, OSError) as error:
                self._finalize(error)
                return
            except Exception as error:
                # The whole message was read before it was parsed, so the next one can be read.
                log.debug("cannot read a message from the bus: %s", error)
                self._unmarshaller.reset()
                continue
            if message is None:
                return
            self._unmarshaller.reset()
            self._on_message(message)
        # More messages may be in our own buffer, which the event loop does not watch.
        self._batch_is_due = True
        self._loop.call_soon(self._read_batch)

    def send(self, msg: Message) -> int:
        """Put the message into the queue; return its size in bytes, 0 if the connection has
        ended."""
        if self._disconnected:
            return 0  # the descriptor may have been reused
        msg.serial = msg.serial or self.next_serial()
        parts = marshalled(msg)
        for part in parts:
            self._writer.messages.put_nowait((part, None, None))
        self._writer.schedule_write()
        return sum(map(len, parts))

    def disconnect(self) -> None:
        """End the connection, also one that was not complete."""
        self._finalize()

    def _finalize(self, err: Exception | None = None) -> None:
        if self._disconnected:
            return
        super()._finalize(err or EOFError())
        if not self._disconnect_future.cancelled():
            self._disconnect_future.exception()  # else asyncio logs it as never retrieved
        for stream in (self._stream, self._sock):
            with contextlib.suppress(OSError, ValueError):
                stream.close()
