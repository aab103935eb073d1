"""The rules for given facts: reviewed texts of whole tables, and the order that matters in them.

`UPDATE_GOLDEN=1 pytest tests/unit/policy/test_ruleset.py` writes the texts; review the difference.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from typing import Any, NamedTuple

import pytest

from ipv6natd.model import (
    Container,
    Desired,
    Engine,
    EngineRules,
    GatewayMode,
    ManagedBy,
    Network,
    OtherSource,
    Policy,
    Protocol,
    Route,
    Snapshot,
)
from ipv6natd.netfilter.render import format_rule, format_ruleset
from ipv6natd.netfilter.rules import (
    Dnat,
    Jump,
    Match,
    Rule,
    Ruleset,
    Snat,
    Table,
    TableRules,
    Verdict,
)
from ipv6natd.policy.desired import desired
from ipv6natd.policy.ruleset import checks_sources, closed_guard, ruleset
from tests import ROOT
from tests.harness.build import container, endpoint, network, snapshot

GOLDEN = ROOT / "tests" / "golden"
X = network(name="x", subnet="fd00:a::/64", bridge="br-a")
Y = network(name="y", subnet="fd00:b::/64", bridge="br-b")
Z = network(name="z", subnet="2001:db8:f::/64", bridge="br-z")
INTERNAL = network(name="in", subnet="fd00:c::/64", bridge="br-int", internal=True)
PUBLIC_INTERNAL = network(name="public", subnet="2001:db8:e::/64", bridge="br-p", internal=True)
WITHOUT_IPV6 = replace(
    network(name="no6", subnet="fd00:6::/64", bridge="br-no", internal=True),
    enable_ipv6=False,
    subnets=(),
)
IPVLAN = replace(network(name="ipvlan", subnet="fd00:e::/64", bridge=""), driver="ipvlan")
WIDE = network(name="wide", subnet="fd00:9::/48", bridge="br-wide")
LAN = Route(prefix=IPv6Network("fd00:9:0:5::/64"), interface="ext0")
BEHIND = Route(prefix=IPv6Network("2001:db8:9::/64"), interface="br-a")
NOT_BEHIND = Route(prefix=IPv6Network("2001:db8:9:0:5::/80"), interface="ext0")
OUTSIDE = IPv6Address("2001:db8::1")


def web(*ports: str, on: Network = X) -> Container:
    return container(name="web", on=[on], ports=ports)


EVEN = tuple(f"{port}:80" for port in range(6000, 6202, 2))
Facts = tuple[Network | Container, ...]
SITUATIONS: dict[str, Facts] = {
    "nothing": (),
    "one-network": (X,),
    "one-port": (X, web("8080:80")),
    "one-udp-port": (X, web("5353:53/udp")),
    "one-sctp-port": (X, web("36412:36412/sctp")),
    "internal": (INTERNAL, web("8080:80", on=INTERNAL)),
    "icc-off": (replace(X, icc=False), web("8080:80")),
    "internal-icc-off": (replace(INTERNAL, icc=False),),
    "masquerade-off": (replace(X, masquerade=False), web("8080:80")),
    "host-ipv6": (replace(X, source_address=OUTSIDE), web("8080:80")),
    "specific-address": (X, web("[2001:db8::1]:8080:80", "[::]:8080:81")),
    "loopback": (X, web("[::1]:8080:80")),
    "run": (X, web("10000-19999:10000-19999/udp")),
    "shifted-run": (X, web("6000-6003:7000-7003")),
    "two-subnets": (network(name="x", subnet="fd00:a::/64 fd00:a:1::/64", bridge="br-a"),),
    "two-homed": (X, Y, container(name="web", on=[endpoint(on=X), endpoint(on=Y, priority=1)])),
    "two-networks-and-internal": (
        X,
        Y,
        INTERNAL,
        web("8080:80"),
        container(name="dns", on=[Y], ports=["53:53", "53:53/udp"]),
        container(name="in", on=[INTERNAL]),
    ),
    "routed": (replace(X, gateway_mode=GatewayMode.ROUTED), web("8080:80")),
    "nat-unprotected": (replace(X, gateway_mode=GatewayMode.NAT_UNPROTECTED), web("8080:80")),
    "isolated": (replace(X, gateway_mode=GatewayMode.ISOLATED), web("8080:80")),
    "trusted-interface": (replace(X, trusted_interfaces=("ext0",)), web("8080:80")),
    "allow-direct-routing": (X, web("8080:80")),
    "accept-fwmark": (X, web("8080:80")),
    "beside-the-engines": (
        X,
        Y,
        PUBLIC_INTERNAL,
        web("8080:80"),
        container(name="dns", on=[Y], ports=["53:53"]),
    ),
    "ipvlan": (X, IPVLAN),
    "closed-without-ipv6": (X, web("8080:80", "5353:53/udp"), WITHOUT_IPV6),
    "lan-inside": (WIDE, web("8080:80", "5353:53/udp", on=WIDE)),
    "routed-behind": (X, web("8080:80")),
    "many-ports": (X, web(*EVEN, "4000-4999:4000-4999/udp")),
    "many-networks": tuple(
        network(name=f"{a}{b}", subnet=f"fd00:{a}{b}::/64") for a in "abcdef" for b in "abcdef"
    ),
}
POLICIES = {
    "allow-direct-routing": Policy(allow_direct_routing=True),
    "accept-fwmark": Policy(accept_fwmark=(1, 1)),
}
ENGINE = Engine(version="28.5.2", ip6tables=True)
MANAGED = EngineRules(
    bridges=frozenset({Y.bridge, PUBLIC_INTERNAL.bridge}),
    ports=frozenset({(Protocol.TCP, 53), (Protocol.TCP, 8080)}),
)
PROXY = {"proxy-on": True, "proxy-off": False}
CASES = [f"{situation}.{proxy}" for situation in SITUATIONS for proxy in PROXY]


(UDP,) = desired(snapshot(X, web("5353:53/udp")), Policy()).mappings


def rules_of(case: str) -> Ruleset:
    situation, _, proxy = case.partition(".")
    return ruleset(desired(facts_of(situation, proxy), POLICIES.get(situation, Policy())))


def facts_of(situation: str, proxy: str) -> Snapshot:
    facts = snapshot(*SITUATIONS[situation], userland_proxy=PROXY[proxy])
    if situation not in ("beside-the-engines", "lan-inside", "routed-behind"):
        return facts
    if situation == "beside-the-engines":
        return replace(facts, engine=ENGINE, engine_rules=MANAGED)
    return replace(facts, routes=(LAN, BEHIND, NOT_BEHIND))


@pytest.mark.parametrize("case", CASES)
def test_ruleset_equals_the_reviewed_golden(case: str) -> None:
    path = GOLDEN / f"{case}.txt"
    text = format_ruleset(rules_of(case))
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert path.exists(), f"{path} is missing: write it with UPDATE_GOLDEN=1 and review it"
    assert text == path.read_text()


def test_every_golden_belongs_to_a_case() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == sorted(CASES)


# The order on which design decisions depend, in the largest case.


SYN_ONLY = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN"


def texts(rules: Ruleset, name: str) -> list[str]:
    """The rules of one chain."""
    every_chain = [rules.table(table).chains for table in Table]
    (found,) = (chains[f"IPV6NAT-{name}"] for chains in every_chain if f"IPV6NAT-{name}" in chains)
    return [format_rule(rule) for rule in found]


def chain(name: str, case: str = "two-networks-and-internal.proxy-on") -> list[str]:
    return texts(rules_of(case), name)


def test_forward_isolates_internal_networks_first() -> None:
    """I7: the address of their bridge is LOCAL, so their packets could get DNAT."""
    assert chain("FORWARD")[:2] == [
        "! -i br-int -o br-int -j DROP",
        "-i br-int ! -o br-int -j DROP",
    ]


def test_forward_jumps_to_ct_after_the_internal_networks() -> None:
    """I14."""
    ct = "-m conntrack --ctstate ESTABLISHED -j IPV6NAT-CT"
    assert chain("FORWARD").index(ct) == 2


def test_forward_drops_sources_of_the_host_before_it_accepts_new_packets() -> None:
    """I11: neither a forged first packet nor a forged error about an open flow is accepted."""
    rules = chain("FORWARD")
    assert rules[3:6] == [
        f"! -s fe80::/10 -o {bridge} -m addrtype --src-type LOCAL -j DROP"
        for bridge in ("br-int", "br-a", "br-b")
    ]
    accepting = [i for i, rule in enumerate(rules) if rule.endswith(("ACCEPT", "IPV6NAT-CT"))]
    assert accepting[0] == 2
    assert accepting[1] > 5


def test_src_drops_forged_sources() -> None:
    """I11. The host's own multicast comes back by a bridge, and link-local sources by any."""
    assert chain("SRC") == [
        "-i lo -j RETURN",
        "-s ::ffff:0.0.0.0/96 -j DROP",
        "-s ff00::/8 -j DROP",
        "! -d ff00::/8 -m frag -j DROP",
        "-m frag -m conntrack --ctstate INVALID -j DROP",
        "! -d ff00::/8 -p ah -m pkttype --pkt-type broadcast -j DROP",
        "! -d ff00::/8 -p ah -m pkttype --pkt-type multicast -j DROP",
        "! -d ff00::/8 -m pkttype --pkt-type broadcast -j IPV6NAT-SRC-FRAMES",
        "! -d ff00::/8 -m pkttype --pkt-type multicast -j IPV6NAT-SRC-FRAMES",
        "-s fe80::/10 ! -d ff00::/8 -m addrtype --src-type LOCAL,ANYCAST --limit-iface-in -j DROP",
        "-s fe80::/10 -j RETURN",
        *(
            f"! -d ff00::/8 -i {bridge} -m addrtype --src-type LOCAL,ANYCAST -j DROP"
            for bridge in ("br-int", "br-a", "br-b")
        ),
        *(
            f"! -s {subnet} -i {bridge} -m addrtype --dst-type LOCAL -j DROP"
            for subnet, bridge in (
                ("fd00:c::/64", "br-int"),
                ("fd00:a::/64", "br-a"),
                ("fd00:b::/64", "br-b"),
            )
        ),
        "! -d ff00::/8 -j IPV6NAT-SRC-OUT",
        "-s fd00:c::/64 ! -i br-int -j DROP",
        "-s fd00:a::/64 ! -i br-a -j DROP",
        "-s fd00:b::/64 ! -i br-b -j DROP",
    ]
    assert chain("SRC-OUT") == ["! -s fd00:c::/64 ! -d fd00:c::/64 -i br-int -j DROP"]


