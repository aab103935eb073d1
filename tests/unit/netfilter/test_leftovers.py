"""The leftovers of Docker and docker-ipv6nat, and the text that removes them."""

from __future__ import annotations

from ipaddress import IPv6Network

import pytest

from ipv6natd.netfilter.docker_rules import Leftover, leftovers_from_save, removal_text
from tests.harness.build import network

X = network(name="x", subnet="fd00:a::/64", bridge="br-x")

DOCKER_IPV6NAT = """\
*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d ::1/128 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s fd00:a::2/128 -d fd00:a::2/128 -p tcp -m tcp --dport 80 -j MASQUERADE
-A POSTROUTING -s fd00:a::/64 ! -o br-x -j MASQUERADE
-A POSTROUTING -o br-x -m addrtype --dst-type LOCAL -j MASQUERADE
-A DOCKER -i br-x -j RETURN
-A DOCKER ! -i br-x -p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00:a::2]:80
COMMIT
*filter
:FORWARD ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o br-x -j DOCKER
-A FORWARD -o br-x -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i br-x ! -o br-x -j ACCEPT
-A FORWARD -i br-x -o br-x -j ACCEPT
-A DOCKER -d fd00:a::2/128 ! -i br-x -o br-x -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-USER -s 2001:db8:99::/48 -j DROP
COMMIT
"""

DOCKER_28 = """\
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -d fd00:a::2/128 ! -i br-x -j DROP
COMMIT
*filter
:DOCKER - [0:0]
:DOCKER-FORWARD - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER ! -i br-x -o br-x -j DROP
-A DOCKER-FORWARD -i br-x -j ACCEPT
COMMIT
*nat
:DOCKER - [0:0]
-A POSTROUTING -o br-x -m addrtype --src-type LOCAL -j SNAT --to-source 2001:db8:1::10
-A POSTROUTING -s fd00:a::/64 ! -o br-x -j SNAT --to-source 2001:db8:1::10
COMMIT
"""

ADMINISTRATOR = """\
*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
:DOCKERISH - [0:0]
:IPV6NAT-FORWARD - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -m comment --comment ipv6natd -j IPV6NAT-FORWARD
-A FORWARD -i vmbr0 ! -o vmbr0 -j ACCEPT
-A FORWARD -i vmbr0 -o vmbr0 -j ACCEPT
-A FORWARD -i br-x ! -o br-x -m comment --comment mine -j ACCEPT
-A FORWARD -i br-x -o eth0 -j ACCEPT
-A FORWARD -i br-x -j LOG --log-prefix "-j DOCKER"
-A DOCKER-USER -j DOCKER
-A IPV6NAT-FORWARD -i br-x -o br-x -j ACCEPT
COMMIT
*nat
-A POSTROUTING -s fd00:99::/64 ! -o vmbr0 -j MASQUERADE
-A POSTROUTING -o vmbr0 -m addrtype --src-type LOCAL -j MASQUERADE
-A POSTROUTING -s fd00:99::2/128 -d fd00:99::2/128 -p tcp -m tcp --dport 80 -j MASQUERADE
-A POSTROUTING -s fd00:a::/64 ! -o br-x -p tcp -m tcp --dport 25 -j MASQUERADE
COMMIT
*raw
-A PREROUTING -d fd00:99::2/128 ! -i vmbr0 -j DROP
COMMIT
"""


NAMED_LIKE_THE_ENGINES = """\
*filter
:FORWARD ACCEPT [0:0]
:DOCKER-BLOCKLIST - [0:0]
:DOCKER-BANS - [0:0]
:DOCKER-HOST - [0:0]
:DOCKER-LAN - [0:0]
:DOCKER-FORWARD-LOG - [0:0]
:DOCKER-ISOLATION-STAGE-3 - [0:0]
-A INPUT -j DOCKER-HOST
-A FORWARD -j DOCKER-BLOCKLIST
-A FORWARD -i vmbr0 -g DOCKER-BANS
-A FORWARD -i vmbr0 ! -o vmbr0 -j ACCEPT
-A DOCKER-BLOCKLIST -s 2001:db8:1::3/128 -j DROP
-A DOCKER-LAN -i vmbr0 -o br-x -j DROP
COMMIT
*nat
:DOCKER-PORTS - [0:0]
-A PREROUTING -j DOCKER-PORTS
COMMIT
"""


