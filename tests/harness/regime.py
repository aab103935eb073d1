"""The shared labs of the packet tests: one for each variant, with and without the proxy.

In a native lab the engine does IPv6 NAT itself, and ipv6natd does not run. There the same tests
show the behaviour of Docker alone, for docs/behaviour.md.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from tests.harness.bus import Bus
from tests.harness.daemon import Daemon
from tests.harness.engine import Container, Engine, Network
from tests.harness.namespace import Namespace
from tests.harness.needs import alone
from tests.harness.probe import Answer, tcp, until
from tests.harness.process import LabError
from tests.harness.sandbox import CLIENT, HOST, Sandbox, Variant
from tests.harness.serve import serve
from tests.harness.tree import Suite

DEFAULT_BRIDGE = ("--ipv6", "--fixed-cidr-v6=fd00:d::/64")
"""The flags that enable IPv6 on the network "bridge"."""


class Wanted(NamedTuple):
    """The properties of a shared lab."""

    suite: Suite | None
    variant: Variant
    proxy: bool
    native: bool = False

    @property
    def id(self) -> str:
        """The id has the suite and not the version, which needs the engine."""
        own = [self.suite] if self.suite else []
        native = ["native"] if self.native else []
        return "-".join([*own, *native, self.variant, "proxy" if self.proxy else "noproxy"])


@dataclass(frozen=True, kw_only=True)
class Regime:
    """Engine, bus and daemon, with two networks, an internal network and five containers.

    | container | network | address | listens | published |
    |---|---|---|---|---|
    | x1 | X, brX, fd00:a::/64 | ::2 | tcp 80 81 443, udp 53 54 | 8080:80 8443:443 5353:53/udp |
    | x2 | X | ::3 | tcp 80, udp 53 | |
    | y1 | Y, brY, fd00:b::/64 | ::2 | tcp 80 81, udp 53 | |
    | i1, i2 | I, brI, fd00:c::/64, internal | ::2, ::3 | tcp 80, udp 53 | |

    Many tests share this lab. A test creates its own ports, networks and containers with the
    methods below, and does not change the daemon, the engine and the five containers. A test that
    must stop or kill them builds its own lab.
    """

    sandbox: Sandbox
    engine: Engine
    x: Network
    y: Network
    inner: Network
    x1: Container
    x2: Container
    y1: Container
    i1: Container
    i2: Container
    _bus: Bus | None
    _daemon: Daemon | None
    _numbers: Iterator[int] = dataclasses.field(default_factory=lambda: itertools.count(1))

    @property
    def native(self) -> bool:
        """True if the engine does IPv6 NAT itself, without ipv6natd."""
        return self._daemon is None

    @property
    def daemon(self) -> Daemon:
        """The daemon. In a native lab this ends the test."""
        return self._daemon or alone()

    @property
    def bus(self) -> Bus:
        return self._bus or alone()

    @property
    def variant(self) -> Variant:
        return self.sandbox.variant

    @property
    def proxy(self) -> bool:
        return self.engine.userland_proxy

    @property
    def host(self) -> Namespace:
        return self.sandbox.host

    @property
    def client(self) -> Namespace:
        return self.sandbox.client

    @property
    def rogue(self) -> Namespace:
        return self.sandbox.rogue

    def port(self, count: int = 1) -> int:
        """The first of `count` consecutive host ports that no test has used lately, at most 100.

        They are below 32768, where the ports of outgoing connections begin."""
        if count > 100:
            raise ValueError("at most 100 consecutive ports")
        return 10000 + 100 * (next(self._numbers) % 200)

    @contextmanager
    def container(
        self,
        *args: str,
        network: str | Network = "X",
        publish: Sequence[str] = (),
        tcp: Iterable[int] = (80,),
        udp: Iterable[int] = (),
        ip6: str | None = None,
        name: str | None = None,
    ) -> Iterator[Container]:
        """A container with a server, until the end of the context; args are for `docker run`."""
        name = name or f"box{next(self._numbers)}"
        try:
            made = self.engine.run(name, network, *args, publish=publish, ip6=ip6)
            with serve(made.ns, name, tcp=tcp, udp=udp) as server:
                yield dataclasses.replace(made, server=server)
        finally:
            self.engine.docker("rm", "--force", "--volumes", name, check=False)

    @contextmanager
    def network(
        self, *args: str, subnet: str | None = None, options: dict[str, str] | None = None
    ) -> Iterator[Network]:
        """A network, until the end of the context; args are for `docker network create`."""
        number = next(self._numbers)
        name = f"n{number}"
        subnet = subnet or f"fd00:1:0:{number:x}::/64"
        try:
            yield self.engine.network(name, subnet, *args, options=options)
        finally:
            self.engine.docker("network", "rm", name, check=False)


@contextmanager
def regime(wanted: Wanted) -> Iterator[Regime]:
    """Build the shared lab, and wait until the client reaches x1's port.

    The wait has a time-out and no error: with a broken daemon each test fails for its own reason.
    """
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(wanted.variant))
        engine = stack.enter_context(
            Engine(
                sandbox,
                *DEFAULT_BRIDGE,
                userland_proxy=wanted.proxy,
                suite=wanted.suite,
                ip6tables=wanted.native,
            )
        )
        bus = daemon = None
        if not wanted.native:
            bus = stack.enter_context(Bus(sandbox.dir))
            daemon = stack.enter_context(Daemon(sandbox, engine.endpoint, bus=bus.address))
        x = engine.network("X", "fd00:a::/64")
        y = engine.network("Y", "fd00:b::/64")
        inner = engine.network("I", "fd00:c::/64", "--internal")
        ports = ("8080:80", "8443:443", "5353:53/udp")
        plans: dict[str, Callable[[], Container]] = {
            "x1": lambda: engine.run("x1", x, ip6="fd00:a::2", publish=ports),
            "x2": lambda: engine.run("x2", x, ip6="fd00:a::3"),
            "y1": lambda: engine.run("y1", y, ip6="fd00:b::2"),
            "i1": lambda: engine.run("i1", inner, ip6="fd00:c::2"),
            "i2": lambda: engine.run("i2", inner, ip6="fd00:c::3"),
        }
        with ThreadPoolExecutor() as pool:
            started = dict(zip(plans, pool.map(lambda plan: plan(), plans.values()), strict=True))
        listens: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
            "x1": ((80, 81, 443), (53, 54)),
            "y1": ((80, 81), (53,)),
        }
        residents = {}
        for name, made in started.items():
            streams, datagrams = listens.get(name, ((80,), (53,)))
            server = stack.enter_context(serve(made.ns, name, tcp=streams, udp=datagrams))
            residents[name] = dataclasses.replace(made, server=server)
        until(lambda: tcp(sandbox.client, HOST, 8080, timeout=0.2), seen_as_client, timeout=5)
        yield Regime(
            sandbox=sandbox,
            engine=engine,
            x=x,
            y=y,
            inner=inner,
            _bus=bus,
            _daemon=daemon,
            **residents,
        )
        for name, made in residents.items():
            if not made.ns.path.exists():
                state = engine.docker("inspect", "--format={{json .State}}", name, check=False)
                raise LabError(f"{name} ended during the tests: {state}\n{engine.log_tail}")


def seen_as_client(answer: object) -> bool:
    return isinstance(answer, Answer) and answer.peer == CLIENT