def test_src_lets_a_lan_inside_a_subnet_come_in_by_its_interface() -> None:
    assert chain("SRC", "lan-inside.proxy-on")[-3:] == [
        "-s fd00:9:0:5::/64 -i ext0 -j RETURN",
        "-s fd00:9:0:5::/64 -j DROP",
        "-s fd00:9::/48 ! -i br-wide -j DROP",
    ]


def test_forward_drops_sources_outside_the_containers_network() -> None:
    own = "! -s fd00:a::/64 -i br-a ! -o br-a -j DROP"
    rules = chain("FORWARD")
    assert rules.index(own) < rules.index("-i br-a -j ACCEPT")
    assert chain("OWN-br-a", "routed-behind.proxy-on") == [
        "-s 2001:db8:9::/64 -j RETURN",
        "-s fd00:a::/64 -j RETURN",
        "-j DROP",
    ]
    gateway = replace(X, routed_prefixes=(IPv6Network("::/0"),))
    chains = ruleset(Desired(networks=(gateway,))).filter.chains.values()
    assert not any("-i br-a ! -o br-a -j" in format_rule(r) for rules in chains for r in rules)


def test_engine_networks_are_checked_only_beside_ours() -> None:
    """Decision 10: engine networks get no rules of their own, but our networks could reach them."""
    assert "-s fd00:b::/64 ! -i br-b -j DROP" in chain("SRC", "beside-the-engines.proxy-on")
    alone = replace(Y, managed_by=ManagedBy.ENGINE)
    rules = ruleset(Desired(networks=(alone,)))
    assert rules.raw == TableRules()
    assert rules.filter.chains == {"IPV6NAT-FORWARD": (), "IPV6NAT-INPUT": ()}


