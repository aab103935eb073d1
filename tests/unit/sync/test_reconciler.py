"""The reconciler, with a firewall in memory and facts that the tests set."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from ipv6natd.engine.client import EngineUnavailable
from ipv6natd.firewall.backend import FirewallError
from ipv6natd.model import Container, Engine, EngineState, Mapping, Network, Policy
from ipv6natd.netfilter.diff import TableChange
from ipv6natd.netfilter.rules import Ruleset, Table, TableRules
from ipv6natd.policy.desired import desired
from ipv6natd.policy.port_bindings import NOT_IN_FORCE
from ipv6natd.report.changes import mapping_text
from ipv6natd.report.status import State, Status, mapping_id
from ipv6natd.sync import applier, departures, reconciler
from ipv6natd.sync.applier import Applier
from ipv6natd.sync.departures import Counts
from ipv6natd.sync.queries import Queries
from ipv6natd.sync.reconciler import Reconciler
from tests.harness.build import container, identity, network, snapshot
from tests.harness.fake_firewall import FakeFirewall
from tests.harness.fake_host import FakeHost, FakeObserver
from tests.harness.waiting import background, until

X = network(name="x", subnet="fd00:a::/64", bridge="br-a")
Y = network(name="y", subnet="fd00:b::/64", bridge="br-b")
FOREIGN = """\
*raw
-A PREROUTING -s 2001:db8::bad/128 -j DROP
COMMIT
*filter
-A FORWARD -i virbr0 -j ACCEPT
COMMIT
*nat
-A POSTROUTING -s fd77::/64 -j MASQUERADE
COMMIT
"""


def web(*ports: str, name: str = "web", on: Network = X) -> Container:
    return container(name=name, on=[on], ports=ports)


@dataclass
class FakeFacts:
    """The facts of the engine, set by the test."""

    state: EngineState = EngineState.CONNECTED
    waiting_for: str = ""
    current: bool = True
    engine: Engine | None = field(default_factory=lambda: Engine(version="20.10.24"))
    networks: dict[str, Network] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)
    ended: Counter[str] = field(default_factory=Counter)
    relists: int = 0
    relist_error: Exception | None = None
    answer: asyncio.Future[None] | None = None
    """The end of a list that takes its time."""

    async def relist(self) -> None:
        if self.answer is not None:
            await self.answer
        if self.relist_error is not None:
            raise self.relist_error
        self.relists += 1

    def have(self, *facts: Network | Container) -> None:
        self.networks = {fact.id: fact for fact in facts if isinstance(fact, Network)}
        self.containers = {fact.id: fact for fact in facts if isinstance(fact, Container)}


class BusyFirewall(FakeFirewall):
    """Another program makes `intrusions`, one directly after each write of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.load(FOREIGN)
        self.intrusions: list[Callable[[FakeFirewall], None]] = []

    def write(self, change: TableChange) -> None:
        super().write(change)
        if self.intrusions:
            self.intrusions.pop(0)(self)


@dataclass
class Bench(FakeHost, FakeObserver):
    """A reconciler with fakes for all that it uses; this is its host and its observer."""

    firewall: BusyFirewall = field(default_factory=BusyFirewall)
    facts: FakeFacts = field(default_factory=FakeFacts)

    def start(self) -> Reconciler:
        self.loop = Reconciler(
            engine=self.facts,
            applier=Applier(lambda: self.firewall, self),
            observer=self,
            policy=Policy(),
        )
        return self.loop

    @property
    def status(self) -> Status:
        return self.loop.status

    async def passed(self, trigger: Callable[[], None] | None = None) -> Status:
        """Trigger a pass, and return its status."""
        before = len(self.published)
        (trigger or self.loop.trigger)()
        await until(lambda: len(self.published) > before)
        return self.status


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    async with background(bench.start().run()):
        yield bench


