"""Requests to a published port from the host and from containers: scenarios H."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv6Address

import pytest

from tests.harness import Container, Failure, Regime, connect, tcp, udp, until
from tests.harness.probe import ETH_P_IPV6
from tests.harness.sandbox import CLIENT, HOST, HOST_LINK_LOCAL, HOST_TOO, ROGUE
from tests.system.packets.asking import carried_by_nat, opened, peer, server

pytestmark = pytest.mark.depends_on("proxy", "engine")

GATEWAY = IPv6Address("fd00:a::1")
LOOPBACK = "::1"
HOST_MAC = bytes.fromhex("020000000001")


def test_h1_host_reaches_a_published_port_by_its_own_address(regime: Regime) -> None:
    for address in (HOST, HOST_TOO):
        answer = tcp(regime.host, address, 8080)
        assert (server(answer), peer(answer)) == ("x1", address)
        by_udp = udp(regime.host, address, 5353)
        assert (server(by_udp), peer(by_udp)) == ("x1", address)


def test_h2_h3_loopback_is_answered_by_the_proxy_or_refused(
    regime: Regime,
) -> None:
    answers = tcp(regime.host, LOOPBACK, 8080), udp(regime.host, LOOPBACK, 5353)
    if regime.proxy:
        assert tuple(map(server, answers)) == ("x1", "x1")
    else:
        # Refused, not timed out: clients try the next address at once.
        assert answers == (Failure.REFUSED, Failure.REFUSED)
    assert server(tcp(regime.host, "127.0.0.1", 8080)) == "x1"


@pytest.fixture(params=[1, 0], ids=["bridge-nf", "no-bridge-nf"])
def filtered(request: pytest.FixtureRequest, regime: Regime) -> Iterator[Regime]:
    """The regime with bridged packets in ip6tables, and without them, as without br_netfilter."""
    key = "net.bridge.bridge-nf-call-ip6tables"
    before = regime.host.sysctl(key)
    regime.host.sysctl(key, request.param)
    yield regime
    regime.host.sysctl(key, before)


def assert_x1_reached(container: Container) -> None:
    """Assert that the container reaches x1 by the host's addresses, over TCP and UDP."""
    assert server(tcp(container.ns, HOST, 8080)) == "x1"
    for address in (HOST, HOST_TOO):
        assert server(udp(container.ns, address, 5353)) == "x1"


def test_h4_h5_h6_h12_k5_neighbour_reaches_the_port_by_the_host_address(
    filtered: Regime,
) -> None:
    """The source may be rewritten, because the reply must return through the host."""
    assert_x1_reached(filtered.x2)


def test_h7_h8_h12_k5_container_reaches_itself_by_the_host_address(filtered: Regime) -> None:
    assert_x1_reached(filtered.x1)


def test_h12_udp_port_bound_to_one_address_is_reached_by_containers(regime: Regime) -> None:
    """The proxy listens only on this address, and replies from it."""
    port = regime.port()
    published = [f"[{HOST_TOO}]:{port}:53/udp"]
    with regime.container(publish=published, tcp=(), udp=(53,)) as made:
        for caller in (regime.client, regime.x2.ns, made.ns, regime.y1.ns):
            assert until(lambda ns=caller: server(udp(ns, HOST_TOO, port)), made.name) == made.name  # type: ignore[misc]


@pytest.mark.parametrize("address", [HOST, IPv6Address("fd00:b::1")], ids=["h9-h10", "h11"])
def test_h9_h10_h11_h12_other_network_reaches_the_port_by_nat(
    regime: Regime, address: IPv6Address
) -> None:
    answer = tcp(regime.y1.ns, address, 8080)
    assert (server(answer), peer(answer)) == ("x1", GATEWAY)
    by_udp = udp(regime.y1.ns, address, 5353)
    assert (server(by_udp), peer(by_udp)) == ("x1", GATEWAY)
    flows = carried_by_nat(regime.host, 8080)
    assert any(f"src=fd00:b::2 dst={address} " in flow for flow in flows), flows


def test_h13_neighbours_connect_directly_with_their_own_addresses(regime: Regime) -> None:
    answer = tcp(regime.x2.ns, "fd00:a::2", 80)
    assert (server(answer), peer(answer)) == ("x1", IPv6Address("fd00:a::3"))
    by_udp = udp(regime.x2.ns, "fd00:a::2", 53)
    assert (server(by_udp), peer(by_udp)) == ("x1", IPv6Address("fd00:a::3"))


def test_h14_link_local_client_is_answered_by_the_proxy_or_refused(
    regime: Regime,
) -> None:
    answers = (
        tcp(regime.client, HOST_LINK_LOCAL, 8080),
        udp(regime.client, HOST_LINK_LOCAL, 5353),
    )
    if regime.proxy:
        assert tuple(map(server, answers)) == ("x1", "x1")
    else:
        # Refused, not timed out: clients try the next address at once.
        assert answers == (Failure.REFUSED, Failure.REFUSED)
    assert opened(regime.client, 8080).peer == CLIENT


def datagram(source: IPv6Address, to: IPv6Address, source_port: int, port: int) -> bytes:
    """A UDP datagram in its IPv6 packet, with addresses that a socket may refuse."""
    payload = b"?\n"
    head = struct.pack("!HHH", source_port, port, 8 + len(payload))
    pseudo = struct.pack("!16s16sII", source.packed, to.packed, 8 + len(payload), 17)
    words = struct.unpack(
        f"!{(len(pseudo + head) + 2 + len(payload)) // 2}H", pseudo + head + b"\0\0" + payload
    )
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = head + struct.pack("!H", total ^ 0xFFFF) + payload
    return struct.pack("!IHBB16s16s", 6 << 28, len(body), 17, 64, source.packed, to.packed) + body


def header_errors(regime: Regime) -> int:
    """The number of packets that the host's kernel dropped for their header, before any rule."""
    counts = dict(line.split() for line in regime.host.run("cat", "/proc/net/snmp6").splitlines())
    return int(counts["Ip6InHdrErrors"])


def test_h15_packet_with_a_loopback_address_is_dropped_before_the_rules(regime: Regime) -> None:
    loopback = IPv6Address(LOOPBACK)
    came, before = len(regime.x1.server.received), header_errors(regime)
    with regime.rogue.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sock:
        for number, (source, to) in enumerate([(ROGUE, loopback), (loopback, HOST), (ROGUE, HOST)]):
            data = datagram(source, to, 40100 + number, 5353)
            sock.sendto(data, ("ext0", ETH_P_IPV6, 0, 0, HOST_MAC))
    # The last packet is valid, and arrives after the others.
    arrived = until(lambda: regime.x1.server.received[came:], lambda found: bool(found))
    assert [(each.peer, each.peer_port) for each in arrived] == [(ROGUE, 40102)]
    assert header_errors(regime) == before + 2


def test_ipv4_loopback_port_is_answered_by_x1_and_not_by_the_engine(regime: Regime) -> None:
    """Without the proxy the engine itself listens, so a connection alone is no success."""
    with connect(regime.host, "127.0.0.1", 8080) as conversation:
        assert server(conversation.ask()) == "x1"
