"""Forged sources that the kernel answers or tracks before the filter table, or that conntrack knows
from a time before the rules."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import IPv6Address, IPv6Network

import pytest

from tests.harness import (
    Answer,
    Container,
    Failure,
    Network,
    Regime,
    Wanted,
    connect,
    forge,
    serve,
    tcp,
    udp,
    until,
    watch,
)
from tests.harness.probe import Conversation, Packet
from tests.harness.sandbox import CLIENT, HOST, ROGUE
from tests.system.packets.asking import SHORT, opened, repeated
from tests.system.packets.small import Small, small
from tests.system.packets.test_forged import X1, Y1, attackers
from tests.system.packets.test_forged_entries import bridged_packets_pass
from tests.system.packets.test_forged_inwards import ALL, SERVICE, senders, stateful_input

pytestmark = [pytest.mark.ours]
DRIVER = "com.docker.network.bridge"
NOWHERE = IPv6Address("2001:db8:ffff::1")
GROUP = IPv6Address("ff02::1")
LATER = IPv6Address("fd00:73::2")


def errors_sent_by(sent: bytes, regime: Regime) -> list[Packet]:
    """The ICMPv6 errors that the client receives about a packet of the internal container."""
    with watch(regime.client) as packets:
        senders(regime)["internal"].send(sent)
        time.sleep(SHORT)
        return [packet for packet in packets() if packet.protocol == "icmp6" and packet.port < 128]


@pytest.mark.depends_on("variant", "proxy")
@pytest.mark.parametrize(("destination", "hop_limit"), [(ROGUE, 1), (NOWHERE, 64), (Y1, 1)])
def test_internal_container_sends_no_data_out_by_icmpv6_errors(
    regime: Regime, destination: IPv6Address, hop_limit: int
) -> None:
    """The kernel answers before FORWARD, and its error has a part of the packet."""
    packet = bytearray(forge.datagram(CLIENT, destination, (4444, 4445), b"DATA" * 100))
    packet[7] = hop_limit
    assert errors_sent_by(bytes(packet), regime) == []


@pytest.mark.depends_on("variant", "proxy")
@pytest.mark.parametrize("kind", [130, 133, 135, 136, 143, 151])
def test_internal_container_sends_no_data_out_by_neighbour_discovery(
    regime: Regime, kind: int
) -> None:
    """conntrack does not track these types. The host answers an option that it does not know."""
    unknown_option = bytes([forge.ICMPV6, 0, 0x80, 4, 0, 0, 0, 0])
    body = struct.pack("!BBHI", kind, 0, 0, 0) + b"DATA" * 100
    packet = forge.packet(
        CLIENT,
        GROUP,
        forge.DESTINATION_OPTIONS,
        unknown_option + forge.checked(CLIENT, GROUP, forge.ICMPV6, body),
    )
    assert errors_sent_by(packet, regime) == []


@pytest.mark.depends_on("variant", "proxy")
def test_forged_frame_opens_no_port_of_a_neighbour_without_icc(regime: Regime) -> None:
    with (
        regime.network(options={f"{DRIVER}.enable_icc": "false"}) as network,
        regime.container(network=network, udp=(54,), tcp=(80, 81)) as victim,
        regime.container(network=network) as attacker,
        bridged_packets_pass(regime),
    ):
        assert until(
            lambda: f"-i {network.bridge} -o {network.bridge} -j DROP" in regime.sandbox.rules(),
            True,
        )
        assert victim.address
        assert attacker.address
        to_victim = forge.datagram(attacker.address, victim.address, (7300, 54))
        as_victim = forge.datagram(victim.address, attacker.address, (54, 7300))
        ways = (forge.hardware(victim.ns, "eth0"), forge.hardware(regime.host, network.bridge))
        forge.send(attacker.ns, [as_victim], link="eth0", by=ALL)
        for way in ways:
            forge.send(attacker.ns, [to_victim], link="eth0", by=way)
        time.sleep(SHORT)
        assert victim.server.received == []


@pytest.mark.depends_on("variant")
def test_rule_in_docker_user_admits_a_neighbour_without_icc(regime: Regime) -> None:
    """The checks of frames must not drop the replies."""
    with (
        regime.network(options={f"{DRIVER}.enable_icc": "false"}) as network,
        regime.container(network=network) as server,
        regime.container(network=network) as client,
        bridged_packets_pass(regime),
    ):
        assert server.address
        # Neighbour discovery is cut too.
        for one, other in ((server, client), (client, server)):
            link = forge.hardware(other.ns, "eth0").hex(":")
            one.ns.ip(f"neigh replace {other.address} lladdr {link} dev eth0")
        rule = ("DOCKER-USER", "-d", str(server.address), "-p", "tcp", "--dport", "80")
        tool = f"ip6tables-{regime.variant}"
        assert tcp(client.ns, server.address, 80, timeout=SHORT) is Failure.TIMEOUT
        regime.host.run(tool, "-I", *rule, "-j", "ACCEPT")
        try:
            assert isinstance(tcp(client.ns, server.address, 80), Answer)
        finally:
            regime.host.run(tool, "-D", *rule, "-j", "ACCEPT")


@contextmanager
def internal_pair(
    regime: Regime, *, listens: tuple[int, ...] = ()
) -> Iterator[tuple[Network, Container, Container]]:
    """An internal network with rules, its two containers, and bridged packets that pass netfilter.
    The second container listens on these UDP ports."""
    with (
        regime.network("--internal") as network,
        regime.container(network=network) as one,
        regime.container(network=network, udp=listens) as two,
        bridged_packets_pass(regime),
    ):
        assert until(lambda: network.bridge in regime.sandbox.rules(), True)
        yield network, one, two


@pytest.mark.depends_on("variant")
def test_internal_container_can_be_the_router_of_its_neighbours(regime: Regime) -> None:
    """As a VPN: the replies that the bridge forwards have other sources than the network's."""
    far = IPv6Address("2001:db8:77::7")
    with internal_pair(regime) as (_, router, neighbour):
        router.ns.ip(f"address add {far}/128 dev lo nodad")
        neighbour.ns.ip(f"route add {far} via {router.address} dev eth0")
        assert isinstance(tcp(neighbour.ns, far, 80), Answer)


