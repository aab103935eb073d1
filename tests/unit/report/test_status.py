"""The rows and properties that the bus and the control tool show."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network

import pytest

from ipv6natd.dbus.values import variants
from ipv6natd.model import GatewayMode, ManagedBy, Mapping, Network, Protocol, Skipped
from ipv6natd.report.status import (
    Row,
    State,
    Status,
    mapping_id,
    mapping_row,
    mapping_rows,
    network_row,
    one_line,
    properties,
)

WEB = Mapping(
    container_id="6f1c0d",
    container_name="web",
    network_id="e0",
    network_name="front",
    bridge="br-e0",
    protocol=Protocol.UDP,
    host_address=IPv6Address("2001:db8::1"),
    host_port=8000,
    container_address=IPv6Address("fd00:a::2"),
    container_port=80,
    count=3,
)
FRONT = Network(
    id="e0",
    name="front",
    driver="bridge",
    bridge="br-e0",
    subnets=(IPv6Network("fd00:a::/64"),),
    warnings=("w",),
)
DB = Skipped(container_name="db", network="front", port="80/tcp", reason="taken")


def typed(row: Row) -> dict[str, tuple[str, object]]:
    """The fields on the bus, with their signatures."""
    return {name: (variant.signature, variant.value) for name, variant in variants(row).items()}


def test_a_mapping_row_has_every_field_with_its_type() -> None:
    assert typed(mapping_row(WEB, {mapping_id(WEB): 5})) == {
        "Id": ("s", "6f1c0d/udp/[2001:db8::1]:8000"),
        "ContainerId": ("s", "6f1c0d"),
        "ContainerName": ("s", "web"),
        "Network": ("s", "front"),
        "NetworkId": ("s", "e0"),
        "Bridge": ("s", "br-e0"),
        "Protocol": ("s", "udp"),
        "HostAddress": ("s", "2001:db8::1"),
        "HostPort": ("q", 8000),
        "HostPortEnd": ("q", 8002),
        "ContainerAddress": ("s", "fd00:a::2"),
        "ContainerPort": ("q", 80),
        "ContainerPortEnd": ("q", 82),
        "State": ("s", "active"),
        "Since": ("t", 5),
    }


def test_mapping_row_forwarded_by_the_engine_is_native() -> None:
    assert mapping_row(replace(WEB, managed_by=ManagedBy.ENGINE), {}).state == "native"


def test_since_is_looked_up_by_id() -> None:
    status = Status(version="1", mappings=(WEB,), since={mapping_id(WEB): 9})
    assert [row.since for row in mapping_rows(status)] == [9]
    assert [row.since for row in mapping_rows(replace(status, since={}))] == [0]


@pytest.mark.parametrize(
    ("network", "mode"),
    [
        (FRONT, "nat"),
        (replace(FRONT, gateway_mode=GatewayMode.ROUTED), "routed"),
        (replace(FRONT, internal=True), "internal"),
        (replace(FRONT, internal=True, gateway_mode=GatewayMode.ISOLATED), "isolated"),
    ],
)
def test_network_row_has_the_mode(network: Network, mode: str) -> None:
    assert network_row(network).mode == mode


def test_a_network_row_has_every_field() -> None:
    source, gateway = IPv6Address("2001:db8::9"), IPv6Address("fd00:a::1")
    network = replace(FRONT, source_address=source, gateway=gateway, icc=False)
    assert typed(network_row(network)) == {
        "Id": ("s", "e0"),
        "Name": ("s", "front"),
        "Bridge": ("s", "br-e0"),
        "Subnets": ("as", ["fd00:a::/64"]),
        "Gateway": ("s", "fd00:a::1"),
        "Mode": ("s", "nat"),
        "Internal": ("b", False),
        "Icc": ("b", False),
        "Masquerade": ("b", True),
        "SourceAddress": ("s", "2001:db8::9"),
        "ManagedBy": ("s", "ipv6natd"),
        "Warnings": ("as", ["w"]),
    }
    unknown = network_row(FRONT)
    assert (unknown.source_address, unknown.gateway) == ("", "")


def test_a_skipped_row_has_every_field() -> None:
    assert typed(DB) == {
        "ContainerName": ("s", "db"),
        "Network": ("s", "front"),
        "Port": ("s", "80/tcp"),
        "Reason": ("s", "taken"),
    }


def test_properties_count_the_lists() -> None:
    status = Status(version="1", mappings=(WEB, WEB), networks=(FRONT,), skipped=(DB,) * 3)
    counts = properties(status)
    assert [counts[f"{what}Count"] for what in ("Mapping", "Network", "Skipped")] == [2, 1, 3]


def test_one_line_has_state_counts_backend_and_reason() -> None:
    status = Status(version="1", state=State.SYNCED, backend="nft", mappings=(WEB,))
    assert one_line(status) == "synced: 1 mapping, 0 networks, nft"
    worse = replace(status, state=State.DEGRADED, state_reason="forwarding is off", skipped=(DB,))
    assert one_line(worse) == "degraded: 1 mapping, 0 networks, 1 skipped, nft; forwarding is off"
