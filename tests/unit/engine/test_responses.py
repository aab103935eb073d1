"""The limits of a response, against a broken engine on sockets: its lines, and its time."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ipv6natd.engine import client as engine_client
from ipv6natd.engine.client import (
    EngineAddress,
    EngineUnavailable,
    InspectFailed,
    connect,
    inspect,
    list_all,
    subscribe,
)
from ipv6natd.engine.responses import Response, limited
from tests.harness.build import identity
from tests.unit.engine.test_tls import CERTIFICATE, KEY

# The library uses deprecated functions, and does not close its sockets.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*unclosed <socket:pytest.PytestUnraisableExceptionWarning"),
]

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
WEB = identity("web")
GOOD = {
    "/version": {"Version": "28.5.1", "ApiVersion": "1.51"},
    "/info": {},
    "/networks": [],
    "/containers/json": [],
}
MUCH = 32 << 20
"""Bytes that an engine without end sends at most."""
LITTLE = 8 << 20
"""Bytes that may be read, or wait in the socket."""
SECONDS = 0.5
"""The limit of a call in these tests."""
LONG = 10 * SECONDS
"""The time of an engine that never ends."""


@dataclass
class Broken:
    """An engine that answers one path by a function of the test."""

    path: str
    answer: Callable[[socket.socket], None]
    address: EngineAddress = field(default_factory=lambda: EngineAddress(endpoint=""))
    tls: ssl.SSLContext | None = None
    sent: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def serve(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with ExitStack() as stack:
            stack.enter_context(suppress(OSError))
            stack.enter_context(connection)
            if self.tls:
                connection = stack.enter_context(self.tls.wrap_socket(connection, server_side=True))
            requests = stack.enter_context(connection.makefile("rb"))
            while request := requests.readline():
                while requests.readline().strip():
                    pass
                path = request.split()[1].decode().partition("?")[0]
                if path.startswith("/v1"):
                    path = "/" + path.split("/", 2)[2]
                if path == self.path:
                    self.answer(connection)
                    return
                body = json.dumps(GOOD.get(path, {})).encode()
                connection.sendall(OK + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

    def flood(self, connection: socket.socket, first: bytes, piece: bytes) -> None:
        """Send `first`, and `piece` again and again."""
        connection.sendall(first)
        while self.sent < MUCH and not self.ended.is_set():
            connection.sendall(piece)
            self.sent += len(piece)

    def trickle(self, connection: socket.socket, first: bytes, piece: bytes) -> None:
        """Send `first`, and `piece` several times in the time of a call."""
        connection.sendall(first)
        end = time.monotonic() + LONG
        while time.monotonic() < end and not self.ended.wait(SECONDS / 5):
            connection.sendall(piece)


@contextmanager
def broken(
    folder: Path, path: str, how: str, first: bytes, piece: bytes, *, scheme: str = "unix"
) -> Iterator[Broken]:
    """An engine that answers `path` by its method `how`; of the others, the answers are well."""
    engine = Broken(path, lambda connection: getattr(engine, how)(connection, first, piece))
    unix = scheme == "unix"
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as listening:
        listening.bind(str(folder / "sock") if unix else ("127.0.0.1", 0))
        listening.listen(8)
        at = f"unix://{folder}/sock" if unix else f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        engine.address = EngineAddress(endpoint=at)
        if scheme == "tls":
            for name, text in (("ca", CERTIFICATE), ("cert", CERTIFICATE), ("key", KEY)):
                (folder / f"{name}.pem").write_text(text)
            engine.address = EngineAddress(endpoint=at, cert_path=str(folder), tls_verify=True)
            engine.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            engine.tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        threading.Thread(target=engine.serve, args=(listening,), daemon=True).start()
        try:
            yield engine
        finally:
            engine.ended.set()
            listening.shutdown(socket.SHUT_RDWR)


def called(address: EngineAddress, path: str) -> None:
    """Make the calls of a session up to the one of this path."""
    client, facts = connect(address)
    try:
        if path == "/events":
            subscribe(client).close()
        elif path.endswith(f"{WEB}/json"):
            inspect(client, "container", WEB)
        else:
            list_all(client, facts)
    finally:
        client.close()


LINES = {
    "size of a chunk": (CHUNKED, b"1" * 65536),
    "extension of a chunk": (CHUNKED + b"5;", b"x" * 65536),
    "rest after a chunk": (CHUNKED + b"1\r\n[", b"x" * 65536),
    "line after the last chunk": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"x" * 65536),
}


@pytest.mark.parametrize("scheme", ["unix", "tcp", "tls"])
@pytest.mark.parametrize("path", ["/info", "/networks", f"/containers/{WEB}/json"])
@pytest.mark.parametrize("line", LINES)
def test_line_without_end_is_not_read(tmp_path: Path, line: str, path: str, scheme: str) -> None:
    with broken(tmp_path, path, "flood", *LINES[line], scheme=scheme) as engine:
        # The list is complete, or broken, before the line after the last chunk.
        with suppress(EngineUnavailable, InspectFailed):
            called(engine.address, path)
            assert line == "line after the last chunk"
        assert engine.sent < LITTLE


SLOW = {
    "body": (OK + b"Content-Length: 100000\r\n\r\n", b" "),
    "chunks": (CHUNKED, b"1\r\n \r\n"),
    "size of a chunk": (CHUNKED, b"0"),
    "head": (OK + b"X: ", b"x"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize("scheme", ["unix", "tcp", "tls"])
@pytest.mark.parametrize("path", ["/version", "/containers/json"])
@pytest.mark.parametrize("part", SLOW)
def test_call_ends_at_its_deadline_while_bytes_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, path: str, scheme: str
) -> None:
    monkeypatch.setattr(engine_client, "CALL_TIMEOUT", SECONDS)
    with broken(tmp_path, path, "trickle", *SLOW[part], scheme=scheme) as engine:
        start = time.monotonic()
        with pytest.raises(EngineUnavailable):
            called(engine.address, path)
        assert SECONDS <= time.monotonic() - start < LONG / 2


@pytest.mark.parametrize(
    ("part", "error"),
    [("body", EngineUnavailable), ("head", InspectFailed), ("continue", InspectFailed)],
)
def test_slow_inspect_ends_at_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, error: type[Exception]
) -> None:
    """Without a head, the engine may wait for the container: this is no fault of the engine."""
    monkeypatch.setattr(engine_client, "CALL_TIMEOUT", SECONDS)
    path = f"/containers/{WEB}/json"
    with broken(tmp_path, path, "trickle", *SLOW[part]) as engine:
        start = time.monotonic()
        with pytest.raises(error):
            called(engine.address, path)
        assert SECONDS <= time.monotonic() - start < LONG / 2


@pytest.mark.parametrize("path", ["/info", "/events"])
def test_answers_that_say_continue_without_end_end_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(engine_client, "CALL_TIMEOUT", SECONDS)
    monkeypatch.setattr("tests.unit.engine.test_responses.MUCH", 1 << 40)
    piece = b"HTTP/1.1 100 Continue\r\n\r\n" * 1000
    with broken(tmp_path, path, "flood", b"", piece) as engine:
        start = time.monotonic()
        with pytest.raises(EngineUnavailable):
            called(engine.address, path)
        assert time.monotonic() - start < LONG / 2


@pytest.mark.parametrize("scheme", ["unix", "tcp", "tls"])
def test_event_stream_has_no_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr(engine_client, "CALL_TIMEOUT", SECONDS)
    chunk = b"3\r\n{}\n\r\n"
    with broken(tmp_path, "/events", "trickle", CHUNKED, chunk, scheme=scheme) as engine:
        client, _ = connect(engine.address)
        events = subscribe(client)
        start = time.monotonic()
        for _ in events.read():
            if time.monotonic() - start > 2 * SECONDS:
                break
        else:
            pytest.fail("the stream ended")
        events.close()
        client.close()


def test_connection_has_its_own_timeout_again_for_the_next_call() -> None:
    """Else a call could begin with the rest of the time of the one before."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(60)
        theirs.sendall(OK + b"Content-Length: 2\r\n\r\n{}")
        with limited(5):
            response = Response(ours)
        response.begin()
        during = ours.gettimeout()
        assert during is not None
        assert during < 5
        assert response.read() == b"{}"
        assert ours.gettimeout() == 60
