"""The saved rules are read back unchanged, and foreign rules are rejected."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given

from ipv6natd.model import Desired
from ipv6natd.netfilter.parse import parse_rule, parse_saved_rules
from ipv6natd.netfilter.render import format_rule, format_ruleset
from ipv6natd.netfilter.rules import Table
from ipv6natd.policy.ruleset import ruleset
from ipv6natd.sync.saved_rules import SavedRules
from tests.unit.policy.test_properties import bounded, states
from tests.unit.policy.test_ruleset import rules_of


@bounded
@given(states())
def test_every_rule_is_parsed_from_its_own_text(want: Desired) -> None:
    """The text of the rules is complete."""
    rules = ruleset(want)
    for table in Table:
        for chain in rules.table(table).chains.values():
            for rule in chain:
                assert parse_rule(format_rule(rule)) == rule
    assert parse_saved_rules(format_ruleset(rules.guard)) == rules.guard


@pytest.mark.parametrize(
    "text",
    [
        "-A FORWARD -j ACCEPT -j DROP",
        "*filter\n-A OUTPUT -j DROP\nCOMMIT",
        "*nat\nCOMMIT",
        ":MINE - [0:0]",
        "-X DOCKER-USER",
        "*filter\n:IPV6NAT-A - [0:0]\n-A IPV6NAT-A -j QUEUE\nCOMMIT",
        "*filter\n:IPV6NAT-A - [0:0]\n-A IPV6NAT-A -i br-a; reboot -j DROP\nCOMMIT",
        "*filter\n:IPV6NAT-A - [0:0]\n-A IPV6NAT-A -s fd00::/8%x -j DROP\nCOMMIT",
        "*filter\n:IPV6NAT-A - [0:0]\n-A IPV6NAT-A  -j DROP\nCOMMIT",
        "*filter\n:IPV6NAT-A - [0:0]\n-A IPV6NAT-A\nCOMMIT",
        '*filter\n:IPV6NAT-A - [0:0]\n-A IPV6NAT-A -i "a -j DROP\nCOMMIT',
        "*filter\n:IPV6NAT-A - [0:0]\n-A IPV6NAT-A -i \x1b -j DROP\nCOMMIT",
        "*filter\n:IPV6NAT-A - [0:0]\n-A IPV6NAT-A -i \u00e9 -j DROP\nCOMMIT",
        "*filter\n:IPV6NAT-A - [0:0]\n-A IPV6NAT-A -m conntrack --ctstate SNAT -j DROP\nCOMMIT",
        "*filter\n:IPV6NAT-A - [0:0]\n-A IPV6NAT-A -p tcp -m tcp --dport 70000 -j DROP\nCOMMIT",
        "*filter\n:IPV6NAT-A - [0:0]\n-A IPV6NAT-A -m comment --comment x -j DROP\nCOMMIT",
        "*filter\n:IPV6NAT-A;x - [0:0]\nCOMMIT",
        "*filter\n:IPV6NAT-A - [0:0]\n-A FORWARD -j ACCEPT\nCOMMIT",
        "*raw\n:IPV6NAT-A - [0:0]\n-A OUTPUT -m comment --comment ipv6natd -j IPV6NAT-A\nCOMMIT",
        "*raw\n-A PREROUTING -m comment --comment ipv6natd -j DOCKER-USER\nCOMMIT",
        "*filter\n:IPV6NAT-A - [0:0]\n-A INPUT -j IPV6NAT-A\nCOMMIT",
        "*filter\n:IPV6NAT-A - [0:0]\n-A IPV6NAT-A -j IPV6NAT-B\nCOMMIT",
    ],
)
def test_saved_rules_with_foreign_rules_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    saved = SavedRules()
    saved.path.write_text(text)
    with pytest.raises((ValueError, TypeError)):
        parse_saved_rules(text)
    assert saved.read() is None


def test_saved_rules_of_an_earlier_build_are_read() -> None:
    rules = (
        "*filter\n:IPV6NAT-FORWARD - [0:0]\n:IPV6NAT-CT - [0:0]\n"
        "-A FORWARD -m comment --comment ipv6natd -j IPV6NAT-FORWARD\n"
        "-A IPV6NAT-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j IPV6NAT-CT\nCOMMIT\n"
    )
    assert format_ruleset(parse_saved_rules(rules)) == rules


def test_saved_rules_is_read_back_and_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = rules_of("one-port.proxy-on").guard
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/state:/elsewhere")
    saved = SavedRules()
    assert saved.read() is None
    saved.write(rules)
    saved.write(rules)
    assert saved.read() == rules
    assert saved.path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in saved.path.parent.iterdir()] == ["filter.rules"]
    saved.remove()
    saved.remove()
    assert saved.read() is None


def test_saved_rules_that_cannot_be_written_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/file")
    saved = SavedRules()
    saved.write(ruleset(Desired()))
    assert saved.read() is None
    saved.remove()
