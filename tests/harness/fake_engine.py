"""A fake engine for tests: its HTTP API on a unix socket, with events from the test.

It answers only the requests of the watcher, and rejects API versions as engines do.
"""

from __future__ import annotations

import json
import re
import select
import socket
import socketserver
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.harness.build import identity

Answer = tuple[int, bytes]
CUT = None
"""In the event stream: close the connection here, also in the middle of an event."""
END = b""
"""In the event stream: its regular end."""


def raw_network(name: str, subnet: str = "fd00:a::/64", **fields: Any) -> dict[str, Any]:
    """A network in the engine's JSON."""
    facts = {
        "Id": identity(name),
        "Name": name,
        "Driver": "bridge",
        "EnableIPv6": True,
        "Internal": False,
        "IPAM": {"Config": [{"Subnet": subnet}]},
        "Options": {},
    }
    return facts | fields


def raw_container(
    name: str, *, on: str = "x", port: int = 8080, address: str = "fd00:a::2", **fields: Any
) -> dict[str, Any]:
    """The engine's inspect of a running container with one published port."""
    entries = [{"HostIp": address, "HostPort": str(port)} for address in ("0.0.0.0", "::")]
    place = {
        "NetworkID": identity(on),
        "Gateway": "172.18.0.1",
        "IPv6Gateway": "fd00:a::1",
        "GlobalIPv6Address": address,
    }
    facts = {
        "Id": identity(name),
        "Name": f"/{name}",
        "State": {"Running": True},
        "HostConfig": {"PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": str(port)}]}},
        "NetworkSettings": {"Ports": {"80/tcp": entries}, "Networks": {on: place}},
    }
    return facts | fields


def row(inspected: dict[str, Any]) -> dict[str, Any]:
    """The same container as a row of the list."""
    settings = inspected["NetworkSettings"]
    ports = [
        {
            "IP": entry["HostIp"],
            "PrivatePort": int(port.partition("/")[0]),
            "PublicPort": int(entry["HostPort"]),
            "Type": port.partition("/")[2],
        }
        for port, entries in settings["Ports"].items()
        for entry in entries
    ]
    return {
        "Id": inspected["Id"],
        "Names": [inspected["Name"]],
        "State": "running",
        "Ports": ports,
        "NetworkSettings": {"Networks": settings["Networks"]},
    }


def event(kind: str, action: str, name: str, **attributes: str) -> dict[str, Any]:
    """An event of API 1.52: without status, id and from."""
    actor = {"ID": identity(name), "Attributes": attributes}
    return {"Type": kind, "Action": action, "Actor": actor, "scope": "local", "time": 1}