def test_input_drops_forged_and_multicast_datagrams_to_the_proxy() -> None:
    """I11: for the container, a datagram from the proxy comes from the gateway."""
    assert chain("INPUT") == [
        "-p udp -m udp --dport 53 -j IPV6NAT-PROXY",
        f"! -i lo {SYN_ONLY} -m conntrack --ctdir REPLY -j DROP",
        f"! -i lo {SYN_ONLY} -m conntrack --ctstate INVALID -j DROP",
        "-m conntrack --ctstate NEW,INVALID,UNTRACKED -j IPV6NAT-HOST",
    ]
    assert chain("PROXY") == [
        "-i lo -j RETURN",
        "-i br-int -j DROP",
        "! -s fe80::/10 -m addrtype --src-type LOCAL -j DROP",
        "-s fe80::/10 -m addrtype --src-type LOCAL --limit-iface-in -j DROP",
        "-m conntrack --ctstate INVALID -j DROP",
        "-m conntrack --ctdir REPLY -j DROP",
        "-m addrtype ! --dst-type LOCAL -j DROP",
    ]
    # With host_binding_ipv6 the proxy may listen on all addresses.
    bound = replace(UDP, host_address=OUTSIDE, proxy_binds_address=True)
    rules = texts(ruleset(Desired(networks=(X,), mappings=(bound,))), "INPUT")
    assert rules[0] == "-d 2001:db8::1/128 -p udp -m udp --dport 5353 -j IPV6NAT-PROXY"


def test_post_has_no_rule_for_a_lan_inside_a_routed_prefix() -> None:
    """Only for a LAN inside the subnet a container would reply on its own link."""
    assert f"-s {NOT_BEHIND.prefix} -i ext0 -j RETURN" in chain("SRC", "routed-behind.proxy-on")
    assert not any(
        str(NOT_BEHIND.prefix) in rule for rule in chain("POST", "routed-behind.proxy-on")
    )
    assert any(str(LAN.prefix) in rule for rule in chain("POST", "lan-inside.proxy-on"))


