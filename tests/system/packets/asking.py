"""Short words for what packet tests ask all the time."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from tests.harness import Answer, Daemon, Failure, Namespace, Regime, tcp, until
from tests.harness.sandbox import CLIENT, HOST

SHORT = 0.3
"""Seconds of patience where silence is what is expected; an answer takes milliseconds."""


def peer(answer: Answer | Failure) -> IPv4Address | IPv6Address | Failure:
    """The caller as the server saw it, or why there was no answer."""
    return answer.peer if isinstance(answer, Answer) else answer


def server(answer: Answer | Failure) -> str | Failure:
    """Who answered."""
    return answer.server if isinstance(answer, Answer) else answer


def opened(client: Namespace, port: int, *, address: IPv6Address = HOST) -> Answer:
    """The answer from a published port, as soon as it comes from the container itself.

    The container sees the client then; while the proxy still answers it sees the bridge.
    """
    answer = until(lambda: tcp(client, address, port), lambda each: peer(each) == CLIENT)
    assert isinstance(answer, Answer), answer
    assert answer.peer == CLIENT
    return answer


@contextmanager
def stopped(regime: Regime) -> Iterator[None]:
    """While ipv6natd sees and does nothing."""
    regime.daemon.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        regime.daemon.signal(signal.SIGCONT)


@dataclass(slots=True)
class Knocks:
    """What a client that asks all the time was told."""

    count: int = 0
    wrong: list[Answer | Failure] = field(default_factory=list)
    """All that came from anybody but the container itself."""


@contextmanager
def knocking(client: Namespace, port: int) -> Iterator[Knocks]:
    """Have the client fetch from a published port again and again until the context is left."""
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
    """Flows to a host port that conntrack has rewritten: no proxy carried them."""
    words = ("conntrack", "-L", "-f", "ipv6", "-p", protocol, "--orig-port-dst", str(port))
    flows = host.run(*words, "--dst-nat", check=False)
    return [line for line in flows.splitlines() if f"dport={port}" in line]