@pytest.mark.depends_on("variant", "proxy")
@pytest.mark.parametrize("who", ["container", "internal"])
def test_multicast_source_opens_no_stateful_input(regime: Regime, who: str) -> None:
    """The kernel drops such a packet, but with br_netfilter a bridge has made its entry."""
    sender = senders(regime)[who]
    to_group = bytes.fromhex("333300000001")
    with (
        serve(regime.host, "host", udp=[SERVICE]) as service,
        bridged_packets_pass(regime),
        stateful_input(regime),
    ):
        forged = forge.datagram(GROUP, sender.honest, (SERVICE, 7201))
        replace(sender, by=ALL).send(forged)
        time.sleep(SHORT)
        answer = forge.datagram(sender.honest, GROUP, (7201, SERVICE))
        replace(sender, by=to_group).send(answer)
        time.sleep(SHORT)
        assert service.received == []


@pytest.mark.depends_on("variant")
def test_internal_container_sends_multicast_from_a_second_prefix(regime: Regime) -> None:
    """Multicast leaves no network, so the check of what could leave does not apply."""
    other = IPv6Address("fd99::1")
    with internal_pair(regime, listens=(5353,)) as (_, sender, neighbour):
        to_group = bytes.fromhex("333300000001")
        forge.send(
            sender.ns, [forge.datagram(other, GROUP, (5353, 5353))], link="eth0", by=to_group
        )
        got = until(lambda: [query.peer for query in neighbour.server.received], bool, timeout=2)
        assert got == [other]


@pytest.mark.depends_on("variant")
def test_internal_containers_route_for_others_if_the_host_knows_where_they_are(
    regime: Regime,
) -> None:
    """Both ends are outside the network's subnet, as between nodes of kind."""
    near, far = IPv6Address("fd10:244:1::5"), IPv6Address("fd10:244:2::5")
    with internal_pair(regime) as (network, one, two):
        for space, address, other, by in (
            (one.ns, near, far, two.address),
            (two.ns, far, near, one.address),
        ):
            space.ip(f"address add {address}/128 dev lo nodad")
            space.ip(f"route add {other} via {by} dev eth0")
        regime.host.ip(f"route add fd10:244::/32 dev {network.bridge}")
        assert until(lambda: "fd10:244::/32" in regime.sandbox.rules(), True)
        answer = until(
            lambda: tcp(one.ns, far, 80, source=near), lambda got: isinstance(got, Answer)
        )
        assert isinstance(answer, Answer)


LLDP = bytes.fromhex("0180c200000e")
"""A bridge does not forward such frames: their packets come in by the port of the sender."""


@pytest.mark.depends_on("variant", "proxy")
@pytest.mark.parametrize("who", ["container", "internal"])
@pytest.mark.parametrize("frame", [LLDP, bytes.fromhex("0180c2000003")])
def test_frame_that_bridges_do_not_forward_reaches_no_service_of_the_host(
    regime: Regime, who: str, frame: bytes
) -> None:
    sender = replace(senders(regime)[who], by=frame)
    anycast = IPv6Address("2001:db8:1::")
    echo = forge.checked(CLIENT, HOST, forge.ICMPV6, b"\x80\0\0\0\0\1\0\1" + b"DATA" * 100)
    with (
        serve(regime.host, "host", udp=[SERVICE]) as service,
        watch(regime.client) as packets,
        bridged_packets_pass(regime),
    ):
        sender.send(
            forge.packet(CLIENT, HOST, forge.ICMPV6, echo),
            *(
                forge.datagram(source, destination, (7740, SERVICE))
                for source in (CLIENT, NOWHERE, HOST, anycast)
                for destination in (HOST, anycast)
            ),
        )
        time.sleep(SHORT)
        assert service.received == []
        assert [packet for packet in packets() if packet.source == HOST] == []


