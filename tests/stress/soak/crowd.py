"""Permanent clients: steady connections, open flows and probes of closed ports, and attackers.

Before a step they get the results that must not change during the step. After the step they
report the wrong results.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from ipaddress import IPv6Address
from types import TracebackType
from typing import Self

from tests.harness.namespace import Namespace
from tests.stress.soak.attackers import Attackers
from tests.stress.soak.forgery import known
from tests.stress.soak.ground import Ground
from tests.stress.soak.model import Ask, Other, Reached, Want, World
from tests.stress.soak.steps import RESIDENT, Step
from tests.stress.soak.traffic import Flow, Target, Traffic
from tests.stress.soak.volley import Faithful

PAUSE = 0.1
"""Seconds between rounds of the kept sockets and of the attackers."""
PATIENT = 5.0
"""Seconds for a new connection: a busy machine may be slow, but a lost one never opens."""
FLOWS = 24

Wants = Mapping[Ask, Want]


def aim(ask: Ask, want: Want) -> Target:
    """The target of traffic for one question."""
    server = peer = None
    if isinstance(want, Reached):
        server = want.server
        peer = next(iter(want.peers)) if want.peers and len(want.peers) == 1 else None
    return Target(ask.address, ask.port, ask.protocol, server=server, peer=peer)


class Crowd:
    """All permanent clients of a lab."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        sandbox = ground.sandbox
        self.faithful = Faithful(sandbox.client)
        self.attackers = Attackers(sandbox)
        self.clients = {n: Traffic(getattr(sandbox, n), patience=PATIENT) for n in CLIENTS}
        self.excused = 0
        """New connections that failed while rules were removed, or to a container that the engine
        restarted by itself."""
        self._edited = 0.0
        """The end of the last step that removed rules, by time.monotonic()."""
        self.held = 0
        self._flows: dict[tuple[str, Target], Flow] = {}
        self._past = [0, 0]
        """Connections and probes of the resident's former traffic."""
        self._home: Namespace | None = None
        self._seen: dict[str, tuple[int, int]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="crowd", daemon=True)

    def __enter__(self) -> Self:
        for each in self.clients.values():
            each.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        for each in self.clients.values():
            each.__exit__(kind, error, trace)
        self.faithful.close()
        self.attackers.close()

    @property
    def attempted(self) -> int:
        return self._past[0] + sum(each.tally.attempted for each in self.clients.values())

    @property
    def probed(self) -> int:
        return self._past[1] + sum(each.tally.probed for each in self.clients.values())

    def before(self, step: Step, world: World, old: Wants, new: Wants) -> None:
        """Connect to the ports that the step must not disturb, and probe the closed ports."""
        loose = {
            address
            for name in step.touched & world.boxes.keys()
            for net, address in world.boxes[name].ends.items()
            if net not in world.boxes[name].fixed
        }
        # Removed rules leave closed ports open until the repair, unless the policy is DROP.
        quiet = step.edits and not (world.drop and step.keeps_policy)
        for (server, target), flow in list(self._flows.items()):
            if step.cuts or server in step.touched or not still(flow.target, old, new):
                self._release((server, target))
        if RESIDENT in step.touched:
            self._leave()
        for origin, traffic in self.clients.items():
            steady = [
                aim(ask, want)
                for ask, want in old.items()
                if ask.origin == origin
                and isinstance(want, Reached)
                # With any peer the connection may use the engine's proxy, and ends with it.
                and want.peers is not None
                and want.server not in step.touched
                and new.get(ask) == want
            ]
            closed = [] if quiet else [aim(a, Other.CLOSED) for a in shut(origin, old, new, loose)]
            traffic.ask(*dict.fromkeys(steady))
            traffic.probe(*dict.fromkeys(closed))
            self._seen[origin] = (len(traffic.tally.failed), len(traffic.tally.answered_closed))
        # An edit opens the engine's proxy too, and the policy of FORWARD does not close it.
        self.attackers.aim(None if step.edits else known(world, step.after, step.touched, old))

    def after(self, step: Step, world: World, restarted: frozenset[str]) -> list[str]:
        """The wrong results since `before`. `restarted` are containers that the engine restarted by
        itself, and that were not reachable meanwhile."""
        wrong = []
        if step.edits:
            self._edited = time.monotonic()
        for origin, traffic in self.clients.items():
            failed, answered = self._seen[origin]
            lost = traffic.tally.failed[failed:]
            # A datagram without a rule is reported as lost some steps later.
            blamed = [
                each
                for each in lost
                if each.stranger
                or (each.target.server not in restarted and each.began > self._edited)
            ]
            self.excused += len(lost) - len(blamed)
            wrong += [f"lost meanwhile: {origin} {each}" for each in blamed]
            wrong += [
                f"closed, and answered: {origin} {each}"
                for each in traffic.tally.answered_closed[answered:]
            ]
        for (server, _), flow in list(self._flows.items()):
            if flow.cut is not None and flow.target.server not in restarted:
                wrong.append(f"an open flow was cut: {server} {flow.target}: {flow.cut}")
        wrong += self.attackers.back()
        for name in world.boxes:
            server_ = self.ground.server(name)
            if server_ is None:
                continue
            came, server_.received[:] = list(server_.received), []
            if name not in restarted:
                wrong += self.attackers.through(name, came)
        return wrong

    def settled(self, world: World, wants: Wants) -> list[str]:
        """Open flows to the published ports, and move the resident's traffic to its namespace."""
        self._follow(world)
        for key in [k for k, flow in self._flows.items() if flow.cut is not None]:
            self._release(key)
        wrong = []
        for ask, want in wants.items():
            if len(self._flows) >= FLOWS:
                break
            target = aim(ask, want)
            if ask.kept or ask.origin != "client" or not isinstance(want, Reached):
                continue
            if (want.server, target) in self._flows:
                continue
            try:
                self._flows[want.server, target] = self.clients["client"].hold(target, timeout=10)
                self.held += 1
            except OSError as error:
                wrong.append(f"an open flow could not be opened: {target}: {error}")
        return wrong

    def _release(self, key: tuple[str, Target]) -> None:
        self.clients["client"].release(self._flows.pop(key))

    def _follow(self, world: World) -> None:
        home = self.ground.spaces(world).get(RESIDENT)
        if home == self._home or home is None:
            return
        self._leave()
        self._home = home
        net, address = next(iter(world.boxes[RESIDENT].ends.items()))
        if address is not None:
            self.attackers.enter(home, world.nets[net], address)
        self.clients[RESIDENT] = Traffic(home, rate=10, patience=PATIENT).__enter__()

    def _leave(self) -> None:
        """End the resident's traffic and attacks, at the latest with its namespace."""
        self.attackers.leave()
        old, self._home = self.clients.pop(RESIDENT, None), None
        if old is not None:
            old.__exit__(None, None, None)
            self._past[0] += old.tally.attempted
            self._past[1] += old.tally.probed

    def _run(self) -> None:
        while not self._done.wait(PAUSE):
            self.faithful.send()
            self.attackers.round()


CLIENTS = ("client", "rogue")


def still(target: Target, old: Wants, new: Wants) -> bool:
    """True if a client's question has the same answer before and after."""
    ask = Ask("client", target.protocol, target.address, target.port)
    return ask in old and old[ask] == new.get(ask)


def shut(
    origin: str, old: Wants, new: Wants, loose: AbstractSet[IPv6Address | None]
) -> Iterable[Ask]:
    """The ports that are closed before and after. The engine may give the `loose` addresses to
    other containers meanwhile."""
    for ask in {**old, **new}:
        sides = {old.get(ask, Other.CLOSED), new.get(ask, Other.CLOSED)}
        # Within a step another container may get a host port, but not a container's address.
        closed = sides == {Other.CLOSED} and ask.address not in loose
        if ask.origin == origin and closed and not ask.kept:
            yield ask
