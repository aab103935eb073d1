"""The lab for faults: its containers, its traffic, and the expected tables.

| container | network | address | listens | published |
|---|---|---|---|---|
| x1 | X, brX, fd00:a::/64 | ::2 | tcp 80 81, udp 53 54 | 8080:80 5353:53/udp |
| x2 | X | ::3 | tcp 80 9000-9009 | 9000-9009 |
| y1 | Y, brY, fd00:b::/64 | ::2 | tcp 80 443, udp 53 | 8081:80, [2001:db8:1::10]:8443:443 |
| i1 | I, brI, fd00:c::/64, internal | ::2 | tcp 80, udp 53 | |
| extra | X | ::9 | tcp 80, udp 53 | 8099:80 5399:53/udp |

All containers except `extra` always run. Their addresses are fixed, so the tables are the same
after a restart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv6Address

from tests.harness import Answer, Bus, Daemon, Engine, Failure, Sandbox, serve, tcp, udp, until
from tests.harness.process import LabError
from tests.harness.relay import Relay
from tests.harness.sandbox import CLIENT, HOST, HOST_TOO, Variant
from tests.stress.soak.traffic import Flow, Target, Traffic, Wrong

X1, X2, Y1, I1, EXTRA = (
    IPv6Address(each) for each in ("fd00:a::2", "fd00:a::3", "fd00:b::2", "fd00:c::2", "fd00:a::9")
)
RUN = tuple(range(9000, 9010))
RESIDENTS: dict[str, tuple[str, IPv6Address, tuple[str, ...], tuple[int, ...], tuple[int, ...]]] = {
    "x1": ("X", X1, ("8080:80", "5353:53/udp"), (80, 81), (53, 54)),
    "x2": ("X", X2, ("9000-9009:9000-9009",), (80, *RUN), ()),
    "y1": ("Y", Y1, ("8081:80", f"[{HOST_TOO}]:8443:443"), (80, 443), (53,)),
    "i1": ("I", I1, (), (80,), (53,)),
}
"""Network, address, published ports, TCP and UDP ports of the server."""

PUBLISHED = (
    Target(HOST, 8080, server="x1", peer=CLIENT),
    Target(HOST, 5353, "udp", server="x1", peer=CLIENT),
    Target(HOST, 9000, server="x2", peer=CLIENT),
    Target(HOST, 9009, server="x2", peer=CLIENT),
    Target(HOST, 8081, server="y1", peer=CLIENT),
    Target(HOST_TOO, 8443, server="y1", peer=CLIENT),
)
HELD = (PUBLISHED[0], PUBLISHED[1], PUBLISHED[2], PUBLISHED[5])
OUTSIDE = (
    *(Target(X1, port) for port in (80, 81)),
    *(Target(X1, port, "udp") for port in (53, 54)),
    Target(X2, 9000),
    Target(Y1, 443),
    Target(I1, 80),
    Target(I1, 53, "udp"),
    Target(EXTRA, 80),
    Target(HOST, 81),
)
"""Ports that are closed to the rogue, also published ports on containers' own addresses."""
NEIGHBOURS = (Target(X1, 80), Target(X1, 53, "udp"), Target(X2, 80), Target(I1, 80))
"""Ports that are closed to a container of another network."""
OUTWARD = Target(CLIENT, 7, server="client")


@dataclass(slots=True)
class Talk:
    """The traffic of one repetition."""

    client: Traffic
    rogue: Traffic
    neighbour: Traffic
    inner: Traffic
    flows: list[Flow] = field(default_factory=list)

    @property
    def everybody(self) -> tuple[Traffic, ...]:
        return self.client, self.rogue, self.neighbour, self.inner

    @property
    def attempted(self) -> int:
        return sum(each.tally.attempted for each in self.everybody)

    @property
    def probed(self) -> int:
        return sum(each.tally.probed for each in self.everybody)

    @property
    def failed(self) -> list[Wrong]:
        return [wrong for each in self.everybody for wrong in each.tally.failed]

    @property
    def answered_closed(self) -> list[Wrong]:
        return [wrong for each in self.everybody for wrong in each.tally.answered_closed]

    @property
    def cut(self) -> list[Flow]:
        return [flow for flow in self.flows if flow.cut is not None]