def test_input_drops_new_packets_with_forged_sources() -> None:
    """Its conntrack entry could later match packets of others in the reply direction."""
    for case in ("one-port.proxy-on", "one-port.proxy-off"):
        assert (
            chain("INPUT", case)[-1]
            == "-m conntrack --ctstate NEW,INVALID,UNTRACKED -j IPV6NAT-HOST"
        )
        assert chain("HOST", case)[:3] == [
            "-i lo -j RETURN",
            "! -s fe80::/10 -m addrtype --src-type LOCAL -m addrtype --dst-type LOCAL -j DROP",
            "-s fe80::/10 -m addrtype --src-type LOCAL --limit-iface-in "
            "-m addrtype --dst-type LOCAL -j DROP",
        ]


def test_host_drops_packets_of_a_container_with_other_sources() -> None:
    """Also for an internal network: the host's reply to a forged source would leave the host."""
    assert chain("HOST", "two-networks-and-internal.proxy-off")[-5:] == [
        "-s fe80::/10 -j RETURN",
        "-s ::/128 -p ipv6-icmp -j RETURN",
        "! -s fd00:c::/64 -i br-int -j DROP",
        "! -s fd00:a::/64 -i br-a -j DROP",
        "! -s fd00:b::/64 -i br-b -j DROP",
    ]
    assert chain("HOST", "two-subnets.proxy-off")[-1] == "-i br-a -j IPV6NAT-OWN-br-a"
    two = replace(INTERNAL, subnets=(*INTERNAL.subnets, *Y.subnets))
    assert f"IPV6NAT-OWN-{two.bridge}" in ruleset(Desired(networks=(two,))).filter.chains


def test_src_accepts_a_network_inside_a_prefix_that_is_routed_to_another() -> None:
    router = replace(Y, routed_prefixes=(IPv6Network("fd00::/8"),))
    checks = texts(ruleset(Desired(networks=(X, router))), "SRC")
    own = checks.index("-s fd00:a::/64 -i br-a -j RETURN")
    assert own < checks.index("-s fd00::/8 ! -i br-b -j DROP")


@pytest.mark.parametrize("prefix", ["::/0", "2000::/3", "8000::/1"])
def test_a_part_of_a_default_route_to_a_container_gives_no_rule(prefix: str) -> None:
    """VPN clients write the default route to their container in parts."""
    router = replace(Y, routed_prefixes=(IPv6Network(prefix),))
    rules = ruleset(Desired(networks=(router,)))
    chains = (*rules.raw.chains.values(), *rules.filter.chains.values())
    assert not any(prefix in format_rule(rule) for chain in chains for rule in chain)


def test_host_drops_authentication_headers_to_published_ports() -> None:
    """An authentication header hides the ports from rules of nf_tables. Such packets to other ports
    of the host are accepted."""
    flow = "-p ah -m conntrack --ctproto {} -m conntrack --ctorigdstport {}:65535 -j DROP"
    for case in ("one-port.proxy-on", "one-port.proxy-off"):
        assert authenticated(case) == [flow.format("tcp", 4096)]
    # From a power of two up: a new port rarely changes the rule.
    assert authenticated("two-networks-and-internal.proxy-on") == [
        flow.format("tcp", 32),
        flow.format("udp", 32),
    ]
    assert authenticated("one-sctp-port.proxy-on") == [flow.format("sctp", 32768)]


def authenticated(case: str) -> list[str]:
    return [rule for rule in chain("HOST", case) if "-p ah" in rule]


def test_input_guards_udp_ports_of_a_routed_network() -> None:
    """Engines before 27 let the proxy listen for it; without an address, on all addresses."""
    routed = replace(X, gateway_mode=GatewayMode.ROUTED)
    ports = ["8080:80", "5353:53/udp", "6001:54/udp", "6000:53/udp", "[2001:db8::1]:7000:53/udp"]
    facts = snapshot(routed, container(name="web", on=[routed], ports=ports))
    want = desired(facts, Policy())
    assert want.mappings == ()
    assert want.proxy_udp_ports == ((5353, 5353), (6000, 6001))
    assert texts(ruleset(want), "INPUT")[:2] == [
        "-p udp -m udp --dport 5353 -j IPV6NAT-PROXY",
        "-p udp -m udp --dport 6000:6001 -j IPV6NAT-PROXY",
    ]
    without = ruleset(desired(replace(facts, userland_proxy=False), Policy()))
    assert "IPV6NAT-PROXY" not in format_ruleset(without)


