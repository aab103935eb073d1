"""What is read of the host for a snapshot, and when."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Network

import pytest

from ipv6natd.model import Engine, EngineRules, Policy, Route, Snapshot
from ipv6natd.policy.networks import managed_networks
from ipv6natd.sync import snapshot
from ipv6natd.sync.snapshot import Completion
from tests.harness.build import network

ENGINE = Engine(version="28.5.2", api_version="1.51")
X, Y = network(name="x"), network(name="y")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[EngineRules]:
    """What was read of the engine's rules; it has none."""
    found: list[EngineRules] = []

    def read() -> EngineRules:
        found.append(EngineRules())
        return found[-1]

    monkeypatch.setattr(snapshot, "read_engine_rules", read)
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
        snapshot, "read_engine_rules", lambda: EngineRules(bridges=frozenset(next(bridges)))
    )
    completed, facts = Completion(), Snapshot(engine=ENGINE, networks=(X,))
    assert completed(facts, False).engine_rules.bridges == {"br-x"}
    assert completed(facts, False).engine_rules.bridges == {"br-x", "br-y"}


WIDE = network(name="wide", subnet="fd00:9::/48")


def route(prefix: str, interface: str) -> Route:
    return Route(prefix=IPv6Network(prefix), interface=interface)


ROUTES = [
    route("::/0", "eth0"),
    route("2001:db8::/64", "eth0"),
    route("fd00:9::/48", "br-wide"),
    route("fd00:9:0:5::/64", "eth1"),
    route("fd00:9:0:6::/64", "eth2"),
    route("fd00:a::/64", "br-x"),
    route("2001:db8:9::/64", "br-x"),
]


def test_routes_that_concern_a_network_are_read_once_until_they_change(
    monkeypatch: pytest.MonkeyPatch, reads: list[EngineRules]
) -> None:
    """Decision 18: by them a source is forged or not. What a router advertised does not count."""
    read: list[None] = []

    def routes() -> list[Route]:
        read.append(None)
        return ROUTES

    monkeypatch.setattr(snapshot, "routes", routes)
    monkeypatch.setattr(snapshot, "advertised_routes", lambda: {ROUTES[4]})
    completed = Completion()
    facts = Snapshot(networks=(X, WIDE))
    expected = (ROUTES[3], ROUTES[6])
    for count, now, anew in [
        (1, facts, False),
        (1, facts, False),
        (2, facts, True),
        (3, replace(facts, networks=(WIDE, X)), False),
    ]:
        assert completed(now, anew).routes == expected
        assert len(read) == count
    completed.routes_changed()
    assert completed(replace(facts, networks=(WIDE, X)), False).routes == expected
    assert len(read) == 4
    assert reads == []


def test_a_network_knows_what_of_it_is_elsewhere_and_what_is_behind_it() -> None:
    networks, _ = managed_networks(Snapshot(networks=(X, WIDE), routes=tuple(ROUTES)), Policy())
    found = {each.name: each for each in networks.values()}
    assert found["wide"].routes_elsewhere == (ROUTES[3], ROUTES[4])
    assert found["wide"].routed_prefixes == ()
    assert found["x"].routes_elsewhere == ()
    assert found["x"].routed_prefixes == (ROUTES[6].prefix,)
