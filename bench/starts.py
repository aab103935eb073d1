"""Clients that connect while a container starts, with real engines, beside the engine's own NAT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain

from tests.harness import Daemon, Engine, Sandbox
from tests.harness.regime import DEFAULT_BRIDGE
from tests.harness.sandbox import Variant
from tests.harness.starting import Connection, End, early_time, first_end, import_image, start
from tests.harness.tree import Suite

PORT = 4000
SUITES: tuple[Suite | None, ...] = (None, "trixie", "sid")
"""Docker 20.10, 26 and 28."""
OWN_NAT = ("--experimental", "--ip6tables")


@dataclass(frozen=True, slots=True, kw_only=True)
class Starts:
    """The starts of one container with one engine."""

    variant: Variant
    engine: str
    """The version."""
    proxy: bool
    native: bool
    """True if the engine does IPv6 NAT itself, without ipv6natd."""
    connections: list[list[Connection]]
    """Of each start with clients."""
    first: Counter[End]
    """Of a connection made at the return of each start."""

    @property
    def ends(self) -> Counter[End]:
        """Of all connections."""
        return Counter(found.end for found in chain.from_iterable(self.connections))

    @property
    def waits(self) -> list[float]:
        """Seconds from the opening of the port to its rule, of each start with clients."""
        return [early_time(found) for found in self.connections]


def measured(variant: Variant, count: int, returns: int, *, with_native: bool) -> Iterator[Starts]:
    """`count` starts with clients, and `returns` starts with one client after the return; with
    `with_native`, also those of the engine's own NAT."""
    natives = (False, True) if with_native else (False,)
    for suite in SUITES:
        for proxy in (False, True):
            for native in natives:
                with ExitStack() as stack:
                    sandbox = stack.enter_context(Sandbox(variant))
                    engine = stack.enter_context(
                        Engine(
                            sandbox,
                            *DEFAULT_BRIDGE,
                            *(OWN_NAT if native else ()),
                            userland_proxy=proxy,
                            suite=suite,
                            ip6tables=None if native else False,
                        )
                    )
                    engine.network("X", "fd00:a::/64")
                    if not native:
                        stack.enter_context(Daemon(sandbox, engine.endpoint))
                    import_image(engine)
                    connections = [
                        start(engine, sandbox.client, f"box{number}", PORT + number)
                        for number in range(count)
                    ]
                    first = Counter(
                        first_end(engine, sandbox.client, f"r{number}", PORT)
                        for number in range(0 if native else returns)
                    )
                    yield Starts(
                        variant=variant,
                        engine=engine.version,
                        proxy=proxy,
                        native=native,
                        connections=connections,
                        first=first,
                    )
