"""Forged sources in several steps: entries that one packet makes and another uses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address

import pytest

from tests.harness import (
    Answer,
    Container,
    Namespace,
    Regime,
    forge,
    ping,
    serve,
    tcp,
    udp,
    until,
    watch,
)
from tests.harness.sandbox import CLIENT, HOST, HOST_TOO, ROGUE, namespace
from tests.system.packets.asking import SHORT, peer, server
from tests.system.packets.test_forged import (
    ALL_NODES,
    GATEWAY,
    MODE,
    STRANGER,
    X1,
    X2,
    Y1,
    attackers,
)

pytestmark = [pytest.mark.ours, pytest.mark.depends_on("variant", "proxy", "engine")]
BOTH = pytest.mark.parametrize("who", ["container", "segment"])
LEAVES = IPv6Address("2001:db8:1::77")


def heard(regime: Regime, before: int) -> list[tuple[str, int]]:
    time.sleep(SHORT)
    return [(str(each.peer), each.port) for each in regime.x1.server.received[before:]]


@BOTH
def test_two_packets_that_pose_as_a_container_and_as_an_anycast_address(
    regime: Regime, who: str
) -> None:
    attacker, before = attackers(regime)[who], len(regime.x1.server.received)
    for port, text in enumerate(("2001:db8:1::", "fd00:b::", "fd00:a::"), 7300):
        attacker.send(forge.datagram(X1, IPv6Address(text), (54, port)))
        attacker.send(forge.datagram(IPv6Address(text), X1, (port, 54)))
    assert heard(regime, before) == []


def test_an_address_of_the_host_that_leaves_opens_nothing_both_ways(regime: Regime) -> None:
    """One of SLAAC, which who sends router advertisements makes come and go."""
    attacker, before = attackers(regime)["segment"], len(regime.x1.server.received)
    regime.host.ip(f"address add {LEAVES}/64 dev ext0 nodad")
    time.sleep(SHORT)
    attacker.send(forge.datagram(X1, LEAVES, (54, 7400)))
    attacker.send(forge.datagram(LEAVES, X1, (7400, 54)))
    regime.host.ip(f"address del {LEAVES}/64 dev ext0")
    time.sleep(2)
    regime.rogue.ip(f"address add {LEAVES}/64 dev ext0 nodad")
    try:
        answer = udp(regime.rogue, X1, 54, source=LEAVES, source_port=7400, timeout=SHORT)
        assert not isinstance(answer, Answer), answer
        assert heard(regime, before) == []
    finally:
        regime.rogue.ip(f"address del {LEAVES}/64 dev ext0")
        regime.host.run("conntrack", "-D", "-f", "ipv6", "--orig-dst", str(LEAVES), check=False)


@BOTH
def test_an_error_about_a_flow_that_never_was_reaches_nobody(regime: Regime, who: str) -> None:
    attacker = attackers(regime)[who]
    source = Y1 if who == "container" else ROGUE
    with watch(regime.x1.ns) as packets:
        never = forge.datagram(X1, HOST, (54, 7500))
        attacker.send(never)
        error = forge.error_body(source, X1, never)
        attacker.send(forge.packet(source, X1, forge.ICMPV6, error))
        time.sleep(SHORT)
        found = [each for each in packets() if each.protocol == "icmp6" and each.port == 1]
        assert [each.source for each in found if not each.outgoing] == []


def test_no_peer_looks_like_one_of_ipv4(regime: Regime) -> None:
    attacker, before = attackers(regime)["segment"], len(regime.x1.server.received)
    for text in ("::ffff:127.0.0.1", "::ffff:172.18.0.1"):
        attacker.send(forge.datagram(IPv6Address(text), HOST, (7600, 5353)))
    assert heard(regime, before) == []


def test_what_is_routed_to_a_container_is_nobodys_to_pose_as(regime: Regime) -> None:
    """A route behind y1, and who is on the segment poses as one there."""
    beyond, attacker = IPv6Address("fd00:ee::7"), attackers(regime)["segment"]
    regime.host.ip(f"route add fd00:ee::/64 via {Y1} dev brY")
    regime.client.ip(f"route add fd00:ee::/64 via {HOST} dev ext0")
    try:
        until(lambda: "fd00:ee::/64" in regime.sandbox.rules(), True)
        with watch(regime.y1.ns) as packets:
            attacker.send(forge.datagram(beyond, CLIENT, (54, 7900)))
            udp(regime.client, beyond, 54, source_port=7900, timeout=SHORT)
            assert [each for each in packets() if each.destination == beyond] == []
    finally:
        regime.client.ip(f"route del fd00:ee::/64 via {HOST} dev ext0")
        regime.host.ip(f"route del fd00:ee::/64 via {Y1} dev brY")


def test_bridges_in_a_row_keep_working(regime: Regime) -> None:
    """As Proxmox has them: vmbr0 with the host's address, a veth pair, fwbr0, a VM's port. With
    br_netfilter what the host sends passes FORWARD on fwbr0 with a source of its own."""
    host, vm_address = regime.host, IPv6Address("2001:db8:5::2")
    with namespace(regime.sandbox.name, "vm") as vm:
        try:
            for bridge in ("vmbr0", "fwbr0"):
                host.ip(f"link add {bridge} type bridge")
                host.ip(f"link set {bridge} up")
            host.ip("address add 2001:db8:5::1/64 dev vmbr0 nodad")
            host.ip("link add fwpr0 type veth peer name fwln0")
            host.ip(f"link add tap0 type veth peer name ext0 netns {vm.path.name}")
            for port, bridge in (("fwpr0", "vmbr0"), ("fwln0", "fwbr0"), ("tap0", "fwbr0")):
                host.ip(f"link set {port} master {bridge} up")
            vm.ip("link set ext0 up")
            vm.ip(f"address add {vm_address}/64 dev ext0 nodad")
            vm.ip("route add default via 2001:db8:5::1")
            assert until(lambda: ping(host, vm_address, timeout=0.5), True)
            with serve(vm, "vm", tcp=[80]):
                assert isinstance(tcp(regime.x1.ns, vm_address, 80), Answer)
        finally:
            for link in ("vmbr0", "fwbr0", "fwpr0", "tap0"):
                host.run("ip", "link", "del", link, check=False)


@pytest.mark.parametrize("to", [HOST, HOST_TOO], ids=["host", "host-too"])
def test_an_authentication_header_is_no_way_past_the_translation(
    regime: Regime, to: IPv6Address
) -> None:
    """conntrack looks behind it for the ports, and rules in nf_tables do not: the first packet
    would make an entry that is not translated, and the proxy would answer all later ones."""
    client, link = regime.client, forge.hardware(regime.host, "ext0")
    first = {
        8080: (forge.TCP, forge.tcp_body(CLIENT, to, (7950, 8080))),
        8443: (forge.TCP, forge.tcp_body(CLIENT, to, (7950, 8443), flags=forge.ACK)),
        5353: (forge.UDP, forge.udp_body(CLIENT, to, (7950, 5353))),
    }
    for protocol, body in first.values():
        forge.send(client, [forge.authenticated(CLIENT, to, protocol, body)], link="ext0", by=link)
    try:
        peers = [peer(tcp(client, to, port, source_port=7950)) for port in (8080, 8443)]
        peers.append(peer(udp(client, to, 5353, source_port=7950)))
        assert GATEWAY not in peers
        # Without the proxy he is refused, and in legacy tables, which look behind the header, x1
        # is asked twice by one port.
        if regime.proxy and regime.variant == "nft":
            assert peers == [CLIENT] * 3
    finally:
        regime.host.run("conntrack", "-D", "-f", "ipv6", "--orig-src", str(CLIENT), check=False)


@BOTH
def test_a_datagram_of_no_length_hides_nobody_behind_the_proxy(regime: Regime, who: str) -> None:
    """conntrack calls it invalid, so nothing translates it, and a socket takes it."""
    attacker, before = attackers(regime)[who], len(regime.x1.server.received)
    for source in (HOST, HOST_TOO, GATEWAY, X2, attacker.honest):
        for to in (HOST, HOST_TOO, X1):
            attacker.send(forge.datagram_of_no_length(source, to, (7000, 5353)))
            attacker.send(forge.datagram_of_no_length(source, to, (7000, 53)))
    assert heard(regime, before) == []


def test_the_host_to_a_client_is_nobody_elses_to_begin(regime: Regime) -> None:
    """What the client then asks a published port would be an answer, which is not translated."""
    attacker = attackers(regime)["segment"]
    attacker.send(
        forge.datagram(HOST, CLIENT, (5353, 7970)),
        forge.packet(HOST, CLIENT, forge.TCP, forge.tcp_body(HOST, CLIENT, (8080, 7971))),
    )
    try:
        peers = [
            peer(udp(regime.client, HOST, 5353, source_port=7970, timeout=SHORT)),
            peer(tcp(regime.client, HOST, 8080, source_port=7971, timeout=SHORT)),
        ]
        assert GATEWAY not in peers
        assert peer(udp(regime.client, HOST, 5353, source_port=7972)) == CLIENT
        assert peer(tcp(regime.client, HOST, 8080, source_port=7972)) == CLIENT
    finally:
        regime.host.run("conntrack", "-D", "-f", "ipv6", "--orig-dst", str(CLIENT), check=False)


@contextmanager
def bridged_packets_pass(regime: Regime) -> Iterator[None]:
    """As with br_netfilter: ip6tables and conntrack see the frames between ports of a bridge."""
    key = "net.bridge.bridge-nf-call-ip6tables"
    before = regime.host.sysctl(key)
    regime.host.sysctl(key, 1)
    try:
        yield
    finally:
        regime.host.sysctl(key, before)


def both_sides(one: IPv6Address, other: IPv6Address, port: int) -> tuple[list[bytes], list[bytes]]:
    """The first packets from `port` of one to 54/udp and 81/tcp of the other, and the answers."""
    synack = forge.tcp_body(other, one, (81, port), forge.SYN | forge.ACK, (1, 2))
    there = [
        forge.datagram(one, other, (port, 54)),
        forge.packet(one, other, forge.TCP, forge.tcp_body(one, other, (port, 81))),
    ]
    back = [forge.datagram(other, one, (54, port)), forge.packet(other, one, forge.TCP, synack)]
    return there, back


def port_of(host: Namespace, container: Container) -> str:
    """The host's end of the container's veth pair."""
    (link,) = json.loads(container.ns.ip("-json link show eth0"))
    links = json.loads(host.ip("-json link show"))
    return str(next(each["ifname"] for each in links if each["ifindex"] == link["link_index"]))


@pytest.mark.parametrize("asker", [Y1, ROGUE], ids=["neighbour", "outside"])
@pytest.mark.parametrize("receiver", ["neighbour", "port", "broadcast", "multicast"])
def test_frames_between_neighbours_open_no_container_elsewhere(
    regime: Regime, asker: IPv6Address, receiver: str
) -> None:
    """One container on Y sends the packets of both sides in frames, which with br_netfilter are an
    entry. The bridge itself takes a frame to all or to another port, and confirms the entry before
    INPUT and FORWARD."""
    ns = {Y1: regime.y1.ns, ROGUE: regime.rogue}[asker]
    with bridged_packets_pass(regime), regime.container(network="Y") as neighbour:
        addresses = {
            "neighbour": forge.hardware(neighbour.ns, "eth0"),
            "port": forge.hardware(regime.host, port_of(regime.host, neighbour)),
            "broadcast": bytes.fromhex("ffffffffffff"),
            "multicast": bytes.fromhex("333300000001"),
        }
        there, back = both_sides(asker, X1, 7980)
        answered_first, later = both_sides(asker, X1, 7981)[::-1]
        forge.send(
            regime.y1.ns,
            [*there, *back, *answered_first, *later],
            link="eth0",
            by=addresses[receiver],
        )
        before = len(regime.x1.server.received)
        answers = [
            ask(ns, X1, to, source_port=port, timeout=SHORT)
            for port in (7980, 7981)
            for ask, to in ((udp, 54), (tcp, 81))
        ]
        assert [each for each in answers if isinstance(each, Answer)] == []
        assert heard(regime, before) == []


@BOTH
def test_a_neighbours_open_flow_takes_nothing_from_elsewhere(regime: Regime, who: str) -> None:
    """With br_netfilter conntrack knows it, and nobody who is not on the bridge is a part of it."""
    attacker = attackers(regime)[who]
    with bridged_packets_pass(regime):
        assert peer(udp(regime.x2.ns, X1, 54, source_port=7800)) == X2
        received = len(regime.x1.server.received)
        attacker.send(forge.datagram(X2, X1, (7800, 54)))
        assert heard(regime, received) == []
        assert peer(udp(regime.x2.ns, X1, 54, source_port=7800)) == X2


def test_the_proxy_of_a_routed_network_hears_no_group(regime: Regime) -> None:
    """Engines before 27 do not know the option, and let their proxy listen all the same."""
    port, those = regime.port(), attackers(regime)
    groups = [ALL_NODES, IPv6Address("2001:db8:1::")], [ALL_NODES, IPv6Address("fd00:b::")]
    with (
        regime.network(options={MODE: "routed"}) as network,
        regime.container(network=network, publish=[f"{port}:53/udp"], udp=(53,)) as made,
    ):
        until(lambda: f" -i {network.bridge} " in regime.sandbox.rules(), True)
        answer = udp(regime.client, HOST, port, timeout=SHORT)
        if regime.proxy and regime.engine.release < (27,):
            assert until(lambda: server(udp(regime.client, HOST, port)), made.name) == made.name
        else:
            assert not isinstance(answer, Answer)
        received = len(made.server.received)
        for attacker, addresses in zip((those["segment"], those["container"]), groups, strict=True):
            for address in addresses:
                for source in (attacker.honest, STRANGER, IPv6Address("fe80::66")):
                    attacker.send(forge.datagram(source, address, (7001, port)))
        time.sleep(SHORT)
        assert made.server.received[received:] == []
