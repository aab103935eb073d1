"""The smallest lab with a published port, for tests that start and stop its parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.harness import Container, Daemon, Engine, Namespace, Sandbox, Wanted, serve


@dataclass(frozen=True, kw_only=True)
class Small:
    """A host with an engine, a network X with x1 on port 8080, and a daemon, not yet started."""

    sandbox: Sandbox
    engine: Engine
    daemon: Daemon
    x1: Container

    @property
    def client(self) -> Namespace:
        return self.sandbox.client

    def own(self) -> list[str]:
        return [line for line in self.sandbox.rules().splitlines() if "IPV6NAT" in line]


@contextmanager
def small(wanted: Wanted, *engine_args: str) -> Iterator[Small]:
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(wanted.variant))
        engine = stack.enter_context(
            Engine(sandbox, *engine_args, userland_proxy=wanted.proxy, suite=wanted.suite)
        )
        daemon = stack.enter_context(Daemon(sandbox, engine.endpoint, start=False))
        engine.network("X", "fd00:a::/64")
        x1 = engine.run("x1", "X", publish=["8080:80"])
        stack.enter_context(serve(x1.ns, "x1", tcp=[80]))
        yield Small(sandbox=sandbox, engine=engine, daemon=daemon, x1=x1)
