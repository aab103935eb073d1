"""Responses with two limits that the libraries lack: the length of a line, and the time of a call.

They read the size of a chunk as a line of any length, and a timeout of theirs is that of each read.
"""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

MAX_LINE = 1 << 16
"""Bytes, the limit of Python for the lines of a head."""


class Call:
    """A call whose response must end in time. It starts with the request."""

    def __init__(self, seconds: float) -> None:
        self.deadline: float | None = time.monotonic() + seconds

    def lift(self) -> None:
        """Let the rest of the response take any time, as that of an event stream."""
        self.deadline = None


class _Calls(threading.local):
    """The call of this thread."""

    now: Call | None = None


_calls = _Calls()


@contextmanager
def limited(seconds: float) -> Iterator[Call]:
    """The response to a request in this block must end so many seconds from now, with its body."""
    _calls.now = call = Call(seconds)
    try:
        yield call
    finally:
        _calls.now = None


class _Source(io.RawIOBase):
    """The bytes of a response. A read raises TimeoutError at the deadline of the call."""

    def __init__(self, sock: socket.socket, call: Call) -> None:
        super().__init__()
        self.sock = sock
        """The library closes an event stream by this name."""
        self._call = call
        self._timeout = sock.gettimeout()
        self._bytes = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._bytes.fileno()

    def readinto(self, buffer: Any) -> int | None:
        left = None
        if self._call.deadline is not None:
            left = self._call.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the response takes too long")
        self.sock.settimeout(left)
        return self._bytes.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            with suppress(OSError):
                self.sock.settimeout(self._timeout)  # for the next request on this connection
            self._bytes.close()
        super().close()


class _Lines(io.BufferedReader):
    """Reads lines of at most MAX_LINE, if the caller names no limit."""

    def readline(self, size: int | None = -1, /) -> bytes:
        if size is not None and size >= 0:
            return super().readline(size)
        line = super().readline(MAX_LINE + 1)
        if len(line) > MAX_LINE:
            raise http.client.LineTooLong("a line of the response")
        return line


class Response(http.client.HTTPResponse):
    """A response of a connection. Outside of `limited` only its lines have a limit."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        call = _calls.now
        raw = sock.makefile("rb", buffering=0) if call is None else _Source(sock, call)
        self.fp = _Lines(raw)
