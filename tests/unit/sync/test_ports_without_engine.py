"""A model of the ports while the engine reports no changes: the table in docs/limits.md, Q7."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ipv6natd.model import Container, EngineState, Policy
from ipv6natd.sync import saved_ports
from ipv6natd.sync.applier import Applier
from ipv6natd.sync.reconciler import Reconciler
from ipv6natd.sync.saved_ports import PortSaver, SavedPorts
from tests.harness.build import container, endpoint, network
from tests.harness.fake_firewall import FakeFirewall
from tests.harness.fake_host import FakeHost, FakeObserver
from tests.unit.sync.test_reconciler import FakeFacts

NETWORKS = {
    name: network(name=name, subnet=f"fd00:{name}::/64", bridge=f"br-{name}") for name in "ab"
}
PORTS = {"a1": 8001, "a2": 8002, "b1": 8003, "aq": None}
"""All containers, with their published port; the first letter is the network."""
NAMES = st.sampled_from(sorted(PORTS))
NUMBERS = range(2, 5)
"""The last number of a container's address: few, so that addresses are used again."""
DNAT = re.compile(r"--dport (\d+) .*--to-destination \[([0-9a-f:]+)\]")


@dataclass
class ModelHost(FakeHost):
    """The saved ports are real, of the bridges of the model."""

    ports: SavedPorts = field(default_factory=SavedPorts)

    def ports_have_left(self, bridges: Collection[str]) -> bool | None:
        return self.ports.have_left(bridges)


