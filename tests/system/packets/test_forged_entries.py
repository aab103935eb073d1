"""Forged sources in several steps: one packet creates an entry, and another uses it."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv6Address

import pytest

from tests.harness import (
    Answer,
    Container,
    Failure,
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
    Attacker,
    attackers,
)

pytestmark = [pytest.mark.ours, pytest.mark.depends_on("variant", "proxy")]
BOTH_ATTACKERS = pytest.mark.parametrize("who", ["container", "segment"])
BRIDGED = IPv6Address("2001:db8:6::2")
REMOVED_ADDRESS = IPv6Address("2001:db8:1::77")


def arrivals(regime: Regime, before: int) -> list[tuple[str, int]]:
    time.sleep(SHORT)
    return [(str(each.peer), each.port) for each in regime.x1.server.received[before:]]


@BOTH_ATTACKERS
def test_two_forged_packets_of_a_container_and_an_anycast_address_open_no_port(
    regime: Regime, who: str
) -> None:
    attacker, before = attackers(regime)[who], len(regime.x1.server.received)
    for port, text in enumerate(("2001:db8:1::", "fd00:b::", "fd00:a::"), 7300):
        attacker.send(forge.datagram(X1, IPv6Address(text), (54, port)))
        attacker.send(forge.datagram(IPv6Address(text), X1, (port, 54)))
    assert arrivals(regime, before) == []


def test_removed_host_address_opens_no_port_for_forged_packets(regime: Regime) -> None:
    """A SLAAC address, which a sender of router advertisements can add and remove."""
    attacker, before = attackers(regime)["segment"], len(regime.x1.server.received)
    regime.host.ip(f"address add {REMOVED_ADDRESS}/64 dev ext0 nodad")
    time.sleep(SHORT)
    attacker.send(forge.datagram(X1, REMOVED_ADDRESS, (54, 7400)))
    attacker.send(forge.datagram(REMOVED_ADDRESS, X1, (7400, 54)))
    regime.host.ip(f"address del {REMOVED_ADDRESS}/64 dev ext0")
    time.sleep(2)
    regime.rogue.ip(f"address add {REMOVED_ADDRESS}/64 dev ext0 nodad")
    try:
        answer = udp(regime.rogue, X1, 54, source=REMOVED_ADDRESS, source_port=7400, timeout=SHORT)
        assert not isinstance(answer, Answer), answer
        assert arrivals(regime, before) == []
    finally:
        regime.rogue.ip(f"address del {REMOVED_ADDRESS}/64 dev ext0")
        regime.host.run(
            "conntrack", "-D", "-f", "ipv6", "--orig-dst", str(REMOVED_ADDRESS), check=False
        )


@BOTH_ATTACKERS
def test_icmpv6_error_about_a_forged_flow_reaches_no_container(regime: Regime, who: str) -> None:
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


def test_ipv4_mapped_source_reaches_no_container(regime: Regime) -> None:
    attacker, before = attackers(regime)["segment"], len(regime.x1.server.received)
    for text in ("::ffff:127.0.0.1", "::ffff:172.18.0.1"):
        attacker.send(forge.datagram(IPv6Address(text), HOST, (7600, 5353)))
    assert arrivals(regime, before) == []


def test_forged_source_in_a_prefix_routed_to_a_container_is_dropped(regime: Regime) -> None:
    """A host on the segment uses a source in a prefix that the host routes to y1."""
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


def test_chained_bridges_still_forward(regime: Regime) -> None:
    """The bridges of Proxmox: vmbr0 with the host's address, a veth pair, fwbr0, a VM's port. With
    br_netfilter, packets of the host pass FORWARD on fwbr0 with the host's own source."""
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
def test_authentication_header_does_not_bypass_nat(regime: Regime, to: IPv6Address) -> None:
    """conntrack reads the ports behind this header, nf_tables rules do not. The first packet would
    create an entry without NAT, and the proxy would answer all later packets."""
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
        # Without the proxy the client is refused. Legacy tables read behind the header, so x1 gets
        # two requests from one port.
        if regime.proxy and regime.variant == "nft":
            assert peers == [CLIENT] * 3
    finally:
        regime.host.run("conntrack", "-D", "-f", "ipv6", "--orig-src", str(CLIENT), check=False)


