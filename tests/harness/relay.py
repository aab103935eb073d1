"""A relay between a client and the engine's socket that can delay, drop or change answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.harness.process import undisturbed

BROKEN = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\n"
    b"Content-Length: 22\r\nConnection: close\r\n\r\n" + b'{"message":"no luck!"}'
)


class Relay:
    """A socket at `path` that passes requests to the engine; `endpoint` is for the client.

    - `deaf`: the relay drops all events, and the stream stays open;
    - `doubled`: the relay sends each event twice;
    - `delay`: seconds by which the relay delays each piece of an answer or event;
    - `broken`: the relay answers each new request with 500;
    - `left`: the relay passes so many bytes of event streams, and then cuts the stream once.
    """

    def __init__(self, engine: Path, path: Path) -> None:
        self.endpoint = f"unix://{path}"
        self.deaf = self.doubled = self.broken = False
        self.delay = 0.0
        self.left: int | None = None
        self._engine = engine
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._open: set[socket.socket] = set()
        self._streams: set[socket.socket] = set()

    def __enter__(self) -> Self:
        self._listener.bind(str(self._path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with undisturbed():
            _end(self._listener)
            for sock in list(self._open):
                _end(sock)
            self._path.unlink()

    def cut(self) -> None:
        """End every open event stream."""
        for sock in list(self._streams):
            _end(sock)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                engine = socket.socket(socket.AF_UNIX)
                try:
                    engine.connect(str(self._engine))
                except OSError:  # the engine does not run
                    _end(client)
                    engine.close()
                    continue
                self._open |= {client, engine}
                for ends, way in (((client, engine), self._ask), ((engine, client), self._answer)):
                    threading.Thread(target=self._pass, args=(*ends, way), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, way: Way) -> None:
        with suppress(OSError):
            way(source, target)
        for sock in (source, target):
            _end(sock)
        self._open -= {source, target}
        self._streams -= {source, target}

    def _ask(self, client: socket.socket, engine: socket.socket) -> None:
        while data := client.recv(65536):
            if self.broken:
                client.sendall(BROKEN)
                return
            if b"/events" in data.partition(b"\r\n")[0]:
                self._streams.add(engine)
            engine.sendall(data)

    def _answer(self, engine: socket.socket, client: socket.socket) -> None:
        while data := engine.recv(65536):
            time.sleep(self.delay)
            if engine in self._streams:
                self._tell(engine, client, data)
                return
            client.sendall(data)

    def _tell(self, engine: socket.socket, client: socket.socket, data: bytes) -> None:
        """Pass an event stream that begins with `data`."""
        head, _, rest = data.partition(b"\r\n\r\n")
        client.sendall(head + b"\r\n\r\n")
        for event in events(engine, rest):
            time.sleep(self.delay)
            if self.deaf:
                continue
            sent = event * (2 if self.doubled else 1)
            if self.left is not None:
                sent = sent[: self.left]
                self.left -= len(sent)
            client.sendall(sent)
            if self.left == 0:
                self.left = None
                return


Way = Callable[[socket.socket, socket.socket], None]


def events(engine: socket.socket, rest: bytes) -> Iterator[bytes]:
    """The chunks of an event stream; each chunk is one event."""
    while True:
        size, found, after = rest.partition(b"\r\n")
        end = int(size, 16) + 2 if found else 0
        if found and len(after) >= end:
            yield size + b"\r\n" + after[:end]
            rest = after[end:]
            continue
        more = engine.recv(65536)
        if not more:
            return
        rest += more


def _end(sock: socket.socket) -> None:
    """Shut down and close a socket. Only a shutdown wakes a thread that waits for it."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
