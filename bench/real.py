"""A real engine: the time from the return of `docker start` until a client gets an answer."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack

from bench.engine import scattered
from tests.harness import Daemon, Engine, Namespace, Sandbox
from tests.harness.process import LabError
from tests.harness.regime import DEFAULT_BRIDGE
from tests.harness.sandbox import HOST, Variant

PORT = 4000
PATIENCE = 0.005
"""Seconds for one attempt: no server answers before the rule is in the kernel."""


def starts(variant: Variant, count: int, *, mappings: int) -> list[float]:
    """Seconds from the return of each start to the first answer, with `mappings` other mappings."""
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(variant))
        engine = stack.enter_context(Engine(sandbox, *DEFAULT_BRIDGE, userland_proxy=False))
        network = engine.network("X", "fd00:a::/64")
        ports = [f"{port}:80" for port in scattered(mappings)]
        engine.run("many", network, publish=ports)
        daemon = stack.enter_context(Daemon(sandbox, engine.endpoint, args=()))
        daemon.wait_for(lambda: f"{mappings} mappings" in daemon.status, "all mappings", 60)
        words = ("--network=X", f"--publish={PORT}:80", "lab:1", "httpd", "-f", "-h", "/")
        engine.docker("create", "--name=one", *words)
        return [_once(engine, sandbox.client) for _ in range(count)]


def _once(engine: Engine, client: Namespace) -> float:
    engine.docker("start", "one")
    began = time.monotonic()
    try:
        while not client.within(_answers):
            if time.monotonic() - began > 10:
                raise LabError("the container cannot be reached")
        return time.monotonic() - began
    finally:
        engine.docker("kill", "one")


def _answers() -> bool:
    """True if the container's web server answers. The engine listens on the port too, silently."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        try:
            sock.connect((str(HOST), PORT))
            sock.send(b"GET / HTTP/1.0\r\n\r\n")
            return bool(sock.recv(1))
        except OSError:
            return False
