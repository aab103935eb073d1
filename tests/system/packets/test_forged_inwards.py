"""Forged sources in packets to the host itself, and routes that must not look forged."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv6Address

import pytest

from tests.harness import (
    Answer,
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
from tests.harness.sandbox import CLIENT, HOST, ROGUE
from tests.system.packets.asking import SHORT, opened, peer
from tests.system.packets.test_forged import (
    GATEWAY,
    GATEWAY_Y,
    STRANGER,
    X1,
    Y1,
    Attacker,
    attackers,
)
from tests.system.packets.test_forged_entries import bridged_packets_pass

pytestmark = [pytest.mark.ours, pytest.mark.depends_on("variant", "proxy")]
I1, GATEWAY_I = IPv6Address("fd00:c::2"), IPv6Address("fd00:c::1")
LOOPBACK_MAPPED = IPv6Address("::ffff:127.0.0.1")
SERVICE = 9998
ALL = bytes.fromhex("ffffffffffff")


def internal_attacker(regime: Regime) -> Attacker:
    link = forge.hardware(regime.host, "brI")
    return Attacker(ns=regime.i1.ns, link="eth0", by=link, honest=I1)


def senders(regime: Regime) -> dict[str, Attacker]:
    return attackers(regime) | {"internal": internal_attacker(regime)}


@contextmanager
def no_resets(*spaces: Namespace) -> Iterator[None]:
    """Drop outgoing resets: the kernel of an accomplice must not reset a forged connection."""
    rule = ("OUTPUT", "-p", "tcp", "--tcp-flags", "RST", "RST", "-j", "DROP")
    for space in spaces:
        space.run("ip6tables-legacy", "-A", *rule)
    try:
        yield
    finally:
        for space in spaces:
            space.run("ip6tables-legacy", "-D", *rule)


@contextmanager
def stateful_input(regime: Regime) -> Iterator[None]:
    """A host that accepts only packets of its own connections."""
    tool = f"ip6tables-{regime.variant}"
    rules = [("-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT")]
    rules += [("-p", kind, "--dport", str(SERVICE), "-j", "DROP") for kind in ("udp", "tcp")]
    for rule in rules:
        regime.host.run(tool, "-A", "INPUT", *rule)
    try:
        yield
    finally:
        for rule in rules:
            regime.host.run(tool, "-D", "INPUT", *rule)


@pytest.mark.parametrize("who", ["container", "segment", "internal"])
def test_host_does_not_reply_to_forged_sources(regime: Regime, who: str) -> None:
    """conntrack assigns a datagram of length 0 to no flow, but a server replies to it, and the
    reply would open a port of x1."""
    attacker = senders(regime)[who]
    forged = [X1, HOST, LOOPBACK_MAPPED]
    if who != "segment":
        forged += [CLIENT, ROGUE]
    with serve(regime.host, "host", udp=[SERVICE]) as service:
        for source in forged:
            attacker.send(
                forge.datagram(source, HOST, (4444, SERVICE)),
                forge.datagram_of_no_length(source, HOST, (4445, SERVICE)),
            )
        attacker.send(forge.datagram(attacker.honest, HOST, (4446, SERVICE)))
        until(lambda: len(service.received), 1)
        time.sleep(SHORT)
        assert [request.peer for request in service.received] == [attacker.honest]


@pytest.mark.parametrize("who", ["container", "internal"])
def test_host_sends_no_reply_to_an_outside_source_forged_by_a_container(
    regime: Regime, who: str
) -> None:
    attacker = senders(regime)[who]
    with watch(regime.client) as packets:
        attacker.send(
            forge.packet(CLIENT, HOST, forge.ICMPV6, forge.echo_body(CLIENT, HOST)),
            forge.packet(CLIENT, HOST, forge.TCP, forge.tcp_body(CLIENT, HOST, (7000, 9))),
            forge.datagram(CLIENT, HOST, (7001, 9)),
        )
        time.sleep(SHORT)
        answers = [
            packet
            for packet in packets()
            if (packet.source == HOST and packet.protocol != "icmp6") or packet.port in (1, 129)
        ]
        assert [packet for packet in answers if not packet.outgoing] == []
    assert ping(attacker.ns, GATEWAY_I if who == "internal" else GATEWAY_Y)


@pytest.mark.parametrize("receiver", ["the host", "all"])
def test_internal_container_cannot_hide_a_client_behind_the_proxy(
    regime: Regime, receiver: str
) -> None:
    """Internal networks are not translated, so the entry would lead the client to the proxy. With
    br_netfilter, a bridge confirms the entry of a frame to all before INPUT and FORWARD."""
    before = len(regime.x1.server.received)
    attacker = internal_attacker(regime)
    if receiver == "all":
        attacker = replace(attacker, by=ALL)
    attacker.send(
        forge.packet(CLIENT, HOST, forge.TCP, forge.tcp_body(CLIENT, HOST, (7950, 8080))),
        forge.datagram(CLIENT, HOST, (7951, 5353)),
    )
    time.sleep(SHORT)
    assert regime.x1.server.received[before:] == []
    answers = (
        tcp(regime.client, HOST, 8080, source_port=7950),
        udp(regime.client, HOST, 5353, source_port=7951),
    )
    assert [peer(answer) for answer in answers] == [CLIENT, CLIENT]


@pytest.mark.parametrize("who", ["container", "internal"])
@pytest.mark.parametrize("receiver", ["the host", "all"])
def test_container_cannot_create_an_entry_from_the_host_to_itself(
    regime: Regime, who: str, receiver: str
) -> None:
    """The container's packets would be replies, which a stateful firewall of the host accepts. With
    br_netfilter, a bridge confirms the entry of a frame to all before INPUT and FORWARD."""
    attacker = senders(regime)[who]
    if receiver == "all":
        attacker = replace(attacker, by=ALL)
    gateway = GATEWAY_I if who == "internal" else GATEWAY_Y
    own = attacker.honest
    with (
        serve(regime.host, "host", udp=[SERVICE], tcp=[SERVICE]),
        bridged_packets_pass(regime),
        stateful_input(regime),
        no_resets(attacker.ns),
    ):
        attacker.send(
            forge.datagram(gateway, own, (SERVICE, 7102)),
            forge.packet(gateway, own, forge.TCP, forge.tcp_body(gateway, own, (SERVICE, 7103))),
        )
        time.sleep(SHORT)
        answers = [
            udp(attacker.ns, gateway, SERVICE, source_port=7102, timeout=SHORT),
            tcp(attacker.ns, gateway, SERVICE, source_port=7103, timeout=SHORT),
        ]
        assert [answer for answer in answers if isinstance(answer, Answer)] == []


def link_local(ns: Namespace, link: str) -> IPv6Address:
    links = json.loads(ns.ip(f"-json -6 address show dev {link}"))
    addresses = (address for facts in links for address in facts.get("addr_info", ()))
    return IPv6Address(next(found["local"] for found in addresses if found["scope"] == "link"))


def test_internal_container_reaches_no_published_port_of_another_network(regime: Regime) -> None:
    """Not by the userland proxy either, nor by a link-local address."""
    before, i1 = len(regime.x1.server.received), regime.i1.ns
    for address in (GATEWAY_I, HOST, f"{link_local(regime.host, 'brI')}%eth0"):
        assert isinstance(tcp(i1, address, 8080, timeout=SHORT), Failure), address
        assert isinstance(udp(i1, address, 5353, timeout=SHORT), Failure), address
    assert regime.x1.server.received[before:] == []


@pytest.mark.parametrize("who", ["container", "internal"])
@pytest.mark.parametrize("receiver", ["the host", "all"])
@pytest.mark.parametrize("source", ["anycast", "link-local"])
def test_forged_anycast_or_link_local_source_opens_no_stateful_input(
    regime: Regime, who: str, receiver: str, source: str
) -> None:
    """An entry from the subnet's anycast address, or from the bridge's link-local address, to the
    container: the container's next packet would be a reply."""
    attacker = senders(regime)[who]
    if receiver == "all":
        attacker = replace(attacker, by=ALL)
    if source == "anycast":
        forged, own = IPv6Address(int(attacker.honest) & ~0xFF), attacker.honest
    else:
        bridge = "brI" if who == "internal" else "brY"
        forged = link_local(regime.host, bridge)
        own = link_local(attacker.ns, "eth0")
    with (
        serve(regime.host, "host", udp=[SERVICE]) as service,
        bridged_packets_pass(regime),
        stateful_input(regime),
    ):
        attacker.send(forge.datagram(forged, own, (SERVICE, 7602)))
        time.sleep(SHORT)
        replace(attacker, by=senders(regime)[who].by).send(
            forge.datagram(own, forged, (7602, SERVICE))
        )
        time.sleep(SHORT)
        assert service.received == []


