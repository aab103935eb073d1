"""What is said about a host, and that each sentence ends with the command that helps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ipv6natd.host.findings import (
    Finding,
    HostFacts,
    RaDefaultRoute,
    evaluate,
    first_in_forward,
    missing_module_hint,
    unfiltered_bridges,
)
from ipv6natd.host.nft import (
    BaseChain,
    ForwardedPacket,
    Match,
    MatchKey,
    NftRule,
    base_chains,
    blocks,
)
from ipv6natd.model import ManagedBy
from tests.harness.build import network

X = network(name="x", bridge="br-x")
CUT = network(name="cut", subnet="fd00:c::/64", bridge="br-cut", icc=False)
INNER = network(name="inner", subnet="fd00:d::/64", bridge="br-inner", internal=True)
NATIVE = network(name="n", bridge="br-n", icc=False, managed_by=ManagedBy.ENGINE)
PROGRAMS = {"docker", "ip6tables", "ipv6natctl", "ipv6natd", "sysctl", "update-grub"}
WELL = HostFacts(global_interfaces=("br-x", "eth0"), bridges_filtered={"br-cut": True})
ADVERTISED = RaDefaultRoute(interface="eth0.7", accept_ra=1, forwarding=True)


def chain(*rules: list[dict[str, Any]], policy: str = "drop", **fields: Any) -> HostFacts:
    """A host with one more base chain on the hook forward."""
    facts = {"family": "inet", "table": "mine", "name": "forward", "hook": "forward"} | fields
    head = {"chain": facts | {"policy": policy}}
    place = {"family": facts["family"], "table": facts["table"], "chain": facts["name"]}
    listed: list[dict[str, Any]] = [head]
    for rule in rules:
        listed.append({"rule": place | {"expr": rule}})
    return replace(WELL, nft_chains=base_chains(listed))


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


ACCEPT: dict[str, Any] = {"accept": None}
DROP: dict[str, Any] = {"drop": None}
STATUS, STATE = {"ct": {"key": "status"}}, {"ct": {"key": "state"}}
IIF, OIF = {"meta": {"key": "iifname"}}, {"meta": {"key": "oifname"}}
DNATED = [match(STATUS, "dnat", "in"), ACCEPT]
OPEN_CONNECTIONS = [match(STATE, ["established", "related"], "in"), ACCEPT]
OUT = [match(IIF, "br-*"), ACCEPT]
SOURCE = {"payload": {"protocol": "ip6", "field": "saddr"}}
JUMPS = ("-A FORWARD -j DOCKER-USER", "-A FORWARD -m comment --comment x -j IPV6NAT-FORWARD")
SOURCES = {"fib": {"result": "oif", "flags": ["saddr", "mark", "iif"]}}


def test_an_open_router_is_not_named_before_the_engine_s_interfaces_are_known() -> None:
    """They are among those that are up, and a first start would warn of what is not so."""
    facts = replace(WELL, interfaces=("br-x", "eth0"))
    assert evaluate(facts, [], engine_writes=True).findings == ()
    assert evaluate(facts, [X]).findings == ()
    assert len(evaluate(facts, []).findings) == 1


@pytest.mark.parametrize(
    ("facts", "says", "command"),
    [
        (replace(WELL, ipv6=False), "runs without IPv6", "update-grub && reboot"),
        (
            replace(WELL, disabled=True, forwarding=False),
            "IPv6 is switched off",
            "sysctl -w net.ipv6.conf.all.disable_ipv6=0",
        ),
        (
            replace(WELL, forwarding=False),
            "forwarding is off",
            "sysctl -w net.ipv6.conf.all.forwarding=1",
        ),
        (
            replace(WELL, ra_default_routes=(ADVERTISED,)),
            "eth0/7.accept_ra=2 into /etc/sysctl.d/60-ipv6natd-accept-ra.conf",
            "sysctl -w net.ipv6.conf.eth0/7.accept_ra=2",
        ),
        (
            replace(WELL, docker_ipv6nat="docker rm -f 0123456789ab"),
            "docker-ipv6nat runs",
            "docker rm -f 0123456789ab",
        ),
        (
            replace(WELL, docker_ipv6_rules=frozenset({"ip6tables-nft", "ip6tables-legacy"})),
            "left behind stand in ip6tables-legacy and ip6tables-nft",
            "ipv6natctl cleanup --leftovers",
        ),
        (replace(WELL, stale_rules=True), "stand in the legacy variant", "ipv6natd -flush"),
        (
            replace(WELL, docker_ipv4_variants=frozenset({"legacy"})),
            'backend = "legacy"',
            "systemctl restart ipv6natd",
        ),
        (
            replace(WELL, backend="legacy", docker_ipv4_variants=frozenset({"nft"})),
            'backend = "nft"',
            "systemctl restart ipv6natd",
        ),
        (
            replace(WELL, interfaces=("br-x", "eth0", "wg0")),
            "for everyone between eth0 and wg0",
            "ip6tables -P FORWARD DROP",
        ),
    ],
)
def test_a_finding_says_what_is_wrong_and_ends_with_the_command(
    facts: HostFacts, says: str, command: str
) -> None:
    (finding,) = evaluate(facts, [X]).findings
    assert says in finding.text
    assert finding.command.endswith(command)
    assert finding.command.split()[0] in PROGRAMS
    assert finding.bridge == ""


@pytest.mark.parametrize(
    "facts",
    [
        WELL,
        HostFacts(),
        replace(WELL, ra_default_routes=(replace(ADVERTISED, accept_ra=2),)),
        replace(WELL, ra_default_routes=(replace(ADVERTISED, forwarding=False),)),
        # A network manager that does it in its own process has switched the kernel's off.
        replace(WELL, ra_default_routes=(replace(ADVERTISED, accept_ra=0),)),
        replace(WELL, docker_ipv4_variants=frozenset({"nft"})),
        replace(WELL, docker_ipv4_variants=frozenset({"nft", "legacy"})),
        replace(WELL, interfaces=("br-x", "eth0")),
        replace(WELL, interfaces=("eth0", "wg0"), forward_policy="DROP"),
        replace(WELL, interfaces=("eth0", "wg0"), forward_rules=("-A FORWARD -j DROP",)),
        replace(WELL, zones={"br-x": "trusted"}),
        replace(chain(DNATED, OPEN_CONNECTIONS, OUT), interfaces=("eth0", "wg0")),
    ],
)
def test_nothing_is_said_about_a_host_that_is_well(facts: HostFacts) -> None:
    assert evaluate(facts, [X]).findings == ()


def test_our_jumps_and_an_empty_chain_guard_nobody() -> None:
    facts = replace(chain(policy="accept"), interfaces=("eth0", "wg0"), forward_rules=JUMPS)
    assert len(evaluate(facts, [X]).findings) == 1


@pytest.mark.parametrize(
    ("rules", "open_"),
    [
        (("-A FORWARD -j DROP",), False),
        (("-A FORWARD -i wg0 -j ACCEPT", "-A FORWARD -j REJECT --reject-with x"), False),
        (('-A FORWARD -m comment --comment "no more" -j DROP',), False),
        (("-A FORWARD -i wlan0 -j DROP",), True),
        (("-A FORWARD -s 2001:db8::/64 -j REJECT",), True),
        (("-A FORWARD -j theirs",), True),
        (("-A FORWARD -j LOG",), True),
    ],
)
def test_a_rule_in_forward_guards_if_it_ends_everything(
    rules: tuple[str, ...], open_: bool
) -> None:
    facts = replace(WELL, interfaces=("eth0", "wg0"), forward_rules=(*JUMPS, *rules))
    assert bool(evaluate(facts, [X]).findings) is open_


@pytest.mark.parametrize(
    ("rules", "policy", "open_"),
    [
        ([], "drop", False),
        ([[DROP]], "accept", False),
        ([[match(SOURCE, "2001:db8::1"), ACCEPT]], "drop", False),
        ([[match(IIF, "wg0"), match(SOURCE, "2001:db8::1"), DROP]], "accept", True),
        ([[match(IIF, "wlan0"), DROP]], "accept", True),
        ([OPEN_CONNECTIONS], "accept", True),
        # One way of two is open.
        ([[match(IIF, "wg0"), ACCEPT]], "drop", True),
    ],
)
def test_a_chain_of_nft_guards_if_it_ends_the_packets_of_a_stranger(
    rules: list[list[dict[str, Any]]], policy: str, open_: bool
) -> None:
    facts = replace(chain(*rules, policy=policy), interfaces=("eth0", "wg0"), global_interfaces=())
    assert bool(evaluate(facts, [X]).findings) is open_


def test_a_jump_that_may_not_be_taken_leaves_the_policy_to_guard() -> None:
    place = {"family": "inet", "table": "mine"}
    jump = [match(SOURCE, "2001:db8::1"), {"jump": {"target": "more"}}]
    listed: list[dict[str, Any]] = [
        {"chain": place | {"name": "forward", "hook": "forward", "policy": "drop"}},
        {"rule": place | {"chain": "forward", "expr": jump}},
        {"rule": place | {"chain": "more", "expr": [ACCEPT]}},
    ]
    facts = replace(
        WELL, nft_chains=base_chains(listed), interfaces=("eth0", "wg0"), global_interfaces=()
    )
    assert evaluate(facts, [X]).findings == ()


def test_an_open_router_with_one_interface_is_a_note() -> None:
    """It is so on each host whose engine sets no policy for IPv6, and leads to its own segment."""
    facts = replace(WELL, interfaces=("br-x", "docker0", "br-0123456789ab", "eth0"))
    result = evaluate(facts, [X])
    assert result.findings == ()
    (note,) = result.notes
    assert note.startswith("this host routes IPv6 for everyone in and out by eth0: ")
    assert note.endswith(": ip6tables -P FORWARD DROP")
    assert evaluate(replace(facts, forward_policy="DROP"), [X]).notes == ()
    named = replace(facts, interfaces=(*facts.interfaces, "ipv4only"))
    assert evaluate(named, [X], frozenset({"ipv4only"})) == result
    assert len(evaluate(named, [X]).findings) == 1


def test_of_many_interfaces_some_are_named() -> None:
    facts = replace(WELL, interfaces=tuple(f"vlan{each}" for each in range(300)))
    (finding,) = evaluate(facts, [X]).findings
    assert len(finding.text) < 500


def test_without_a_network_that_forwards_forwarding_is_nobodys_business() -> None:
    assert evaluate(replace(WELL, forwarding=False), [INNER]).findings == ()
    assert evaluate(replace(WELL, forwarding=False), [NATIVE]).findings == ()


def test_the_worst_comes_first() -> None:
    facts = replace(WELL, stale_rules=True, ra_default_routes=(ADVERTISED,), forwarding=False)
    texts = [each.text.split(",")[0] for each in evaluate(facts, [X]).findings]
    assert [text.split()[0] for text in texts] == ["IPv6", "the", "rules"]


# Chains of nft.


def commands(facts: HostFacts) -> list[str]:
    """The rules that are to be inserted."""
    texts = [each.text for each in evaluate(facts, [X, INNER]).findings]
    assert len(texts) < 2
    start = "nft insert rule inet mine forward "
    return [each.removeprefix(start) for text in texts for each in text[_at(text) :].split(" && ")]


def _at(text: str) -> int:
    return text.index("nft insert")


IN_WORDS = "ct status dnat accept"
OUT_WORDS = "iifname br-x accept"
BACK_WORDS = "ct state established,related accept"


@pytest.mark.parametrize(
    ("facts", "missing"),
    [
        (chain(), [OUT_WORDS, IN_WORDS, BACK_WORDS]),
        (chain([DROP], policy="accept"), [OUT_WORDS, IN_WORDS, BACK_WORDS]),
        (chain([{"counter": {}}, {"log": {}}, {"reject": {}}], policy="accept"),
         [OUT_WORDS, IN_WORDS, BACK_WORDS]),
        (chain(policy="accept"), []),
        (chain(OPEN_CONNECTIONS), [OUT_WORDS, IN_WORDS]),
        (chain(OPEN_CONNECTIONS, OUT), [IN_WORDS]),
        (chain(OPEN_CONNECTIONS, OUT, DNATED), []),
        (chain([match({"&": [STATUS, "dnat"]}, "dnat"), ACCEPT], OPEN_CONNECTIONS, OUT), []),
        (chain([match({"&": [STATUS, "dnat"]}, 0, "!="), ACCEPT], OPEN_CONNECTIONS, OUT), []),
        # Some of what is forwarded, but meant for containers: whoever wrote it knows.
        (chain([match(STATUS, "dnat", "in"), match({"payload": {"protocol": "tcp",
         "field": "dport"}}, 80), ACCEPT], OPEN_CONNECTIONS, OUT), []),
        # What is dropped for a reason of its own is nobody's fault.
        (chain([match(STATE, "invalid", "in"), DROP], policy="accept"), []),
        (chain([match({"payload": {"protocol": "ip6", "field": "saddr"}}, "2001:db8::1"), DROP],
               policy="accept"), []),
        (chain([match(IIF, "eth0"), DROP], policy="accept"), [IN_WORDS, BACK_WORDS]),
        (chain([match(IIF, "wlan0"), DROP], policy="accept"), []),
        (chain([match(OIF, {"set": ["eth0", "wlan*"]}), DROP], policy="accept"), [OUT_WORDS]),
        (chain([match({"meta": {"key": "nfproto"}}, "ipv4"), DROP], policy="accept"), []),
        (chain([match({"meta": {"key": "nfproto"}}, "ipv6"), DROP], policy="accept"),
         [OUT_WORDS, IN_WORDS, BACK_WORDS]),
        (chain([{"limit": {"rate": 1}}, DROP], policy="accept"), []),
        (chain([match({"meta": {"key": "l4proto"}}, "ipv6-icmp"), ACCEPT]),
         [OUT_WORDS, IN_WORDS, BACK_WORDS]),
        (chain(hook="prerouting"), []),
        (chain(table="firewalld"), []),
    ],
)  # fmt: skip
def test_what_a_chain_of_nft_drops_is_named_by_what_lets_it_through(
    facts: HostFacts, missing: list[str]
) -> None:
    assert commands(facts) == missing


def test_jumps_are_followed_and_an_endless_one_is_not() -> None:
    place = {"family": "inet", "table": "mine"}
    listed: list[dict[str, Any]] = [
        {"chain": place | {"name": "forward", "hook": "forward", "policy": "accept"}},
        {"rule": place | {"chain": "forward", "expr": [{"jump": {"target": "more"}}]}},
        {"rule": place | {"chain": "more", "expr": [match(IIF, "br-x"), {"return": None}]}},
        {"rule": place | {"chain": "more", "expr": [DROP]}},
    ]
    facts = replace(WELL, nft_chains=base_chains(listed))
    assert commands(facts) == [IN_WORDS, BACK_WORDS]
    listed.insert(2, {"rule": place | {"chain": "more", "expr": [{"jump": {"target": "more"}}]}})
    assert commands(replace(WELL, nft_chains=base_chains(listed))) == [IN_WORDS, BACK_WORDS]


# What is about one network.


def test_many_ways_through_one_chain_are_gone_once() -> None:
    # Ten jumps in each of sixteen chains: nobody lives to see the end of all their ways.
    steps: dict[str, tuple[NftRule, ...]] = {
        f"c{depth}": (NftRule(verdict="jump", target=f"c{depth + 1}"),) * 10 for depth in range(16)
    }
    last: dict[str, tuple[NftRule, ...]] = {"c16": (NftRule(verdict="drop"),)}
    chain = BaseChain(
        family="inet",
        table="t",
        name="forward",
        hook="forward",
        rules=(NftRule(verdict="jump", target="c0"),),
        other_chains=steps | last,
    )
    never: dict[str, tuple[NftRule, ...]] = {
        "c16": (NftRule(matches=(Match(key=MatchKey.NEVER),), verdict="drop"),)
    }
    flow = ForwardedPacket(bridge="br-x", incoming="br-x", outgoing="eth0")
    assert blocks(chain, flow)
    assert not blocks(replace(chain, other_chains=steps | never), flow)


def test_a_bridge_in_no_zone_of_firewalld_is_named() -> None:
    (finding,) = evaluate(replace(WELL, zones={"eth0": "public"}), [X, INNER]).findings
    assert finding.bridge == "br-x"
    zone = "--zone=trusted --add-interface=br-x"
    assert finding.text.endswith(f"firewall-cmd --permanent {zone} && firewall-cmd {zone}")


@pytest.mark.parametrize(
    ("filtered", "command"),
    [
        (
            None,
            "echo br_netfilter > /etc/modules-load.d/br_netfilter.conf && modprobe br_netfilter",
        ),
        ({"br-cut": False}, "ip link set br-cut type bridge nf_call_ip6tables 1"),
        ({"br-cut": True}, None),
        ({}, None),
    ],
)
def test_neighbours_that_nothing_cuts_are_named(
    filtered: dict[str, bool] | None, command: str | None
) -> None:
    facts = replace(WELL, bridges_filtered=filtered)
    said = evaluate(facts, [X, CUT, NATIVE]).findings
    assert [each.bridge for each in said] == ([] if command is None else ["br-cut"])
    assert all(each.text.endswith(command or "") for each in said)
    expected = ("br-cut",) if filtered == {"br-cut": False} else ()
    assert unfiltered_bridges(facts, [X, CUT, NATIVE]) == expected


# Notes, and words of tools.


def test_reverse_path_filters_are_notes() -> None:
    strict = chain([match(SOURCES, False), DROP], policy="accept", hook="prerouting")
    result = evaluate(replace(strict, rpfilter_tables=("the raw table of ip6tables",)), [X])
    assert result.findings == ()
    assert [each.split(":")[0] for each in result.notes] == [
        "a reverse-path filter stands in the raw table of ip6tables",
        "a reverse-path filter stands in inet mine forward",
    ]


@pytest.mark.parametrize(
    ("rules", "first"),
    [
        ((), ""),
        (("-A FORWARD -m comment --comment ipv6natd -j DOCKER-USER",), ""),
        (("-A FORWARD -j IPV6NAT-FORWARD", "-A FORWARD -j X"), ""),
        (("-A FORWARD -j LIBVIRT_FWI", "-A FORWARD -j DOCKER-USER"), "-A FORWARD -j LIBVIRT_FWI"),
    ],
)
def test_who_stands_first_in_forward(rules: tuple[str, ...], first: str) -> None:
    assert first_in_forward(rules) == first


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("can't initialize ip6tables table `nat': Table does not exist", "modprobe ip6table_nat"),
        (
            "Extension MASQUERADE revision 0 not supported, missing kernel module?",
            "modprobe ip6t_MASQUERADE",
        ),
        ("line 7 failed: No chain/target/match by that name.", "modprobe -a ip6table_filter"),
        ("socket: Address family not supported by protocol", "take ipv6.disable=1 off"),
        ("Failed to initialize nft: Protocol not supported", "modprobe nf_tables"),
        ("Device or resource busy", ""),
    ],
)
def test_what_the_kernel_lacks_is_named(said: str, advice: str) -> None:
    assert advice in missing_module_hint(f"ip6tables-restore refused: {said}")
    assert bool(advice) == bool(missing_module_hint(said))


def test_a_finding_is_a_value() -> None:
    assert Finding(text="a") == Finding(text="a", bridge="")
