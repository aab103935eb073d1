"""Traffic that goes on while something else happens, and counts of what came of it.

One `Traffic` is one client: a thread in a namespace that asks published ports at a steady rate,
keeps flows open and talks over them, and tries ports that must not answer. Servers are those of
tests/harness/serve.py, which say who they are and whom they see.

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
"""Seconds without an answer after which an open flow is given up: TCP has sent five times then."""


@dataclass(frozen=True, slots=True)
class Target:
    """A port to talk to, and who should answer there; what is None is not looked at."""

    address: IPv6Address
    port: int
    protocol: Protocol = "tcp"
    server: str | None = field(default=None, kw_only=True)
    peer: IPv6Address | None = field(default=None, kw_only=True)
    """Whom the server should see."""

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
    """An outcome that was not the wanted one."""

    began: float
    ended: float
    """By time.monotonic()."""
    target: Target
    answer: Answer | Failure | str

    def __str__(self) -> str:
        said = self.answer
        if isinstance(said, Answer):
            said = f"answered by {said.server}, which saw {said.peer}"
        return f"{self.target}: {said}"


@dataclass(slots=True)
class Tally:
    """What came of it so far."""

    attempted: int = 0
    """New connections to published ports that have ended, well or not."""
    failed: list[Wrong] = field(default_factory=list)
    """Those that nobody answered, another, or the right one seeing somebody else (a proxy)."""
    probed: int = 0
    """Probes of closed ports that have ended."""
    answered_closed: list[Wrong] = field(default_factory=list)
    """Those that were answered."""


@dataclass(slots=True, eq=False)
class Flow:
    """One flow that stays open."""

    target: Target
    asked: int = 0
    answered: int = 0
    longest: float = 0.0
    """Seconds: the longest time for an answer. A question that UDP lost is asked again."""
    cut: str | None = None
    """How it ended, if it did before it was let go."""
    _sock: socket.socket | None = None
    _due: float = 0.0
    _waits: float | None = None
    _again: float = 0.0


@dataclass(slots=True, eq=False)
class _Try:
    """A connection or probe on its way."""

    target: Target
    sock: socket.socket
    closed: bool
    began: float


def reason(error: OSError) -> Failure:
    """Why there was no answer, also in a namespace that has lost its address or its links."""
    try:
        return failure(error)
    except OSError:
        return Failure.UNREACHABLE


class Traffic:
    """One client. Its methods may be called from any thread while it runs.

    `rate`: connections a second to published ports, all targets in turn; `probes` the same for
    closed ones. `patience`: seconds that a new connection has for its answer. `every`: seconds
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
        self._patience = {False: patience, True: 0.4}  # a closed one answers at once, if it does
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
        """From now on, connect to these published ports; replaces those of the call before."""
        self._aim(targets, closed=False)

    def probe(self, *targets: Target) -> None:
        """From now on, try these closed ports; replaces those of the call before."""
        self._aim(targets, closed=True)

    def hold(self, target: Target, *, timeout: float = 3) -> Flow:
        """Open a flow and talk over it until `release`; raises OSError when it does not open."""
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
        """Close a flow; what is known of it stays."""
        with self._lock:
            self._let_go(flow)
            self.flows.remove(flow)

    def settle(self) -> None:
        """Wait until what is on its way now has ended."""
        now = time.monotonic()
        while any(each.began <= now for each in list(self._tries)) and self._thread.is_alive():
            time.sleep(0.01)

    def _aim(self, targets: Iterable[Target], *, closed: bool) -> None:
        with self._lock:
            wanted = deque(dict.fromkeys(targets))
            # What is on its way to a port that is not asked for any more counts neither way.
            for each in [t for t in self._tries if t.closed is closed and t.target not in wanted]:
                self._end(each)
            self._targets[closed] = wanted

    def _run(self) -> None:
        enter(self._ns.path)
        due = dict.fromkeys(self._pause, time.monotonic())
        while not self._done.is_set():
            for key, _ in self._selector.select(0.005):
                with self._lock:
                    # It may have been let go since, and its number taken by another.
                    if self._selector.get_map().get(key.fd) is key:
                        self._heard(key)
            now = time.monotonic()
            with self._lock:
                for closed, at in due.items():
                    if now >= at:
                        # What was missed on a busy machine is not made up for in a rush.
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
        """Ask over a flow when it is time, and give it up when it has been silent too long."""
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
        # UDP hears of an unreachable port and goes on; TCP that hears of it is over.
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
