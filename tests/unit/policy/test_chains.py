"""Many rules in small chains: how many rules a packet passes, what a change writes, and that the
same rule matches as in one flat chain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from itertools import product
from random import Random

import pytest

from ipv6natd.model import Container, Desired, Network, Policy
from ipv6natd.netfilter.diff import diff_chains
from ipv6natd.netfilter.parse import parse_saved_rules
from ipv6natd.netfilter.render import format_ruleset
from ipv6natd.netfilter.rules import Ruleset, Table
from ipv6natd.policy import chains as policy_chains
from ipv6natd.policy.desired import desired
from ipv6natd.policy.ruleset import ruleset
from tests.harness import trace
from tests.harness.build import container, network, snapshot
from tests.harness.test_trace import (
    CLIENT,
    FROM,
    HOST,
    HOST_TOO,
    LINK_LOCAL_CLIENT,
    THE_HOST,
    X,
    Y,
    asks,
)

NAME_MAX = 28
SCATTERED = range(1, 60_000, 30)


def rules(*facts: Network | Container, proxy: bool = True) -> Ruleset:
    return ruleset(wanted(*facts, proxy=proxy))


def wanted(*facts: Network | Container, proxy: bool = True) -> Desired:
    return desired(snapshot(*facts, userland_proxy=proxy), Policy())


def web(ports: Iterable[int], *more: str, on: Network = X, name: str = "web") -> Container:
    return container(name=name, on=[on], ports=[*(f"{port}:80" for port in ports), *more])


def many_networks(count: int, *, internal: bool = False) -> list[Network]:
    """Networks with bridge names in Docker's form."""
    subnets = (f"fd00:0:0:{number:x}::/64" for number in range(count))
    made = [network(name=subnet, subnet=subnet, internal=internal) for subnet in subnets]
    return [replace(network, bridge=f"br-{network.id[:12]}") for network in made]


# Ports.


def test_by_port_a_hundred_rules_stay_in_one_chain() -> None:
    assert "IPV6NAT-TCP" not in rules(X, web(range(0, 200, 2)[1:])).nat.chains
    assert "IPV6NAT-TCP" in rules(X, web(range(2, 206, 2))).nat.chains


def test_by_port_a_rule_is_in_the_chain_with_its_ports_in_the_name() -> None:
    found = rules(X, web(SCATTERED)).nat.chains
    leaf = found["IPV6NAT-TCP-49984-50015"]
    assert [rule.ports for rule in leaf] == [
        (port, port) for port in SCATTERED if 49984 <= port <= 50015
    ]
    assert max(map(len, found.values())) <= 32


@pytest.mark.parametrize(
    ("run", "chain"),
    [
        ("10000-19999", "IPV6NAT-UDP"),
        ("4100-4900", "IPV6NAT-UDP-4096-8191"),
        ("4100-4110", "IPV6NAT-UDP-4096-4127"),
    ],
)
def test_by_port_a_range_stays_one_rule_in_the_smallest_chain(run: str, chain: str) -> None:
    """R4."""
    found = rules(X, web(SCATTERED, f"{run}:{run}/udp"), proxy=False).nat
    first, _, last = run.partition("-")
    (holder,) = (
        name
        for name, rules_ in found.chains.items()
        for rule in rules_
        if rule.ports == (int(first), int(last)) and "UDP" in name
    )
    assert holder == chain


def test_by_port_a_new_port_moves_no_other_rule() -> None:
    before = wanted(X, web(SCATTERED), proxy=False)
    for port in (50_000, 65_535):
        after = wanted(X, web([*SCATTERED, port]), proxy=False)
        new, old = ruleset(after), ruleset(before)
        steps = diff_chains(old, new)
        assert [step.table for step in steps] == [Table.FILTER, Table.NAT]
        assert sum(len(chain) for step in steps for chain in step.chains.values()) < 100
        for name, chain in old.nat.chains.items():
            assert set(chain) <= set(new.nat.chains[name])