@contextmanager
def bridged_client(regime: Regime) -> Iterator[Attacker]:
    """A client behind a bridge of the host that is not Docker's."""
    host = regime.host
    with namespace(regime.sandbox.name, "bridged") as client:
        try:
            host.ip("link add vmbr1 type bridge")
            host.ip(f"link add tap1 type veth peer name ext0 netns {client.path.name}")
            host.ip("link set tap1 master vmbr1 up")
            host.ip("link add port1 type veth peer name port2")
            host.ip("link set port2 up")
            host.ip("link set port1 master vmbr1 up")
            host.ip("link set vmbr1 up")
            host.ip("address add 2001:db8:6::1/64 dev vmbr1 nodad")
            client.ip("link set ext0 up")
            client.ip(f"address add {BRIDGED}/64 dev ext0 nodad")
            client.ip("route add default via 2001:db8:6::1")
            assert until(lambda: ping(host, BRIDGED, timeout=0.5), True)
            by = forge.hardware(host, "vmbr1")
            yield Attacker(ns=client, link="ext0", by=by, honest=BRIDGED)
        finally:
            for link in ("vmbr1", "tap1", "port1"):
                host.run("ip", "link", "del", link, check=False)


@pytest.mark.parametrize("who", ["bridged client", "container"])
def test_fragments_in_fragments_reach_no_proxy(regime: Regime, who: str) -> None:
    """If bridged packets pass netfilter, INPUT sees the inner fragments. The kernel puts them
    together behind it, and the proxy would send the datagram on as the gateway."""
    before = len(regime.x1.server.received)
    with bridged_packets_pass(regime), bridged_client(regime) as bridged:
        sender = bridged if who == "bridged client" else attackers(regime)["container"]
        source = sender.honest
        body = forge.udp_body(source, HOST, (7990, 5353))
        sender.send(*forge.nested_fragments(source, HOST, forge.UDP, body))
        assert arrivals(regime, before) == []
        # Fragments that are not nested arrive; y1's are masqueraded.
        sender.send(*forge.kinds(source, HOST, (7991, 5353))["fragments"])
        seen = BRIDGED if who == "bridged client" else GATEWAY
        assert arrivals(regime, before) == [(str(seen), 53)]


@pytest.mark.parametrize("rule", ["-j CT --zone-orig 1", "-j NOTRACK"])
def test_fragments_in_fragments_reach_no_proxy_by_a_raw_rule_of_others(
    regime: Regime, rule: str
) -> None:
    """Such a packet is not INVALID before conntrack."""
    before = len(regime.x1.server.received)
    sender = attackers(regime)["container"]
    body = forge.udp_body(sender.honest, HOST, (7990, 5353))
    tool = f"ip6tables-{regime.variant}"
    with bridged_packets_pass(regime):
        regime.host.run(tool, "-t", "raw", "-I", "PREROUTING", *rule.split())
        try:
            sender.send(*forge.nested_fragments(sender.honest, HOST, forge.UDP, body))
            assert arrivals(regime, before) == []
        finally:
            regime.host.run(tool, "-t", "raw", "-D", "PREROUTING", *rule.split())


def test_large_multicast_of_the_host_comes_back(regime: Regime) -> None:
    """In fragments, which pass raw with the conntrack entry of the packet."""
    group, data = "ff02::1234", b"x" * 4000
    with (
        regime.host.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver,
        regime.host.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender,
    ):
        link = regime.host.within(lambda: socket.if_nametoindex("ext0"))
        membership = socket.inet_pton(socket.AF_INET6, group) + struct.pack("=I", link)
        receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
        receiver.bind(("::", 7992))
        receiver.settimeout(1.0)
        sender.sendto(data, (group, 7992, 0, link))
        assert receiver.recv(65536) == data


@pytest.mark.parametrize("frame", ["ffffffffffff", "020000000077"], ids=["broadcast", "port"])
def test_authentication_header_on_another_bridge_hides_no_client(
    regime: Regime, frame: str
) -> None:
    """With br_netfilter, a bridge confirms the entry of a frame for all or for another port."""
    flows = (
        (forge.TCP, forge.tcp_body(CLIENT, HOST, (7993, 8080))),
        (forge.UDP, forge.udp_body(CLIENT, HOST, (7993, 5353))),
    )
    with bridged_packets_pass(regime), bridged_client(regime) as bridged:
        sender = replace(bridged, by=bytes.fromhex(frame))
        sender.send(*(forge.authenticated(CLIENT, HOST, *flow) for flow in flows))
        try:
            assert peer(udp(regime.client, HOST, 5353, source_port=7993)) == CLIENT
            over_tcp = peer(tcp(regime.client, HOST, 8080, source_port=7993))
            # Legacy tables read behind the header: x1 has two requests from one port.
            assert over_tcp in ([CLIENT] if regime.variant == "nft" else [CLIENT, Failure.REFUSED])
        finally:
            words = ("-D", "-f", "ipv6", "--orig-src", str(CLIENT))
            regime.host.run("conntrack", *words, check=False)