@pytest.mark.depends_on("variant", "proxy")
@pytest.mark.parametrize("who", ["container", "internal"])
def test_frame_that_bridges_do_not_forward_opens_no_stateful_input(
    regime: Regime, who: str
) -> None:
    sender = replace(senders(regime)[who], by=LLDP)
    anycast = IPv6Address("2001:db8:1::")
    with serve(regime.host, "host", udp=[SERVICE]) as service, stateful_input(regime):
        sender.send(forge.datagram(HOST, anycast, (SERVICE, 7741)))
        time.sleep(SHORT)
        sender.send(forge.datagram(anycast, HOST, (7741, SERVICE)))
        time.sleep(SHORT)
        assert service.received == []


@pytest.mark.depends_on("variant")
@pytest.mark.parametrize("prefix", ["fd00::/8", "2000::/3"])
def test_route_to_a_wide_prefix_by_a_container_ends_no_connection(
    regime: Regime, prefix: str
) -> None:
    """Of a published port and of another network; the server speaks first after the change."""
    route = f"{prefix} via {Y1} dev brY"
    with serve(regime.client, "client", tcp=[7]), connect(regime.client, HOST, 8080) as published:
        assert isinstance(published.ask(), Answer)
        with connect(regime.x1.ns, CLIENT, 7) as outgoing:
            assert isinstance(outgoing.ask(), Answer)
            before = entries(regime, published, outgoing)
            assert len(before) == 2
            regime.host.ip(f"route add {route}")
            try:
                time.sleep(1.5)
                assert entries(regime, published, outgoing) == before
            finally:
                regime.host.ip(f"route del {route}")


def entries(regime: Regime, *conversations: Conversation) -> set[str]:
    """The entries of these connections, without what changes."""
    lines = regime.host.flows("-p", "tcp").splitlines()
    flows = (re.findall(r"(?:src|dst|sport|dport)=\S+", line) for line in lines)
    names = [conversation.socket.getsockname() for conversation in conversations]
    # Another sender may have an entry of the same port number.
    senders = [{f"src={address}", f"sport={port}"} for address, port, *_ in names]
    return {" ".join(flow) for flow in flows if any(sender <= {*flow} for sender in senders)}


@pytest.mark.depends_on("variant")
def test_entry_from_before_a_prefix_is_routed_to_a_container_opens_no_port(regime: Regime) -> None:
    beyond = IPv6Address("fd00:ee::7")
    attackers(regime)["segment"].send(forge.datagram(beyond, ROGUE, (54, 7730)))
    y1, route = regime.y1.ns, f"fd00:ee::/64 via {Y1} dev brY"
    y1.ip(f"address add {beyond}/128 dev eth0 nodad")
    regime.host.ip(f"route add {route}")
    try:
        assert until(lambda: "-s fd00:ee::/64 ! -i brY" in regime.sandbox.rules(), True)
        time.sleep(SHORT)
        with serve(y1, "beyond", udp=[54]) as server:
            udp(regime.rogue, beyond, 54, source=ROGUE, source_port=7730, timeout=SHORT)
            assert server.received == []
    finally:
        regime.host.ip(f"route del {route}")
        y1.ip(f"address del {beyond}/128 dev eth0")


WIDE = "fd00:77::/48"
"""Routed to x1, which is also the router of BEYOND, a part of it."""
BEYOND = IPv6Address("fd00:77:0:1::7")


@contextmanager
def routed(regime: Regime, *routes: str) -> Iterator[None]:
    """These routes of the host, until the end of the context; the rules are in force."""
    with ExitStack() as stack:
        for route in routes:
            regime.host.ip(f"route add {route}")
            stack.callback(regime.host.ip, f"route del {route}")
        assert until(lambda: f"-s {WIDE}" in regime.sandbox.rules(), True)
        time.sleep(SHORT)
        yield


