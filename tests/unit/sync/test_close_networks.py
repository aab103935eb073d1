"""close_networks: what it writes, and the exposure that it returns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ipv6natd.conntrack.stale import Exposure
from ipv6natd.netfilter.diff import diff, matches
from ipv6natd.netfilter.rules import Jump, Ruleset, Table, TableRules
from ipv6natd.policy.ruleset import DESTINATIONS, SOURCES, closed_filter
from ipv6natd.sync import offline
from ipv6natd.sync.saved_rules import SavedFilter
from tests.harness.fake_firewall import FakeFirewall
from tests.unit.policy.test_ruleset import rules_of

NOW = rules_of("two-networks-and-internal.proxy-on").filter


@pytest.fixture
def firewall(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeFirewall:
    fake = FakeFirewall()
    monkeypatch.setattr(offline, "RestoreFirewall", lambda _: fake)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    return fake


def save(rules: TableRules) -> None:
    SavedFilter().write(rules)


def without_sources(rules: TableRules) -> TableRules:
    """The rules as the first versions wrote them."""
    later = (Jump(SOURCES), Jump(DESTINATIONS))
    chains = tuple(
        replace(chain, rules=tuple(r for r in chain.rules if r.target not in later))
        for chain in rules.chains
        if chain.name in ("IPV6NAT-FORWARD", "IPV6NAT-CT")
    )
    return TableRules(chains=chains, jumps=rules.jumps[:2])


def own_chains(firewall: FakeFirewall) -> set[str]:
    return set(firewall.read()[Table.FILTER].chains)


def test_close_networks_without_a_saved_filter_writes_nothing(firewall: FakeFirewall) -> None:
    assert offline.close_networks("nft") is Exposure.NONE
    assert firewall.writes == 0


def test_close_networks_writes_the_saved_filter_and_returns_the_exposure(
    firewall: FakeFirewall,
) -> None:
    save(NOW)
    assert offline.close_networks("nft") is Exposure.OPEN
    assert matches(NOW, firewall.read()[Table.FILTER])
    assert offline.close_networks("nft") is Exposure.NONE


def test_saved_filter_without_source_checks_is_written_closed(firewall: FakeFirewall) -> None:
    save(without_sources(NOW))
    assert offline.close_networks("nft") is Exposure.UNGUARDED
    assert matches(closed_filter(NOW), firewall.read()[Table.FILTER])
    assert own_chains(firewall) == {"IPV6NAT-FORWARD"}


def test_rules_in_force_of_the_first_version_are_not_replaced(
    firewall: FakeFirewall,
) -> None:
    """A restart during an upgrade loses no connection; the first pass comes within a second."""
    before = without_sources(NOW)
    observed = {Table.FILTER: firewall.read()[Table.FILTER]}
    wanted = Ruleset(filter=before)
    for change in diff(applied=None, interim=before, wanted=wanted, observed=observed):
        firewall.write(change)
    save(before)
    writes = firewall.writes
    assert offline.close_networks("nft") is Exposure.UNGUARDED
    assert firewall.writes == writes
    assert matches(before, firewall.read()[Table.FILTER])
