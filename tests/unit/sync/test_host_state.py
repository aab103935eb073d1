"""Findings of the host in the status, and the position of our jumps in FORWARD."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.host import facts as host_facts
from ipv6natd.host.facts import tracks_sctp
from ipv6natd.host.findings import Finding, Severity, Topic
from ipv6natd.model import EngineState, Network, Policy
from ipv6natd.netfilter.diff import TableChange
from ipv6natd.netfilter.rules import Backend
from ipv6natd.report.status import State, Status
from ipv6natd.sync import host_monitor, reconciler
from ipv6natd.sync.applier import (
    MAX_POSITION_LOSSES,
    POSITION_LOSS_PERIOD,
    Applier,
    PositionGuard,
)
from ipv6natd.sync.reconciler import Reconciler
from tests.harness.fake_firewall import FakeFirewall
from tests.harness.fake_host import FakeHost, FakeObserver
from tests.harness.waiting import background, until
from tests.unit.sync.test_reconciler import FakeFacts, X, web

OFF = Finding(problem="forwarding is off", command="sysctl -w a=1")
MORE = Finding(problem="more", command="true")
ZONE = Finding(problem="br-a is in no zone", command="firewall-cmd", network="a", bridge="br-a")
THEIRS = "-A FORWARD -j DROP"
BAN_LIST = "-A FORWARD -s 2001:db8:1::2/128 -j DROP"


@dataclass
class Host(FakeHost, FakeObserver):
    """A reconciler whose host check returns `found`."""

    fake: FakeFirewall = field(default_factory=FakeFirewall)
    open_firewall: Callable[[], FakeFirewall] | None = None
    """Instead of one that opens `fake`."""
    facts: FakeFacts = field(default_factory=FakeFacts)

    def start(self) -> Reconciler:
        self.facts.have(X, web("8080:80"))
        self.loop = Reconciler(
            engine=self.facts,
            applier=Applier(self.open_firewall or (lambda: self.fake), self),
            observer=self,
            policy=Policy(),
        )
        return self.loop

    async def is_(self, state: State, reason: str) -> Status:
        def shown() -> bool:
            return (self.loop.status.state, self.loop.status.state_reason) == (state, reason)

        await until(shown)
        return self.loop.status

    async def intrude(self) -> None:
        """Another program inserts a rule before our jumps, and the next pass reads it."""
        before = len(self.published)
        self.fake.load(f"*filter\n-I FORWARD 1{THEIRS.removeprefix('-A FORWARD')}\nCOMMIT\n")
        self.loop.verify()
        await until(lambda: len(self.published) > before)

    @property
    def first(self) -> str:
        lines = self.fake.dump().splitlines()
        return next(line for line in lines if line.startswith("-A FORWARD"))


def run(host: Host, scenario: Callable[[Host], Awaitable[None]]) -> None:
    async def whole() -> None:
        loop = host.start()
        async with background(loop.run()), background(loop.monitor.run()):
            loop.trigger()
            await scenario(host)

    asyncio.run(whole())


@pytest.fixture(autouse=True)
def _short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "MIN_RETRY_PAUSE", 0.02)
    monkeypatch.setattr(host_monitor, "CHECK_INTERVAL", 0.05)


def test_k1_host_finding_makes_the_state_degraded_until_it_is_fixed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """K1."""

    async def scenario(host: Host) -> None:
        status = await host.is_(State.DEGRADED, OFF.text)
        assert len(status.mappings) == 1
        await until(lambda: len(host.checks) > 3)
        host.found = ()
        await host.is_(State.SYNCED, "")

    with caplog.at_level("INFO", "ipv6natd"):
        run(Host(found=(OFF,)), scenario)
    messages = [record.getMessage() for record in caplog.records if OFF.text in record.getMessage()]
    assert [message for message in messages if message.startswith((OFF.text, "resolved"))] == [
        OFF.text,
        f"resolved: {OFF.text}",
    ]


def test_state_reason_is_the_first_finding_and_counts_the_others() -> None:
    async def scenario(host: Host) -> None:
        text = f"{OFF.text} (and 2 more: ipv6natctl findings)"
        await host.is_(State.DEGRADED, text)

    run(Host(found=(OFF, ZONE, MORE)), scenario)


def test_finding_about_one_network_is_a_warning_of_this_network() -> None:
    async def scenario(host: Host) -> None:
        status = await host.is_(State.DEGRADED, ZONE.text)
        assert [network.warnings for network in status.networks] == [(ZONE.text,)]
        generation = status.generation
        host.found = ()
        status = await host.is_(State.SYNCED, "")
        assert [network.warnings for network in status.networks] == [()]
        assert status.generation == generation + 1

    run(Host(found=(ZONE,)), scenario)


def test_findings_are_ordered_and_the_state_follows_from_the_errors() -> None:
    note = Finding(topic=Topic.FIREWALL, severity=Severity.NOTE, problem="a filter")

    async def scenario(host: Host) -> None:
        host.facts.have(replace(X, warnings=("no effect",)))
        host.loop.trigger()
        warning = Finding(
            topic=Topic.NETWORK,
            severity=Severity.WARNING,
            problem="no effect",
            network="x",
            bridge="br-a",
        )
        await until(lambda: host.loop.status.findings == (OFF, ZONE, warning, note))
        await host.is_(State.DEGRADED, f"{OFF.text} (and 1 more: ipv6natctl findings)")
        host.found = (note,)
        await until(lambda: host.loop.status.findings == (warning, note))
        await host.is_(State.SYNCED, "")

    run(Host(found=(note, OFF, ZONE)), scenario)


def test_findings_of_the_service_come_first_and_those_of_networks_go_with_the_rules() -> None:
    async def scenario(host: Host) -> None:
        host.facts.have(replace(X, warnings=("no effect",)))
        host.loop.publisher.config_error = "unknown key"
        host.facts.state, host.facts.waiting_for = EngineState.LOST, "no engine"
        host.loop.trigger()
        await until(lambda: len(host.loop.status.findings) == 4)
        first, second, third, _ = host.loop.status.findings
        assert (first.severity, first.command) == (Severity.WARNING, "ipv6natctl reload")
        assert (second.topic, second.problem) == (Topic.SERVICE, "no engine")
        assert third == OFF
        await host.loop.cleanup()
        removed, *others = host.loop.status.findings
        assert removed.command == "ipv6natctl resync"
        assert others == [first, second, OFF]
        assert host.loop.status.state is State.STOPPED

    run(Host(found=(OFF,)), scenario)


def test_failed_write_stays_a_finding_while_other_findings_change() -> None:
    class Full(FakeFirewall):
        full = True

        def write(self, change: TableChange) -> None:
            if self.full:
                raise FirewallError("no space")
            super().write(change)

    fake = Full()

    async def scenario(host: Host) -> None:
        await host.is_(State.DEGRADED, "no space")
        host.found = (OFF,)
        await host.is_(State.DEGRADED, "no space (and 1 more: ipv6natctl findings)")
        fake.full = False
        await host.is_(State.DEGRADED, OFF.text)

    run(Host(fake=fake), scenario)


def test_requested_findings_are_new_ones_and_published_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_monitor, "CHECK_INTERVAL", 1000)
    monkeypatch.setattr(host_monitor, "MIN_CHECK_INTERVAL", 0.2)

    async def scenario(host: Host) -> None:
        await until(lambda: (X,) in host.checks)  # those at the start have ended
        await host.loop.monitor.check()
        host.found, before = (OFF,), len(host.checks)
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(host.loop.monitor.check_on_request() for _ in range(5)))
        assert len(host.checks) == before + 1
        assert asyncio.get_running_loop().time() - began > 0.1
        assert host.loop.publisher.newest_findings() == (OFF,)
        assert host.loop.status.findings == (OFF,)
        assert host.loop.status.state is State.DEGRADED

    run(Host(), scenario)


def test_nothing_is_published_before_the_first_pass() -> None:
    """READY=1 waits for the first pass."""

    async def scenario() -> None:
        host = Host(found=(OFF,))
        loop = host.start()
        await loop.monitor.check()
        assert loop.publisher.newest_findings() == (OFF,)
        assert not host.published
        assert not loop.publisher.first_pass.is_set()

    asyncio.run(scenario())


def test_state_reason_names_a_lost_engine_before_findings() -> None:
    async def scenario(host: Host) -> None:
        host.facts.state, host.facts.waiting_for = EngineState.LOST, "no engine"
        host.loop.trigger()
        text = "no engine (and 1 more: ipv6natctl findings)"
        await host.is_(State.WAITING_FOR_DOCKER, text)

    run(Host(found=(OFF,)), scenario)


def test_host_is_checked_when_networks_change_and_on_resync(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_monitor, "CHECK_INTERVAL", 1000)

    async def scenario(host: Host) -> None:
        await until(lambda: (X,) in host.checks)
        checks = len(host.checks)
        host.loop.trigger()
        await asyncio.sleep(0.05)
        assert len(host.checks) == checks
        host.found = (OFF,)
        await host.loop.resync()
        assert host.loop.status.state is State.DEGRADED

    run(Host(), scenario)


def test_host_is_checked_after_forwarding_was_switched_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_monitor, "CHECK_INTERVAL", 1000)

    async def scenario(host: Host) -> None:
        await host.is_(State.DEGRADED, OFF.text)

        def switched(_on: bool) -> bool:
            host.found = ()
            return True

        host.forward = switched
        host.loop.trigger()
        await host.is_(State.SYNCED, "")

    run(Host(found=(OFF,)), scenario)


def test_host_check_has_no_networks_between_cleanup_and_resync() -> None:
    async def scenario(host: Host) -> None:
        await until(lambda: (X,) in host.checks)
        await host.loop.cleanup()
        host.checks.clear()
        await until(lambda: len(host.checks) > 1)
        assert set(host.checks) == {()}
        await host.loop.resync()
        await until(lambda: (X,) in host.checks)

    run(Host(), scenario)


def test_failed_host_check_stops_nothing() -> None:
    class Blind(Host):
        async def check_host(
            self, networks: tuple[Network, ...], _engine_writes: bool
        ) -> tuple[Finding, ...]:
            self.checks.append(networks)
            if len(self.checks) < 3:
                raise ValueError("what is that?")
            return self.found

    async def scenario(host: Host) -> None:
        await host.is_(State.DEGRADED, OFF.text)

    run(Blind(found=(OFF,)), scenario)


@pytest.mark.parametrize(
    ("loaded", "known"), [((), True), (("tcp", "sctp"), True), (("tcp",), False)]
)
def test_s2_sctp_tracking_is_read_from_the_timeouts_of_conntrack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: tuple[str, ...], known: bool
) -> None:
    (tmp_path / "netfilter").mkdir()
    for protocol in loaded:
        (tmp_path / f"netfilter/nf_conntrack_{protocol}_timeout_established").touch()
    monkeypatch.setattr(host_facts, "_SYSCTL", tmp_path)
    assert tracks_sctp() is known


def test_missing_kernel_feature_is_explained_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """K4."""

    class Without(FakeFirewall):
        def write(self, change: TableChange) -> None:
            del change
            raise FirewallError("ip6tables-restore refused: can't initialize ip6tables table `nat'")

    async def scenario(host: Host) -> None:
        await until(lambda: len(host.published) > 3)
        assert host.loop.status.state is State.DEGRADED
        assert host.loop.status.state_reason.endswith("modprobe ip6table_nat")

    with caplog.at_level("ERROR", "ipv6natd"):
        run(Host(fake=Without()), scenario)
    assert len(caplog.records) == 1


def test_firewall_that_cannot_be_opened_is_used_once_it_can() -> None:
    """K4."""
    available: list[FakeFirewall] = []
    watched: list[FakeFirewall] = []

    class Watched(FakeFirewall):
        async def watch(self, changed: Callable[[], None]) -> None:
            del changed
            watched.append(self)

    def open_() -> FakeFirewall:
        if not available:
            raise FirewallError("there is no ip6tables: install the package iptables")
        return available[0]

    async def scenario(host: Host) -> None:
        await host.is_(State.DEGRADED, "there is no ip6tables: install the package iptables")
        assert host.loop.status.backend == "nft"
        async with background(host.loop.watch_firewall()):
            available.append(Watched(Backend.LEGACY))
            status = await host.is_(State.SYNCED, "")
            assert (status.backend, len(status.mappings)) == ("legacy", 1)
            await until(lambda: watched == available)

    run(Host(open_firewall=open_), scenario)


# The place of our jumps in FORWARD.


def test_position_is_conceded_after_five_losses_in_a_minute() -> None:
    guard = PositionGuard()
    for second in range(MAX_POSITION_LOSSES - 1):
        guard.record_loss(second, "-j DROP")
    assert not guard.conceded
    guard.record_loss(POSITION_LOSS_PERIOD, "-j DROP")
    assert guard.conceded
    assert "`-A FORWARD -j DROP`" in guard.finding.text
    assert guard.finding.text.endswith("ipv6natctl resync")
    guard.reset()
    assert not guard.conceded
    for minute in range(20):
        guard.record_loss(minute * POSITION_LOSS_PERIOD / 3, "-j DROP")
    assert not guard.conceded


@pytest.mark.parametrize("rule", [BAN_LIST, "-A FORWARD -i vmbr0 -j ACCEPT", "-A FORWARD -j LOG"])
def test_conditional_rule_before_ours_stays_and_is_no_edit(rule: str) -> None:
    """Q2."""

    async def scenario(host: Host) -> None:
        await host.is_(State.SYNCED, "")
        writes = host.fake.writes
        host.fake.load(f"*filter\n-I FORWARD 1{rule.removeprefix('-A FORWARD')}\nCOMMIT\n")
        for _ in range(MAX_POSITION_LOSSES + 1):
            await host.loop.resync()
        assert host.fake.writes == writes
        # The repair of another edit leaves the rule where it is.
        host.fake.load("*filter\n:IPV6NAT-FORWARD - [0:0]\nCOMMIT\n")
        await host.loop.resync()
        assert "-A IPV6NAT-FORWARD -i br-a -j ACCEPT" in host.fake.dump()
        assert host.first == rule
        await host.is_(State.SYNCED, "")

    run(Host(), scenario)


def test_f7_after_five_losses_the_position_is_conceded_and_the_rules_are_kept() -> None:
    """F7."""

    async def scenario(host: Host) -> None:
        await host.is_(State.SYNCED, "")
        for _ in range(MAX_POSITION_LOSSES - 1):
            await host.intrude()
            assert "DOCKER-USER" in host.first
        await host.intrude()
        assert host.first == THEIRS
        await host.is_(State.DEGRADED, host.loop.applier.position.finding.text)
        # Our chains are still repaired and follow the engine.
        host.fake.load("*filter\n:IPV6NAT-FORWARD - [0:0]\nCOMMIT\n")
        host.facts.have(X, web("9090:80"))
        host.loop.verify()
        await until(lambda: [mapping.host_port for mapping in host.loop.status.mappings] == [9090])
        assert "-A IPV6NAT-FORWARD -i br-a -j ACCEPT" in host.fake.dump()
        assert host.first == THEIRS
        assert host.fake.dump().count("-j IPV6NAT-FORWARD") == 1

    run(Host(), scenario)


def test_missing_jump_is_repaired_while_the_position_is_conceded() -> None:
    async def scenario(host: Host) -> None:
        await host.is_(State.SYNCED, "")
        for _ in range(MAX_POSITION_LOSSES):
            await host.intrude()
        jump = "-m comment --comment ipv6natd -j IPV6NAT-FORWARD"
        host.fake.load(f"*filter\n-D FORWARD {jump}\nCOMMIT\n")
        host.loop.verify()
        await until(lambda: f"-A FORWARD {jump}" in host.fake.dump())

    run(Host(), scenario)


def test_first_position_is_taken_again_when_it_is_free_or_on_resync() -> None:
    async def scenario(host: Host) -> None:
        await host.is_(State.SYNCED, "")
        for _ in range(MAX_POSITION_LOSSES):
            await host.intrude()
        await host.is_(State.DEGRADED, host.loop.applier.position.finding.text)
        for _ in range(host.fake.dump().count(THEIRS)):
            host.fake.load(f"*filter\n-D{THEIRS.removeprefix('-A')}\nCOMMIT\n")
        host.loop.verify()
        await host.is_(State.SYNCED, "")
        for _ in range(MAX_POSITION_LOSSES):
            await host.intrude()
        assert host.first == THEIRS
        await host.loop.resync()
        assert "DOCKER-USER" in host.first
        await host.is_(State.SYNCED, "")

    run(Host(), scenario)
