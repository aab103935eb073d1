"""The packets of a trace, and the sentences about their end."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address

import pytest

from ipv6natd.host.nft import BaseChain, Condition, NftRule
from ipv6natd.model import Mapping, Protocol
from ipv6natd.netfilter.trace import for_ports, parse
from ipv6natd.report.explain import parse_port
from ipv6natd.report.traces import other_rules, packets, parse_source, trace_row
from tests.integration.bus.conftest import mapping
from tests.unit.netfilter.test_trace import CLIENT, HOST, NAT, OWN, PACKET


def chosen(port: int, protocol: str | None, source: IPv6Address, *mappings: Mapping) -> list[str]:
    sent = packets(port, protocol, source, mappings, HOST)
    return [f"{p.in_interface or 'host'} {p.protocol} {p.destination}" for p in sent]


def test_each_protocol_and_address_of_the_port_gets_a_packet() -> None:
    udp = replace(mapping(80), protocol=Protocol.UDP)
    other = replace(mapping(80), host_address=IPv6Address("2001:db8:1::9"))
    every = (mapping(80), udp, other, mapping(81))
    assert chosen(8080, None, CLIENT, *every) == [
        "eth0 tcp 2001:db8:1::1",
        "eth0 tcp 2001:db8:1::9",
        "eth0 udp 2001:db8:1::1",
    ]
    assert chosen(8080, "udp", CLIENT, *every) == ["eth0 udp 2001:db8:1::1"]
    assert chosen(8080, None, OWN, mapping(80)) == ["host tcp 2001:db8:1::1"]
    assert chosen(8080, None, IPv6Address("fd00:a::2"), mapping(80)) == ["br-a tcp fd00:a::1"]


def test_port_that_nobody_publishes_gets_one_packet() -> None:
    assert chosen(9999, None, CLIENT, mapping()) == ["eth0 tcp 2001:db8:1::1"]


@pytest.mark.parametrize(
    ("rules", "reason", "by"),
    [
        ("", "it is forwarded to [fd00:a::2]:80, with the source 2001:db8:1::2", "policy"),
        (
            "-A FORWARD -j DROP\n",
            "it is dropped by other: -t filter -A FORWARD -j DROP",
            "other",
        ),
        (":FORWARD DROP [0:0]\n", "it is dropped by policy: the policy of FORWARD", "policy"),
        (
            ":DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -s ::/0 -j DROP\n",
            "it is dropped by DOCKER-USER: -t filter -A DOCKER-USER -s ::/0 -j DROP",
            "DOCKER-USER",
        ),
        (
            ":IPV6NAT-FORWARD - [0:0]\n-A FORWARD -j IPV6NAT-FORWARD\n"
            "-A IPV6NAT-FORWARD -o br-a -j DROP\n",
            "it is dropped by ipv6natd: -t filter -A IPV6NAT-FORWARD -o br-a -j DROP",
            "ipv6natd",
        ),
        (
            "-A FORWARD -m set --match-set b src -j DROP\n",
            "it depends on a rule that is not understood here: -t filter -A FORWARD -m set",
            "ipv6natd",
        ),
    ],
)
def test_reason_names_the_rule_and_its_owner(rules: str, reason: str, by: str) -> None:
    row = trace_row(PACKET, parse(f"{NAT}{rules}COMMIT\n"), HOST, ())
    assert row.reason.startswith(reason)
    assert row.fate == "unknown" or row.steps[-1].by == by


def test_chain_of_nft_that_drops_forwarded_packets_is_named() -> None:
    chain = BaseChain(family="inet", table="mine", name="fw", hook="forward", policy="drop")
    row = trace_row(PACKET, parse(f"{NAT}COMMIT\n"), HOST, (chain,))
    assert row.fate == "dropped"
    assert row.reason == "it is dropped by other: chain fw of nft inet mine"


@pytest.mark.parametrize(("text", "wanted"), [("53", (53, None)), ("53/udp", (53, "udp"))])
def test_port_with_and_without_a_protocol(text: str, wanted: tuple[int, str | None]) -> None:
    assert parse_port(text) == wanted


@pytest.mark.parametrize("text", ["", "web", "0", "65536", "53/icmp", "٥٣", "-1", "53/"])
def test_other_text_is_no_port(text: str) -> None:
    with pytest.raises(ValueError, match="is not a host port"):
        parse_port(text)


WEB = replace(
    mapping(80),
    bridge="br-a",
    host_port=8080,
    container_address=IPv6Address("fd00:a::2"),
    container_port=80,
)
CHAINS = """\
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -s 2001:db8:bad::/48 -j DROP
-A PREROUTING -p udp -j DROP
*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -d 2001:db8:1::1/128 -p tcp -m tcp --dport 8080 -m limit --limit 1/sec -j REDIRECT
-A PREROUTING -p tcp -m tcp --dport 22 -j REDIRECT
*filter
:FORWARD ACCEPT [0:0]
:DOCKER-USER - [0:0]
:IPV6NAT-FORWARD - [0:0]
:f2b - [0:0]
-A FORWARD -o br-a -j f2b
-A FORWARD -j DOCKER-USER
-A FORWARD -j IPV6NAT-FORWARD
-A FORWARD -o br-a -j DROP
-A DOCKER-USER -i eth0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-USER -o br-b -j DROP
-A DOCKER-USER -p tcp -m conntrack --ctorigdstport 8080 --ctdir ORIGINAL -j DROP
-A DOCKER-USER -p tcp -m conntrack --ctorigdstport 80 -j DROP
-A FORWARD -i br-a -o br-a -j ACCEPT
-A DOCKER-USER -p tcp -j LOG
-A DOCKER-USER -j RETURN
-A IPV6NAT-FORWARD -o br-a -m conntrack --ctstate DNAT -j ACCEPT
-A f2b -s 2001:db8:666::1/128 -j REJECT
-A f2b -j RETURN
COMMIT
"""


def test_rules_of_others_are_those_that_some_client_may_meet() -> None:
    """The last rule of FORWARD comes after the rule of ours that accepts."""
    found = list(other_rules(WEB, parse(CHAINS), HOST, ()))
    # The host has two addresses, and the packets to both of them pass the raw table.
    assert [f"{row.table} {row.chain} {row.rule} ({row.by})" for row in dict.fromkeys(found)] == [
        "raw PREROUTING -s 2001:db8:bad::/48 -j DROP (other)",
        "nat PREROUTING -d 2001:db8:1::1/128 -p tcp -m tcp --dport 8080 -m limit --limit 1/sec "
        "-j REDIRECT (other)",
        "filter f2b -s 2001:db8:666::1/128 -j REJECT (other)",
        "filter DOCKER-USER -i eth0 -p tcp -m tcp --dport 80 -j ACCEPT (DOCKER-USER)",
        "filter DOCKER-USER -p tcp -m conntrack --ctorigdstport 8080 --ctdir ORIGINAL -j DROP "
        "(DOCKER-USER)",
    ]
    elsewhere = replace(WEB, host_address=IPv6Address("2001:db8:9::9"), protocol=Protocol.UDP)
    assert [row.rule for row in other_rules(elsewhere, parse(CHAINS), HOST, ())] == [
        "-s 2001:db8:bad::/48 -j DROP",
        "-p udp -j DROP",
        "-s 2001:db8:666::1/128 -j REJECT",
    ]


def test_rules_for_other_ports_are_no_part_of_the_search() -> None:
    """Also without them the result is the same."""
    short = for_ports(CHAINS, {8080, 80})
    assert "--dport 22 " not in short
    assert list(other_rules(WEB, parse(short), HOST, ())) == list(
        other_rules(WEB, parse(CHAINS), HOST, ())
    )
    for rule in (
        "! --dport 22 -j DROP",
        "--dport 22:99 -j DROP",
        "--dports 22,80 -j DROP",
        '-m comment --comment "was --dport 22 only" -j DROP',
    ):
        assert for_ports(f"-A FORWARD -p tcp {rule}", {80}).endswith(rule)


def test_loops_of_chains_and_many_ways_to_one_chain_end() -> None:
    jumps = "".join(
        f"-A c{level} -s 2001:db8::{way}/128 -j c{level + 1}\n"
        for level in range(40)
        for way in (1, 2)
    )
    names = "".join(f":c{level} - [0:0]\n" for level in range(41))
    text = f"*filter\n:FORWARD ACCEPT [0:0]\n{names}-A FORWARD -j c0\n{jumps}-A c40 -j c0\nCOMMIT\n"
    assert list(other_rules(WEB, parse(text), HOST, ())) == []


@pytest.mark.parametrize(
    ("policy", "conditions", "verdict"),
    [
        ("drop", None, "DROP"),
        ("accept", (), "DROP"),
        ("accept", (Condition(""),), "?"),
        ("accept", (Condition("iifname", frozenset({"eth9"})),), "?"),
        ("accept", (Condition("oifname", frozenset({"br-b"})),), None),
        ("accept", None, None),
        ("drop", (Condition("ct status", frozenset({"snat"})),), "DROP"),
    ],
)
def test_chains_of_nft_are_listed_if_they_may_drop(
    policy: str, conditions: tuple[Condition, ...] | None, verdict: str | None
) -> None:
    rules = [] if conditions is None else [NftRule(conditions, "drop", "")]
    chain = BaseChain(
        family="inet",
        table="mine",
        name="fw",
        hook="forward",
        policy=policy,
        chains={"fw": [NftRule((), "jump", "more")], "more": rules},
    )
    found = list(other_rules(WEB, parse(CHAINS), HOST, (chain,)))
    listed = [row for row in found if row.table == "nft inet mine"]
    assert [(row.chain, row.verdict) for row in listed] == ([("fw", verdict)] if verdict else [])


ACCEPT_DNAT = NftRule((Condition("ct status", frozenset({"dnat"})),), "accept", "")
UNKNOWN = Condition("")


@pytest.mark.parametrize(
    ("rules", "listed"),
    [
        ([ACCEPT_DNAT, NftRule((), "reject", "")], False),
        ([NftRule((UNKNOWN,), "accept", ""), NftRule((), "reject", "")], True),
        ([NftRule((), "jump", "more"), NftRule((), "drop", "")], False),
        ([NftRule((UNKNOWN,), "jump", "more"), NftRule((), "drop", "")], True),
        ([NftRule((), "goto", "none"), NftRule((), "drop", "")], True),  # by the policy
        ([NftRule((), "return", "")], True),
        ([NftRule((), "", ""), ACCEPT_DNAT], False),
    ],
)
def test_chain_of_nft_that_accepts_before_it_drops_is_not_listed(
    rules: list[NftRule], listed: bool
) -> None:
    """firewalld has such a chain."""
    chains = {"fw": rules, "more": [ACCEPT_DNAT], "none": []}
    chain = BaseChain(
        family="inet", table="mine", name="fw", hook="forward", policy="drop", chains=chains
    )
    found = [row.table for row in other_rules(WEB, parse(CHAINS), HOST, (chain,))]
    assert ("nft inet mine" in found) is listed


@pytest.mark.parametrize("comment", ["a\x0cb", "a\u2028b", "a\n-A FORWARD -j DROP", 'a\\"b'])
def test_any_comment_of_another_program_is_read(comment: str) -> None:
    text = f'*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m comment --comment "{comment}" -j ACCEPT\n'
    found = [row.verdict for row in other_rules(WEB, parse(f"{text}COMMIT\n"), HOST, ())]
    assert found == ["ACCEPT"]
    half = parse('*filter\n:FORWARD DROP [0:0]\n-A FORWARD -m comment --comment "half\n')
    assert [row.rule for row in other_rules(WEB, half, HOST, ())] == ['-m comment --comment "half']


def test_source_may_have_a_zone_that_can_be_shown() -> None:
    assert str(parse_source("fe80::1%eth0")) == "fe80::1%eth0"


@pytest.mark.parametrize("zone", ["\x1b]0;OWN\x07", "a\u202eb", "a\n", "\xad"])
def test_source_with_an_unprintable_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="its zone is unprintable") as caught:
        parse_source(f"fe80::1%{zone}")
    assert str(caught.value).isprintable()
