"""Which facts of the host are read for a snapshot, and when."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Network

import pytest

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.model import Engine, EngineRules, Policy, Route, Snapshot
from ipv6natd.policy.networks import decided_networks
from ipv6natd.sync import local_host
from ipv6natd.sync.forwarding import Forwarding
from ipv6natd.sync.local_host import LocalHost
from tests.harness.build import network

ENGINE = Engine(version="28.5.2")
X, Y = network(name="x"), network(name="y")


def local_reader() -> LocalHost:
    async def no_zones() -> None:
        return None

    return LocalHost(Forwarding(), no_zones)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[EngineRules]:
    """The reads of the rules of an engine without rules."""
    found: list[EngineRules] = []

    def read() -> EngineRules:
        found.append(EngineRules())
        return found[-1]

    monkeypatch.setattr(local_host, "read_engine_rules", read)
    return found


def test_engine_rules_are_read_only_if_there_can_be_new_ones(
    reads: list[EngineRules],
) -> None:
    reader = local_reader()
    facts = Snapshot(engine=ENGINE, networks=(X,))
    for count, now, refresh in [
        (1, facts, False),
        (1, facts, False),
        (2, facts, True),
        (3, replace(facts, networks=(X, Y)), False),
        (3, replace(facts, networks=(X, Y)), False),
        (4, replace(facts, networks=(X, Y), engine=replace(ENGINE, ip6tables=True)), False),
        (4, replace(facts, engine=replace(ENGINE, ip6tables=False)), False),
    ]:
        assert reader.add_facts(now, refresh).engine_rules == EngineRules()
        assert len(reads) == count


def test_routes_that_change_while_they_are_read_are_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, facts = local_reader(), Snapshot(engine=Engine(version="20.10"), networks=(X,))
    prefixes = [IPv6Network("fd00:77::/64"), IPv6Network("fd00:78::/64")]
    reads = 0

    def read() -> list[Route]:
        nonlocal reads
        reads += 1
        if reads == 1:
            reader.routes_changed()  # after the kernel has answered
        return [Route(prefix=prefix, interface=X.bridge) for prefix in prefixes[:reads]]

    monkeypatch.setattr(local_host, "routes", read)
    monkeypatch.setattr(local_host, "advertised_routes", frozenset)
    for count in (1, 2, 2):
        assert len(reader.add_facts(facts, False).routes) == count
    assert reads == 2


def test_engine_rules_are_read_again_while_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine writes a rule for each port of a container."""
    bridges = iter([{"br-x"}, {"br-x", "br-y"}])
    monkeypatch.setattr(
        local_host, "read_engine_rules", lambda: EngineRules(bridges=frozenset(next(bridges)))
    )
    reader, facts = local_reader(), Snapshot(engine=ENGINE, networks=(X,))
    assert reader.add_facts(facts, False).engine_rules.bridges == {"br-x"}
    assert reader.add_facts(facts, False).engine_rules.bridges == {"br-x", "br-y"}


def test_engine_may_have_rules_if_they_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Q13: a tool of another version crashes on the engine's table."""
    answers: list[EngineRules | FirewallError] = [
        FirewallError("nft crashed"),
        FirewallError("nft crashed"),
        EngineRules(bridges=frozenset({"br-x"})),
        FirewallError("nft crashed"),
        FirewallError("nft crashed"),
    ]

    def read() -> EngineRules:
        answer = answers.pop(0)
        if isinstance(answer, FirewallError):
            raise answer
        return answer

    monkeypatch.setattr(local_host, "read_engine_rules", read)
    reader, facts = local_reader(), Snapshot(engine=ENGINE, networks=(X, Y))
    unknown = EngineRules(bridges=frozenset({"br-x", "br-y"}), complete=False)
    known = EngineRules(bridges=frozenset({"br-x"}))
    other_engine = replace(facts, engine=replace(ENGINE, version="29.0.0"))
    snapshots = [facts, facts, facts, facts, other_engine]
    found = [reader.add_facts(snapshot, False).engine_rules for snapshot in snapshots]
    assert found == [unknown, unknown, known, known, unknown]
    assert [record.getMessage() for record in caplog.records] == [
        "cannot read whether the engine has IPv6 rules: nft crashed"
    ] * 2


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
    """Decision 18: routes show which sources are forged; routes from a router do not."""
    read: list[None] = []

    def routes() -> list[Route]:
        read.append(None)
        return ROUTES

    monkeypatch.setattr(local_host, "routes", routes)
    monkeypatch.setattr(local_host, "advertised_routes", lambda: {ROUTES[4]})
    reader = local_reader()
    facts = Snapshot(networks=(X, WIDE))
    expected = (ROUTES[3], ROUTES[6])
    for count, now, refresh in [
        (1, facts, False),
        (1, facts, False),
        (2, facts, True),
        (3, replace(facts, networks=(WIDE, X)), False),
    ]:
        assert reader.add_facts(now, refresh).routes == expected
        assert len(read) == count
    reader.routes_changed()
    assert reader.add_facts(replace(facts, networks=(WIDE, X)), False).routes == expected
    assert len(read) == 4
    assert reads == []


def test_network_has_its_routed_prefixes_and_routes_elsewhere() -> None:
    networks = decided_networks(Snapshot(networks=(X, WIDE), routes=tuple(ROUTES)), Policy())
    found = {network.name: network for network in networks}
    assert found["wide"].routes_elsewhere == (ROUTES[3], ROUTES[4])
    assert found["wide"].routed_prefixes == ()
    assert found["x"].routes_elsewhere == ()
    assert found["x"].routed_prefixes == (ROUTES[6].prefix,)