def test_by_port_removing_the_last_rule_deletes_its_chains() -> None:
    old, new = rules(X, web([*SCATTERED, 65_535])), rules(X, web(SCATTERED))
    steps = diff_chains(old, new)
    (step,) = (step for step in steps if step.table is Table.NAT)
    assert list(step.chains) == ["IPV6NAT-TCP"]
    assert set(step.delete) == {
        "IPV6NAT-TCP-61440-65535",
        "IPV6NAT-TCP-65024-65535",
        "IPV6NAT-TCP-65504-65535",
    }


def test_ruleset_is_the_same_for_containers_in_any_order() -> None:
    containers = [web(range(port, port + 50, 2), name=f"c{port}") for port in range(1000, 9000, 50)]
    mixed = Random(1).sample(containers, len(containers))
    assert rules(X, *containers) == rules(X, *mixed)


@pytest.mark.parametrize("proxy", [True, False])
def test_by_port_a_tree_and_a_flat_chain_treat_packets_alike(
    proxy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges and single ports, wildcards and addresses, in every order."""
    facts = (
        X,
        Y,
        web(range(5000, 5100, 2), "7000-8000:7000-8000", "[2001:db8:1::10]:7500:81"),
        container(
            name="y",
            on=[Y],
            ports=["[2001:db8:1::1]:6900-7600:6900-7600", "4000-9000:4000-9000/udp", "8081:80"],
        ),
    )
    flat = format_ruleset(rules(*facts, proxy=proxy))
    assert "IPV6NAT-TCP" not in flat
    monkeypatch.setattr(policy_chains, "MAX_FLAT_PORT_RULES", 0)
    divided = format_ruleset(rules(*facts, proxy=proxy))
    assert "IPV6NAT-AT-TCP" in divided
    senders = (CLIENT, LINK_LOCAL_CLIENT, *FROM)
    ports = (4000, 5000, 5001, 5098, 6900, 7000, 7500, 7600, 7601, 8000, 8081, 9000, 9001)
    for sender, to, port, protocol in product(senders, (HOST, HOST_TOO), ports, ("tcp", "udp")):
        packet = asks(sender, to, port, protocol)
        assert trace.trace(divided, packet, THE_HOST) == trace.trace(flat, packet, THE_HOST)


# Bridges.


def test_by_bridge_a_packet_passes_few_rules_among_many_networks() -> None:
    """I14: the number of rules for established packets does not grow with the networks."""
    networks = many_networks(200)
    found = rules(*networks)
    passed = [walked(found, packet) for packet in established(networks)]
    to_containers, to_the_outside = passed[::2], passed[1::2]
    assert max(to_containers) < 60
    assert max(to_the_outside) < 80


def test_by_bridge_a_packet_passes_few_rules_among_many_closed_networks() -> None:
    networks = [*many_networks(100, internal=True), network(name="open", subnet="fd00:a::/64")]
    found = rules(*networks)
    assert max(walked(found, packet) for packet in established(networks[-1:])) < 60


def test_by_bridge_a_tree_and_a_flat_chain_treat_packets_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    open_, closed = many_networks(40), many_networks(80, internal=True)[40:]
    named = network(name="named", subnet="fd00:a::/64", bridge="br-")
    divided = format_ruleset(rules(*open_, *closed, named))
    monkeypatch.setattr(policy_chains, "MAX_FLAT_BRIDGE_RULES", 1000)
    flat = format_ruleset(rules(*open_, *closed, named))
    assert "IPV6NAT-CIN-br-" in divided
    assert "IPV6NAT-CIN-br-" not in flat
    some = [network.bridge for network in (*open_[:6], *closed[:6], named)]
    for incoming, outgoing in product(("ext0", *some), repeat=2):
        packet = trace.Packet(
            source=CLIENT,
            destination=HOST,
            in_interface=incoming,
            out_interface=outgoing,
            state=trace.State.ESTABLISHED,
        )
        assert forwarded(divided, packet) == forwarded(flat, packet), (incoming, outgoing)


@pytest.mark.parametrize("longest", [True, False])
def test_chain_names_are_no_longer_than_the_kernel_allows(longest: bool) -> None:
    names = [f"{'x' * 13}{a}{b}" for a in "ab" for b in "cdefghijklmnopqrst"]
    networks = [
        network(name=name, subnet=f"fd00:0:0:{at:x}::/64", bridge=name, internal=longest)
        for at, name in enumerate(names)
    ]
    sctp = [f"[2001:db8::1]:{port}:80/sctp" for port in range(65_535 - 300, 65_536, 2)]
    found = rules(*networks, X, web(SCATTERED, *sctp), proxy=False)
    for table in Table:
        assert max(map(len, found.table(table).chains)) <= NAME_MAX
    assert parse_saved_rules(format_ruleset(found.guard)) == found.guard


def established(networks: Iterable[Network]) -> Iterator[trace.Packet]:
    """Both directions of a flow between every network and the outside."""
    for net in networks:
        for incoming, outgoing in (("ext0", net.bridge), (net.bridge, "ext0")):
            yield trace.Packet(
                source=CLIENT if incoming == "ext0" else net.subnets[0][2],
                destination=net.subnets[0][2] if incoming == "ext0" else CLIENT,
                in_interface=incoming,
                out_interface=outgoing,
                state=trace.State.ESTABLISHED,
            )


def forwarded(text: str, packet: trace.Packet) -> object:
    return trace.walk(trace.parse(text)["filter"], "FORWARD", packet, THE_HOST)


def walked(rules: Ruleset, packet: trace.Packet) -> int:
    """The number of rules in raw and FORWARD with which the packet is compared."""
    seen: list[trace.Rule] = []
    host = trace.Host(links=())
    tables = trace.parse(format_ruleset(rules))
    for table, base in (("raw", "PREROUTING"), ("filter", "FORWARD")):
        assert trace.walk(tables[table], base, packet, host, seen.append).name == "ACCEPT"
    return len(seen)


# Source prefixes.


def test_by_source_a_tree_and_a_flat_chain_treat_packets_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prefixes of all lengths, one inside another, and more than fit into the name of a chain."""
    random = Random(2)
    prefixes = {
        IPv6Network((0xFD << 120 | random.getrandbits(length - 8) << (128 - length), length))
        for length in (20, 48, 49, 64, 96, 112, 128)
        for _ in range(30)
    }
    prefixes |= {IPv6Network(f"fd00:5::{number:x}/128") for number in range(40)}
    prefixes |= {IPv6Network("fd00::/8"), IPv6Network("64:ff9b::/96"), IPv6Network("2001:db8::/32")}
    routed = tuple(sorted(prefixes))
    router = replace(X, routed_prefixes=routed)
    divided = format_ruleset(ruleset(Desired(networks=(router,))))
    monkeypatch.setattr(policy_chains, "MAX_SOURCES_IN_CHAIN", 1000)
    flat = format_ruleset(ruleset(Desired(networks=(router,))))
    assert divided.count("-j IPV6NAT-fd") > 20
    assert "-j IPV6NAT-fd" not in flat
    for prefix in routed:
        for source in (prefix[0], prefix[-1], IPv6Address(int(prefix[-1]) + 1)):
            for incoming in (router.bridge, "ext0"):
                packet = trace.Packet(source=source, destination=HOST, in_interface=incoming)
                results = [
                    trace.walk(trace.parse(text)["raw"], "PREROUTING", packet, THE_HOST)
                    for text in (divided, flat)
                ]
                assert results[0] == results[1], (source, incoming)


def test_by_source_a_new_network_moves_no_other_rule() -> None:
    networks = many_networks(200)
    new, old = rules(*networks), rules(*networks[:150], *networks[151:])
    (step, *_) = diff_chains(old, new)
    assert step.table is Table.RAW
    assert sum(map(len, step.chains.values())) < 50
