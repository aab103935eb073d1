"""The packets of a trace, and the sentences about their end."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address

import pytest

from ipv6natd.host.nft import BaseChain
from ipv6natd.model import Mapping, Protocol
from ipv6natd.netfilter.trace import parse
from ipv6natd.report.explain import parse_port
from ipv6natd.report.traces import packets, trace_row
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
