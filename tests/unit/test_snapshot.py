"""What is read of the host for a snapshot, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipv6natd import snapshot
from ipv6natd.model import Engine, EngineRules, Snapshot
from ipv6natd.snapshot import Completion
from tests.unit.build import network

ENGINE = Engine(version="28.5.2", api_version="1.51")
X, Y = network(name="x"), network(name="y")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[EngineRules]:
    """What was read of the engine's rules; it has none."""
    found: list[EngineRules] = []

    def read() -> EngineRules:
        found.append(EngineRules())
        return found[-1]

    monkeypatch.setattr(snapshot, "engine_rules", read)
    return found


def test_all_tables_are_read_for_the_engines_rules_only_when_there_may_be_some(
    reads: list[EngineRules],
) -> None:
    completed = Completion()
    facts = Snapshot(engine=ENGINE, networks=(X,))
    for count, now, anew in [
        (1, facts, False),
        (1, facts, False),
        (2, facts, True),
        (3, replace(facts, networks=(X, Y)), False),
        (3, replace(facts, networks=(X, Y)), False),
        (4, replace(facts, networks=(X, Y), engine=replace(ENGINE, ip6tables=True)), False),
        (4, replace(facts, engine=replace(ENGINE, ip6tables=False)), False),
    ]:
        assert completed(now, anew).engine_rules == EngineRules()
        assert len(reads) == count


def test_rules_of_the_engines_are_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's port comes with a rule of its own."""
    bridges = iter([{"br-x"}, {"br-x", "br-y"}])
    monkeypatch.setattr(
        snapshot, "engine_rules", lambda: EngineRules(bridges=frozenset(next(bridges)))
    )
    completed, facts = Completion(), Snapshot(engine=ENGINE, networks=(X,))
    assert completed(facts, False).engine_rules.bridges == {"br-x"}
    assert completed(facts, False).engine_rules.bridges == {"br-x", "br-y"}
