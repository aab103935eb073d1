"""Docker 29's nft table: the recorded one, and forms that other versions may have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ipv6natd.model import EngineRules, Protocol
from ipv6natd.netfilter.docker_nft import nft_engine_rules

RECORDED = Path(__file__).parents[2] / "data" / "engine-29" / "nft-docker-bridges.json"
TCP, UDP = Protocol.TCP, Protocol.UDP


def listed(*objects: dict[str, Any]) -> str:
    return json.dumps({"nftables": [{"metainfo": {"json_schema_version": 1}}, *objects]})


def rule(*expressions: Any) -> dict[str, Any]:
    place = {"family": "ip6", "table": "docker-bridges", "chain": "nat-prerouting-and-output"}
    return {"rule": place | {"comment": "DNAT", "expr": list(expressions)}}


def payload(protocol: str = "tcp") -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": "dport"}}


def dport(right: Any, protocol: str = "tcp") -> dict[str, Any]:
    return {"match": {"op": "==", "left": payload(protocol), "right": right}}


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
            [rule({"dnat": {"addr": {"map": {"key": payload(), "data": {"set": [[80, "a"]]}}}}})],
            {(TCP, 80)},
        ),
        (
            [
                {"map": {"name": "ports", "elem": [[80, "a"], [{"elem": {"val": 81}}, "b"]]}},
                rule({"dnat": {"addr": {"map": {"key": payload(), "data": "@ports"}}}}),
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
        {"dnat": {"addr": {"map": {"key": payload(), "data": "@missing"}}}},
        {"dnat": {"addr": {"map": {"key": {"concat": [payload()]}, "data": {"set": []}}}}},
    ],
)
def test_rules_are_not_complete_with_a_port_that_cannot_be_read(expression: Any) -> None:
    assert not nft_engine_rules(listed(rule(dport(80), DNAT), rule(expression))).complete


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