def run(bench: Bench, scenario: Callable[[Bench], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with running(bench):
            await scenario(bench)

    asyncio.run(whole())


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(reconciler, "MIN_RETRY_PAUSE", 0.02)
    found = Bench()
    found.facts.have(X, web("8080:80"))
    return found


def mappings(status: Status) -> list[str]:
    return [mapping_text(mapping) for mapping in status.mappings]


WEB = "[::]:8080/tcp -> web [fd00:a::2]:80"


def test_nothing_is_written_before_the_first_list(bench: Bench) -> None:
    """T1: unknown facts are not empty facts."""

    async def scenario(bench: Bench) -> None:
        start = bench.firewall.dump()
        bench.facts.state = EngineState.UNREACHABLE
        bench.facts.waiting_for = "cannot reach unix:///run/docker.sock"
        status = await bench.passed()
        assert (status.state, status.docker_connected) == (State.WAITING_FOR_DOCKER, False)
        assert status.state_reason == "cannot reach unix:///run/docker.sock"
        assert (bench.firewall.dump(), bench.firewall.reads) == (start, 0)
        bench.facts.state = EngineState.CONNECTED
        assert mappings(await bench.passed()) == [WEB]

    run(bench, scenario)


def test_first_pass_is_set_when_the_reason_for_waiting_is_known(bench: Bench) -> None:
    """T1: READY does not wait for Docker."""

    async def scenario(bench: Bench) -> None:
        bench.facts.state = EngineState.STARTING
        settled = asyncio.create_task(bench.loop.publisher.first_pass.wait())
        # Another program writes rules before the engine answers.
        await bench.passed(bench.loop.verify)
        await asyncio.sleep(0)
        assert not settled.done()
        bench.facts.state = EngineState.UNREACHABLE
        bench.loop.trigger()
        async with asyncio.timeout(5):
            await settled

    run(bench, scenario)


def test_first_pass_writes_rules_and_publishes_status(bench: Bench) -> None:
    """P1."""

    async def scenario(bench: Bench) -> None:
        status = await bench.passed()
        assert (status.state, status.state_reason) == (State.SYNCED, "")
        assert (status.backend, status.engine_version) == ("nft", "20.10.24")
        assert status.docker_connected
        assert mappings(status) == [WEB]
        assert status.networks == (X,)
        assert status.last_sync > 0
        assert "--to-destination [fd00:a::2]:80" in bench.firewall.dump()

    run(bench, scenario)


def test_before_the_first_pass_no_rule_is_in_force(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        assert bench.loop.applier.ruleset_text() == ""
        assert bench.status.state is State.STARTING

    run(bench, scenario)


def test_pass_without_changes_neither_reads_nor_writes(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.passed()
        counts = (bench.firewall.reads, bench.firewall.writes)
        status = await bench.passed()
        assert (bench.firewall.reads, bench.firewall.writes) == counts
        assert status.generation == 1

    run(bench, scenario)


def test_a_burst_of_triggers_makes_one_pass(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        for _ in range(100):
            bench.loop.trigger()
        await bench.passed()
        # A second pass would be published at once.
        await asyncio.sleep(0.05)
        assert len(bench.published) == 1

    run(bench, scenario)


def test_triggers_during_a_pass_make_exactly_one_more_pass(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        gate, inside = threading.Event(), threading.Event()

        def slow(_: Iterable[str]) -> bool:
            inside.set()
            assert gate.wait(5)
            return True

        bench.userland_proxy = slow
        bench.loop.trigger()
        await until(inside.is_set)
        bench.facts.have(X, web("9090:80"))
        for _ in range(100):
            bench.loop.trigger()
        gate.set()
        await until(lambda: len(bench.published) == 2)
        await asyncio.sleep(0.05)
        assert len(bench.published) == 2
        # The first pass has the facts from before, the second the new ones.
        assert [mapping.host_port for mapping in bench.published[0][1].mappings] == [8080]
        assert [mapping.host_port for mapping in bench.status.mappings] == [9090]

    run(bench, scenario)


def test_userland_proxy_is_looked_up_for_bridge_networks_only(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        requests: list[list[str]] = []

        def proxy(bridges: Iterable[str]) -> bool:
            requests.append(list(bridges))
            return False

        bench.userland_proxy = proxy
        macvlan = network(name="m", driver="macvlan", bridge="br-m")
        unusable = network(name="u", bridge="", problem="its bridge name")
        bench.facts.have(X, macvlan, unusable)
        await bench.passed()
        assert requests == [["br-a"]]

    run(bench, scenario)


def test_h3_loopback_is_rejected_without_a_userland_proxy(bench: Bench) -> None:
    """H3."""

    async def scenario(bench: Bench) -> None:
        bench.userland_proxy = lambda _: False
        await bench.passed()
        assert "-d ::1/128 -p tcp -m tcp --dport 8080 -j REJECT" in bench.firewall.dump()

    run(bench, scenario)


# Failures.


def test_f10_failed_write_shows_the_tools_message_and_is_retried(bench: Bench) -> None:
    """F10."""

    async def scenario(bench: Bench) -> None:
        bench.firewall.fail_next = "ip6tables-restore refused: no room\n     3 -A X"
        status = await bench.passed()
        assert status.state is State.DEGRADED
        assert status.state_reason == "ip6tables-restore refused: no room"
        assert status.mappings == ()
        await until(lambda: bench.status.state is State.SYNCED)
        assert (bench.status.state_reason, mappings(bench.status)) == ("", [WEB])

    run(bench, scenario)


def test_i3_sources_are_checked_in_the_filter_table_if_the_kernel_has_no_raw(bench: Bench) -> None:
    bench.firewall.missing = frozenset({Table.RAW})

    async def scenario(bench: Bench) -> None:
        status = await bench.passed()
        assert (status.state, mappings(status)) == (State.SYNCED, [WEB])
        own = bench.firewall.read()
        assert own[Table.RAW].chains == {}
        assert "IPV6NAT-SRC" in own[Table.FILTER].chains
        for chain in ("FORWARD", "HOST"):
            assert f"-A IPV6NAT-{chain} -j IPV6NAT-SRC\n" in bench.firewall.dump()
        await bench.passed(bench.loop.verify)
        assert bench.status.drift_repairs == 0
        assert bench.saved[-1].raw == TableRules()
        await bench.loop.remove()
        assert "IPV6NAT" not in bench.firewall.dump()

    run(bench, scenario)


def test_retry_after_a_failure_rewrites_whole_tables(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.passed()
        bench.firewall.fail_next = "no room"
        bench.facts.have(X, web("9090:80"))
        await bench.passed()
        # Another program removes a rule that this pass would not have written.
        bench.firewall.load("*filter\n:IPV6NAT-CT - [0:0]\nCOMMIT\n")
        await until(lambda: bench.status.state is State.SYNCED)
        assert "-A IPV6NAT-CT -s fd00:a::/64 -i br-a -j ACCEPT" in bench.firewall.dump()
        assert [mapping.host_port for mapping in bench.status.mappings] == [9090]

    run(bench, scenario)


def test_lists_stay_while_a_write_fails(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        good = await bench.passed()
        bench.facts.have(X, web("9090:80"))
        bench.firewall.fail_next = "no room"
        bad = await bench.passed()
        assert (bad.state, bad.mappings) == (State.DEGRADED, good.mappings)

    run(bench, scenario)


def test_retry_pause_grows_and_is_reset_by_success(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(bench: Bench) -> None:
        def broken(_: Iterable[str]) -> bool:
            raise FirewallError("no tool")

        pauses: list[float] = []
        bench.userland_proxy = broken
        for _ in range(4):
            await bench.passed()
            pauses.append(bench.loop._retry._pause)
        assert pauses == [0.04, 0.08, 0.1, 0.1]
        bench.userland_proxy = lambda _: True
        await until(lambda: bench.status.state is State.SYNCED)
        assert bench.loop._retry._pause == 0.02

    monkeypatch.setattr(reconciler, "MAX_RETRY_PAUSE", 0.1)
    run(bench, scenario)


# Other programs.


def edit(text: str) -> Callable[[FakeFirewall], None]:
    return lambda firewall: firewall.load(f"*filter\n{text}\nCOMMIT\n")


FLUSHES = {
    "F1 everything flushed": FakeFirewall.flush,
    "F6 a rule deleted": edit("-D IPV6NAT-CT -s fd00:a::/64 -i br-a -j ACCEPT"),
    "F7 a rule put first": edit("-I FORWARD 1 -j REJECT"),
    "a rule of ours changed": edit(
        "-D IPV6NAT-CT -s fd00:a::/64 -i br-a -j ACCEPT\n-I IPV6NAT-CT 1 -i br-a -j DROP"
    ),
    "a chain with our prefix made": edit(":IPV6NAT-MINE - [0:0]"),
}


def ours(firewall: FakeFirewall) -> dict[Table, dict[str, str]]:
    return {table: observed.chains for table, observed in firewall.read().items()}


@pytest.mark.parametrize("how", FLUSHES)
def test_drift_is_repaired_counted_and_published(bench: Bench, how: str) -> None:
    """F1, F6, F7."""

    async def scenario(bench: Bench) -> None:
        await bench.passed()
        before = ours(bench.firewall)
        FLUSHES[how](bench.firewall)
        status = await bench.passed(bench.loop.verify)
        assert status.drift_repairs == 1
        assert ours(bench.firewall) == before
        forward = [x for x in bench.firewall.dump().splitlines() if x.startswith("-A FORWARD")]
        assert [line.rpartition(" ")[2] for line in forward[:2]] == [
            "DOCKER-USER",
            "IPV6NAT-FORWARD",
        ]
        assert "filter" in bench.published[-1][2]
        # After the repair the lists are the same as before.
        assert status.generation == 1
        assert (await bench.passed(bench.loop.verify)).drift_repairs == 1

    run(bench, scenario)


def test_verify_without_drift_writes_nothing(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.passed()
        writes = bench.firewall.writes
        bench.firewall.load("*filter\n-A FORWARD -j DROP\nCOMMIT\n")
        status = await bench.passed(bench.loop.verify)
        assert (bench.firewall.writes, status.drift_repairs) == (writes, 0)
        assert bench.published[-1][2] == ()

    run(bench, scenario)


def test_change_writes_once_per_table_and_reads_only_changed_chains(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.passed()
        writes, reads, digest_reads = (
            bench.firewall.writes,
            bench.firewall.reads,
            bench.firewall.digest_reads,
        )
        bench.facts.have(X, web("8080:80", "9090:80"))
        await bench.passed()
        await until(lambda: bench.firewall.digest_reads == digest_reads + 1)
        assert bench.firewall.writes == writes + 1
        bench.userland_proxy = lambda _: False
        await bench.passed()
        await until(lambda: bench.firewall.digest_reads == digest_reads + 3)
        bench.facts.have(X, web("9090:80"))
        await bench.passed()
        await until(lambda: bench.firewall.digest_reads == digest_reads + 5)
        assert bench.firewall.reads == reads

    run(bench, scenario)


@pytest.mark.parametrize("pause", [True, False])
def test_edit_of_a_new_rule_is_detected(bench: Bench, pause: bool) -> None:
    """Also if the written chains were not read back before."""

    async def scenario(bench: Bench) -> None:
        await bench.passed()
        digest_reads = bench.firewall.digest_reads
        bench.facts.have(X, web("8080:80", "9090:80"))
        take = "*nat\n-D IPV6NAT-DNAT ! -i br-a -p tcp -m tcp --dport 9090 -j DNAT {}\nCOMMIT\n"
        take = take.format("--to-destination [fd00:a::2]:80")
        if pause:
            await bench.passed()
            await until(lambda: bench.firewall.digest_reads > digest_reads)
            bench.firewall.load(take)
            bench.loop.verify()
        else:
            bench.firewall.intrusions = [lambda firewall: firewall.load(take)]
            bench.loop.trigger()
        await until(lambda: bench.status.drift_repairs == 1)
        assert "--dport 9090" in bench.firewall.dump()

    run(bench, scenario)


def test_edit_between_write_and_read_is_repaired_in_the_same_pass(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        bench.firewall.intrusions = [FakeFirewall.flush]
        status = await bench.passed()
        assert (status.state, mappings(status)) == (State.SYNCED, [WEB])
        writes = bench.firewall.writes
        await bench.passed(bench.loop.verify)
        assert (bench.firewall.writes, bench.status.drift_repairs) == (writes, 0)

    run(bench, scenario)


def test_repeated_edits_end_the_pass_with_an_error_and_a_retry(bench: Bench) -> None:
    """Decision 13: a pass does not write the tables endlessly."""

    async def scenario(bench: Bench) -> None:
        take = edit("-D IPV6NAT-CT -s fd00:a::/64 -i br-a -j ACCEPT")
        nothing = edit("")
        # Three writes a pass, one a table: the edit comes after the last.
        bench.firewall.intrusions = [nothing, nothing, take] * applier.MAX_WRITE_ATTEMPTS
        status = await bench.passed()
        assert status.state is State.DEGRADED
        assert "another program keeps changing our rules" in status.state_reason
        assert bench.firewall.writes == 3 * applier.MAX_WRITE_ATTEMPTS
        await until(lambda: bench.status.state is State.SYNCED)
        assert "-A IPV6NAT-CT -s fd00:a::/64 -i br-a -j ACCEPT" in bench.firewall.dump()

    run(bench, scenario)


def test_drift_is_detected_after_the_verify_interval(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.passed()
        bench.firewall.flush()
        async with background(bench.loop.verify_regularly(0.02)):
            await until(lambda: bench.status.drift_repairs == 1)
        assert "IPV6NAT-DNAT" in bench.firewall.dump()

    run(bench, scenario)


def test_pass_that_takes_too_long_hangs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog of systemd then restarts the service."""
    monkeypatch.setattr(reconciler, "MAX_PASS_TIME", 0.05)
    release, entered = threading.Event(), threading.Event()
    write = bench.firewall.write

    def hang(change: TableChange) -> None:
        entered.set()
        release.wait(20)
        write(change)

    bench.facts.have(X, web("8080:80/tcp"))

    async def body() -> None:
        async with running(bench):
            bench.firewall.write = hang  # type: ignore[method-assign]
            assert not bench.loop.hangs
            bench.loop.trigger()
            await until(entered.is_set)
            await until(lambda: bench.loop.hangs)
            release.set()
            await until(lambda: not bench.loop.hangs)
            await until(lambda: bench.status.state is State.SYNCED)

    asyncio.run(body())


def test_removal_waits_for_the_current_pass(bench: Bench) -> None:
    """Otherwise the pass could write rules after the end of the service."""
    release, entered = threading.Event(), threading.Event()
    write = bench.firewall.write

    def slow(change: TableChange) -> None:
        entered.set()
        release.wait(20)
        write(change)

    bench.facts.have(X, web("8080:80/tcp"))

    async def body() -> None:
        async with running(bench):
            bench.firewall.write = slow  # type: ignore[method-assign]
            bench.loop.trigger()
            await until(entered.is_set)
        removal = asyncio.create_task(bench.loop.remove())
        await asyncio.sleep(0.1)
        release.set()
        await removal

    asyncio.run(body())
    assert "IPV6NAT" not in bench.firewall.dump()


# Resync.


def test_resync_reads_engine_and_kernel_and_counts_rules(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.passed()
        bench.facts.have(X, web("7070:80", "7071:81"))
        done = await bench.loop.resync()
        assert bench.facts.relists == 1
        assert (done.generation, done.rules_added, done.rules_removed) == (2, 2, 1)
        assert done.duration_ms >= 0
        again = await bench.loop.resync()
        assert (again.generation, again.rules_added, again.rules_removed) == (2, 0, 0)
        bench.firewall.flush()
        await bench.loop.resync()
        assert bench.status.drift_repairs == 1

    run(bench, scenario)


def test_resync_without_an_engine_raises_its_error(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        bench.facts.relist_error = LookupError("no engine")
        with pytest.raises(LookupError, match="no engine"):
            await bench.loop.resync()
        assert bench.firewall.writes == 0

    run(bench, scenario)


def test_resync_raises_the_firewall_error(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        bench.firewall.fail_next = "no room"
        with pytest.raises(FirewallError, match="no room"):
            await bench.loop.resync()

    run(bench, scenario)


def test_two_resyncs_at_once_share_a_pass(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        first, second = await asyncio.gather(bench.loop.resync(), bench.loop.resync())
        assert first == second
        assert len(bench.published) == 1

    run(bench, scenario)


def test_cancelled_resync_does_not_break_the_next(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        waiting = asyncio.create_task(bench.loop.resync())
        await asyncio.sleep(0)
        waiting.cancel()
        await until(lambda: bench.published)
        await bench.loop.resync()

    run(bench, scenario)


# What is shown.


def test_generation_counts_changes_of_the_lists(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        generations = [(await bench.passed()).generation]
        for facts in (
            (X, web("8080:80")),
            (X, web("9090:80")),
            (X, web("9090:80"), web("9090:80", name="late")),
            (X, Y, web("9090:80")),
            (X, Y, web("9090:80")),
        ):
            bench.facts.have(*facts)
            generations.append((await bench.passed()).generation)
        # The port of "late" is taken, so it is skipped. This changes a list too.
        assert generations == [1, 1, 2, 3, 4, 4]

    run(bench, scenario)


def test_generation_is_1_after_an_empty_first_list(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        bench.facts.have()
        assert (await bench.passed()).generation == 1

    run(bench, scenario)


def test_since_stays_as_long_as_the_mapping_exists(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        def since(status: Status, port: int) -> int:
            mapping: Mapping = next(m for m in status.mappings if m.host_port == port)
            return status.since[mapping_id(mapping)]

        first = await bench.passed()
        bench.facts.have(X, Y, web("8080:80", "9090:80"))
        second = await bench.passed()
        assert since(second, 8080) == since(first, 8080) > 0
        assert since(second, 9090) > since(first, 8080)
        bench.facts.have(X, Y)
        assert (await bench.passed()).since == {}
        bench.facts.have(X, Y, web("8080:80"))
        assert since(await bench.passed(), 8080) > since(first, 8080)

    run(bench, scenario)


def test_t9_rules_stay_while_the_engine_is_lost(bench: Bench) -> None:
    """T9: and the status has the reason."""

    async def scenario(bench: Bench) -> None:
        await bench.passed()
        dump = bench.firewall.dump()
        bench.facts.state, bench.facts.waiting_for = EngineState.LOST, "its event stream ended"
        status = await bench.passed()
        assert (status.state, status.state_reason) == (
            State.WAITING_FOR_DOCKER,
            "its event stream ended",
        )
        assert (status.docker_connected, mappings(status)) == (False, [WEB])
        assert bench.firewall.dump() == dump
        bench.firewall.flush()
        await bench.passed(bench.loop.verify)
        assert "IPV6NAT-DNAT" in bench.firewall.dump()

    run(bench, scenario)


@pytest.mark.parametrize("bridge", ["br-a", None])
def test_ports_of_a_bridge_that_a_container_left_wait_for_the_engine(
    bench: Bench, bridge: str | None
) -> None:
    """Q7: another container can have the address, unless the engine reports each change."""
    bench.facts.have(X, Y, web("8080:80"), web("9090:90", name="other", on=Y))

    async def scenario(bench: Bench) -> None:
        before = mappings(await bench.passed())
        assert len(before) == 2
        bench.loop.departures.note("br-a")
        assert mappings(await bench.passed()) == before
        assert not bench.loop.departures.confirmed
        await bench.loop.departures.confirm_once()
        assert bench.loop.departures.confirmed
        bench.facts.current = False
        assert mappings(await bench.passed()) == before
        status = await bench.passed(lambda: bench.loop.departures.note(bridge))
        assert WEB not in mappings(status)
        assert len(mappings(status)) == (1 if bridge else 0)
        assert any("may have this one's address" in row.reason for row in status.skipped)
        assert "--dport 8080 -j DNAT" not in bench.firewall.dump()
        assert "-o br-a -j DROP" in bench.firewall.dump()
        bench.facts.current = True
        assert mappings(await bench.passed()) == before

    run(bench, scenario)


def test_ports_stay_open_if_the_engine_named_each_container_that_left(bench: Bench) -> None:
    """Q7: the engine ends before a list, but after the event of the container's end."""
    bench.facts.have(X, Y, web("8080:80"), web("9090:90", name="other", on=Y))

    async def scenario(bench: Bench) -> None:
        before = mappings(await bench.passed())
        bench.loop.departures.note("br-a")
        bench.facts.ended["br-a"] += 1
        bench.facts.current = False
        assert mappings(await bench.passed()) == before
        # A second one, which no event named.
        status = await bench.passed(lambda: bench.loop.departures.note("br-a"))
        assert WEB not in mappings(status)
        assert len(mappings(status)) == 1
        # What was not counted is not explained.
        bench.facts.ended["br-a"] += 1
        assert mappings(await bench.passed()) == before
        assert mappings(await bench.passed(lambda: bench.loop.departures.note(None))) == []

    run(bench, scenario)


def test_proxy_of_a_closed_port_gets_no_forged_datagram(bench: Bench) -> None:
    """The proxy listens until its engine ends, and would pass a datagram on as the gateway."""
    bench.facts.have(X, web("5353:53/udp", "8080:80"))
    guard = "-A IPV6NAT-INPUT -p udp -m udp --dport 5353 -j IPV6NAT-PROXY"

    async def scenario(bench: Bench) -> None:
        await bench.passed()
        assert guard in bench.firewall.dump()
        bench.facts.current = False
        status = await bench.passed(lambda: bench.loop.departures.note("br-a"))
        assert mappings(status) == []
        assert guard in bench.firewall.dump()
        assert "--dport 8080" not in bench.firewall.dump()

    run(bench, scenario)


def test_ports_wait_for_an_engine_that_ended_before_its_list_confirmed_who_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q7: it may have been killed before it reported the end of the container."""
    monkeypatch.setattr(departures, "CONFIRM_PAUSE", 0.01)

    async def scenario(bench: Bench) -> None:
        before = mappings(await bench.passed())
        bench.loop.departures.note("br-a")
        bench.facts.relist_error = EngineUnavailable("it was killed")
        async with background(bench.loop.departures.confirm()):
            await asyncio.sleep(0.05)
            assert mappings(await bench.passed()) == before
            bench.facts.current = False
            assert mappings(await bench.passed()) == []
            bench.facts.current, bench.facts.relist_error = True, None
            assert mappings(await bench.passed()) == before
            await until(lambda: bench.loop.departures.confirmed)
        assert bench.facts.relists == 1

    run(bench, scenario)


def test_ports_wait_for_an_engine_that_ends_during_the_list_that_confirms(bench: Bench) -> None:
    """Q7. Also if another container leaves during a list that succeeds."""

    async def scenario(bench: Bench) -> None:
        assert len(mappings(await bench.passed())) == 1
        bench.loop.departures.note("br-a")
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        bench.facts.answer = answer
        confirming = asyncio.create_task(bench.loop.departures.confirm_once())
        await asyncio.sleep(0)
        assert not bench.loop.departures.confirmed
        bench.facts.current = False
        assert mappings(await bench.passed()) == []
        bench.loop.departures.note("br-a")
        answer.set_result(None)
        await confirming
        assert not bench.loop.departures.confirmed
        assert mappings(await bench.passed()) == []
        await bench.loop.departures.confirm_once()
        assert bench.loop.departures.confirmed

    run(bench, scenario)


async def listed(bench: Bench, old: Counts, *, meanwhile: Callable[[], None]) -> None:
    """Confirm who left by a list; call `meanwhile` while the engine answers."""
    bench.facts.answer = asyncio.get_running_loop().create_future()
    confirming = asyncio.create_task(bench.loop.departures.confirm_once(old))
    await asyncio.sleep(0)
    meanwhile()
    bench.facts.answer.set_result(None)
    await confirming


@pytest.mark.parametrize("end_is_first", [True, False])
def test_end_that_was_reported_before_a_list_explains_a_departure_after_it(
    bench: Bench, end_is_first: bool
) -> None:
    """Q7: the engine ends between a list and the next one. The port of a container leaves its
    bridge some time after the event or before it. The soak has found that it closed the ports."""

    async def scenario(bench: Bench) -> None:
        before = mappings(await bench.passed())
        steps: list[Callable[[], None]] = [
            lambda: bench.facts.ended.update(["br-a"]),
            lambda: bench.loop.departures.note("br-a"),
        ]
        first, second = steps if end_is_first else reversed(steps)
        # Another container, of which both are known.
        bench.loop.departures.note("br-a")
        bench.facts.ended.update(["br-a"])
        old = Counts(left=Counter(["br-a"]), ended=Counter(["br-a"]))
        first()
        await listed(bench, old, meanwhile=second)
        bench.facts.current = False
        assert mappings(await bench.passed()) == before
        bench.loop.departures.note("br-a")
        assert mappings(await bench.passed()) == []

    run(bench, scenario)


def test_end_whose_port_left_long_ago_explains_no_other_departure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q7: the kernel has not reported the port of the first container."""
    monkeypatch.setattr(departures, "CONFIRM_PAUSE", 0.01)

    async def scenario(bench: Bench) -> None:
        assert len(mappings(await bench.passed())) == 1
        bench.facts.ended.update(["br-a"])
        bench.loop.departures.note("br-b")
        async with background(bench.loop.departures.confirm()):
            await until(lambda: bench.loop.departures.confirmed)
        bench.facts.current = False
        bench.loop.departures.note("br-a")
        assert mappings(await bench.passed()) == []

    run(bench, scenario)


def test_ports_wait_for_an_engine_whose_answers_hang(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q7: its event stream is open, so it seems to report each change."""
    monkeypatch.setattr(departures, "CONFIRM_LIMIT", 0.02)

    async def scenario(bench: Bench) -> None:
        before = mappings(await bench.passed())
        bench.loop.departures.note("br-a")
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        bench.facts.answer = answer
        confirming = asyncio.create_task(bench.loop.departures.confirm_once())
        await until(lambda: "may have this one's address" in str(bench.loop.status.skipped))
        assert mappings(bench.loop.status) == []
        answer.set_result(None)
        await confirming
        assert bench.loop.departures.confirmed
        assert mappings(await bench.passed()) == before

    run(bench, scenario)


def test_state_is_synced_only_after_the_first_pass(bench: Bench) -> None:
    """The engine lists its objects while the saved ports are read."""
    bench.facts.state = EngineState.STARTING

    def read(_: object) -> bool:
        bench.facts.state = EngineState.CONNECTED
        return False

    bench.ports_have_left = read  # type: ignore[method-assign,assignment]

    async def scenario(bench: Bench) -> None:
        assert (await bench.passed()).state is State.STARTING
        assert (await bench.passed()).state is State.SYNCED

    run(bench, scenario)


async def ends_soon(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, limit: str, began: float
) -> None:
    """Let the time of a limit since `began` end in 0.1 s, without another trigger then."""
    monkeypatch.setattr(departures, limit, asyncio.get_running_loop().time() - began + 0.1)
    await bench.passed()


@pytest.mark.parametrize(
    ("state", "left", "event", "closed"),
    [
        (EngineState.STARTING, False, False, False),
        (EngineState.STARTING, True, False, True),
        (EngineState.STARTING, None, False, False),
        (EngineState.UNREACHABLE, False, False, False),
        (EngineState.UNREACHABLE, None, False, True),
        (EngineState.STARTING, False, True, True),
    ],
)
def test_ports_of_an_earlier_process_are_closed_if_a_container_may_have_moved(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    state: EngineState,
    left: bool | None,
    event: bool,
    closed: bool,
) -> None:
    """Q7: until the engine has listed its containers, for which a running engine has some time."""
    monkeypatch.setattr(departures, "ANSWER_TIME", 60)
    monkeypatch.setattr(bench.facts, "engine", None)

    async def earlier(bench: Bench) -> None:
        await bench.passed()
        assert "--dport 8080 -j DNAT" in bench.firewall.dump()

    async def scenario(bench: Bench) -> None:
        began = asyncio.get_running_loop().time()
        await bench.passed(partial(bench.loop.departures.note, None) if event else None)
        if state is EngineState.STARTING:
            assert "--dport 8080 -j DNAT" in bench.firewall.dump()
            await ends_soon(bench, monkeypatch, "ANSWER_TIME", began)
            if closed:
                await until(lambda: "--dport 8080 -j DNAT" not in bench.firewall.dump())
            else:
                await asyncio.sleep(0.3)
        dump = bench.firewall.dump()
        assert ("--dport 8080 -j DNAT" not in dump) == closed
        assert "-j IPV6NAT-POST" in dump
        assert "-o br-a -j DROP" in dump
        bench.facts.state, bench.facts.current = EngineState.CONNECTED, True
        await bench.passed()
        assert "--dport 8080 -j DNAT" in bench.firewall.dump()

    run(bench, earlier)
    bench.facts.state, bench.facts.current, bench.left = state, False, left
    run(bench, scenario)


def test_ports_of_an_earlier_process_stay_longer_open_if_the_engine_answers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q7: on a busy host, the list of a running engine takes its time."""
    monkeypatch.setattr(departures, "ANSWER_TIME", 0)
    monkeypatch.setattr(departures, "LIST_TIME", 60)

    async def earlier(bench: Bench) -> None:
        await bench.passed()

    async def scenario(bench: Bench) -> None:
        began = asyncio.get_running_loop().time()
        await bench.passed()
        assert "--dport 8080 -j DNAT" in bench.firewall.dump()
        await ends_soon(bench, monkeypatch, "LIST_TIME", began)
        await until(lambda: "--dport 8080 -j DNAT" not in bench.firewall.dump())

    run(bench, earlier)
    bench.facts.state, bench.facts.current, bench.left = EngineState.STARTING, False, True
    run(bench, scenario)


def test_t13_config_error_is_the_state_reason_until_it_is_fixed(bench: Bench) -> None:
    """T13."""

    async def scenario(bench: Bench) -> None:
        bench.loop.publisher.config_error = "unknown key"
        status = await bench.passed()
        assert status.state is State.SYNCED
        assert status.state_reason == (
            "reload refused: unknown key; the old settings stay in force; correct this, then: "
            "ipv6natctl reload"
        )
        bench.loop.publisher.config_error = ""
        assert (await bench.passed()).state_reason == ""

    run(bench, scenario)


def test_t13_policy_change_applies_from_the_next_pass(bench: Bench) -> None:
    """B3, T13."""

    async def scenario(bench: Bench) -> None:
        bench.facts.have(X, web("0.0.0.0:8080:80"))
        assert (await bench.passed()).mappings == ()
        bench.loop.policy = replace(bench.loop.policy, ipv4_any_means_ipv6=True)
        assert mappings(await bench.passed()) == [WEB]

    run(bench, scenario)


def test_changes_of_the_status_are_logged(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(bench: Bench) -> None:
        warned = replace(X, warnings=("enable_icc='yes' is neither true nor false",))
        late = replace(web("8080:80", name="late"), id="f" * 64)
        with caplog.at_level("INFO", "ipv6natd"):
            bench.facts.have(warned, web("8080:80", "7000-7001:7000-7001"), late)
            await bench.passed()
            bench.facts.have(warned)
            await bench.passed()
            await bench.passed()

    run(bench, scenario)
    assert identity("web") < "f" * 64
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "published [::]:7000-7001/tcp -> web [fd00:a::2]:7000-7001"),
        ("INFO", f"published {WEB}"),
        (
            "WARNING",
            "skipped 80/tcp of container late: [::]:8080 already belongs to container 'web'; "
            "publish one of the two on another port",
        ),
        ("WARNING", "network x: enable_icc='yes' is neither true nor false"),
        ("INFO", "synced: 2 mappings, 1 network, 1 skipped, nft"),
        ("INFO", "withdrew [::]:7000-7001/tcp -> web [fd00:a::2]:7000-7001"),
        ("INFO", f"withdrew {WEB}"),
    ]


# The end.


def test_t3_remove_restores_the_tables(bench: Bench) -> None:
    """T3."""

    async def scenario(bench: Bench) -> None:
        start = bench.firewall.dump()
        await bench.passed()
        assert bench.firewall.dump() != start
        await bench.loop.remove()
        assert bench.firewall.dump() == start
        assert bench.loop.applier.ruleset_text() == ""

    run(bench, scenario)


def test_ruleset_text_has_the_rules_in_force(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.passed()
        rule = "-A IPV6NAT-DNAT ! -i br-a -p tcp -m tcp --dport 8080 -j DNAT"
        assert rule in bench.loop.applier.ruleset_text()

    run(bench, scenario)


def test_mapping_text_shows_host_and_container_ports() -> None:
    want = desired(snapshot(X, web("8080:80", "7000-7001:7000-7001/udp")), Policy())
    assert [mapping_text(mapping) for mapping in want.mappings] == [
        WEB,
        "[::]:7000-7001/udp -> web [fd00:a::2]:7000-7001",
    ]


def test_cleanup_removes_all_rules_until_a_resync(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        untouched = bench.firewall.dump()
        before = await bench.passed()
        rules_in_force = bench.firewall.dump()
        await bench.loop.cleanup()
        assert bench.firewall.dump() == untouched
        assert bench.saved[-1] == Ruleset()
        assert bench.status.state is State.STOPPED
        assert "ipv6natctl resync" in bench.status.state_reason
        assert (bench.status.mappings, bench.status.networks) == ((), ())
        assert bench.status.generation == before.generation + 1
        queries = Queries(bench.loop.applier, bench.loop.snapshot)
        (explanation,) = await queries.explain_decisions("8080")  # Q26
        assert {port.reason for port in explanation.ports} == {NOT_IN_FORCE}
        # Events, drift and a reload write nothing now.
        bench.facts.have(X, web("81:81"))
        await bench.passed()
        await bench.passed(bench.loop.verify)
        await bench.loop.refresh()
        assert bench.firewall.dump() == untouched
        assert (bench.status.state, bench.status.mappings) == (State.STOPPED, ())
        bench.facts.have(X, web("8080:80"))
        result = await bench.loop.resync()
        assert result.rules_added > 5
        assert (bench.status.state, bench.status.mappings) == (State.SYNCED, before.mappings)
        assert bench.firewall.dump() == rules_in_force

    run(bench, scenario)


def test_a_cleanup_logs_each_rule_that_it_removes(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.passed()
        caplog.set_level("DEBUG", "ipv6natd.sync.applier")
        await bench.loop.cleanup()
        assert any(
            record.getMessage().startswith("rule removed: ip6tables -t nat -A IPV6NAT-DNAT ")
            for record in caplog.records
        )

    run(bench, scenario)


def test_a_cleanup_needs_no_engine(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        bench.facts.state = EngineState.UNREACHABLE
        bench.facts.relist_error = LookupError("no engine")
        await bench.passed()
        await bench.loop.cleanup()
        with pytest.raises(LookupError):
            await bench.loop.resync()
        assert bench.status.state is State.STOPPED

    run(bench, scenario)


def test_a_cleanup_that_fails_leaves_everything_in_force(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.passed()
        rules_in_force = bench.firewall.dump()
        bench.firewall.fail_next = "no room"
        with pytest.raises(FirewallError):
            await bench.loop.cleanup()
        await until(lambda: bench.saved)
        assert bench.firewall.dump() == rules_in_force
        assert bench.status.state is State.SYNCED

    run(bench, scenario)


def test_last_of_concurrent_resync_and_cleanup_wins(bench: Bench) -> None:
    async def scenario(bench: Bench) -> None:
        untouched = bench.firewall.dump()
        await bench.passed()
        rules_in_force = bench.firewall.dump()
        one, other = await asyncio.gather(
            bench.loop.resync(), bench.loop.cleanup(), return_exceptions=True
        )
        assert "during the resync" in str(one)
        assert other is None
        assert bench.firewall.dump() == untouched
        await asyncio.gather(bench.loop.cleanup(), bench.loop.resync())
        assert bench.firewall.dump() == rules_in_force

    run(bench, scenario)


def test_forwarding_is_on_only_while_the_filter_table_is_in_force(bench: Bench) -> None:
    """It is called after each pass and before the removal, but not before the first list."""
    calls: list[tuple[bool, bool]] = []

    def forward(on: bool) -> bool:
        calls.append((on, "-j IPV6NAT-FORWARD" in bench.firewall.dump()))
        return False

    bench.forward = forward

    async def scenario(bench: Bench) -> None:
        bench.facts.state = EngineState.UNREACHABLE
        await bench.passed()
        assert calls == []
        bench.facts.state = EngineState.CONNECTED
        await bench.passed()
        assert calls == [(True, True)]
        await bench.loop.cleanup()
        await bench.passed()
        assert calls == [(True, True), (False, True)]
        assert "IPV6NAT" not in bench.firewall.dump()
        await bench.loop.resync()
        assert calls[2:] == [(True, True)]

    run(bench, scenario)


def test_forwarding_is_not_changed_without_a_managed_network(bench: Bench) -> None:
    def forward(_on: bool) -> bool:
        raise AssertionError

    bench.forward = forward
    bench.facts.have()

    async def scenario(bench: Bench) -> None:
        assert (await bench.passed()).state is State.SYNCED

    run(bench, scenario)


def test_rules_stay_while_forwarding_cannot_be_switched_off(bench: Bench) -> None:
    def fail_off(on: bool) -> bool:
        if not on:
            raise FirewallError("read-only")
        return False

    bench.forward = fail_off

    async def scenario(bench: Bench) -> None:
        await bench.passed()
        with pytest.raises(FirewallError, match="read-only"):
            await bench.loop.cleanup()
        assert mappings(await bench.passed()) == [WEB]
        assert "-j IPV6NAT-FORWARD" in bench.firewall.dump()

    run(bench, scenario)