class Scene:
    """Engine, bus, relay, daemon and residents of one lab."""

    sandbox: Sandbox
    engine: Engine
    bus: Bus
    relay: Relay
    daemon: Daemon

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.extra = False
        """True while `extra` runs."""
        self.texts: dict[bool, str] = {}
        """The expected tables, without and with `extra`."""
        self.reload_of_firewall: Callable[[], object] = lambda: None
        """Reloads the other firewall of this host, if there is one."""
        self.said: Talk | None = None
        """The current traffic."""
        self._servers = ExitStack()
        self._extra_server = ExitStack()

    def rules(self) -> str:
        """The tables, without our renamed chains, to which no jump leads."""
        lines = self.sandbox.rules().splitlines(keepends=True)
        return "".join(each for each in lines if not each.startswith((":MINE-", "-A MINE-")))

    def ip6tables(self, *words: str) -> str:
        return self.sandbox.host.run(f"ip6tables-{self.variant}", *words)

    def serve(self) -> None:
        """Start the servers in the current namespaces of the containers."""
        self._servers.close()
        for name, (_, _, _, streams, datagrams) in RESIDENTS.items():
            ns = self.engine.container(name).ns
            self._servers.enter_context(serve(ns, name, tcp=streams, udp=datagrams))

    def came_back(self) -> None:
        """Start the servers again after the engine has restarted the containers."""
        self.serve()
        if self.said is not None:  # clients inside a container have ended with it
            self.said.inner.ask()
            self.said.neighbour.probe()
        for target in PUBLISHED:
            if not until(partial(reached, self, target), True, timeout=20):
                shown = self.engine.docker("ps", "--all", "--format={{.Names}} {{.Status}}")
                raise LabError(
                    f"{target} does not answer after a restart: ipv6natd is"
                    f" {self.daemon.status!r}; containers: {'; '.join(shown.splitlines())}"
                )

    def close(self) -> None:
        """End the servers."""
        self._servers.close()
        self._extra_server.close()

    def toggle(self) -> None:
        """Start `extra`, or kill it, without waiting for the daemon."""
        self._extra_server.close()
        self.engine.docker("kill" if self.extra else "start", "extra")
        self.extra = not self.extra
        if self.extra:
            ns = self.engine.container("extra").ns
            self._extra_server.enter_context(serve(ns, "extra", tcp=[80], udp=[53]))

    def extra_died(self) -> None:
        """Record that `extra` has ended with the engine."""
        self._extra_server.close()
        self.extra = False

    def extra_is_right(self) -> bool:
        """True if the client reaches `extra`, or gets no answer while `extra` does not run."""
        answer = tcp(self.sandbox.client, HOST, 8099)
        if not self.extra:
            return isinstance(answer, Failure)
        return isinstance(answer, Answer) and (answer.server, answer.peer) == ("extra", CLIENT)

    def settled(self, text: str) -> bool:
        """True if the tables are this text, and the daemon is synced."""
        return self.rules() == text and self.daemon.status.startswith("synced")

    def await_text(self, text: str, *, timeout: float) -> float | None:
        """Seconds until the tables are this text and the daemon is synced; None on time-out."""
        began = time.monotonic()
        if not until(lambda: self.settled(text), True, timeout=timeout, pause=0.02):
            return None
        return time.monotonic() - began

    def fresh(self) -> str:
        """The tables that a daemon without saved state writes."""
        if self.daemon.process is not None and self.daemon.process.poll() is None:
            self.daemon.stop()
        self.daemon.flush()
        if "IPV6NAT-" in (left := self.rules()):
            raise LabError(f"-flush left rules:\n{left}")
        for file in (self.daemon.dir / "state").iterdir():
            file.unlink()
        self.daemon.start()
        return self.rules()

    @contextmanager
    def talk(self) -> Iterator[Talk]:
        """Run all traffic until the end of the context."""
        # An earlier fault may have left established entries, and a probe may use their ports.
        self.sandbox.host.run("conntrack", "-F", "-f", "ipv6")
        x1, y1 = (self.engine.container(name).ns for name in ("x1", "y1"))
        with (
            serve(self.sandbox.client, "client", tcp=[7]),
            Traffic(self.sandbox.client) as client,
            Traffic(self.sandbox.rogue) as rogue,
            Traffic(y1, probes=20) as neighbour,
            Traffic(x1, rate=5) as inner,
        ):
            talk = Talk(client, rogue, neighbour, inner)
            talk.flows = [client.hold(target) for target in HELD] + [inner.hold(OUTWARD)]
            client.ask(*PUBLISHED)
            inner.ask(OUTWARD)
            rogue.probe(*OUTSIDE)
            neighbour.probe(*NEIGHBOURS)
            if not until(lambda: all(flow.answered for flow in talk.flows), True):
                raise LabError("no flow before the fault")
            self.said = talk
            yield talk
            self.said = None
            for each in talk.everybody:
                each.settle()


def reached(scene: Scene, target: Target) -> bool:
    """True if the right server answers the client and sees the client's address."""
    ask = tcp if target.protocol == "tcp" else udp
    return target.right(ask(scene.sandbox.client, target.address, target.port))


@contextmanager
def scene(variant: Variant) -> Iterator[Scene]:
    """Build the lab, and wait until the daemon is synced."""
    made = Scene(variant)
    with ExitStack() as stack:
        made.sandbox = stack.enter_context(Sandbox(variant))
        made.engine = stack.enter_context(Engine(made.sandbox, "--live-restore"))
        names = ["org.fedoraproject.FirewallD1"]
        made.bus = stack.enter_context(Bus(made.sandbox.dir, names=names))
        relayed = made.sandbox.dir / "relay.sock"
        made.relay = stack.enter_context(Relay(made.engine.socket, relayed))
        for name, subnet, *words in (
            ("X", "fd00:a::/64"),
            ("Y", "fd00:b::/64"),
            ("I", "fd00:c::/64", "--internal"),
        ):
            made.engine.network(name, subnet, *words)
        for number, (name, (network, address, ports, _, _)) in enumerate(RESIDENTS.items()):
            # With a fixed MAC the host's neighbour entries stay valid after a restart.
            fixed = ("--restart=always", f"--mac-address=02:42:00:00:00:0{number}")
            made.engine.run(name, network, *fixed, publish=ports, ip6=str(address))
        made.engine.run("extra", "X", publish=["8099:80", "5399:53/udp"], ip6=str(EXTRA))
        made.engine.docker("kill", "extra")
        stack.callback(made.close)
        made.serve()
        made.daemon = stack.enter_context(
            Daemon(
                made.sandbox,
                made.engine.endpoint,
                bus=made.bus.address,
                settings=["resync_interval = 10"],
            )
        )
        for _ in range(2):
            made.toggle()
            made.texts[made.extra] = made.fresh()
        yield made