@pytest.mark.parametrize("who", ["container", "internal"])
def test_flow_of_two_other_hosts_in_frames_to_all_leaves_no_network(
    regime: Regime, who: str
) -> None:
    """With br_netfilter, both directions make an established entry. Packets of established flows
    skip the rules for new ones."""
    attacker = senders(regime)[who]
    there = forge.datagram(CLIENT, ROGUE, (7972, 4445))
    back = forge.datagram(ROGUE, CLIENT, (4445, 7972))
    with bridged_packets_pass(regime), watch(regime.rogue) as packets:
        replace(attacker, by=ALL).send(there, back, there)
        attacker.send(there, back, there)
        time.sleep(SHORT)
        assert [packet for packet in packets() if packet.source == CLIENT] == []


def test_forged_ack_does_not_hide_a_client_behind_the_proxy(regime: Regime) -> None:
    """The SYN of the rogue is then INVALID for conntrack, so no rule translates it."""
    acknowledged = forge.tcp_body(HOST, ROGUE, (8080, 7971), forge.ACK, (100, 100))
    with no_resets(regime.rogue):
        attackers(regime)["segment"].send(forge.packet(HOST, ROGUE, forge.TCP, acknowledged))
        hidden = tcp(regime.rogue, HOST, 8080, source_port=7971, timeout=SHORT)
    assert peer(hidden) != GATEWAY
    assert peer(tcp(regime.rogue, HOST, 8080)) == ROGUE


