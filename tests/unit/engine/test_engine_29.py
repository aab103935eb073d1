"""Recorded answers and rules of a real Docker 29.7.2, reduced to the fields that matter.

The engine writes its rules with iptables or with nftables, or has `"ip6tables": false`.
"""

from __future__ import annotations

import json
from ipaddress import IPv6Address
from typing import Any

import pytest

from ipv6natd.engine import parse
from ipv6natd.model import Container, Engine, GatewayMode, ManagedBy, Policy, Snapshot
from ipv6natd.netfilter.docker_rules import engine_rules
from ipv6natd.policy.desired import desired
from tests import ROOT

RECORDED = ROOT / "tests" / "data" / "engine-29"
KINDS = ("iptables", "ip6tables-off", "nftables")
EVERY = pytest.mark.parametrize("kind", KINDS)


def recorded(kind: str, name: str) -> Any:
    return json.loads((RECORDED / kind / f"{name}.json").read_text())


def engine(kind: str) -> Engine:
    ip6tables = False if kind == "ip6tables-off" else None
    return parse.engine(recorded(kind, "version"), recorded(kind, "info"), ip6tables=ip6tables)


def containers(kind: str, answer: str) -> dict[str, Container]:
    found = (parse.container(raw, engine(kind)) for raw in recorded(kind, answer))
    return {each.name: each for each in found if each is not None}


def snapshot(kind: str) -> Snapshot:
    networks = (parse.network(raw) for raw in recorded(kind, "networks"))
    save = (RECORDED / kind / "ip6tables-save.txt").read_text()
    nft = RECORDED / kind / "nft-docker-bridges.json"
    return Snapshot(
        engine=engine(kind),
        networks=tuple(each for each in networks if each is not None),
        containers=tuple(containers(kind, "inspects").values()),
        engine_rules=engine_rules([save], nft.read_text() if nft.exists() else ""),
    )


def ipv6_ports(found: Container) -> set[str]:
    """The bindings to IPv6 addresses: "[ADDRESS]:HOST PORT CONTAINER PORT/PROTOCOL"."""
    return {
        f"[{each.host_address}]:{each.host_port} {each.container_port}/{each.protocol.value}"
        for each in found.bindings
        if isinstance(each.host_address, IPv6Address)
    }


@EVERY
def test_networks(kind: str) -> None:
    found = {each.name: each for each in snapshot(kind).networks}
    assert [each.problem for each in found.values()] == [""] * len(found)
    assert {name: str(each.subnets[0]) for name, each in found.items() if each.subnets} == {
        "bridge": "fd00:dead:beef::/64",
        "web": "fd00:a::/64",
        "inner": "fd00:b::/64",
        "routed": "fd00:c::/64",
        "noicc": "fd00:d::/64",
        "only6": "fd00:e::/64",
    }
    assert found["bridge"].bridge == "docker0"
    assert [name for name, each in found.items() if each.internal] == ["inner"]
    assert [name for name, each in found.items() if not each.icc] == ["noicc"]
    assert found["web"].gateway_mode is GatewayMode.NAT
    assert found["routed"].gateway_mode is GatewayMode.ROUTED
    assert found["only6"].gateway_mode is GatewayMode.NAT_UNPROTECTED


@EVERY
def test_bindings(kind: str) -> None:
    found = containers(kind, "inspects")
    assert {each.problems for each in found.values()} == {()}
    assert {name: ipv6_ports(each) for name, each in found.items() if ipv6_ports(each)} == {
        "web1": {"[::]:8080 80/tcp"},
        "addr": {"[::]:5353 53/udp", "[2001:db8:1::1]:8081 81/tcp"},
        "loop6": {"[::1]:8084 80/tcp"},
        "picked": {"[::]:32768 80/tcp"},
        "all": {"[::]:32769 80/tcp"},
        "range": {f"[::]:{port} {port}/tcp" for port in range(20000, 20005)},
        # In a routed network the engine opens no port of the host.
        "r1": {"[::]:0 80/tcp"},
        "i1": {"[::]:8087 80/tcp"},
        "p4": {"[::]:8088 80/tcp"},
        "dflt": {"[::]:8089 80/tcp"},
        "two": {"[::]:8090 80/tcp"},
    }


@EVERY
def test_list_and_inspect_give_the_same_container(kind: str) -> None:
    listed = containers(kind, "list")
    inspected = containers(kind, "inspects")
    assert listed.keys() == inspected.keys()
    # Only the inspect shows that the binding of a routed network has an IPv6 address.
    differs = {name for name in listed if not parse.matches_inspect(listed[name], inspected[name])}
    assert differs == {"r1"}


@EVERY
def test_networks_belong_to_the_engine_unless_ip6tables_is_off(kind: str) -> None:
    found = desired(snapshot(kind), Policy())
    assert len(found.networks) == 6
    manager = ManagedBy.IPV6NATD if kind == "ip6tables-off" else ManagedBy.ENGINE
    assert {network.managed_by for network in found.networks} == {manager}
    assert {mapping.managed_by for mapping in found.mappings} == {manager}
    assert found.missing_engine_rules == ()
    forwarded = {mapping.container_name for mapping in found.mappings}
    assert forwarded == {"web1", "addr", "picked", "all", "range", "i1", "dflt", "two"}
