"""Clients that connect to a published port while its container starts, and what becomes of them."""

from __future__ import annotations

import itertools
import re
import selectors
import shutil
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv6Address
from pathlib import Path

from tests.harness.engine import Engine
from tests.harness.namespace import Namespace
from tests.harness.sandbox import CLIENT, HOST

INTERVAL = 0.002
"""Seconds between two connections."""
BEFORE, AFTER = 0.1, 0.3
"""Seconds of connections before the start, and after its return."""
LOG_DELAY = 0.2
"""Seconds from an answer until the engine has stored the server's log."""
PATIENCE = 4.0
"""Seconds that each client waits. The kernel repeats a first packet after 1 s and after 3 s."""

IMAGE = "server:1"
SERVE = """
$| = 1;
socket(S, 10, 1, 0) and bind(S, pack("SnNa16N", 10, 80, 0, "", 0)) and listen(S, 4096) or die $!;
while ($client = accept(my $connection, S)) {
    (undef, $port, undef, $address) = unpack("SnNa16", $client);
    print unpack("H*", $address), " $port\\n";
    syswrite $connection, "served\\n";
    push @open, $connection;
    shift @open if @open > 200;
}
"""
"""A server in Perl: it starts within milliseconds, and no connection waits for a process. It prints
the address and port of each client. A connection that is closed at once would be reset, because
nobody reads its question."""
_LOGGED = re.compile(r"^([0-9a-f]{32}) (\d+)$", re.MULTILINE)


class End(StrEnum):
    """What becomes of a connection."""

    CORRECT = "correct"
    LOST = "client address lost"
    """The container answered, but saw another address."""
    HUNG = "hung"
    CLOSED = "closed"
    """It was accepted, and ended without an answer."""
    REFUSED = "refused"


EARLY = frozenset({End.LOST, End.HUNG, End.CLOSED})
"""The ends of connections that arrived after the port was open and before its rule."""


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection, after its end."""

    began: float
    """Seconds, by the monotonic clock."""
    port: int
    """The client's."""
    end: End


def early_time(connections: Iterable[Connection]) -> float:
    """Seconds from the opening of the port to its rule, as far as connections show it."""
    times = [connection.began for connection in connections if connection.end in EARLY]
    return max(times) - min(times) + INTERVAL if times else 0.0


@dataclass(slots=True)
class Knocking:
    """The connections to one port. A client asks as soon as it is connected."""

    client: Namespace
    port: int
    interval: float = INTERVAL
    ended: list[Connection] = field(default_factory=list)
    """CORRECT means here: answered."""

    def run(self, enough: threading.Event, *, count: int | None = None) -> None:
        """Connect `count` times, or until `enough` is set, and wait for all connections."""
        self.client.within(lambda: self._run(enough, count))

    def _run(self, enough: threading.Event, count: int | None) -> None:
        with selectors.DefaultSelector() as selector:
            due = time.monotonic()
            made = itertools.count() if count is None else range(count)
            for _ in itertools.takewhile(lambda _: not enough.is_set(), made):
                self._connect(selector)
                due += self.interval
                self._serve(selector, due)
            self._serve(selector, time.monotonic() + PATIENCE, until_empty=True)
            for key in list(selector.get_map().values()):
                self._end(selector, key, End.HUNG)

    def _connect(self, selector: selectors.BaseSelector) -> None:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        sock.setblocking(False)
        began = time.monotonic()
        sock.connect_ex((str(HOST), self.port))
        selector.register(sock, selectors.EVENT_WRITE, began)

    def _serve(
        self, selector: selectors.BaseSelector, deadline: float, *, until_empty: bool = False
    ) -> None:
        while (left := deadline - time.monotonic()) > 0:
            if until_empty and not selector.get_map():
                return
            for key, ready in selector.select(left):
                self._advance(selector, key, ready)

    def _advance(
        self, selector: selectors.BaseSelector, key: selectors.SelectorKey, ready: int
    ) -> None:
        sock = key.fileobj
        assert isinstance(sock, socket.socket)
        reading = not ready & selectors.EVENT_WRITE
        try:
            if not reading:
                sock.send(b"who am I?\n")
                selector.modify(sock, selectors.EVENT_READ, key.data)
            else:
                self._end(selector, key, End.CORRECT if sock.recv(4096) else End.CLOSED)
        except OSError:
            self._end(selector, key, End.CLOSED if reading else End.REFUSED)

    def _end(self, selector: selectors.BaseSelector, key: selectors.SelectorKey, end: End) -> None:
        sock = key.fileobj
        assert isinstance(sock, socket.socket)
        self.ended.append(Connection(key.data, sock.getsockname()[1], end))
        selector.unregister(sock)
        sock.close()

    def connections(self, log: str) -> list[Connection]:
        """All connections; `log` is that of the container's server."""
        seen = {
            int(port)
            for address, port in _LOGGED.findall(log)
            if IPv6Address(bytes.fromhex(address)) == CLIENT
        }
        return [
            replace(connection, end=End.LOST)
            if connection.end is End.CORRECT and connection.port not in seen
            else connection
            for connection in self.ended
        ]


@contextmanager
def knocking(client: Namespace, port: int, *, interval: float = INTERVAL) -> Iterator[Knocking]:
    """Connections from some time before the block until some time after it."""
    made, enough = Knocking(client, port, interval), threading.Event()
    thread = threading.Thread(target=made.run, args=(enough,))
    thread.start()
    try:
        time.sleep(BEFORE)
        yield made
        time.sleep(AFTER)
    finally:
        enough.set()
        thread.join()


def start(
    engine: Engine, client: Namespace, name: str, port: int, *, interval: float = INTERVAL
) -> list[Connection]:
    """Create a container with a server, and start it while a client connects."""
    with created(engine, name, port):
        with knocking(client, port, interval=interval) as made:
            engine.docker("start", name)
        return made.connections(engine.docker("logs", name))


def first_end(engine: Engine, client: Namespace, name: str, port: int) -> End:
    """Create and start a container; what becomes of a connection when the start returns.

    The container's server may listen a little later: a reset comes from the container then.
    """
    with created(engine, name, port):
        engine.docker("start", name)
        made = Knocking(client, port)
        made.run(threading.Event(), count=1)
        time.sleep(LOG_DELAY)
        (connection,) = made.connections(engine.docker("logs", name))
        return connection.end


@contextmanager
def created(engine: Engine, name: str, port: int) -> Iterator[None]:
    """A container with a server that does not run yet, until the end of the block."""
    words = ("create", f"--name={name}", "--network=X", f"--publish={port}:80", IMAGE)
    engine.docker(*words, "/usr/bin/perl", "-e", SERVE)
    try:
        yield
    finally:
        engine.docker("rm", "--force", name)


def import_image(engine: Engine) -> None:
    """Give the engine the image of the server: Perl, which each Debian system has."""
    perl = shutil.which("perl")
    assert perl is not None
    linked = subprocess.run(["ldd", perl], check=True, capture_output=True, text=True).stdout
    archive = engine.dir / "server.tar"
    with tarfile.open(archive, "w", dereference=True) as tar:
        tar.add(perl, "usr/bin/perl")
        for library in re.findall(r"(/\S+) \(0x", linked):
            tar.add(Path(library).resolve(), library.lstrip("/"))
    engine.docker("import", str(archive), IMAGE)