def await_source_rule(regime: Regime, rule: str) -> None:
    """Wait until this rule of the raw table is in force, and the filter table, which follows it."""
    assert until(lambda: rule in regime.sandbox.rules(), True)
    time.sleep(SHORT)


def test_wide_route_by_a_container_blocks_no_other_network(
    regime: Regime,
) -> None:
    """fd00::/8 contains the subnets of all networks here."""
    regime.host.ip(f"route add fd00::/8 via {Y1} dev brY")
    try:
        until(lambda: "-s fd00::/8 " in regime.sandbox.rules(), True)
        assert peer(tcp(regime.client, HOST, 8080)) == CLIENT
        assert peer(udp(regime.client, HOST, 5353)) == CLIENT
        assert ping(regime.x1.ns, CLIENT)
        assert isinstance(tcp(regime.host, X1, 80), Answer)
    finally:
        regime.host.ip(f"route del fd00::/8 via {Y1} dev brY")
        until(lambda: "-s fd00::/8 " in regime.sandbox.rules(), False)


def test_prefix_with_routes_to_two_containers_comes_in_by_both(regime: Regime) -> None:
    """As with two VPN clients, of which one takes over if the other fails."""
    beyond = IPv6Address("fd00:77::7")
    routes = (
        f"fd00:77::/64 via {X1} dev brX metric 10",
        f"fd00:77::/64 via {Y1} dev brY metric 20",
    )
    spaces = (regime.x1.ns, regime.y1.ns)
    for space, route in zip(spaces, routes, strict=True):
        space.ip(f"address add {beyond}/128 dev eth0 nodad")
        regime.host.ip(f"route add {route}")
    try:
        await_source_rule(regime, "-s fd00:77::/64 -i brY -j RETURN")
        with serve(regime.host, "host", udp=[SERVICE]) as service:
            for port, space in enumerate(spaces, 7750):
                udp(space, HOST, SERVICE, source=beyond, source_port=port, timeout=SHORT)
            assert [query.peer for query in service.received] == [beyond] * 2
            attackers(regime)["segment"].send(forge.datagram(beyond, HOST, (7752, SERVICE)))
            time.sleep(SHORT)
            assert len(service.received) == 2
    finally:
        for space, route in zip(spaces, routes, strict=True):
            regime.host.ip(f"route del {route}")
            space.ip(f"address del {beyond}/128 dev eth0")


