"""The transitions of the applier's two states: a row for each row of its docstring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from ipv6natd.conntrack.stale import Exposure
from ipv6natd.firewall.backend import FirewallError
from ipv6natd.model import Container, Desired, Network, Policy
from ipv6natd.netfilter.rules import Table
from ipv6natd.sync.applier import Applier, ConntrackState, PassResult
from tests.harness.build import container, network, snapshot
from tests.harness.fake_firewall import FakeFirewall
from tests.harness.fake_host import FakeHost

X = network(name="x", subnet="fd00:a::/64", bridge="br-a")
Y = network(name="y", subnet="fd00:b::/64", bridge="br-b")
WEB = container(on=[X], ports=["8080:80"])
MORE = container(on=[X], ports=["8080:80", "8443:443"])
GUARD_EDIT = "*filter\n:IPV6NAT-CT - [0:0]\nCOMMIT\n"
NAT_EDIT = "*nat\n:IPV6NAT-DNAT - [0:0]\nCOMMIT\n"


@dataclass
class Bench:
    """An applier, and the calls of `flush_stale_flows`."""

    firewall: FakeFirewall = field(default_factory=FakeFirewall)
    flushes: list[tuple[bool, Exposure]] = field(default_factory=list)
    """Whether the decisions before were known, and the exposure, for each call."""
    flushed: bool = True
    """The result of the next flushes."""

    def __post_init__(self) -> None:
        self.applier = Applier(lambda: self.firewall, FakeHost(flush=self._flush))

    def _flush(self, old: Desired | None, _new: Desired, exposure: Exposure) -> bool:
        self.flushes.append((old is not None, exposure))
        return self.flushed

    def sync(
        self,
        *facts: Network | Container,
        verify: bool = False,
        recheck_flows: bool = False,
    ) -> PassResult:
        wanted = snapshot(*(facts or (X, WEB)))
        return self.applier.sync(wanted, Policy(), verify=verify, recheck_flows=recheck_flows)

    def fail(self) -> None:
        self.firewall.fail_next = "no"
        with pytest.raises(FirewallError):
            self.sync(X, MORE)

    @property
    def flows(self) -> ConntrackState:
        return self.applier._flows


def applied(bench: Bench) -> None:
    """A pass has written the rules, and they were read."""
    bench.sync()
    bench.flushes.clear()
    bench.firewall.reads = bench.firewall.writes = 0


def removed(bench: Bench) -> None:
    applied(bench)
    bench.applier.remove()
    bench.firewall.reads = bench.firewall.writes = 0


def failed(bench: Bench) -> None:
    applied(bench)
    bench.fail()
    bench.flushes.clear()
    bench.firewall.reads = bench.firewall.writes = 0


def edited(bench: Bench) -> None:
    applied(bench)
    bench.firewall.load(NAT_EDIT)


def fresh(_bench: Bench) -> None:
    """Nothing has happened."""


TABLES: dict[str, tuple[Callable[[Bench], None], Callable[[Bench], object], bool, str]] = {
    "the first pass": (fresh, Bench.sync, True, "whole"),
    "a pass after a removal": (removed, Bench.sync, True, "whole"),
    "a pass after a failed write": (failed, Bench.sync, True, "whole"),
    "the same rules": (applied, Bench.sync, True, "nothing"),
    "other rules": (applied, lambda b: b.sync(X, MORE), True, "chains"),
    "the same rules, as the kernel lists them": (
        applied,
        lambda b: b.sync(verify=True),
        True,
        "only read",
    ),
    "an edit": (edited, lambda b: b.sync(verify=True), True, "whole"),
    "a failed write": (applied, Bench.fail, False, "nothing"),
    "a removal": (applied, lambda b: b.applier.remove(), False, "removal"),
}
"""State before, event, whether the tables are known then, and what was written."""
READS_AND_WRITES = {
    "nothing": (0, 0),
    "only read": (1, 0),
    "chains": (0, 1),
    "removal": (1, 3),
}


@pytest.mark.parametrize("event", TABLES)
def test_tables(event: str) -> None:
    before, act, known, written = TABLES[event]
    bench = Bench()
    before(bench)
    act(bench)
    assert (bench.applier.applied.observed is not None) is known
    counts = bench.firewall.reads, bench.firewall.writes
    if written == "whole":
        # Before and after the write, and before that to see the edit.
        assert counts[0] >= 2
        assert counts[1] >= 1
    else:
        assert counts == READS_AND_WRITES[written]


def test_rules_of_a_failed_write_are_not_those_that_were_written() -> None:
    bench = Bench()
    applied(bench)
    text = bench.applier.ruleset_text()
    bench.fail()
    assert bench.applier.ruleset_text() == text
    bench.applier.remove()
    assert "8080" not in bench.applier.ruleset_text()


def test_drift_is_reported_once_and_after_a_failed_repair() -> None:
    bench = Bench()
    edited(bench)
    bench.firewall.fail_next = "no"
    with pytest.raises(FirewallError):
        bench.sync(verify=True)
    assert bench.sync().drift == (Table.NAT,)
    assert bench.sync(verify=True).drift == ()


def edit(text: str) -> Callable[[Bench], PassResult]:
    def act(bench: Bench) -> PassResult:
        bench.firewall.load(text)
        return bench.sync(verify=True)

    return act


def remove_and_sync(bench: Bench) -> PassResult:
    bench.applier.remove()
    return bench.sync()


def fail_and_sync(bench: Bench) -> PassResult:
    bench.fail()
    return bench.sync(X, MORE)


FLOWS: dict[str, tuple[Callable[[Bench], PassResult], list[tuple[bool, Exposure]]]] = {
    "the same rules": (Bench.sync, []),
    "another address": (
        lambda b: b.sync(recheck_flows=True),
        [(True, Exposure.NONE), (False, Exposure.NONE)],
    ),
    "an edit of nat": (edit(NAT_EDIT), [(True, Exposure.NONE), (False, Exposure.NONE)]),
    "an edit of the guard": (edit(GUARD_EDIT), [(True, Exposure.OPEN)]),
    "a removal": (remove_and_sync, [(False, Exposure.OPEN)]),
    "a failed write": (fail_and_sync, [(True, Exposure.NONE)]),
}
"""Event after a pass, and the calls of `flush_stale_flows` for it."""


@pytest.mark.parametrize("event", FLOWS)
def test_flows(event: str) -> None:
    act, flushes = FLOWS[event]
    bench = Bench()
    applied(bench)
    act(bench)
    assert bench.flushes == flushes
    assert bench.flows.recheck_all is False
    assert bench.flows.exposure is Exposure.NONE
    assert bench.flows.flushed_for is not None


def test_failed_flush_is_repeated_for_all_flows() -> None:
    bench = Bench()
    applied(bench)
    bench.flushed = False
    bench.firewall.load(GUARD_EDIT)
    assert not bench.sync(verify=True).flows_flushed
    assert (bench.flows.recheck_all, bench.flows.exposure) == (True, Exposure.OPEN)
    bench.flushed = True
    bench.flushes.clear()
    assert bench.sync().flows_flushed
    assert bench.flushes == [(True, Exposure.OPEN), (False, Exposure.NONE)]