class PortsWithoutEngine(RuleBasedStateMachine):
    """Containers start and leave, and the engine and ipv6natd come and go, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.folder = pytest.MonkeyPatch(), TemporaryDirectory()
        self.patch.setattr(saved_ports, "unit_folder", lambda *_: Path(self.folder.name))
        self.patch.setattr(saved_ports, "container_ports", self.container_ports)
        self.runner = asyncio.Runner()
        self.firewall = FakeFirewall()
        self.live: dict[str, IPv6Address] = {}
        """The containers that run, with their addresses."""
        self.starts = dict.fromkeys(PORTS, 0)
        """A container has another bridge port after each start."""
        self.listed: dict[str, IPv6Address] = {}
        """The containers of which ipv6natd heard last."""
        self.left: set[str] = set()
        """The networks that a container has left since then."""
        self.heard: set[str] = set()
        """The networks that a container has left by an event, without a list since then."""
        self.facts, self.host = FakeFacts(current=False), ModelHost()
        for name in PORTS:
            self.live[name] = self.free(name)[0]
        self.loop: Reconciler | None = None
        self.start_ipv6natd()
        self.list_engine()

    def teardown(self) -> None:
        self.runner.close()
        self.patch.undo()
        self.folder.cleanup()

    def free(self, name: str) -> list[IPv6Address]:
        """The unused addresses of a container's network."""
        subnet = NETWORKS[name[0]].subnets[0]
        return [subnet[n] for n in NUMBERS if subnet[n] not in self.live.values()]

    def container_ports(self, bridges: Iterable[str]) -> frozenset[str]:
        """See ipv6natd.host.facts."""
        there = set(bridges)
        return frozenset(
            f"br-{name[0]}/veth{name}{self.starts[name]}"
            for name in self.live
            if f"br-{name[0]}" in there
        )

    # What happens

    @rule(name=NAMES, number=st.integers(0, 9))
    def start(self, name: str, number: int) -> None:
        if name not in self.live and (free := self.free(name)):
            self.live[name] = free[number % len(free)]
            self.starts[name] += 1
            self.settle()

    @rule(name=NAMES, named=st.booleans())
    def leave(self, name: str, named: bool) -> None:
        """The kernel reports the port, and the bridge only if it is `named`."""
        if self.live.pop(name, None) is None:
            return
        self.left |= {name[0]} if named else set(NETWORKS)
        if self.loop is not None:
            self.loop.departures.note(f"br-{name[0]}" if named else None)
        self.settle()

    @precondition(lambda self: self.facts.current)
    @rule(name=NAMES)
    def leave_unheard(self, name: str) -> None:
        """The engine is killed before it has reported the end."""
        if self.live.pop(name, None) is None:
            return
        assert self.loop is not None
        self.left.add(name[0])
        self.loop.departures.note(f"br-{name[0]}")
        self.lose_engine()

    @precondition(lambda self: self.facts.current)
    @rule(name=NAMES)
    def leave_heard(self, name: str) -> None:
        """The engine is killed after it has reported the end, and before a list confirms it."""
        if self.live.pop(name, None) is None:
            return
        assert self.loop is not None
        self.loop.departures.note(f"br-{name[0]}")
        self.facts.ended[f"br-{name[0]}"] += 1
        self.heard.add(name[0])
        self.listed = dict(self.live)
        self.facts.have(*NETWORKS.values(), *map(self.container, self.live))
        self.lose_engine()

    @rule(named=st.booleans())
    def exchange_addresses(self, named: bool) -> None:
        """The containers of the first network leave, and start in the opposite order."""
        names = [name for name in self.live if name[0] == "a"]
        before = [self.live[name] for name in names]
        for name in names:
            self.leave(name, named)
        for name, address in zip(reversed(names), before, strict=True):
            self.live[name] = address
            self.starts[name] += 1
            self.settle()

    @precondition(lambda self: self.facts.current)
    @rule()
    def lose_engine(self) -> None:
        self.facts.current, self.facts.state = False, EngineState.LOST
        self.settle()

    @precondition(lambda self: self.loop is not None and not self.facts.current)
    @rule()
    def list_engine(self) -> None:
        self.facts.current, self.facts.state = True, EngineState.CONNECTED
        self.settle()

    @precondition(lambda self: self.loop is not None)
    @rule(crash=st.booleans())
    def end_ipv6natd(self, crash: bool) -> None:
        assert self.loop is not None
        if not crash:
            self.save_ports()
        # The next process knows only that a port is gone.
        self.left |= self.heard
        self.loop, self.facts = None, FakeFacts(current=False)

    @precondition(lambda self: self.loop is None)
    @rule(refused=st.booleans())
    def start_ipv6natd(self, refused: bool = False) -> None:
        """The engine does not answer, or refuses the connection."""
        state = EngineState.UNREACHABLE if refused else EngineState.STARTING
        self.facts = FakeFacts(state=state, current=False)
        self.host = ModelHost()
        applier = Applier(lambda: self.firewall, self.host)
        self.loop = Reconciler(
            engine=self.facts, applier=applier, observer=FakeObserver(), policy=Policy()
        )
        self.settle()

    def settle(self) -> None:
        """Report the containers if the engine is there, run a pass, and save the ports."""
        if self.loop is None:
            return
        if self.facts.current:
            self.listed = dict(self.live)
            self.left.clear()
            self.heard.clear()
            self.facts.have(*NETWORKS.values(), *map(self.container, self.live))
        self.runner.run(self.loop._run_pass())
        if self.facts.current:
            self.runner.run(self.loop.departures.confirm_once())
            self.save_ports()

    def save_ports(self) -> None:
        assert self.loop is not None
        PortSaver(self.host.ports, self.loop.departures).save()

    def container(self, name: str) -> Container:
        port = PORTS[name]
        end = endpoint(on=NETWORKS[name[0]], address=str(self.live[name]))
        return container(name=name, on=[end], ports=[f"{port}:80"] if port else [])

    # What holds

    @property
    def open_ports(self) -> dict[int, IPv6Address]:
        return {int(port): IPv6Address(to) for port, to in DNAT.findall(self.firewall.dump())}

    @precondition(lambda self: self.loop is not None)
    @invariant()
    def no_port_leads_to_another_container(self) -> None:
        names = {address: name for name, address in self.live.items()}
        for port, address in self.open_ports.items():
            if address in names:
                assert PORTS[names[address]] == port

    @precondition(lambda self: self.loop is not None)
    @invariant()
    def ports_stay_open_where_no_container_has_left(self) -> None:
        closed = self.left if self.facts.state.has_facts or not self.left else set(NETWORKS)
        for name, address in self.listed.items():
            if (port := PORTS[name]) and name[0] not in closed:
                assert self.open_ports.get(port) == address


PortsWithoutEngine.TestCase.settings = settings(stateful_step_count=30, deadline=None)
TestPortsWithoutEngine = PortsWithoutEngine.TestCase
