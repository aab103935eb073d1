"""The facts as JSON: reading them again gives the same decisions."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Any

from hypothesis import given, settings

from ipv6natd.model import Engine, EngineRules, Policy, Protocol, Route, Snapshot
from ipv6natd.report.facts import facts_text
from tests.harness.build import container, network, snapshot
from tests.harness.replay import replay
from tests.unit.policy.test_properties import POLICIES, snapshots


def again(facts: Snapshot, policy: Policy) -> Any:
    return replay({"Facts": json.loads(facts_text(facts, policy))})


@settings(max_examples=50, deadline=None)
@given(snapshots(), POLICIES)
def test_any_facts_are_the_same_after_a_report(facts: Snapshot, policy: Policy) -> None:
    found = again(facts, policy)
    assert (found.snapshot, found.policy) == (facts, policy)


def test_each_kind_of_value_survives() -> None:
    net = network(name="a", subnet="fd00:a::/64")
    facts = replace(
        snapshot(net, container(on=[net], ports=["8080:80", "127.0.0.1:53:53/udp"])),
        engine=Engine(version="28.1", ip6tables=False),
        host_addresses=frozenset({IPv6Address("2001:db8::1")}),
        routes=(Route(prefix=IPv6Network("fd00:b::/64"), interface="eth0"),),
        engine_rules=EngineRules(ports=frozenset({(Protocol.UDP, 53)}), complete=False),
    )
    policy = Policy(
        address_map={IPv4Address("192.0.2.1"): IPv6Address("2001:db8::1")}, accept_fwmark=(1, 3)
    )
    found = again(facts, policy)
    assert (found.snapshot, found.policy) == (facts, policy)
    assert "--dport 8080" in found.rules