def test_closed_guard_replaces_rules_without_source_checks() -> None:
    rules = rules_of("two-networks-and-internal.proxy-on")
    filter_ = rules.filter.chains
    assert checks_sources(rules.raw.chains, filter_)
    assert not checks_sources(set(), filter_)
    assert not checks_sources(set(), {*filter_, "IPV6NAT-SRC", "IPV6NAT-DST"})
    assert checks_sources(set(), {*filter_, "IPV6NAT-SRC"})
    assert checks_sources(set(), {"IPV6NAT-FORWARD"})
    closed = closed_guard(rules)
    assert closed == Ruleset(filter=closed.filter)
    assert list(closed.filter.chains) == ["IPV6NAT-FORWARD"]
    assert texts(closed, "FORWARD") == [
        *(
            way.format(bridge, bridge)
            for bridge in ("br-int", "br-a", "br-b")
            for way in ("! -i {} -o {} -j DROP", "-i {} ! -o {} -j DROP")
        ),
        *(f"-i {bridge} -o {bridge} -j ACCEPT" for bridge in ("br-int", "br-a", "br-b")),
    ]
    assert [jump.base for jump in closed.filter.jumps] == ["FORWARD", "FORWARD"]


def test_ct_accepts_established_packets_of_open_networks() -> None:
    assert chain("CT") == [
        "-o br-a -m addrtype ! --src-type LOCAL -j ACCEPT",
        "-o br-b -m addrtype ! --src-type LOCAL -j ACCEPT",
        "-s fd00:a::/64 -i br-a -j ACCEPT",
        "-s fd00:b::/64 -i br-b -j ACCEPT",
    ]
    router = replace(X, routed_prefixes=(IPv6Network("::/0"),))
    assert "-i br-a -j ACCEPT" in texts(ruleset(Desired(networks=(router,))), "CT")


def test_src_lets_replies_of_a_container_on_two_networks_leave_by_its_default_route() -> None:
    """Their source is an address on the other network."""
    case = "two-homed.proxy-on"
    assert chain("SRC", case)[-3:] == [
        "-i br-b -m addrtype --dst-type LOCAL -j IPV6NAT-SENT-br-b",
        "-s fd00:a::/64 ! -i br-a -j IPV6NAT-FROM-br-a",
        "-s fd00:b::/64 ! -i br-b -j DROP",
    ]
    assert chain("FROM-br-a", case) == ["-s fd00:a::2/128 -i br-b -j RETURN", "-j DROP"]
    assert chain("SENT-br-b", case) == [
        "-s fd00:a::2/128 -j RETURN",
        "-s fd00:b::/64 -j RETURN",
        "-j DROP",
    ]
    assert "-s fd00:a::2/128 -i br-b -j ACCEPT" in chain("CT", case)
    # New packets still need a source of the network by which they leave, also within the bridge.
    assert "! -s fd00:b::/64 -i br-b ! -o br-b -j DROP" in chain("FORWARD", case)
    new = "-i br-b -m conntrack --ctstate NEW,INVALID,UNTRACKED -j IPV6NAT-NEW-br-b"
    assert new in chain("FORWARD", case)
    assert chain("NEW-br-b", case) == ["-s fd00:a::2/128 -j DROP"]
    wide = replace(Z, routed_prefixes=(IPv6Network("fd00::/8"),))
    source = OtherSource(IPv6Address("fd00:a::2"), X.bridge, Y.bridge)
    nested = texts(ruleset(Desired(networks=(X, Y, wide), other_sources=(source,))), "SRC")
    own = nested.index("-s fd00:a::2/128 -i br-b -j RETURN")
    assert own < nested.index(f"-s fd00::/8 ! -i {Z.bridge} -j DROP")


def test_forward_closes_a_network_after_it_accepts_dnat() -> None:
    """I1, I2, I5."""
    rules = chain("FORWARD")
    for bridge in ("br-a", "br-b"):
        accept = rules.index(f"-o {bridge} -m conntrack --ctstate DNAT -j ACCEPT")
        assert rules[accept + 1] == f"! -i {bridge} -o {bridge} -j DROP"


def test_forward_has_every_drop_before_it_accepts_outgoing_packets() -> None:
    """I5: a packet that may leave a network must not enter another one."""
    rules = chain("FORWARD")
    first = rules.index("-i br-a -j ACCEPT")
    assert rules[first:] == ["-i br-a -j ACCEPT", "-i br-b -j ACCEPT"]
    assert sum(rule.endswith("DROP") for rule in rules[:first]) == 11


def test_forward_decides_within_a_bridge_before_outgoing_packets() -> None:
    """I6, I8."""
    assert chain("FORWARD").index("-i br-int -o br-int -j ACCEPT") > 2
    assert "-i br-a -o br-a -j DROP" in chain("FORWARD", "icc-off.proxy-on")
    assert "-i br-int -o br-int -j DROP" in chain("FORWARD", "internal-icc-off.proxy-on")


