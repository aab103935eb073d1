"""Fuzzers of the engine's responses: JSON, lists cut anywhere, bytes on the socket."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from ipv6natd.engine import parse as docker_facts
from ipv6natd.engine.client import (
    EngineAddress,
    EngineUnavailable,
    InspectFailed,
    connect,
    inspect,
    list_all,
    subscribe,
)
from ipv6natd.engine.stream import json_rows
from ipv6natd.model import Engine
from tests.harness.fake_engine import event, raw_container, raw_network, row
from tests.harness.outputs import assert_every_output_is_safe
from tests.stress.fuzz.target import Target, at_end, pieces, read_json
from tests.unit.policy.test_properties import RECORDED, assert_harmless

EVENT = event("container", "start", "web")


def engine_json(data: bytes) -> None:
    """With any JSON from an engine nothing raises, every line of rule text matches our own grammar,
    and every output for users and programs is safe."""
    said = read_json(data)
    if not isinstance(said, dict):
        return
    engine = docker_facts.engine(said.get("version"), said.get("info"))
    docker_facts.event_subjects(said.get("event"))
    docker_facts.is_end(said.get("event"))
    rows = [each for each in said.values() if isinstance(each, list)]
    facts, want = assert_harmless(rows, engine, any_means_ipv6=True, proxy=bool(said.get("proxy")))
    assert_every_output_is_safe(facts, want)


def rows_in_pieces(data: bytes) -> None:
    """A list cut into any pieces gives the rows of the whole list, or raises ValueError and nothing
    else."""
    size, text = (data[0] or 1) if data else 1, data[1:]
    cut = [text[at : at + size] for at in range(0, len(text), size)]
    try:
        found = list(json_rows(cut))
    except ValueError:
        found = None
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return  # more than lists may be accepted, but never fewer
    if isinstance(whole, list):
        assert repr(found) == repr(whole)


def engine_bytes(data: bytes) -> None:
    """With any bytes from an engine, complete or not, a session has facts or ends with
    EngineUnavailable, and an inspect gives a container or raises InspectFailed."""
    version, info, networks, containers, inspect, events = pieces(data, count=6)
    server = _server()
    server.answers = {
        "version": version,
        "info": info,
        "networks": networks,
        "containers/json": containers,
        "json": inspect,
        "events": events,
    }
    with suppress(EngineUnavailable):
        client, _ = connect(EngineAddress(endpoint=server.endpoint))
        try:
            for ask in (_list, _inspect, _events):
                ask(client)
        finally:
            client.close()


KNOWN = Engine(version="28.0.0")


def _list(client: Any) -> None:
    with suppress(EngineUnavailable):
        networks, _ = list_all(client, KNOWN)
        for each in networks:
            docker_facts.network(each)


def _inspect(client: Any) -> None:
    with suppress(EngineUnavailable, InspectFailed):
        docker_facts.container(inspect(client, "container", "a"), KNOWN)


def _events(client: Any) -> None:
    # The stream may raise anything: that is its end. Parsing an event must not raise.
    try:
        stream = subscribe(client)
    except EngineUnavailable:
        return
    try:
        events = stream.read()
        while True:
            try:
                each = next(events)
            except Exception:  # the end of the stream too
                return
            docker_facts.event_subjects(each)
            docker_facts.is_end(each)
    finally:
        with suppress(Exception):
            stream.close()


class _Server:
    """An HTTP server with fixed bytes for each path; closes the connection after each response."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="ipv6natd-fuzz-")
        path = Path(self._folder.name, "socket")
        self.endpoint = f"unix://{path}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self._folder.cleanup()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(5)
                asked = b""
                while b"\r\n\r\n" not in asked:
                    more = connection.recv(4096)
                    if not more:
                        break
                    asked += more
                connection.sendall(self._answer(asked.partition(b" HTTP/")[0].decode()))

    def _answer(self, asked: str) -> bytes:
        path = asked.partition("?")[0]
        said = next((v for k, v in self.answers.items() if path.endswith(k)), b"")
        if said.startswith(b"HTTP/"):
            return said
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        if path.endswith("events"):
            head += "Transfer-Encoding: chunked\r\n\r\n"
            return head.encode() + f"{len(said):x}\r\n".encode() + said + b"\r\n0\r\n\r\n"
        return f"{head}Content-Length: {len(said)}\r\n\r\n".encode() + said


@cache
def _server() -> _Server:
    made = _Server()
    at_end(made.close)
    at_end(_server.cache_clear)
    return made


VERSION = {"Version": "28.5.1", "ApiVersion": "1.41", "MinAPIVersion": "1.24"}
SEED = {
    "version": VERSION,
    "info": {"SecurityOptions": ["name=seccomp"], "ExperimentalBuild": False},
    "networks": [raw_network("x")],
    "list": [row(raw_container("web"))],
    "inspects": [raw_container("db", port=53)],
    "event": EVENT,
    "proxy": True,
}


def _dumped(*values: object) -> bytes:
    return b"\n---\n".join(json.dumps(each).encode() for each in values)


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[{}, \r\n3\r\n{}]\r\n0\r\n\r\n"
)
TARGETS = (
    Target(
        name="engine-json",
        check=engine_json,
        seeds=(json.dumps(SEED).encode(), json.dumps({**RECORDED, "version": VERSION}).encode()),
        structured=True,
    ),
    Target(
        name="rows-in-pieces",
        check=rows_in_pieces,
        seeds=(b'\x01[{"Id": "a"}, 345, [], null]', b'\x07["\\u00e9\xc3\xa9", -1.5e3, true]  '),
        words=(b"[", b"]", b"},", b'{"', b"\\u", b"1e9", b"null", b"NaN"),
    ),
    Target(
        name="engine-bytes",
        check=engine_bytes,
        seeds=(
            _dumped(
                VERSION, SEED["info"], SEED["networks"], SEED["list"], raw_container("a"), EVENT
            ),
            b"\n---\n".join((json.dumps(VERSION).encode(), b"{}", b"[]", CHUNKED, b"{}", b"{}{")),
        ),
        words=(
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 500 \r\n",
            b"Content-Length: ",
            b"Transfer-Encoding: chunked\r\n",
            b"Content-Encoding: gzip\r\n",
            b"Location: /\r\n",
            b"\r\n\r\n",
            b"\n---\n",
            b'"ApiVersion"',
            b"[" * 60,
        ),
    ),
)
