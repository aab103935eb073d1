"""What is written before anything else, and what may have passed until then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ipv6natd.conntrack.stale import Exposure
from ipv6natd.netfilter.diff import diff, matches
from ipv6natd.netfilter.rules import Jump, Ruleset, Table, TableRules
from ipv6natd.policy.ruleset import DESTINATIONS, SOURCES, closed_filter
from ipv6natd.sync import offline as early
from ipv6natd.sync.saved_rules import Kept
from tests.harness.fake_firewall import FakeFirewall
from tests.unit.policy.test_ruleset import rules_of

NOW = rules_of("two-networks-and-internal.proxy-on").filter


@pytest.fixture
def firewall(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeFirewall:
    found = FakeFirewall()
    monkeypatch.setattr(early, "RestoreFirewall", lambda _: found)
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    return found


def keep(rules: TableRules) -> None:
    Kept().write(rules)


def without_sources(rules: TableRules) -> TableRules:
    """As the first versions wrote them."""
    later = (Jump(SOURCES), Jump(DESTINATIONS))
    chains = tuple(
        replace(each, rules=tuple(r for r in each.rules if r.target not in later))
        for each in rules.chains
        if each.name in ("IPV6NAT-FORWARD", "IPV6NAT-CT")
    )
    return TableRules(chains=chains, jumps=rules.jumps[:2])


def own(firewall: FakeFirewall) -> set[str]:
    return set(firewall.read()[Table.FILTER].chains)


def test_with_nothing_kept_nothing_is_read_or_written(firewall: FakeFirewall) -> None:
    assert early.close_networks("nft") is Exposure.NONE
    assert firewall.writes == 0


def test_kept_rules_are_written_and_what_was_found_is_told(firewall: FakeFirewall) -> None:
    keep(NOW)
    assert early.close_networks("nft") is Exposure.OPEN
    assert matches(NOW, firewall.read()[Table.FILTER])
    assert early.close_networks("nft") is Exposure.NONE


def test_kept_rules_that_ask_for_no_source_are_written_closed(firewall: FakeFirewall) -> None:
    keep(without_sources(NOW))
    assert early.close_networks("nft") is Exposure.UNGUARDED
    assert matches(closed_filter(NOW), firewall.read()[Table.FILTER])
    assert own(firewall) == {"IPV6NAT-FORWARD"}


def test_the_rules_of_the_former_version_stay_until_the_engine_answers(
    firewall: FakeFirewall,
) -> None:
    """A restart in an upgrade loses no connection; the first pass is a second away."""
    before = without_sources(NOW)
    read = {Table.FILTER: firewall.read()[Table.FILTER]}
    wanted = Ruleset(filter=before)
    for change in diff(applied=None, interim=before, wanted=wanted, observed=read):
        firewall.write(change)
    keep(before)
    writes = firewall.writes
    assert early.close_networks("nft") is Exposure.UNGUARDED
    assert firewall.writes == writes
    assert matches(before, firewall.read()[Table.FILTER])