def test_src_drops_packets_for_one_host_in_frames_for_all() -> None:
    """I6: a bridge would confirm their entries, whatever the filter table does. Frames that a
    bridge does not forward come in by its port."""
    interfaces = ("veth+", "br-int", "br-a", "br-b")
    assert chain("SRC-FRAMES") == [f"-i {name} -j DROP" for name in interfaces]


def test_forward_drops_invalid_packets_only_with_masquerade() -> None:
    invalid = "-i br-a ! -o br-a -m conntrack --ctstate INVALID -j DROP"
    assert invalid in chain("FORWARD")
    assert invalid not in chain("FORWARD", "masquerade-off.proxy-on")


def test_pre_translates_no_link_local_clients_and_no_forged_sources() -> None:
    """H14 and I11; I7: those of an internal network get DNAT, and FORWARD drops them."""
    assert chain("PRE") == [
        "-s fe80::/10 -i br-int -j IPV6NAT-DNAT",
        "-s fe80::/10 -j RETURN",
        "-m addrtype --src-type LOCAL -j RETURN",
        "-j IPV6NAT-DNAT",
    ]
    assert all("-j DNAT" in rule or "-j REDIRECT" in rule for rule in chain("DNAT"))


def test_dnat_has_addresses_before_the_wildcard() -> None:
    """B14."""
    dnats = [rule for rule in chain("DNAT", "specific-address.proxy-off") if "DNAT" in rule]
    assert dnats == [
        "-d 2001:db8::1/128 -p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00:a::2]:80",
        "-p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00:a::2]:81",
    ]


def test_dnat_leaves_containers_of_the_bridge_to_the_proxy() -> None:
    """B14, H4: a container on br-a that connects to an address of web reaches web's proxy."""
    other = container(name="other", on=[Y], ports=["8080:80"])
    facts = snapshot(X, Y, web("[2001:db8::1]:8080:81"), other)
    rules = ruleset(desired(facts, Policy())).nat.chains["IPV6NAT-DNAT"]
    assert [format_rule(rule) for rule in rules if rule.ports] == [
        "-d 2001:db8::1/128 ! -i br-a -p tcp -m tcp --dport 8080 "
        "-j DNAT --to-destination [fd00:a::2]:81",
        "-d 2001:db8::1/128 -i br-a -p tcp -m tcp --dport 8080 -j RETURN",
        "! -i br-b -p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00:b::2]:80",
    ]


def test_dnat_of_a_range_with_equal_ports_is_one_rule() -> None:
    """R4, R8: the target has no port."""
    assert chain("DNAT", "run.proxy-on")[-1] == (
        "! -i br-a -p udp -m udp --dport 10000:19999 -j DNAT --to-destination fd00:a::2"
    )
    assert sum("-j DNAT" in rule for rule in chain("DNAT", "run.proxy-on")) == 1
    assert sum("--dport" in rule for rule in chain("DNAT", "run.proxy-off")) == 1


def test_dnat_of_a_shifted_range_is_one_rule_per_port() -> None:
    """R5: a shifted range in one rule can lead to the wrong port."""
    ports = [rule for rule in chain("DNAT", "shifted-run.proxy-off") if "--dport" in rule]
    assert ports == [
        f"-p tcp -m tcp --dport {6000 + i} -j DNAT --to-destination [fd00:a::2]:{7000 + i}"
        for i in range(4)
    ]


def test_dnat_excludes_the_own_bridge_only_with_a_proxy() -> None:
    """H4 and H6."""
    assert "! -i br-a" in chain("DNAT", "one-port.proxy-on")[-1]
    assert "! -i" not in chain("DNAT", "one-port.proxy-off")[-1]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("one-port.proxy-on", ["! -o br-a MASQUERADE"]),
        ("one-port.proxy-off", ["! -o br-a MASQUERADE", "-o br-a MASQUERADE"]),
        ("masquerade-off.proxy-off", ["-o br-a MASQUERADE"]),
        ("host-ipv6.proxy-on", ["! -o br-a SNAT"]),
        ("host-ipv6.proxy-off", ["! -o br-a SNAT", "-o br-a SNAT"]),
    ],
)
def test_post_sets_the_source_of_outgoing_packets(case: str, expected: list[str]) -> None:
    """O1, O2, O3 and, on the same bridge, H6 and H8."""

    def short(rule: str) -> str:
        where = "! -o br-a" if "! -o br-a" in rule else "-o br-a"
        return f"{where} {'SNAT' if '-j SNAT --to-source 2001:db8::1' in rule else rule[-10:]}"

    assert [short(rule) for rule in chain("POST", case)] == expected


def test_post_does_not_masquerade_addresses_of_the_host() -> None:
    """O6, decision 16."""
    assert chain("POST") == [
        "-s fd00:a::/64 ! -o br-a -m addrtype ! --src-type LOCAL -j MASQUERADE",
        "-s fd00:b::/64 ! -o br-b -m addrtype ! --src-type LOCAL -j MASQUERADE",
    ]


