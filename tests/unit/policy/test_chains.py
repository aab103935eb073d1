"""Many rules in chains of a few: what a packet passes, what a change writes, and that neither
makes another rule win."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from random import Random

import pytest

from ipv6natd.model import Container, Desired, Network, Policy
from ipv6natd.netfilter.diff import diff
from ipv6natd.netfilter.parse import parse_saved_filter
from ipv6natd.netfilter.render import format_ruleset
from ipv6natd.netfilter.rules import Chain, Ruleset, Table, TableRules
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


def chains(table: TableRules) -> dict[str, Chain]:
    return {each.name: each for each in table.chains}


def many_networks(count: int, *, internal: bool = False) -> list[Network]:
    """With bridges as Docker names them."""
    subnets = (f"fd00:0:0:{number:x}::/64" for number in range(count))
    made = [network(name=subnet, subnet=subnet, internal=internal) for subnet in subnets]
    return [replace(each, bridge=f"br-{each.id[:12]}") for each in made]


# Ports.


def test_a_hundred_ports_stay_in_one_chain() -> None:
    assert "IPV6NAT-TCP" not in chains(rules(X, web(range(0, 200, 2)[1:])).nat)
    assert "IPV6NAT-TCP" in chains(rules(X, web(range(2, 206, 2))).nat)


def test_each_port_stands_in_the_chain_that_names_it() -> None:
    found = chains(rules(X, web(SCATTERED)).nat)
    leaf = found["IPV6NAT-TCP-49984-50015"]
    assert [rule.ports for rule in leaf.rules] == [
        (port, port) for port in SCATTERED if 49984 <= port <= 50015
    ]
    assert max(len(each.rules) for each in found.values()) <= 32


@pytest.mark.parametrize(
    ("run", "chain"),
    [
        ("10000-19999", "IPV6NAT-UDP"),
        ("4100-4900", "IPV6NAT-UDP-4096-8191"),
        ("4100-4110", "IPV6NAT-UDP-4096-4127"),
    ],
)
def test_a_run_stays_one_rule_in_the_first_chain_that_holds_it(run: str, chain: str) -> None:
    """R4."""
    found = rules(X, web(SCATTERED, f"{run}:{run}/udp"), proxy=False).nat
    first, _, last = run.partition("-")
    (holder,) = (
        each.name
        for each in found.chains
        for rule in each.rules
        if rule.ports == (int(first), int(last)) and "UDP" in each.name
    )
    assert holder == chain


def test_a_new_port_moves_no_other() -> None:
    before = wanted(X, web(SCATTERED), proxy=False)
    for port in (50_000, 65_535):
        after = wanted(X, web([*SCATTERED, port]), proxy=False)
        new, old = ruleset(after), ruleset(before)
        steps = diff(applied=old, interim=new.filter, wanted=new, observed=None)
        assert [step.table for step in steps] == [Table.FILTER, Table.NAT]
        assert sum(len(chain.rules) for step in steps for chain in step.chains) < 100
        for name, chain in chains(old.nat).items():
            assert set(chain.rules) <= set(chains(new.nat)[name].rules)


def test_a_port_that_goes_takes_its_empty_chain_along() -> None:
    old, new = rules(X, web([*SCATTERED, 65_535])), rules(X, web(SCATTERED))
    steps = diff(applied=old, interim=new.filter, wanted=new, observed=None)
    (step,) = (each for each in steps if each.table is Table.NAT)
    assert [each.name for each in step.chains] == ["IPV6NAT-TCP"]
    assert set(step.delete) == {
        "IPV6NAT-TCP-61440-65535",
        "IPV6NAT-TCP-65024-65535",
        "IPV6NAT-TCP-65504-65535",
    }


def test_the_order_of_the_engines_list_changes_nothing() -> None:
    each = [web(range(port, port + 50, 2), name=f"c{port}") for port in range(1000, 9000, 50)]
    mixed = Random(1).sample(each, len(each))
    assert rules(X, *each) == rules(X, *mixed)


@pytest.mark.parametrize("proxy", [True, False])
def test_a_split_chain_does_with_every_packet_what_the_flat_one_does(
    proxy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs and single ports, all addresses and one, before and behind each other."""
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


def test_a_packet_finds_its_bridge_among_many_by_few_rules() -> None:
    """I14: what is established passes a handful of rules, however many networks there are."""
    networks = many_networks(200)
    found = rules(*networks).filter
    passed = [walked(found, packet) for packet in established(networks)]
    assert max(passed) < 60


def test_a_packet_finds_its_bridge_among_many_closed_ones_too() -> None:
    networks = [*many_networks(100, internal=True), network(name="open", subnet="fd00:a::/64")]
    found = rules(*networks).filter
    assert max(walked(found, packet) for packet in established(networks[-1:])) < 60


def test_bridges_in_chains_are_accepted_and_cut_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    open_, closed = many_networks(40), many_networks(80, internal=True)[40:]
    named = network(name="named", subnet="fd00:a::/64", bridge="br-")
    divided = format_ruleset(rules(*open_, *closed, named))
    monkeypatch.setattr(policy_chains, "MAX_FLAT_BRIDGE_RULES", 1000)
    flat = format_ruleset(rules(*open_, *closed, named))
    assert "IPV6NAT-CIN-br-" in divided
    assert "IPV6NAT-CIN-br-" not in flat
    some = [each.bridge for each in (*open_[:6], *closed[:6], named)]
    for coming, going in product(("ext0", *some), repeat=2):
        packet = trace.Packet(
            source=CLIENT,
            destination=HOST,
            in_interface=coming,
            out_interface=going,
            state=trace.State.ESTABLISHED,
        )
        assert forwarded(divided, packet) == forwarded(flat, packet), (coming, going)


@pytest.mark.parametrize("longest", [True, False])
def test_no_name_is_longer_than_the_kernel_takes(longest: bool) -> None:
    names = [f"{'x' * 13}{a}{b}" for a in "ab" for b in "cdefghijklmnopqrst"]
    networks = [
        network(name=name, subnet=f"fd00:0:0:{at:x}::/64", bridge=name, internal=longest)
        for at, name in enumerate(names)
    ]
    sctp = [f"[2001:db8::1]:{port}:80/sctp" for port in range(65_535 - 300, 65_536, 2)]
    found = rules(*networks, X, web(SCATTERED, *sctp), proxy=False)
    for table in Table:
        assert max(len(chain.name) for chain in found.table(table).chains) <= NAME_MAX
    assert parse_saved_filter(format_ruleset(Ruleset(filter=found.filter))) == found.filter


def established(networks: Iterable[Network]) -> Iterator[trace.Packet]:
    """Both directions of a flow between each of them and the outside."""
    for each in networks:
        for ways in (("ext0", each.bridge), (each.bridge, "ext0")):
            yield trace.Packet(
                source=CLIENT,
                destination=each.subnets[0][2],
                in_interface=ways[0],
                out_interface=ways[1],
                state=trace.State.ESTABLISHED,
            )


def forwarded(text: str, packet: trace.Packet) -> object:
    return trace.walked(trace.parsed(text)["filter"], "FORWARD", packet, THE_HOST)


def walked(table: TableRules, packet: trace.Packet) -> int:
    """How many rules the packet is compared with on its way through FORWARD."""
    seen: list[trace.Rule] = []
    host = trace.Host(links=())
    text = format_ruleset(Ruleset(filter=table))
    found = trace.walked(trace.parsed(text)["filter"], "FORWARD", packet, host, seen.append)
    assert found.name == "ACCEPT"
    return len(seen)
