"""The time between a network's creation and its rules, in which no packet may enter either.

A rogue sends requests to the later address of the network's first container, from before the
network exists. Packets before the rules find no neighbour, and the kernel must not queue them.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network

from tests.harness import Daemon, Engine, Namespace, Sandbox
from tests.harness.tree import Suite

ECHO_REQUEST, ECHO_REPLY = 128, 129
PAUSE = 0.001
NEIGHBOUR_TRIES = 2.5
"""Seconds of the kernel's neighbour discovery, during which packets wait: three tries, one per
second, the first before the container exists."""


@dataclass(slots=True)
class PingCount:
    """The numbers of requests and replies."""

    requests: int = 0
    answers: int = 0


@contextmanager
def pinging(ns: Namespace, address: IPv6Address) -> Iterator[PingCount]:
    """Send echo requests, which a container answers before its servers start."""
    asked, done, token = PingCount(), threading.Event(), os.urandom(8)
    request = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, 1, 1) + token

    def ask(sock: socket.socket) -> None:
        while not done.wait(PAUSE):
            sock.sendto(request, (str(address), 0))
            asked.requests += 1

    def listen(sock: socket.socket) -> None:
        while not done.is_set():
            try:
                reply = sock.recv(4096)
            except TimeoutError:
                continue
            asked.answers += reply[0] == ECHO_REPLY and reply[8:] == token

    with ns.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.settimeout(0.1)
        threads = [threading.Thread(target=each, args=(sock,)) for each in (ask, listen)]
        for thread in threads:
            thread.start()
        try:
            yield asked
        finally:
            done.set()
            for thread in threads:
                thread.join()


def test_no_packet_enters_a_new_network_before_its_rules(suite: Suite | None) -> None:
    subnets = {f"N{number}": IPv6Network(f"fd00:{number}::/64") for number in range(1, 4)}
    with (
        Sandbox() as sandbox,
        Engine(sandbox, suite=suite) as engine,
        Daemon(sandbox, engine.endpoint),
        ExitStack() as stack,
    ):
        asked = {
            name: stack.enter_context(pinging(sandbox.rogue, subnet[2]))
            for name, subnet in subnets.items()
        }
        for name, subnet in subnets.items():
            engine.network(name, subnet)
            made = engine.run(f"{name}-1", name, publish=[f"{9000 + int(name[1:])}:80"])
            assert made.address == subnet[2]
        time.sleep(NEIGHBOUR_TRIES)
        assert all(each.requests > 100 for each in asked.values())
        assert {name: each.answers for name, each in asked.items()} == dict.fromkeys(subnets, 0)