def test_post_does_not_exist_without_masquerade_and_hairpin() -> None:
    """O2."""
    chains = rules_of("masquerade-off.proxy-on").nat.chains
    assert list(chains) == ["IPV6NAT-PRE", "IPV6NAT-DNAT"]


def jumps(case: str) -> Iterator[str]:
    for table in Table:
        for jump in rules_of(case).table(table).jumps:
            yield f"{jump.base}{' first' * jump.first}: {format_rule(jump.rule)}"


def test_docker_user_exists_without_networks() -> None:
    """F12, I12: users rely on it."""
    assert list(jumps("nothing.proxy-on")) == [
        "FORWARD first: -m comment --comment ipv6natd -j DOCKER-USER",
        "FORWARD first: -m comment --comment ipv6natd -j IPV6NAT-FORWARD",
        "INPUT first: -m comment --comment ipv6natd -j IPV6NAT-INPUT",
    ]


def test_jumps_have_our_comment_and_exclude_loopback() -> None:
    """H2, H15: packets to ::1 and link-local ones get no DNAT."""
    comment = "-m comment --comment ipv6natd"
    local = "-m addrtype --dst-type LOCAL"
    assert list(jumps("one-port.proxy-off")) == [
        f"PREROUTING first: {comment} -j IPV6NAT-SRC",
        f"FORWARD first: {comment} -j DOCKER-USER",
        f"FORWARD first: {comment} -j IPV6NAT-FORWARD",
        f"INPUT first: {comment} -j IPV6NAT-INPUT",
        f"PREROUTING: {local} {comment} -j IPV6NAT-PRE",
        f"OUTPUT: ! -s fe80::/10 ! -d ::1/128 {local} {comment} -j IPV6NAT-DNAT",
        f"POSTROUTING: {comment} -j IPV6NAT-POST",
    ]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (
            "one-port.proxy-off",
            [
                "-d ::1/128 -p tcp -m tcp --dport 8080 -j REJECT --reject-with tcp-reset",
                "-s fe80::/10 -p tcp -m tcp --dport 8080 -j REJECT --reject-with tcp-reset",
            ],
        ),
        (
            "one-udp-port.proxy-off",
            [
                "-d ::1/128 -p udp -m udp --dport 5353 "
                "-j REJECT --reject-with icmp6-port-unreachable",
                "-s fe80::/10 -p udp -m udp --dport 5353 "
                "-j REJECT --reject-with icmp6-port-unreachable",
            ],
        ),
        (
            "loopback.proxy-off",
            ["-d ::1/128 -p tcp -m tcp --dport 8080 -j REJECT --reject-with tcp-reset"],
        ),
        (
            "specific-address.proxy-off",
            [
                "-s fe80::/10 -d 2001:db8::1/128 -p tcp -m tcp --dport 8080 "
                "-j REJECT --reject-with tcp-reset",
                "-d ::1/128 -p tcp -m tcp --dport 8080 -j REJECT --reject-with tcp-reset",
                "-s fe80::/10 -p tcp -m tcp --dport 8080 -j REJECT --reject-with tcp-reset",
            ],
        ),
    ],
)
def test_input_rejects_loopback_and_link_local_clients_without_a_proxy(
    case: str, expected: list[str]
) -> None:
    """H3, H14, decision 5."""
    assert chain("INPUT", case)[:-1] == expected


@pytest.mark.parametrize("situation", SITUATIONS)
def test_input_has_only_udp_and_sctp_port_rules_with_a_proxy(situation: str) -> None:
    """H2."""
    want = desired(facts_of(situation, "proxy-on"), POLICIES.get(situation, Policy()))
    rules = rules_of(f"{situation}.proxy-on").filter.chains["IPV6NAT-INPUT"]
    protocols = {mapping.protocol for mapping in want.mappings} - {Protocol.TCP}
    assert {rule.protocol for rule in rules if rule.ports} == protocols


