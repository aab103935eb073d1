"""The tracer with rules that it does not understand; tests/harness/test_trace.py has the others."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network

import pytest

from ipv6natd.netfilter.trace import Fate, Host, Link, Packet, parse, trace

CLIENT, OWN, WEB = map(IPv6Address, ("2001:db8:1::2", "2001:db8:1::1", "fd00:a::2"))
HOST = Host(
    links=(
        Link(interface="eth0", subnets=(IPv6Network("::/0"),), addresses=(OWN,)),
        Link(
            interface="br-a",
            subnets=(IPv6Network("fd00:a::/64"),),
            addresses=(IPv6Address("fd00:a::1"),),
        ),
    )
)
PACKET = Packet(
    source=CLIENT, destination=OWN, in_interface="eth0", protocol="tcp", port=8080, mark=None
)
NAT = """\
*nat
-A PREROUTING -p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00:a::2]:80
COMMIT
*filter
:BANS - [0:0]
"""


@pytest.mark.parametrize(
    ("rules", "fate", "decides"),
    [
        ([], Fate.FORWARDED, ""),
        (["FORWARD -m limit --limit 3/min -j LOG --log-prefix x"], Fate.FORWARDED, ""),
        (["FORWARD -m set --match-set bans src -j DROP"], Fate.UNKNOWN, "-m set"),
        # Whether it matches makes no difference.
        (
            ["FORWARD -m set --match-set bans src -j DROP", "FORWARD -j DROP"],
            Fate.DROPPED,
            "-j DROP",
        ),
        (["FORWARD -m set --match-set bans src -s fd00::/8 -j DROP"], Fate.FORWARDED, ""),
        (["FORWARD -m set --match-set bans src -j BANS"], Fate.FORWARDED, ""),
        (["FORWARD -m set --match-set b src -j BANS", "BANS -j RETURN"], Fate.FORWARDED, ""),
        (["FORWARD -m set --match-set b src -j BANS", "BANS -j DROP"], Fate.UNKNOWN, "-m set"),
        (["FORWARD -j BANS", "BANS -s 2001:db8:1::/64 -j REJECT"], Fate.REFUSED, "-s 2001"),
        (["FORWARD -g BANS", "FORWARD -j DROP"], Fate.FORWARDED, ""),
        (["FORWARD -m mark --mark 0x1/0x1 -j DROP"], Fate.UNKNOWN, "-m mark"),
        (["FORWARD -p tcp -j NFQUEUE --queue-num 1"], Fate.UNKNOWN, "NFQUEUE"),
        (["FORWARD -p tcp -m multiport --dports 1,80 -j DROP"], Fate.UNKNOWN, "--dports"),
        (["FORWARD ! -i eth0 -j DROP", "FORWARD -o br-+ -j DROP"], Fate.DROPPED, "-o br-+"),
    ],
)
def test_fate_is_unknown_only_if_it_depends_on_a_rule_that_is_not_understood(
    rules: list[str], fate: Fate, decides: str
) -> None:
    found = trace(parse(NAT + "".join(f"-A {rule}\n" for rule in rules) + "COMMIT\n"), PACKET, HOST)
    assert found.fate is fate
    deciding = found.doubt or found.steps[-1]
    assert decides in deciding.rule
    if fate is Fate.FORWARDED:
        assert (found.address, found.port) == (WEB, 80)


@pytest.mark.parametrize(
    ("options", "source", "dropped"),
    [
        ("--src-type LOCAL", "fd00:a::1", True),
        ("--src-type LOCAL --limit-iface-in", "fd00:a::1", False),
        ("--src-type LOCAL --limit-iface-in", str(OWN), True),
        ("--src-type LOCAL,ANYCAST --limit-iface-in", "fd00:a::", False),
    ],
)
def test_source_of_another_interface_is_not_one_of_this_interface(
    options: str, source: str, dropped: bool
) -> None:
    rule = f"*filter\n-A INPUT -m addrtype {options} -j DROP\nCOMMIT\n"
    packet = replace(PACKET, source=IPv6Address(source))
    found = trace(parse(rule), packet, HOST)
    assert found.fate is (Fate.DROPPED if dropped else Fate.HOST)


def test_each_hook_has_its_step() -> None:
    found = trace(parse(NAT + "-A FORWARD -i eth0 -j ACCEPT\nCOMMIT\n"), PACKET, HOST)
    assert [(step.table, step.hook, step.verdict) for step in found.steps] == [
        ("raw", "PREROUTING", "ACCEPT"),
        ("nat", "PREROUTING", "DNAT [fd00:a::2]:80"),
        ("filter", "FORWARD", "ACCEPT"),
        ("nat", "POSTROUTING", "ACCEPT"),
    ]
    assert [step.rule for step in found.steps][2] == "-i eth0 -j ACCEPT"


def test_packet_without_a_route_is_an_error() -> None:
    lonely = Host(links=(HOST.links[1],))
    with pytest.raises(ValueError, match="no route to 2001:db8:1::1"):
        trace(parse(""), PACKET, lonely)
