"""Explanations: each sentence compared with the decision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ipv6natd.dbus.values import variants, without_variants
from ipv6natd.model import (
    Container,
    Engine,
    EngineRules,
    GatewayMode,
    Network,
    Outcome,
    Policy,
    Protocol,
    Snapshot,
)
from ipv6natd.netfilter.counters import connection_counts, engine_rules
from ipv6natd.policy.desired import desired
from ipv6natd.policy.ruleset import ruleset
from ipv6natd.report.explain import (
    Explanation,
    explanations,
    with_connections,
    with_engine_rules,
)
from tests.harness.build import binding, container, endpoint, identity, network, snapshot

DEFAULT = Policy()
A, B = network(name="a", subnet="fd00:a::/64"), network(name="b", subnet="fd00:b::/64")


def explained(
    query: str, *facts: Network | Container, policy: Policy = DEFAULT, **changes: Any
) -> list[Explanation]:
    facts_: Snapshot = replace(snapshot(*facts), **changes)
    want = desired(facts_, policy)
    return explanations(query, facts_, want, ruleset(want))


def outcomes(*facts: Network | Container, **how: Any) -> list[tuple[str, Outcome]]:
    (explanation,) = explained("web", *facts, **how)
    return [(port.binding, port.outcome) for port in explanation.ports]


def reasons(explanation: Explanation) -> dict[str, str]:
    return {report.name: report.reason for report in explanation.networks}


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("web", ["web"]),
        (identity("web"), ["web"]),
        (identity("db")[:12], ["db"]),
        (identity("db")[:3], []),
        ("8080", ["web"]),
        ("8080/tcp", ["web"]),
        ("8080/udp", []),
        ("53", ["db", "web"]),
        ("53/udp", ["web"]),
        ("99999", []),
        ("٨٠٨٠", []),
        ("", []),
        ("nobody", []),
    ],
)
def test_query_selects_containers_by_name_id_or_port(query: str, names: list[str]) -> None:
    web = container(name="web", on=[A], ports=["8080:80", "53:53/udp"])
    db = container(name="db", on=[A], ports=["127.0.0.1:53:53"])
    assert [explanation.container_name for explanation in explained(query, A, web, db)] == names


def test_query_prefers_a_name_that_looks_like_a_port() -> None:
    odd, web = container(name="8080", on=[A]), container(name="web", on=[A], ports=["8080:80"])
    assert [explanation.container_name for explanation in explained("8080", A, odd, web)] == [
        "8080"
    ]


def test_port_that_the_engine_publishes_nowhere_is_explained() -> None:
    """Q19."""
    lan = network(name="lan", driver="macvlan", bridge="")
    web = container(on=[lan], unpublished=(binding(host_port=8080),))
    (explanation,) = explained("8080", A, lan, web)
    (port,) = explanation.ports
    assert (port.binding, port.outcome) == ("[::]:8080 -> 80/tcp", Outcome.SKIPPED)
    assert "the container is on no bridge network" in port.reason


def test_forwarded_port_has_its_rule_and_counter() -> None:
    web = container(on=[A], ports=["8080:80", "9000-9009:9000-9009/udp"])
    (explanation,) = explained("web", A, web)
    assert [(port.binding, port.outcome) for port in explanation.ports] == [
        ("[::]:8080 -> 80/tcp", Outcome.FORWARDED),
        ("[::]:9000-9009 -> 9000-9009/udp", Outcome.FORWARDED),
    ]
    assert explanation.ports[0].rule == (
        "-A IPV6NAT-DNAT ! -i br-a -p tcp -m tcp --dport 8080 -j DNAT "
        "--to-destination [fd00:a::2]:80"
    )
    save = (
        "*nat\n[9:9] -A DOCKER -p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00:a::2]:80\n"
        "[7:560] -A IPV6NAT-DNAT -p tcp ! -i br-a -m tcp --dport 8080 -j DNAT "
        "--to-destination [fd00:a::2]:80\n"
        "[0:0] -A IPV6NAT-DNAT -d 2001:db8::1/128 -p tcp -m tcp --dport 8080 -j DNAT "
        "--to-destination [fd00:a::2]:80\nCOMMIT\n"
    )
    counted = with_connections(explanation, connection_counts(save))
    assert [port.connections for port in counted.ports] == [7, None]
    values = without_variants(variants(counted))
    assert [port.get("Connections") for port in values["Ports"]] == [7, None]


def test_each_port_of_a_shifted_range_has_its_own_rule() -> None:
    """Q26. The ports of a range that keeps its numbers have one rule."""
    web = container(on=[A], ports=["8093-8095:80-82", "9000-9002:9000-9002"])
    (explanation,) = explained("8094", A, web)
    rules = {port.binding: port.rule for port in explanation.ports}
    assert list(rules) == [
        *("[::]:8093 -> 80/tcp", "[::]:8094 -> 81/tcp", "[::]:8095 -> 82/tcp"),
        "[::]:9000-9002 -> 9000-9002/tcp",
    ]
    for number in range(3):
        rule = rules[f"[::]:{8093 + number} -> {80 + number}/tcp"]
        assert f"--dport {8093 + number} " in rule
        assert rule.endswith(f"]:{80 + number}")


def test_every_forwarded_port_of_a_split_table_finds_its_rule() -> None:
    web = container(on=[A], ports=[f"{port}:80" for port in range(1000, 5000, 7)])
    (explanation,) = explained("web", A, web)
    assert len(explanation.ports) > 500
    for port in explanation.ports:
        assert f"--dport {port.binding.split(':')[-1].split()[0]} " in port.rule


@pytest.mark.parametrize(
    ("spec", "policy", "outcome"),
    [
        ("127.0.0.1:80:80", Policy(), Outcome.IPV4_ONLY),
        ("0.0.0.0:80:80", Policy(), Outcome.IPV4_ONLY),
        ("0.0.0.0:80:80", Policy(ipv4_any_means_ipv6=True), Outcome.FORWARDED),
        ("[2001:db8::1]:80:80", Policy(), Outcome.FORWARDED),
        ("[::1]:80:80", Policy(), Outcome.PROXY),
        ("[fe80::1]:80:80", Policy(), Outcome.SKIPPED),
    ],
)
def test_outcome_of_a_binding(spec: str, policy: Policy, outcome: Outcome) -> None:
    assert [
        explanation
        for _, explanation in outcomes(A, container(on=[A], ports=[spec]), policy=policy)
    ] == [outcome]


def test_ipv4_binding_with_an_ipv6_twin_is_not_listed() -> None:
    assert outcomes(A, container(on=[A], ports=["8080:80"])) == [
        ("[::]:8080 -> 80/tcp", Outcome.FORWARDED)
    ]
    other = container(on=[A], ports=["8080:80", "127.0.0.1:9090:80"])
    assert ("127.0.0.1:9090 -> 80/tcp", Outcome.IPV4_ONLY) in outcomes(A, other)


def test_outcome_depends_on_the_gateway_mode() -> None:
    def of(**fields: Any) -> Outcome:
        net = network(name="a", **fields)
        ((_, found),) = outcomes(net, container(on=[net], ports=["8080:80"]))
        return found

    assert of(gateway_mode=GatewayMode.ROUTED) is Outcome.DIRECT
    assert of(gateway_mode=GatewayMode.ISOLATED) is Outcome.CLOSED
    assert of(subnet="2001:db8::/64") is Outcome.SKIPPED
    four = network(name="a", enable_ipv6=False)
    only4 = container(on=[endpoint(on=four, gateways="4")], ports=["8080:80"])
    assert outcomes(four, only4) == [("[::]:8080 -> 80/tcp", Outcome.PROXY)]


def test_conflicting_port_names_the_other_container() -> None:
    one, two = (container(name=name, on=[A], ports=["8080:80"]) for name in ("web", "other"))
    found = [port for explanation in explained("8080", A, one, two) for port in explanation.ports]
    assert sorted(port.outcome for port in found) == [Outcome.FORWARDED, Outcome.SKIPPED]
    assert any("already belongs to container" in port.reason for port in found)


def test_every_skipped_binding_of_a_port_has_its_own_reason() -> None:
    web = container(on=[A], ports=["[fe80::1]:8080:80", "[fe80::2]:8081:80"])
    (explanation,) = explained("web", A, web)
    assert [port.reason.split()[0] for port in explanation.ports] == ["fe80::1", "fe80::2"]
    assert explanation.skipped == ()


@pytest.mark.parametrize("policy", [Policy(), Policy(allow_direct_routing=True)])
def test_loopback_binding_is_left_to_the_proxy_also_with_direct_access(policy: Policy) -> None:
    web = container(on=[A], ports=["[::1]:8080:80"])
    assert outcomes(A, web, policy=policy) == [("[::1]:8080 -> 80/tcp", Outcome.PROXY)]


def test_port_of_a_container_that_no_pass_has_seen_is_not_in_force() -> None:
    before = desired(snapshot(A), DEFAULT)
    facts = snapshot(A, container(on=[A], ports=[binding()]))
    (explanation,) = explanations("web", facts, before, ruleset(before))
    assert [(port.outcome, port.reason) for port in explanation.ports] == [
        (Outcome.SKIPPED, "its rules are not in force yet; see `ipv6natctl status`")
    ]


def test_port_forwarded_by_the_engine_is_native() -> None:
    engine = Engine(version="28.0.0", ip6tables=True)
    rules = EngineRules(bridges=frozenset({"br-a"}), ports=frozenset({(Protocol.TCP, 8080)}))
    web = container(on=[A], ports=["8080:80"])
    (explanation,) = explained("web", A, web, engine=engine, engine_rules=rules)
    assert [(port.outcome, port.rule) for port in explanation.ports] == [(Outcome.NATIVE, "")]


def test_every_network_has_a_reason_why_it_is_used_or_not() -> None:
    inside = network(name="c", subnet="fd00:c::/64", internal=True)
    places = [endpoint(on=A), endpoint(on=B, priority=9), endpoint(on=inside, gateways="")]
    (explanation,) = explained("web", A, B, inside, container(on=places))
    assert [report.name for report in explanation.networks if report.used] == ["b"]
    assert reasons(explanation) == {
        "a": "its gateway priority is lower than that of 'b'",
        "b": "it is the first of the container's networks with an IPv6 gateway",
        "c": "it is internal: it has no gateway",
    }


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ({}, {}, "its name sorts after 'a', and they are equal otherwise"),
        ({}, {"gateways": "6"}, "it has a gateway for only one of IPv4 and IPv6, 'a' has both"),
        ({"priority": 1}, {}, "its gateway priority is lower than that of 'a'"),
        ({}, {"gateways": "4"}, "the container has no IPv6 gateway in it"),
    ],
)
def test_reason_of_a_network_that_is_not_used(one: Any, other: Any, reason: str) -> None:
    places = [endpoint(on=A, **one), endpoint(on=B, **other)]
    (explanation,) = explained("web", A, B, container(on=places))
    assert reasons(explanation)["b"] == reason


def test_loopback_text_depends_on_the_userland_proxy() -> None:
    web = container(on=[A], ports=["8080:80"])
    assert "userland proxy answers" in explained("web", A, web)[0].loopback
    rejected = explained("web", A, web, userland_proxy=False)[0].loopback
    assert rejected.startswith("connections are rejected")
    assert "  " not in rejected
    assert explained("web", A, container(on=[A]))[0].loopback == ""


def test_unreadable_binding_is_listed_as_skipped() -> None:
    web = container(on=[A], ports=[binding()], problems=(("99/xyz", "it is of no protocol"),))
    (explanation,) = explained("web", A, web)
    assert [entry.port for entry in explanation.skipped] == ["99/xyz"]


def test_port_of_the_engine_has_its_rule_and_its_connections() -> None:
    engine = Engine(version="28.0.0", ip6tables=True)
    rules = EngineRules(bridges=frozenset({A.bridge}), ports=frozenset({(Protocol.TCP, 8080)}))
    web = container(on=[A], ports=["8080:80"])
    found = explained("web", A, web, engine=engine, engine_rules=rules)
    address, number = found[0].ports[0].container_address, found[0].ports[0].container_port
    rule = f"-A DOCKER ! -i {A.bridge} -p tcp -m tcp --dport 8080 -j DNAT"
    rule += f" --to-destination [{address}]:{number}"
    save = f"*nat\n:DOCKER - [0:0]\n[7:560] {rule}\n[9:9] -A DOCKER -i x -j RETURN\nCOMMIT\n"
    (explanation,) = (with_engine_rules(one, engine_rules(save)) for one in found)
    (port,) = explanation.ports
    assert (port.outcome, port.rule, port.connections) == (Outcome.NATIVE, rule, 7)
    assert with_engine_rules(found[0], {}) == found[0]
