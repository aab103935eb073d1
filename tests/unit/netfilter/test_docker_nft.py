"""Docker 29's nft table: the recorded one, and forms that other versions may have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ipv6natd.model import EngineRules, Protocol
from ipv6natd.netfilter.docker_nft import nft_engine_rules
from tests import ROOT

RECORDED = ROOT / "tests" / "data" / "engine-29" / "nftables" / "nft-docker-bridges.json"
TCP, UDP = Protocol.TCP, Protocol.UDP


def listed(*objects: dict[str, Any]) -> str:
    return json.dumps({"nftables": [{"metainfo": {"json_schema_version": 1}}, *objects]})


def rule(*expressions: Any) -> dict[str, Any]:
    place = {"family": "ip6", "table": "docker-bridges", "chain": "nat-prerouting-and-output"}
    return {"rule": place | {"comment": "DNAT", "expr": list(expressions)}}


def payload(protocol: str = "tcp") -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": "dport"}}


def dport(right: Any, protocol: str = "tcp", op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": payload(protocol), "right": right}}


def by_map(data: Any) -> dict[str, Any]:
    return {"dnat": {"addr": {"map": {"key": payload(), "data": data}}}}


COUNTER = {"counter": {"packets": 3, "bytes": 180}}
DNAT = {"dnat": {"addr": "fd00:a::2", "port": 80}}


def test_the_table_of_docker_29_7_2() -> None:
    """Q13."""
    found = nft_engine_rules(RECORDED.read_text())
    assert found.complete
    assert len(found.bridges) == 6
    assert "docker0" in found.bridges
    assert {(TCP, 8080), (UDP, 5353), (TCP, 8081), (TCP, 8084)} <= found.ports


@pytest.mark.parametrize(
    ("objects", "ports"),
    [
        ([rule(dport(8080), DNAT)], {(TCP, 8080)}),
        ([rule(COUNTER, dport(53, "udp"), {"log": None}, DNAT)], {(UDP, 53)}),
        ([rule(dport({"set": [80, 443]}), DNAT)], {(TCP, 80), (TCP, 443)}),
        ([rule(dport({"range": [7000, 7002]}), DNAT)], {(TCP, n) for n in (7000, 7001, 7002)}),
        ([rule(dport({"set": [{"range": [1, 2]}, 9]}), DNAT)], {(TCP, n) for n in (1, 2, 9)}),
        ([rule(dport({"set": [{"elem": {"val": 80, **COUNTER}}]}), DNAT)], {(TCP, 80)}),
        ([rule(dport(80, "th"), DNAT)], {(each, 80) for each in Protocol}),
        (
            [rule(by_map({"set": [[80, "a"], [{"range": [90, 91]}, "b"]]}))],
            {(TCP, 80), (TCP, 90), (TCP, 91)},
        ),
        (
            [
                {"map": {"name": "ports", "elem": [[80, "a"], [{"elem": {"val": 81}}, "b"]]}},
                rule(by_map("@ports")),
            ],
            {(TCP, 80), (TCP, 81)},
        ),
        # No DNAT, or no port of the host.
        ([rule(dport(8080), {"accept": None})], set()),
        ([rule({"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": 6}})], set()),
    ],
)
def test_ports_of_dnat_rules(
    objects: list[dict[str, Any]], ports: set[tuple[Protocol, int]]
) -> None:
    assert nft_engine_rules(listed(*objects)) == EngineRules(ports=frozenset(ports))


@pytest.mark.parametrize(
    "expression",
    [
        {"dnat": {"addr": "fd00:a::2"}},
        by_map("@missing"),
        by_map("@empty"),
        {"dnat": {"addr": {"map": {"key": {"concat": [payload()]}, "data": {"set": []}}}}},
    ],
)
def test_rules_are_not_complete_with_a_port_that_cannot_be_read(expression: Any) -> None:
    empty = {"map": {"name": "empty"}}
    assert not nft_engine_rules(listed(empty, rule(dport(80), DNAT), rule(expression))).complete


@pytest.mark.parametrize(
    ("objects", "read"),
    [
        ([rule(dport({"set": [80, "https"]}), DNAT)], {80}),
        ([rule(dport({"set": [80, {"elem": {"val": "https"}}]}), DNAT)], {80}),
        ([rule(dport({"set": [80, {"range": [443, "8443"]}]}), DNAT)], {80}),
        ([rule(dport({"set": [80, {"range": [2, 1]}]}), DNAT)], {80}),
        ([rule(dport({"set": [80, {"prefix": {"addr": 64, "len": 10}}]}), DNAT)], {80}),
        ([rule(dport({"set": [80, 0, 65536]}), DNAT)], {80}),
        ([rule(dport(80), dport("@more"), DNAT)], {80}),
        ([rule(dport([80, 443]), DNAT)], set()),
        ([rule(by_map({"set": [[8080, "a"], ["https", "b"]]}))], {8080}),
        ([rule(by_map({"set": [[8080, "a"], 5, [], [{"concat": [1, 2]}, "b"]]}))], {8080}),
        (
            [
                {"map": {"name": "m", "elem": [[8080, "a"], [{"elem": {"val": "x"}}, "b"], 5]}},
                rule(by_map("@m")),
            ],
            {8080},
        ),
        # A comparison says which ports it is not.
        ([rule(dport(8080, op="!="), DNAT)], set()),
        ([rule(dport(8080, op=">"), DNAT)], set()),
        ([rule(dport({"set": [80, 81]}, op="!="), DNAT)], set()),
        ([rule(dport({"range": [80, 90]}), dport(85, op="!="), DNAT)], set(range(80, 91))),
    ],
)
def test_one_port_that_cannot_be_read_beside_others_makes_the_rules_incomplete(
    objects: list[dict[str, Any]], read: set[int]
) -> None:
    """Q13."""
    found = nft_engine_rules(listed(*objects))
    assert found.ports == {(TCP, port) for port in read}
    assert not found.complete


@pytest.mark.parametrize(
    "element",
    [
        ["br-x", {"jump": {"target": "filter-forward-in__br-x"}}],
        ["br-x", {"goto": {"target": "filter-forward-out__br-x"}}],
        [{"elem": {"val": "br-x", **COUNTER}}, {"jump": {"target": "filter-forward-in__br-x"}}],
    ],
)
def test_bridges_are_those_of_the_jumps(element: Any) -> None:
    text = listed({"map": {"name": "filter-forward-in-jumps", "elem": [element]}})
    assert nft_engine_rules(text).bridges == {"br-x"}
    anonymous = {"key": {"meta": {"key": "oifname"}}, "data": {"set": [element]}}
    assert nft_engine_rules(listed(rule({"vmap": anonymous}))).bridges == {"br-x"}


def test_a_missing_table_has_no_rules() -> None:
    assert nft_engine_rules("") == EngineRules()
