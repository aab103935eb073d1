"""Continuous traffic during a test, and its counters.

One `Traffic` is one client: a thread in a namespace that connects to published ports at a steady
rate, sends over open flows, and probes closed ports. The servers are those of
tests/harness/serve.py, which answer with their name and the client's address.

    with Traffic(sandbox.client) as traffic:
        traffic.ask(Target(HOST, 8080, server="x1", peer=CLIENT))  # connects, again and again
        traffic.probe(Target(address, 81))  # must never answer
        flow = traffic.hold(Target(HOST, 8080))  # stays open
        ...
        traffic.tally.attempted, traffic.tally.failed, traffic.tally.answered_closed, flow.cut
"""

from __future__ import annotations

import errno
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from types import TracebackType
from typing import Literal, Self

from tests.harness.namespace import Namespace, enter
from tests.harness.probe import Answer, Failure, failure, parsed

Protocol = Literal["tcp", "udp"]
STARTED = (0, errno.EINPROGRESS)
SILENT = 20.0
"""Seconds without an answer after which an open flow counts as cut: TCP has sent five times."""


@dataclass(frozen=True, slots=True)
class Target:
    """A port with the expected server and peer; None is not checked."""

    address: IPv6Address
    port: int
    protocol: Protocol = "tcp"
    server: str | None = field(default=None, kw_only=True)
    peer: IPv6Address | None = field(default=None, kw_only=True)
    """The client's address that the server must see."""

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}/{self.protocol}"

    def right(self, answer: Answer | Failure) -> bool:
        return (
            isinstance(answer, Answer)
            and self.server in (None, answer.server)
            and self.peer in (None, answer.peer)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """A wrong result."""

    began: float
    ended: float
    """Both by time.monotonic()."""
    target: Target
    answer: Answer | Failure | str

    @property
    def stranger(self) -> bool:
        """True if another container answered than the one that publishes the port."""
        answer, server = self.answer, self.target.server
        return isinstance(answer, Answer) and server not in (None, answer.server)

    def __str__(self) -> str:
        said = self.answer
        if isinstance(said, Answer):
            said = f"answered by {said.server}, which saw {said.peer}"
        return f"{self.target}: {said}"


@dataclass(slots=True)
class Tally:
    """The results so far."""

    attempted: int = 0
    """Ended connections to published ports, successful or not."""
    failed: list[Wrong] = field(default_factory=list)
    """Connections without an answer, with the wrong server, or with a wrong peer (a proxy)."""
    probed: int = 0
    """Ended probes of closed ports."""
    answered_closed: list[Wrong] = field(default_factory=list)
    """Probes with an answer."""


@dataclass(slots=True, eq=False)
class Flow:
    """One open flow."""

    target: Target
    asked: int = 0
    answered: int = 0
    longest: float = 0.0
    """The longest time for an answer, in seconds. A lost UDP question is repeated."""
    cut: str | None = None
    """The reason for the end of the flow, if it ended before its release."""
    _sock: socket.socket | None = None
    _due: float = 0.0
    _waits: float | None = None
    _again: float = 0.0


@dataclass(slots=True, eq=False)
class _Try:
    """A pending connection or probe."""

    target: Target
    sock: socket.socket
    closed: bool
    began: float


def reason(error: OSError) -> Failure:
    """The reason for a missing answer, also in a namespace without addresses or links."""
    try:
        return failure(error)
    except OSError:
        return Failure.UNREACHABLE


class Traffic:
    """One client. Its methods may be called from any thread while it runs.

    `rate`: connections per second to published ports, all targets in turn; `probes` is the same for
    closed ports. `patience`: maximum seconds for the answer to a new connection. `every`: seconds
    between questions over an open flow.
    """

    def __init__(
        self,
        ns: Namespace,
        *,
        rate: float = 25,
        probes: float = 50,
        patience: float = 1.0,
        every: float = 0.1,
    ) -> None:
        self.tally = Tally()
        self.flows: list[Flow] = []
        self._ns = ns
        self._pause = {False: 1 / rate, True: 1 / probes}
        self._patience = {False: patience, True: 0.4}  # an open port would answer at once
        self._every = every
        self._targets: dict[bool, deque[Target]] = {False: deque(), True: deque()}
        self._tries: deque[_Try] = deque()
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"traffic {ns.name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        alive = self._thread.is_alive()
        self._done.set()
        self._thread.join()
        for flow in self.flows:
            self._let_go(flow)
        for each in self._tries:
            each.sock.close()
        self._selector.close()
        if not alive and error is None:
            raise RuntimeError(f"the traffic of {self._ns.name} ended by itself")

    def ask(self, *targets: Target) -> None:
        """Connect to these published ports from now on, instead of the former ones."""
        self._aim(targets, closed=False)

    def probe(self, *targets: Target) -> None:
        """Probe these closed ports from now on, instead of the former ones."""
        self._aim(targets, closed=True)

    def hold(self, target: Target, *, timeout: float = 3) -> Flow:
        """Open a flow and use it until `release`; OSError if it cannot be opened."""
        kind = socket.SOCK_STREAM if target.protocol == "tcp" else socket.SOCK_DGRAM
        sock = self._ns.socket(socket.AF_INET6, kind)
        try:
            sock.settimeout(timeout)
            sock.connect((str(target.address), target.port))
        except OSError:
            sock.close()
            raise
        sock.setblocking(False)
        flow = Flow(target, _sock=sock)
        with self._lock:
            self._selector.register(sock, selectors.EVENT_READ, flow)
            self.flows.append(flow)
        return flow

    def release(self, flow: Flow) -> None:
        """Close a flow; its counters stay."""
        with self._lock:
            self._let_go(flow)
            self.flows.remove(flow)

    def settle(self) -> None:
        """Wait until all pending connections and probes have ended."""
        now = time.monotonic()
        while any(each.began <= now for each in list(self._tries)) and self._thread.is_alive():
            time.sleep(0.01)

    def _aim(self, targets: Iterable[Target], *, closed: bool) -> None:
        with self._lock:
            wanted = deque(dict.fromkeys(targets))
            # Pending connections and probes to removed targets are not counted.
            for each in [t for t in self._tries if t.closed is closed and t.target not in wanted]:
                self._end(each)
            self._targets[closed] = wanted

    def _run(self) -> None:
        enter(self._ns.path)
        due = dict.fromkeys(self._pause, time.monotonic())
        while not self._done.is_set():
            for key, _ in self._selector.select(0.005):
                with self._lock:
                    # The flow may have been released, and another socket may have its descriptor.
                    if self._selector.get_map().get(key.fd) is key:
                        self._heard(key)
            now = time.monotonic()
            with self._lock:
                for closed, at in due.items():
                    if now >= at:
                        # On a busy machine, missed connections are not repeated in a burst.
                        due[closed] = max(at + self._pause[closed], now)
                        self._begin(closed, now)
                self._expire(now)
                for flow in self.flows:
                    self._talk(flow, now)

    def _begin(self, closed: bool, now: float) -> None:
        targets = self._targets[closed]
        if not targets:
            return
        target = targets[0]
        targets.rotate(-1)
        stream = target.protocol == "tcp"
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
        sock.setblocking(False)
        attempt = _Try(target, sock, closed, now)
        self._tries.append(attempt)
        begun = sock.connect_ex((str(target.address), target.port))
        if begun not in STARTED:
            self._over(attempt, reason(OSError(begun, "")))
            return
        self._selector.register(sock, selectors.EVENT_WRITE, attempt)

    def _heard(self, key: selectors.SelectorKey) -> None:
        if isinstance(key.data, Flow):
            self._flow_heard(key.data)
            return
        attempt: _Try = key.data
        sock = attempt.sock
        try:
            if key.events & selectors.EVENT_WRITE:
                if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self._over(attempt, reason(OSError(code, "")))
                    return
                if attempt.closed and attempt.target.protocol == "tcp":
                    self._over(attempt, "opened")
                    return
                sock.send(b"?\n")
                self._selector.modify(sock, selectors.EVENT_READ, attempt)
                return
            self._over(attempt, parsed(sock.recv(4096)))
        except OSError as error:
            self._over(attempt, reason(error))

    def _expire(self, now: float) -> None:
        for each in [t for t in self._tries if now - t.began > self._patience[t.closed]]:
            self._over(each, Failure.TIMEOUT)

    def _over(self, attempt: _Try, answer: Answer | Failure | str) -> None:
        self._end(attempt)
        target, tally = attempt.target, self.tally
        wrong = Wrong(began=attempt.began, ended=time.monotonic(), target=target, answer=answer)
        if attempt.closed:
            tally.probed += 1
            if not isinstance(answer, Failure):
                tally.answered_closed.append(wrong)
            return
        tally.attempted += 1
        if isinstance(answer, str) or not target.right(answer):
            tally.failed.append(wrong)

    def _end(self, attempt: _Try) -> None:
        self._tries.remove(attempt)
        if attempt.sock in self._selector.get_map():
            self._selector.unregister(attempt.sock)
        attempt.sock.close()

    def _talk(self, flow: Flow, now: float) -> None:
        """Send over a flow if it is due, and cut it after a long silence."""
        if flow._sock is None:
            return
        if flow._waits is not None:
            flow.longest = max(flow.longest, now - flow._waits)
            if now - flow._waits > SILENT:
                self._cut(flow, f"silent for {SILENT:.0f} s")
                return
            again = flow.target.protocol == "udp" and now >= flow._again
        else:
            again = now >= flow._due
        if not again:
            return
        flow.asked += 1
        if flow._waits is None:
            flow._waits = now
        flow._again = now + 0.5
        try:
            flow._sock.send(b"?\n")
        except OSError as error:
            self._broken(flow, error)

    def _flow_heard(self, flow: Flow) -> None:
        assert flow._sock is not None
        try:
            answer = parsed(flow._sock.recv(4096).partition(b"\n")[0])
        except OSError as error:
            self._broken(flow, error)
            return
        if answer is Failure.CLOSED:
            self._cut(flow, "closed by the other side")
            return
        now = time.monotonic()
        if not flow.target.right(answer):
            self._cut(flow, str(Wrong(began=now, ended=now, target=flow.target, answer=answer)))
            return
        flow.answered += 1
        if flow._waits is not None:
            flow.longest = max(flow.longest, now - flow._waits)
        flow._waits, flow._due = None, now + self._every

    def _broken(self, flow: Flow, error: OSError) -> None:
        # An error ends a TCP flow. UDP continues after an unreachable port.
        if flow.target.protocol == "tcp" and not isinstance(error, BlockingIOError):
            self._cut(flow, error.strerror or str(error))

    def _cut(self, flow: Flow, why: str) -> None:
        flow.cut = why
        self._let_go(flow)

    def _let_go(self, flow: Flow) -> None:
        sock, flow._sock = flow._sock, None
        if sock is not None:
            self._selector.unregister(sock)
            sock.close()