@pytest.mark.depends_on("variant", "proxy")
def test_part_of_a_prefix_with_two_routes_is_behind_its_container_only(regime: Regime) -> None:
    """The wider prefix has a second route by the segment; the part has none."""
    x1 = regime.x1.ns
    x1.ip(f"address add {BEYOND}/128 dev eth0 nodad")
    routes = (
        f"{WIDE} via {X1} dev brX metric 10",
        f"{WIDE} via {ROGUE} dev ext0 metric 2048",
        f"fd00:77:0:1::/64 via {X1} dev brX",
    )
    try:
        with routed(regime, *routes), serve(x1, "beyond", udp=[54]) as server:
            attackers(regime)["segment"].send(forge.datagram(BEYOND, ROGUE, (54, 7760)))
            time.sleep(SHORT)
            udp(regime.rogue, BEYOND, 54, source=ROGUE, source_port=7760, timeout=SHORT)
            assert server.received == []
    finally:
        x1.ip(f"address del {BEYOND}/128 dev eth0")


@pytest.mark.depends_on("variant")
def test_lan_inside_a_routed_prefix_stays_reachable_if_a_macvlan_network_has_it(
    regime: Regime,
) -> None:
    lan, port = IPv6Network("fd00:77:0:1::/64"), regime.port()
    regime.host.ip(f"address add {lan[1]}/64 dev ext0 nodad")
    regime.client.ip(f"address add {BEYOND}/64 dev ext0 nodad")
    words = ("-d", "macvlan", "-o", "parent=ext0", "--ipv6", f"--subnet={lan}", "lan")
    try:
        with routed(regime, f"{WIDE} via {X1} dev brX"), serve(regime.host, "host", tcp=[SERVICE]):
            regime.engine.docker("network", "create", *words)
            try:
                with regime.container(publish=[f"{port}:80"]):
                    opened(regime.client, port)
                    for number in (SERVICE, port):
                        answer = tcp(regime.client, lan[1], number, source=BEYOND)
                        assert isinstance(answer, Answer)
                        assert answer.peer == BEYOND
            finally:
                regime.engine.docker("network", "rm", "lan")
    finally:
        regime.host.ip(f"address del {lan[1]}/64 dev ext0")
        regime.client.ip(f"address del {BEYOND}/64 dev ext0")


def in_force(regime: Regime, rule: str) -> bool:
    return until(lambda: rule in regime.sandbox.rules(), True)


@pytest.mark.depends_on("variant", "proxy")
@pytest.mark.parametrize("mode", ["nat", "routed"])
def test_entry_from_before_a_network_leaves_no_packet_that_waits(regime: Regime, mode: str) -> None:
    """Until the entry is deleted, its packets go on to the bridge, and wait for the address."""
    ports = range(7720, 7750)
    forged = [forge.datagram(LATER, ROGUE, (54, port)) for port in ports]
    asked = [forge.datagram(ROGUE, LATER, (port, 54)) for port in ports]
    options = {f"{DRIVER}.gateway_mode_ipv6": mode}
    by = forge.hardware(regime.host, "ext0")
    send = partial(forge.send, regime.rogue, forged + asked, link="ext0", by=by)
    for name in ("w1", "w2", "w3"):
        with repeated(send, 0.002):
            assert until(lambda: str(LATER) in regime.host.flows(), True)
            network = regime.engine.network(name, "fd00:73::/64", options=options)
            assert in_force(regime, f"-s fd00:73::/64 ! -i {network.bridge}")
            time.sleep(SHORT)
        try:
            with regime.container(network=network, ip6=str(LATER), udp=(54,)) as made:
                time.sleep(1.6)  # the kernel asks for a neighbour three times, once per second
                assert made.server.received == []
        finally:
            regime.engine.docker("network", "rm", name)


@pytest.fixture(params=["nft", "legacy"])
def lab(request: pytest.FixtureRequest, tools: None) -> Iterator[Small]:  # noqa: ARG001
    with small(Wanted(None, request.param, proxy=False)) as lab:
        yield lab


def test_entry_from_before_a_bridge_had_another_subnet_opens_no_port(lab: Small) -> None:
    """The network is made again on the same bridge while the daemon does not run."""
    engine, rogue = lab.engine, lab.sandbox.rogue
    engine.network("same", "fd00:72::/64", bridge="brsame")
    lab.daemon.start()
    opened(lab.client, 8080)
    lab.daemon.kill9()
    engine.docker("network", "rm", "same")
    engine.network("same", "fd00:73::/64", bridge="brsame")
    victim = engine.run("victim", "same", ip6=str(LATER))
    with serve(victim.ns, "victim", udp=[54]) as server:
        link = forge.hardware(lab.sandbox.host, "ext0")
        forged = forge.datagram(LATER, ROGUE, (54, 7710))
        forge.send(rogue, [forged], link="ext0", by=link)
        lab.daemon.start()
        opened(lab.client, 8080)
        udp(rogue, LATER, 54, source=ROGUE, source_port=7710, timeout=SHORT)
        assert server.received == []
