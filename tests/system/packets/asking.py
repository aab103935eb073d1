"""Functions that packet tests use often."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from tests.harness import Answer, Daemon, Failure, Namespace, Regime, tcp, until
from tests.harness.sandbox import CLIENT, HOST

SHORT = 0.3
"""The timeout in seconds where no answer is expected; an answer takes milliseconds."""


def peer(answer: Answer | Failure) -> IPv4Address | IPv6Address | Failure:
    """The client address that the server saw, or the failure."""
    return answer.peer if isinstance(answer, Answer) else answer


def server(answer: Answer | Failure) -> str | Failure:
    """The name of the server that answered, or the failure."""
    return answer.server if isinstance(answer, Answer) else answer


@contextmanager
def repeated(call: Callable[[], object], pause: float) -> Iterator[None]:
    """Call it again and again in a thread, with `pause` seconds between."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(pause):
            call()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def opened(client: Namespace, port: int, *, address: IPv6Address = HOST) -> Answer:
    """The answer from a published port; waits for an answer of the container itself.

    The container then sees the client. With an answer by the proxy it sees the bridge.
    """
    answer = until(lambda: tcp(client, address, port), lambda each: peer(each) == CLIENT)
    assert isinstance(answer, Answer), answer
    assert answer.peer == CLIENT
    return answer


@contextmanager
def stopped(regime: Regime) -> Iterator[None]:
    """Stop ipv6natd with SIGSTOP until the end of the context."""
    regime.daemon.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        regime.daemon.signal(signal.SIGCONT)


@dataclass(slots=True)
class Knocks:
    """The results of a client that sends requests all the time."""

    count: int = 0
    wrong: list[Answer | Failure] = field(default_factory=list)
    """The results that are not an answer of the container itself."""


@contextmanager
def knocking(client: Namespace, port: int) -> Iterator[Knocks]:
    """The client sends requests to a published port until the end of the context."""
    knocks, done = Knocks(), threading.Event()

    def knock() -> None:
        while not done.is_set():
            answer = tcp(client, HOST, port)
            knocks.count += 1
            if peer(answer) != CLIENT:
                knocks.wrong.append(answer)

    knocker = threading.Thread(target=knock)
    knocker.start()
    try:
        yield knocks
    finally:
        done.set()
        knocker.join()


def listed(daemon: Daemon, what: str) -> list[dict[str, Any]]:
    """Rows of `ipv6natctl mappings`, `networks` or `skipped`."""
    rows: list[dict[str, Any]] = json.loads(daemon.ctl(what, "--json=short"))
    return rows


def dnats(rules: str, port: int) -> list[str]:
    """The DNAT rules for one host port."""
    return [line for line in rules.splitlines() if f"--dport {port} " in line and "-j DNAT" in line]


def carried_by_nat(host: Namespace, port: int, protocol: str = "tcp") -> list[str]:
    """Flows to a host port that use NAT and not the proxy."""
    flows = host.flows("-p", protocol, "--orig-port-dst", str(port), "--dst-nat")
    return [line for line in flows.splitlines() if f"dport={port}" in line]