def test_removal_text_of_docker_ipv6nat_has_one_transaction_a_table() -> None:
    assert removal_text(leftovers_from_save("nft", DOCKER_IPV6NAT, [])) == (
        "*nat\n"
        "-D PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n"
        "-D OUTPUT ! -d ::1/128 -m addrtype --dst-type LOCAL -j DOCKER\n"
        "-D POSTROUTING -s fd00:a::2/128 -d fd00:a::2/128 -p tcp -m tcp --dport 80 -j MASQUERADE\n"
        "-D POSTROUTING -s fd00:a::/64 ! -o br-x -j MASQUERADE\n"
        "-D POSTROUTING -o br-x -m addrtype --dst-type LOCAL -j MASQUERADE\n"
        ":DOCKER - [0:0]\n"
        "-X DOCKER\n"
        "COMMIT\n"
        "*filter\n"
        "-D FORWARD -j DOCKER-ISOLATION-STAGE-1\n"
        "-D FORWARD -o br-x -j DOCKER\n"
        "-D FORWARD -o br-x -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
        "-D FORWARD -i br-x ! -o br-x -j ACCEPT\n"
        "-D FORWARD -i br-x -o br-x -j ACCEPT\n"
        ":DOCKER - [0:0]\n"
        ":DOCKER-ISOLATION-STAGE-1 - [0:0]\n"
        "-X DOCKER\n"
        "-X DOCKER-ISOLATION-STAGE-1\n"
        "COMMIT\n"
    )


def test_rules_of_docker_28_in_the_raw_table_are_leftovers() -> None:
    text = removal_text(leftovers_from_save("legacy", DOCKER_28, [X]))
    assert text.endswith("*raw\n-D PREROUTING -d fd00:a::2/128 ! -i br-x -j DROP\nCOMMIT\n")
    assert text.count("SNAT") == 2
    assert "DOCKER-USER" not in text


def test_rules_of_the_administrator_are_no_leftovers() -> None:
    assert leftovers_from_save("nft", ADMINISTRATOR, [X]) == ()


def test_chains_of_a_user_that_are_named_like_the_engines_are_no_leftovers() -> None:
    """Q2: nor are their interfaces bridges of Docker."""
    assert leftovers_from_save("nft", NAMED_LIKE_THE_ENGINES, [X]) == ()


@pytest.mark.parametrize(
    "chain",
    [
        *("DOCKER", "DOCKER-FORWARD", "DOCKER-CT", "DOCKER-BRIDGE", "DOCKER-INTERNAL"),
        *("DOCKER-ISOLATION", "DOCKER-ISOLATION-STAGE-1", "DOCKER-ISOLATION-STAGE-2"),
        "DOCKER-INGRESS",
    ],
)
def test_chain_of_docker_or_docker_ipv6nat_is_a_leftover_with_its_jump(chain: str) -> None:
    text = f"*filter\n:{chain} - [0:0]\n-A FORWARD -j {chain}\nCOMMIT\n"
    assert removal_text(leftovers_from_save("nft", text, [])) == (
        f"*filter\n-D FORWARD -j {chain}\n:{chain} - [0:0]\n-X {chain}\nCOMMIT\n"
    )


@pytest.mark.parametrize("bridge", ["docker0", "docker_gwbridge", "br-0123456789ab"])
def test_rules_of_a_removed_network_are_leftovers_by_dockers_bridge_name(
    bridge: str,
) -> None:
    text = f"*filter\n-A FORWARD -i {bridge} ! -o {bridge} -j ACCEPT\nCOMMIT\n"
    (found,) = leftovers_from_save("nft", text, [])
    assert found == Leftover(
        variant="nft", table="filter", chain="FORWARD", rule=f"-i {bridge} ! -o {bridge} -j ACCEPT"
    )


def test_network_without_a_bridge_makes_no_rule_a_leftover() -> None:
    vlan = network(name="vlan", subnet="fd00:9::/64", driver="macvlan", bridge="")
    assert leftovers_from_save("nft", ADMINISTRATOR, [vlan]) == ()


def test_duplicate_rule_is_removed_twice() -> None:
    rule = "-i docker0 -o docker0 -j DROP"
    text = f"*filter\n-A FORWARD {rule}\n-A FORWARD {rule}\nCOMMIT\n"
    assert removal_text(leftovers_from_save("nft", text, [])).count(f"-D FORWARD {rule}\n") == 2


def test_hairpin_rule_is_a_leftover_only_in_a_network_of_docker() -> None:
    other = network(name="y", subnet="fd00:99::/64", bridge="br-y")
    assert other.subnets == (IPv6Network("fd00:99::/64"),)
    (found,) = leftovers_from_save("nft", ADMINISTRATOR, [other])
    assert found.rule.startswith("-s fd00:99::2/128 -d fd00:99::2/128 ")