@dataclass
class FakeEngine:
    """A fake engine. `say` overrides the answer for a path."""

    path: Path
    version: str = "28.5.1"
    api: str = "1.51"
    least_api: str = "1.24"
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)
    containers: dict[str, dict[str, Any]] = field(default_factory=dict)
    say: dict[str, Answer | Callable[[], Answer]] = field(default_factory=dict)
    encoding: str = ""
    """The Content-Encoding of each answer."""
    asked: list[str] = field(default_factory=list)
    """The path of each request, without the API version."""
    versions: set[str] = field(default_factory=set)
    past: list[dict[str, Any]] = field(default_factory=list)
    """Events before a subscription, which are sent to it if they are not older than its `since`."""
    at_once: Counter[str] = field(default_factory=Counter)
    """For each path, the maximum number of simultaneous requests."""

    def __post_init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._streams: list[SimpleQueue[bytes | None]] = []
        self._connections: set[socket.socket] = set()
        self._server: _Server | None = None

    @property
    def endpoint(self) -> str:
        return f"unix://{self.path}"

    def say_json(self, value: object) -> Answer:
        """A successful answer."""
        return 200, _json(value)

    def have(self, *facts: dict[str, Any]) -> None:
        """Set the networks and containers of the engine."""
        self.networks = {raw["Id"]: raw for raw in facts if "IPAM" in raw}
        self.containers = {raw["Id"]: raw for raw in facts if "IPAM" not in raw}

    def asked_for(self, path: str) -> int:
        return self.asked.count(path)

    @property
    def listeners(self) -> int:
        """The number of open event streams."""
        return len(self._streams)

    def emit(self, *events: dict[str, Any]) -> None:
        """Send events in one piece."""
        self.send("".join(json.dumps(event) + "\n" for event in events).encode())

    def send(self, data: bytes | None) -> None:
        """Send raw bytes, END or CUT to every open event stream."""
        for stream in list(self._streams):
            stream.put(data)

    def start(self) -> None:
        self._server = _Server(str(self.path), self)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Stop the engine and close all connections."""
        if self._server is None:
            return
        self.send(CUT)
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        self.path.unlink(missing_ok=True)
        with self._lock:
            for connection in self._connections:
                _shut(connection)

    @contextmanager
    def counted(self, path: str) -> Iterator[None]:
        with self._lock:
            self.asked.append(path)
            self._open[path] += 1
            self.at_once[path] = max(self.at_once[path], self._open[path])
        try:
            yield
        finally:
            with self._lock:
                self._open[path] -= 1

    @contextmanager
    def connected(self, connection: socket.socket) -> Iterator[None]:
        with self._lock:
            self._connections.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._connections.discard(connection)

    @contextmanager
    def stream(self) -> Iterator[SimpleQueue[bytes | None]]:
        queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._streams.append(queue)
        try:
            yield queue
        finally:
            self._streams.remove(queue)

    def past_since(self, target: str) -> bytes:
        """The events of the past for the target of a request."""
        since = parse_qs(urlsplit(target).query).get("since", ["inf"])[0]
        wanted = [event for event in self.past if event["timeNano"] >= float(since) * 1e9]
        return "".join(json.dumps(event) + "\n" for event in wanted).encode()

    def answer(self, version: str, path: str) -> Answer:
        """The answer to GET `path`."""
        answer = self.say.get(path)
        if answer is not None:
            return answer() if callable(answer) else answer
        if version and _number(version) < _number(self.least_api):
            text = (
                f"client version {version} is too old. "
                f"Minimum supported API version is {self.least_api}"
            )
            return 400, _json({"message": text})
        if version and _number(version) > _number(self.api):
            text = f"client version {version} is too new. Maximum supported API version is"
            return 400, _json({"message": f"{text} {self.api}"})
        match path.strip("/").split("/"):
            case ["_ping"]:
                return 200, b"OK"
            case ["version"]:
                return 200, _json(self._version())
            case ["info"]:
                return 200, _json({"ServerVersion": self.version, "SecurityOptions": []})
            case ["networks"]:
                return 200, _json(list(self.networks.values()))
            case ["containers", "json"]:
                return 200, _json([row(container) for container in self.containers.values()])
            case ["networks", name] if name in self.networks:
                return 200, _json(self.networks[name])
            case ["containers", name, "json"] if name in self.containers:
                return 200, _json(self.containers[name])
        return 404, _json({"message": f"No such object: {path}"})

    def _version(self) -> dict[str, Any]:
        return {
            "Version": self.version,
            "ApiVersion": self.api,
            "MinAPIVersion": self.least_api,
        }


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, path: str, engine: FakeEngine) -> None:
        self.engine = engine
        super().__init__(path, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle(self) -> None:
        with self.server.engine.connected(self.request):
            try:
                super().handle()
            except OSError:
                return  # the client has closed the connection

    def do_GET(self) -> None:
        engine = self.server.engine
        request = re.match(r"(?:/v([0-9.]+))?(/[^?]*)", self.path)
        assert request is not None
        version, path = request[1] or "", request[2]
        engine.versions.add(version)
        with engine.counted(path):
            if path == "/events" and path not in engine.say:
                self._events(engine)
                return
            status, body = engine.answer(version, path)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if engine.encoding:
                self.send_header("Content-Encoding", engine.encoding)
            self.end_headers()
            self.wfile.write(body)

    def _events(self, engine: FakeEngine) -> None:
        with engine.stream() as stream:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if past := engine.past_since(self.path):
                stream.put(past)
            while data := self._next(stream):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            if data == END:
                self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def _next(self, stream: SimpleQueue[bytes | None]) -> bytes | None:
        """The next data to send; CUT as soon as the client has closed the connection."""
        while True:
            try:
                return stream.get(timeout=0.01)
            except Empty:
                readable, _, _ = select.select([self.connection], [], [], 0)
                if readable and not self.connection.recv(1, socket.MSG_PEEK):
                    return CUT

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the connection was closed already