@pytest.mark.parametrize("prefix", ["fd00::/16", "fd00:a::/48"])
@pytest.mark.parametrize("preferred", ["container", "segment"])
def test_prefix_with_two_routes_opens_no_network_inside_it(
    regime: Regime, prefix: str, preferred: str
) -> None:
    """The source of a container still comes in by its own bridge alone."""
    worse = "metric 2048"
    routes = (
        f"{prefix} via fd00:a::3 dev brX {worse if preferred == 'segment' else ''}",
        f"{prefix} via {ROGUE} dev ext0 {worse if preferred == 'container' else ''}",
    )
    for route in routes:
        regime.host.ip(f"-6 route add {route}")
    try:
        await_source_rule(regime, f"-s {prefix} -i ext0 -j RETURN")
        for who, port in (("segment", 7760), ("container", 7761)):
            before = len(regime.x1.server.received)
            attackers(regime)[who].send(forge.datagram(X1, ROGUE, (54, port)))
            time.sleep(SHORT)
            udp(regime.rogue, HOST, 54, source=ROGUE, source_port=port, timeout=SHORT)
            udp(regime.rogue, X1, 54, source=ROGUE, source_port=port, timeout=SHORT)
            assert regime.x1.server.received[before:] == []
        with serve(regime.client, "client", tcp=[7000]):
            for container in (regime.x1, regime.y1):
                assert isinstance(tcp(container.ns, CLIENT, 7000), Answer)
        assert isinstance(tcp(regime.y1.ns, HOST, 8080), Answer)
        assert peer(tcp(regime.client, HOST, 8080)) == CLIENT
    finally:
        for route in routes:
            regime.host.ip(f"-6 route del {route}")


def test_lan_with_a_container_as_backup_keeps_its_access(regime: Regime) -> None:
    lan = IPv6Address("fd00:77::7")
    routes = (
        f"fd00:77::/64 via {ROGUE} dev ext0 metric 10",
        f"fd00:77::/64 via {Y1} dev brY metric 1024",
    )
    regime.rogue.ip(f"address add {lan}/128 dev ext0 nodad")
    for route in routes:
        regime.host.ip(f"route add {route}")
    try:
        await_source_rule(regime, "-s fd00:77::/64 -i ext0 -j RETURN")
        assert peer(tcp(regime.rogue, HOST, 8080, source=lan)) == lan
        x1_as_lan = replace(attackers(regime)["container"], ns=regime.x1.ns)
        x1_as_lan = replace(x1_as_lan, by=forge.hardware(regime.host, "brX"))
        with serve(regime.host, "host", udp=[SERVICE]) as service:
            x1_as_lan.send(forge.datagram(lan, HOST, (7753, SERVICE)))
            time.sleep(SHORT)
            assert service.received == []
    finally:
        for route in routes:
            regime.host.ip(f"route del {route}")
        regime.rogue.ip(f"address del {lan}/128 dev ext0")


def test_internet_route_by_a_container_blocks_no_client(regime: Regime) -> None:
    """As with a VPN client in a container: replies leave by the interface of the request, ext0."""
    host, client = regime.host, regime.client
    client.ip(f"address add {STRANGER}/128 dev lo nodad")
    host.ip(f"-6 route add default via {CLIENT} dev ext0 table 100")
    for what in (f"from {HOST}", "iif brX"):
        host.ip(f"-6 rule add {what} table 100 pref 100")
    host.ip(f"route add 2000::/3 via {Y1} dev brY")
    try:
        time.sleep(1)  # no rule shows that the daemon has read the route
        with serve(host, "host", tcp=[2222]):
            assert isinstance(tcp(client, HOST, 2222, source=STRANGER), Answer)
        assert peer(tcp(client, HOST, 8080, source=STRANGER)) == STRANGER
    finally:
        host.ip(f"route del 2000::/3 via {Y1} dev brY")
        for _ in range(2):
            host.ip("-6 rule del pref 100")
        host.ip(f"-6 route del default via {CLIENT} dev ext0 table 100")
        client.ip(f"address del {STRANGER}/128 dev lo")
    opened(client, 8080)
