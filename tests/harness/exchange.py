"""Containers that get each other's addresses, and a client that asks which of them answers: Q7.

All containers restart with the engine, and each runs a server of its own from its first moment, so
a wrong answer is possible as soon as an address has moved.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv6Network
from random import Random

from tests.harness.engine import Engine
from tests.harness.namespace import Namespace
from tests.harness.probe import until
from tests.harness.sandbox import HOST

NETWORK, BRIDGE, SUBNET = "exchange", "exch0", IPv6Network("fd00:e::/64")
PORTS = {8180: "one", 8181: "two"}
"""The containers that publish a port."""
BESIDE = ("quiet", "three", "four", "five", "six")
"""More containers, which publish nothing."""
PAUSE = 0.05
"""Seconds between two questions to a port."""


@dataclass(slots=True)
class Answers:
    """Which container answered, for each port; "" if none did."""

    by_port: dict[int, list[str]] = field(default_factory=lambda: {port: [] for port in PORTS})

    @property
    def wrong(self) -> list[tuple[int, str]]:
        """The answers of other containers."""
        return [
            (port, name)
            for port, names in self.by_port.items()
            for name in names
            if name not in ("", PORTS[port])
        ]

    @property
    def count(self) -> int:
        """The answers of all containers."""
        return sum(name != "" for names in self.by_port.values() for name in names)

    def forget(self) -> None:
        """Remove the answers up to now."""
        for names in self.by_port.values():
            names.clear()

    def await_all(self, *, timeout: float = 15) -> bool:
        """True once each port has been answered by its own container, from now on."""
        asked = {port: len(names) + 1 for port, names in self.by_port.items()}  # one is pending

        def right() -> bool:
            return all(PORTS[p] in names[asked[p] :] for p, names in self.by_port.items())

        return until(right, True, timeout=timeout)


def ask(port: int) -> str:
    """The name of the container that answers on a port of the host."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        sock.settimeout(0.2)
        try:
            sock.connect((str(HOST), port))
            sock.send(b"GET /name HTTP/1.0\r\n\r\n")
            data = b""
            while block := sock.recv(1000):
                data += block
        except OSError:
            return ""
        return data.partition(b"\r\n\r\n")[2].decode().strip()


@contextmanager
def asking(client: Namespace) -> Iterator[Answers]:
    """Ask all ports 20 times a second."""
    answers, done = Answers(), threading.Event()

    def loop() -> None:
        while not done.wait(PAUSE):
            for port, names in answers.by_port.items():
                names.append(ask(port))

    asker = threading.Thread(target=lambda: client.within(loop), name="asking")
    asker.start()
    try:
        yield answers
    finally:
        done.set()
        asker.join()


def run_all(engine: Engine) -> None:
    """Create the network and the containers."""
    engine.network(NETWORK, SUBNET, bridge=BRIDGE)
    for name in (*PORTS.values(), *BESIDE):
        ports = [f"{port}:80" for port, owner in PORTS.items() if owner == name]
        serving = f"mkdir -p /www; echo {name} >/www/name; exec httpd -f -h /www"
        engine.run(name, NETWORK, "--restart=always", publish=ports, cmd=("sh", "-c", serving))


def remove_all(engine: Engine) -> None:
    engine.rm(*PORTS.values(), *BESIDE)
    engine.docker("network", "rm", NETWORK)


def addresses(engine: Engine) -> list[str]:
    """The addresses of the containers that publish a port."""
    address = "{{range .NetworkSettings.Networks}}{{.GlobalIPv6Address}}{{end}}"
    return engine.docker("inspect", f"--format={address}", *PORTS.values()).splitlines()


def shuffle(engine: Engine, rng: Random) -> None:
    """Stop some containers, and start them in a random order."""
    names = [*PORTS.values(), *rng.sample(BESIDE, k=2)]
    engine.docker("stop", "--time=0", *names)
    rng.shuffle(names)
    engine.docker("start", *names)


def answered_once(client: Namespace) -> bool:
    """True as soon as each port is answered by its own container."""
    return all(
        until(partial(client.within, partial(ask, port)), name) == name
        for port, name in PORTS.items()
    )
