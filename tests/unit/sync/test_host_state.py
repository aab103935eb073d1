"""How the loop shows what is wrong with the host, and what it leaves to others in FORWARD."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.host import facts as host_facts
from ipv6natd.host.facts import tracks_sctp
from ipv6natd.host.findings import Finding, HostReport
from ipv6natd.model import Network, Policy
from ipv6natd.netfilter.diff import TableChange
from ipv6natd.netfilter.rules import Backend
from ipv6natd.report.status import State, Status
from ipv6natd.sync import reconciler as reconcile
from ipv6natd.sync.applier import ORDER_LOSSES, ORDER_PERIOD, Contest, order_lost
from ipv6natd.sync.late import LateFirewall
from ipv6natd.sync.reconciler import Reconciler
from tests.harness.fake_firewall import FakeFirewall
from tests.harness.waiting import background, until
from tests.unit.sync.test_reconciler import FakeFacts, X, web

OFF = Finding(text="forwarding is off: sysctl -w a=1")
ZONE = Finding(text="br-a is in no zone: firewall-cmd", bridge="br-a")
THEIRS = "-A FORWARD -i vmbr0 -j ACCEPT"


@dataclass
class Host:
    """A loop whose look at the host finds what the test says."""

    found: HostReport = field(default_factory=HostReport)
    firewall: FakeFirewall | LateFirewall = field(default_factory=FakeFirewall)
    facts: FakeFacts = field(default_factory=FakeFacts)
    looks: list[tuple[Network, ...]] = field(default_factory=list)
    published: list[Status] = field(default_factory=list)

    def start(self) -> Reconciler:
        self.facts.have(X, web("8080:80"))
        self.loop = Reconciler(
            firewall=self.firewall,
            facts=self.facts,
            policy=Policy(),
            complete=lambda snapshot, _: snapshot,
            publish=lambda _old, new, _drift: self.published.append(new),
            look=self.look,
        )
        return self.loop

    async def look(self, networks: tuple[Network, ...], _engine_writes: bool) -> HostReport:
        self.looks.append(networks)
        return self.found

    async def is_(self, state: State, reason: str) -> Status:
        def shown() -> bool:
            return (self.loop.status.state, self.loop.status.state_reason) == (state, reason)

        await until(shown)
        return self.loop.status

    async def intrude(self) -> None:
        """Somebody puts a rule before ours, and we notice."""
        before = len(self.published)
        self.fake.load(f"*filter\n-I FORWARD 1{THEIRS.removeprefix('-A FORWARD')}\nCOMMIT\n")
        self.loop.verify()
        await until(lambda: len(self.published) > before)

    @property
    def fake(self) -> FakeFirewall:
        assert isinstance(self.firewall, FakeFirewall)
        return self.firewall

    @property
    def first(self) -> str:
        lines = self.fake.dump().splitlines()
        return next(line for line in lines if line.startswith("-A FORWARD"))


def run(host: Host, scenario: Callable[[Host], Awaitable[None]]) -> None:
    async def whole() -> None:
        loop = host.start()
        async with background(loop.run()), background(loop.watch_host()):
            loop.trigger()
            await scenario(host)

    asyncio.run(whole())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "FIRST_RETRY", 0.02)
    monkeypatch.setattr(reconcile, "LOOK_EVERY", 0.05)


def test_what_is_wrong_with_the_host_is_degraded_until_it_is_put_right(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """K1."""

    async def scenario(host: Host) -> None:
        status = await host.is_(State.DEGRADED, OFF.text)
        assert len(status.mappings) == 1
        await until(lambda: len(host.looks) > 3)
        host.found = HostReport()
        await host.is_(State.SYNCED, "")

    with caplog.at_level("INFO", "ipv6natd"):
        run(Host(found=HostReport(findings=(OFF,))), scenario)
    told = [each.getMessage() for each in caplog.records if OFF.text in each.getMessage()]
    assert [each for each in told if each.startswith((OFF.text, "no longer"))] == [
        OFF.text,
        f"no longer so: {OFF.text}",
    ]


def test_the_first_is_the_reason_and_the_others_are_counted() -> None:
    async def scenario(host: Host) -> None:
        text = f"{OFF.text} (and 2 more: journalctl -u ipv6natd)"
        await host.is_(State.DEGRADED, text)

    run(Host(found=HostReport(findings=(OFF, ZONE, Finding(text="more")))), scenario)


def test_what_is_about_one_network_stands_among_its_warnings() -> None:
    async def scenario(host: Host) -> None:
        status = await host.is_(State.DEGRADED, ZONE.text)
        assert [each.warnings for each in status.networks] == [(ZONE.text,)]
        generation = status.generation
        host.found = HostReport()
        status = await host.is_(State.SYNCED, "")
        assert [each.warnings for each in status.networks] == [()]
        assert status.generation == generation + 1

    run(Host(found=HostReport(findings=(ZONE,))), scenario)


def test_while_the_engine_is_away_that_comes_first() -> None:
    async def scenario(host: Host) -> None:
        host.facts.connected, host.facts.waiting_for = False, "no engine"
        host.loop.trigger()
        text = "no engine (and 1 more: journalctl -u ipv6natd)"
        await host.is_(State.WAITING_FOR_DOCKER, text)

    run(Host(found=HostReport(findings=(OFF,))), scenario)


def test_the_host_is_looked_at_when_the_networks_change_and_with_a_resync(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconcile, "LOOK_EVERY", 1000)

    async def scenario(host: Host) -> None:
        await until(lambda: (X,) in host.looks)
        looks = len(host.looks)
        host.loop.trigger()
        await asyncio.sleep(0.05)
        assert len(host.looks) == looks
        host.found = HostReport(findings=(OFF,))
        await host.loop.resync()
        assert host.loop.status.state is State.DEGRADED

    run(Host(), scenario)


def test_the_host_is_looked_at_once_forwarding_was_switched_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconcile, "LOOK_EVERY", 1000)

    async def scenario(host: Host) -> None:
        await host.is_(State.DEGRADED, OFF.text)

        def switched(_on: bool) -> bool:
            host.found = HostReport()
            return True

        monkeypatch.setattr(host.loop._kernel, "_forward", switched)
        host.loop.trigger()
        await host.is_(State.SYNCED, "")

    run(Host(found=HostReport(findings=(OFF,))), scenario)


def test_after_a_clean_up_no_network_is_looked_at_until_there_are_rules_again() -> None:
    async def scenario(host: Host) -> None:
        await until(lambda: (X,) in host.looks)
        await host.loop.cleanup()
        host.looks.clear()
        await until(lambda: len(host.looks) > 1)
        assert set(host.looks) == {()}
        await host.loop.resync()
        await until(lambda: (X,) in host.looks)

    run(Host(), scenario)


def test_a_look_that_fails_takes_nothing_down() -> None:
    class Blind(Host):
        async def look(self, networks: tuple[Network, ...], _engine_writes: bool) -> HostReport:
            self.looks.append(networks)
            if len(self.looks) < 3:
                raise ValueError("what is that?")
            return self.found

    async def scenario(host: Host) -> None:
        await host.is_(State.DEGRADED, OFF.text)

    run(Blind(found=HostReport(findings=(OFF,))), scenario)


@pytest.mark.parametrize(
    ("loaded", "known"), [((), True), (("tcp", "sctp"), True), (("tcp",), False)]
)
def test_s2_whether_conntrack_knows_sctp_shows_in_its_timeouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: tuple[str, ...], known: bool
) -> None:
    (tmp_path / "netfilter").mkdir()
    for protocol in loaded:
        (tmp_path / f"netfilter/nf_conntrack_{protocol}_timeout_established").touch()
    monkeypatch.setattr(host_facts, "_SYSCTL", tmp_path)
    assert tracks_sctp() is known


def test_a_refusal_that_names_what_the_kernel_lacks_is_explained_once(
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
        run(Host(firewall=Without()), scenario)
    assert len(caplog.records) == 1


def test_a_firewall_that_comes_late_is_used_as_soon_as_it_is_there() -> None:
    """K4."""
    there: list[FakeFirewall] = []
    opened: list[object] = []

    def open_() -> FakeFirewall:
        if not there:
            raise FirewallError("there is no ip6tables: install the package iptables")
        return there[0]

    async def scenario(host: Host) -> None:
        await host.is_(State.DEGRADED, "there is no ip6tables: install the package iptables")
        assert (host.loop.status.backend, opened) == ("nft", [])
        there.append(FakeFirewall(Backend.LEGACY))
        status = await host.is_(State.SYNCED, "")
        assert (status.backend, len(status.mappings), opened) == ("legacy", 1, there)

    run(Host(firewall=LateFirewall(open_, opened.append)), scenario)


# Who comes first in FORWARD.


def test_five_times_within_a_minute_are_enough() -> None:
    contest = Contest()
    for second in range(ORDER_LOSSES - 1):
        contest.lost(second)
    assert not contest.given_up
    contest.lost(ORDER_PERIOD)
    assert contest.given_up
    contest.over()
    assert not contest.given_up
    for minute in range(20):
        contest.lost(minute * ORDER_PERIOD / 3)
    assert not contest.given_up


def test_the_reason_names_the_rule_where_it_is_known() -> None:
    assert f"(`{THEIRS}` stands first)" in order_lost(THEIRS)
    assert "`ip6tables -S FORWARD`" in order_lost("")
    assert order_lost(THEIRS).endswith("ipv6natctl resync")


def test_after_five_times_the_order_is_left_and_the_rules_are_kept() -> None:
    """F7."""

    async def scenario(host: Host) -> None:
        await host.is_(State.SYNCED, "")
        host.found = HostReport(first_in_forward=THEIRS)
        for _ in range(ORDER_LOSSES - 1):
            await host.intrude()
            assert "DOCKER-USER" in host.first
        await host.intrude()
        assert host.first == THEIRS
        await host.is_(State.DEGRADED, order_lost(THEIRS))
        # What is ours is repaired, and follows the engine, where it stands.
        host.fake.load("*filter\n:IPV6NAT-FORWARD - [0:0]\nCOMMIT\n")
        host.facts.have(X, web("9090:80"))
        host.loop.verify()
        await until(lambda: [each.host_port for each in host.loop.status.mappings] == [9090])
        assert "-A IPV6NAT-FORWARD -i br-a -j ACCEPT" in host.fake.dump()
        assert host.first == THEIRS
        assert host.fake.dump().count("-j IPV6NAT-FORWARD") == 1

    run(Host(), scenario)


def test_a_jump_that_is_gone_is_put_back_even_then() -> None:
    async def scenario(host: Host) -> None:
        await host.is_(State.SYNCED, "")
        for _ in range(ORDER_LOSSES):
            await host.intrude()
        jump = "-m comment --comment ipv6natd -j IPV6NAT-FORWARD"
        host.fake.load(f"*filter\n-D FORWARD {jump}\nCOMMIT\n")
        host.loop.verify()
        await until(lambda: f"-A FORWARD {jump}" in host.fake.dump())

    run(Host(), scenario)


def test_it_is_taken_up_again_when_the_other_has_gone_or_a_person_asks() -> None:
    async def scenario(host: Host) -> None:
        await host.is_(State.SYNCED, "")
        for _ in range(ORDER_LOSSES):
            await host.intrude()
        await host.is_(State.DEGRADED, order_lost(""))
        for _ in range(host.fake.dump().count(THEIRS)):
            host.fake.load(f"*filter\n-D{THEIRS.removeprefix('-A')}\nCOMMIT\n")
        host.loop.verify()
        await host.is_(State.SYNCED, "")
        for _ in range(ORDER_LOSSES):
            await host.intrude()
        assert host.first == THEIRS
        await host.loop.resync()
        assert "DOCKER-USER" in host.first
        await host.is_(State.SYNCED, "")

    run(Host(), scenario)
