"""close_networks: what it writes, and the exposure that it returns."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipv6natd.conntrack.stale import Exposure
from ipv6natd.netfilter.diff import matches, rewrite_tables
from ipv6natd.netfilter.rules import GUARD_TABLES, Jump, Ruleset, Table, TableRules
from ipv6natd.policy.ruleset import HOST, closed_guard
from ipv6natd.sync import offline
from ipv6natd.sync.saved_rules import SavedRules
from tests.harness.fake_firewall import FakeFirewall
from tests.unit.policy.test_ruleset import rules_of

NOW = rules_of("two-networks-and-internal.proxy-on").guard


@pytest.fixture
def firewall(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeFirewall:
    fake = FakeFirewall()
    monkeypatch.setattr(offline, "RestoreFirewall", lambda _: fake)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    return fake


def save(rules: Ruleset) -> None:
    SavedRules().write(rules)


def without_sources(rules: Ruleset) -> Ruleset:
    """The rules as the first versions wrote them."""
    chains = {
        name: tuple(rule for rule in rules.filter.chains[name] if rule.target != Jump(HOST))
        for name in ("IPV6NAT-FORWARD", "IPV6NAT-CT")
    }
    return Ruleset(filter=TableRules(chains=chains, jumps=rules.filter.jumps[:2]))


def in_force(rules: Ruleset, firewall: FakeFirewall) -> bool:
    observed = firewall.read()
    return all(matches(rules.table(table), observed[table]) for table in GUARD_TABLES)


def own_chains(firewall: FakeFirewall) -> set[str]:
    return set(firewall.read()[Table.FILTER].chains)


def test_close_networks_without_a_saved_rules_writes_nothing(firewall: FakeFirewall) -> None:
    assert offline.close_networks("nft") == (None, Exposure.NONE)
    assert firewall.writes == 0


def test_close_networks_writes_the_saved_rules_and_returns_the_exposure(
    firewall: FakeFirewall,
) -> None:
    save(NOW)
    assert offline.close_networks("nft") == (NOW.guard, Exposure.OPEN)
    assert in_force(NOW, firewall)
    assert offline.close_networks("nft") == (NOW.guard, Exposure.NONE)


def test_saved_rules_without_source_checks_are_written_closed(firewall: FakeFirewall) -> None:
    save(without_sources(NOW))
    assert offline.close_networks("nft") == (without_sources(NOW), Exposure.UNGUARDED)
    assert in_force(closed_guard(NOW), firewall)
    assert own_chains(firewall) == {"IPV6NAT-FORWARD"}


def test_rules_in_force_of_the_first_version_are_not_replaced(
    firewall: FakeFirewall,
) -> None:
    """A restart during an upgrade loses no connection; the first pass comes within a second."""
    before = without_sources(NOW)
    for change in rewrite_tables(firewall.read(), before):
        firewall.write(change)
    save(before)
    writes = firewall.writes
    assert offline.close_networks("nft") == (before, Exposure.UNGUARDED)
    assert firewall.writes == writes
    assert in_force(before, firewall)