# The text of one rule.


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Rule(target=Verdict.ACCEPT), "-j ACCEPT"),
        (Rule(target=Jump("IPV6NAT-CT"), matches=(Match.OURS,)), "-m comment --comment ipv6natd"),
        (Rule(target=Dnat(OUTSIDE)), "-j DNAT --to-destination 2001:db8::1"),
        (Rule(target=Dnat(OUTSIDE, 80)), "-j DNAT --to-destination [2001:db8::1]:80"),
        (Rule(target=Snat(OUTSIDE)), "-j SNAT --to-source 2001:db8::1"),
        (Rule(target=Verdict.TCP_RESET), "-j REJECT --reject-with tcp-reset"),
        (
            Rule(
                target=Verdict.DROP,
                source=IPv6Network("fd00::/8"),
                destination=IPv6Network("fd00:a::/64"),
                in_interface="a",
                not_out_interface="b",
                protocol=Protocol.TCP,
                ports=(1, 2),
                matches=(
                    Match.SOURCE_NOT_LOCAL,
                    Match.DESTINATION_LOCAL,
                    Match.NO_FLOW,
                ),
            ),
            "-s fd00::/8 -d fd00:a::/64 -i a ! -o b -p tcp -m tcp --dport 1:2 "
            "-m addrtype ! --src-type LOCAL -m addrtype --dst-type LOCAL "
            "-m conntrack --ctstate NEW,INVALID,UNTRACKED -j DROP",
        ),
        (
            Rule(
                target=Verdict.DROP,
                not_source=IPv6Network("fd00::/8"),
                matches=(Match.ICMP, Match.SOURCE_LOCAL, Match.DESTINATION_NOT_LOCAL),
            ),
            "! -s fd00::/8 -p ipv6-icmp -m addrtype --src-type LOCAL "
            "-m addrtype ! --dst-type LOCAL -j DROP",
        ),
        (
            Rule(
                target=Verdict.DROP,
                not_destination=IPv6Network("::1"),
                not_in_interface="a",
                out_interface="b",
                protocol=Protocol.UDP,
            ),
            "! -d ::1/128 ! -i a -o b -p udp -j DROP",
        ),
    ],
)
def test_format_rule_gives_the_words_of_iptables(rule: Rule, text: str) -> None:
    assert format_rule(rule).startswith(text)


def test_equal_facts_give_equal_text() -> None:
    case = "two-networks-and-internal.proxy-off"
    assert format_ruleset(rules_of(case)) == format_ruleset(rules_of(case))


def test_dnat_goes_to_the_endpoints_address() -> None:
    """P6, P7: a new address gives a new rule, and the old address is in no rule."""
    moved = container(name="web", on=[endpoint(on=X, address="fd00:a::50")], ports=["8080:80"])
    text = format_ruleset(ruleset(desired(snapshot(X, moved), Policy())))
    assert "[fd00:a::50]:80" in text
    assert "fd00:a::2" not in text


def interface_matches(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else pattern in ("", name)


def passed_rules(table: TableRules, chain: str, packet: Packet) -> int:
    """The rules that a first packet passes, if no rule before the last accepts or drops it."""
    count = 0
    for rule in table.chains[chain]:
        count += 1
        here = (
            interface_matches(rule.in_interface, packet.incoming)
            and interface_matches(rule.out_interface, packet.outgoing)
            and (rule.source is None or packet.source in rule.source)
        )
        if here and isinstance(rule.target, Jump) and Match.ESTABLISHED not in rule.matches:
            count += passed_rules(table, rule.target.chain, packet)
    return count


class Packet(NamedTuple):
    incoming: str
    outgoing: str
    source: IPv6Address


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"trusted_interfaces": ("tailscale0",)},
        {"gateway_mode": GatewayMode.ROUTED},
        {"gateway_mode": GatewayMode.NAT_UNPROTECTED},
        {"gateway_mode": GatewayMode.ISOLATED},
        {"internal": True},
        {"icc": False},
    ],
    ids=str,
)
def test_rules_are_linear_in_networks_and_a_first_packet_passes_few(
    options: dict[str, Any],
) -> None:
    """Q5."""

    def rules(count: int) -> Ruleset:
        # As Docker names them, from random ids.
        names = [
            f"br-{hashlib.sha256(bytes([n % 256, n >> 8])).hexdigest()[:12]}" for n in range(count)
        ]
        facts: list[Network | Container] = []
        for number, name in enumerate(names):
            subnet = f"fd00:0:{number:x}::/64"
            made = network(name=f"n{number}", subnet=subnet, bridge=name, **options)
            facts += made, container(name=f"c{number}", on=[made], ports=[f"{8000 + number}:80"])
        return ruleset(desired(snapshot(*facts), Policy()))

    many = rules(300)
    assert sum(map(len, many.filter.chains.values())) <= 12 * 300
    assert sum(map(len, many.nat.chains.values())) <= 2.5 * 300
    assert sum(map(len, many.raw.chains.values())) <= 6 * 300
    bridge = sorted(
        rule.in_interface
        for chain in many.filter.chains.values()
        for rule in chain
        if rule.in_interface and rule.in_interface == rule.out_interface
    )[150]
    into = Packet("ext0", bridge, IPv6Address("2001:db8::2"))
    out = Packet(bridge, "ext0", IPv6Address("fd00:0:5::2"))
    for packet in (into, out):
        assert passed_rules(many.filter, "IPV6NAT-FORWARD", packet) < 200
        if "IPV6NAT-POST" in many.nat.chains:
            assert passed_rules(many.nat, "IPV6NAT-POST", packet) < 60
