"""Stands between a client and the engine's socket, and loses the engine's events when told to."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.process import undisturbed


class Relay:
    """A socket at `path` behind which the engine answers; `endpoint` is for its client.

    While `deaf` is set, nothing of an event stream goes through, and the stream stays open.
    """

    def __init__(self, engine: Path, path: Path) -> None:
        self.endpoint = f"unix://{path}"
        self.deaf = False
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
                engine.connect(str(self._engine))
                self._open |= {client, engine}
                for ends in ((client, engine), (engine, client)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if b"/events" in data.partition(b"\r\n")[0]:
                    self._streams.add(target)
                if source not in self._streams or not self.deaf:
                    target.sendall(data)
        for sock in (source, target):
            _end(sock)


def _end(sock: socket.socket) -> None:
    """Closing alone would not wake who waits for it in another thread."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
