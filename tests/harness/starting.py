"""Clients that connect to a published port while its container starts, and what becomes of them."""

from __future__ import annotations

import itertools
import re
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv6Address

from tests.harness.engine import IMAGE, Engine
from tests.harness.namespace import Namespace
from tests.harness.sandbox import CLIENT, HOST

INTERVAL = 0.002
"""Seconds between two connections. On a busy machine, httpd's queue of nine may overflow."""
BEFORE, AFTER = 0.1, 0.3
"""Seconds of connections before the start, and after its return."""
LOG_DELAY = 0.2
"""Seconds from an answer until the engine has stored the server's log."""
PATIENCE = 4.0
"""Seconds that each client waits. The kernel repeats a first packet after 1 s and after 3 s."""
SERVE = ("sh", "-c", "exec httpd -f -v -h / 2>&1")
_LOGGED = re.compile(r"^\[?([0-9a-f:.]+?)\]?:(\d+): response", re.MULTILINE)
"""A request in the log of httpd: the client's address and port."""


class End(StrEnum):
    """What becomes of a connection."""

    CORRECT = "correct"
    LOST = "client address lost"
    """The container answered, but saw another address."""
    HUNG = "hung"
    CLOSED = "closed"
    """It was accepted, and ended without an answer."""
    REFUSED = "refused"


@dataclass(slots=True)
class Knocking:
    """The connections to one port. A client asks as soon as it is connected."""

    client: Namespace
    port: int
    interval: float = INTERVAL
    answered: list[int] = field(default_factory=list)
    """The clients' ports of the connections with an answer."""
    others: Counter[End] = field(default_factory=Counter)

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
                self._end(selector, key.fileobj, End.HUNG)

    def _connect(self, selector: selectors.BaseSelector) -> None:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.connect_ex((str(HOST), self.port))
        selector.register(sock, selectors.EVENT_WRITE)

    def _serve(
        self, selector: selectors.BaseSelector, deadline: float, *, until_empty: bool = False
    ) -> None:
        while (left := deadline - time.monotonic()) > 0:
            if until_empty and not selector.get_map():
                return
            for key, ready in selector.select(left):
                self._advance(selector, key.fileobj, ready)

    def _advance(self, selector: selectors.BaseSelector, sock: object, ready: int) -> None:
        assert isinstance(sock, socket.socket)
        reading = not ready & selectors.EVENT_WRITE
        try:
            if not reading:
                sock.send(b"GET / HTTP/1.0\r\n\r\n")
                selector.modify(sock, selectors.EVENT_READ)
            elif sock.recv(4096):
                self.answered.append(sock.getsockname()[1])
                self._end(selector, sock)
            else:
                self._end(selector, sock, End.CLOSED)
        except OSError:
            self._end(selector, sock, End.CLOSED if reading else End.REFUSED)

    def _end(self, selector: selectors.BaseSelector, sock: object, end: End | None = None) -> None:
        assert isinstance(sock, socket.socket)
        selector.unregister(sock)
        sock.close()
        if end:
            self.others[end] += 1

    def counts(self, log: str) -> Counter[End]:
        """The ends of all connections; `log` is that of the container's httpd."""
        seen = {int(port) for address, port in _LOGGED.findall(log) if is_client(address)}
        correct = len(seen.intersection(self.answered))
        return self.others + Counter({End.CORRECT: correct, End.LOST: len(self.answered) - correct})


def is_client(address: str) -> bool:
    """True for the address of the sandbox's client."""
    try:
        return IPv6Address(address) == CLIENT
    except ValueError:
        return False


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
) -> Counter[End]:
    """Create a container with a web server, and start it while a client connects."""
    with created(engine, name, port):
        with knocking(client, port, interval=interval) as connections:
            engine.docker("start", name)
        return connections.counts(engine.docker("logs", name))


def first_end(engine: Engine, client: Namespace, name: str, port: int) -> End:
    """Create and start a container; what becomes of a connection when the start returns.

    The container's server may listen a little later: a reset comes from the container then.
    """
    with created(engine, name, port):
        engine.docker("start", name)
        connection, enough = Knocking(client, port), threading.Event()
        connection.run(enough, count=1)
        time.sleep(LOG_DELAY)
        ((end, _),) = connection.counts(engine.docker("logs", name)).items()
        return end


@contextmanager
def created(engine: Engine, name: str, port: int) -> Iterator[None]:
    """A container with a web server that does not run yet, until the end of the block."""
    words = ("create", f"--name={name}", "--network=X", f"--publish={port}:80", IMAGE, *SERVE)
    engine.docker(*words)
    try:
        yield
    finally:
        engine.docker("rm", "--force", name)