@pytest.mark.parametrize("who", ["bridged client", "segment"])
def test_frames_on_another_bridge_open_no_proxy_to_the_host_as_a_source(
    regime: Regime, who: str
) -> None:
    """The frames of both directions make an established entry of the host with itself."""
    before = len(regime.x1.server.received)
    there = forge.datagram(HOST_TOO, HOST, (7994, 5353))
    with bridged_packets_pass(regime), bridged_client(regime) as bridged:
        to_all = replace(bridged, by=b"\xff" * 6)
        to_all.send(there, forge.datagram(HOST, HOST_TOO, (5353, 7994)))
        (bridged if who == "bridged client" else attackers(regime)["segment"]).send(there)
        assert arrivals(regime, before) == []


@BOTH_ATTACKERS
def test_datagram_with_length_0_does_not_reach_a_container_by_the_proxy(
    regime: Regime, who: str
) -> None:
    """conntrack marks the datagram INVALID, so no rule translates it, but a socket accepts it."""
    attacker, before = attackers(regime)[who], len(regime.x1.server.received)
    for source in (HOST, HOST_TOO, GATEWAY, X2, attacker.honest):
        for to in (HOST, HOST_TOO, X1):
            attacker.send(forge.datagram_of_no_length(source, to, (7000, 5353)))
            attacker.send(forge.datagram_of_no_length(source, to, (7000, 53)))
    assert arrivals(regime, before) == []


def test_forged_flow_from_the_host_to_a_client_does_not_hide_the_client(regime: Regime) -> None:
    """The client's request to a published port would count as a reply, without NAT."""
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
    """With br_netfilter, ip6tables and conntrack see the frames between ports of a bridge."""
    key = "net.bridge.bridge-nf-call-ip6tables"
    before = regime.host.sysctl(key)
    regime.host.sysctl(key, 1)
    try:
        yield
    finally:
        regime.host.sysctl(key, before)


def both_sides(one: IPv6Address, other: IPv6Address, port: int) -> tuple[list[bytes], list[bytes]]:
    """The first packets from `port` of one to 54/udp and 81/tcp of the other, and the replies."""
    synack = forge.tcp_body(other, one, (81, port), forge.SYN | forge.ACK, (1, 2))
    there = [
        forge.datagram(one, other, (port, 54)),
        forge.packet(one, other, forge.TCP, forge.tcp_body(one, other, (port, 81))),
    ]
    back = [forge.datagram(other, one, (54, port)), forge.packet(other, one, forge.TCP, synack)]
    return there, back


def host_port_of(host: Namespace, container: Container) -> str:
    """The host's end of the container's veth pair."""
    (link,) = json.loads(container.ns.ip("-json link show eth0"))
    links = json.loads(host.ip("-json link show"))
    return str(next(each["ifname"] for each in links if each["ifindex"] == link["link_index"]))


@pytest.mark.parametrize("asker", [Y1, ROGUE], ids=["neighbour", "outside"])
@pytest.mark.parametrize("receiver", ["neighbour", "port", "broadcast", "multicast"])
def test_bridged_frames_between_neighbours_open_no_other_container(
    regime: Regime, asker: IPv6Address, receiver: str
) -> None:
    """One container on Y sends the packets of both endpoints in frames. With br_netfilter they
    create an entry. For a frame to all or to another port, the bridge confirms the entry before
    INPUT and FORWARD."""
    ns = {Y1: regime.y1.ns, ROGUE: regime.rogue}[asker]
    with bridged_packets_pass(regime), regime.container(network="Y") as neighbour:
        addresses = {
            "neighbour": forge.hardware(neighbour.ns, "eth0"),
            "port": forge.hardware(regime.host, host_port_of(regime.host, neighbour)),
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
        assert arrivals(regime, before) == []


@BOTH_ATTACKERS
def test_open_flow_between_neighbours_accepts_no_outside_packet(regime: Regime, who: str) -> None:
    """With br_netfilter the flow has an entry, which admits no packet from outside the bridge."""
    attacker = attackers(regime)[who]
    with bridged_packets_pass(regime):
        assert peer(udp(regime.x2.ns, X1, 54, source_port=7800)) == X2
        received = len(regime.x1.server.received)
        attacker.send(forge.datagram(X2, X1, (7800, 54)))
        assert arrivals(regime, received) == []
        assert peer(udp(regime.x2.ns, X1, 54, source_port=7800)) == X2


def test_proxy_of_a_routed_network_gets_no_multicast_or_anycast_packet(regime: Regime) -> None:
    """Engines before 27 ignore the option, and their proxy listens."""
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
