"""Outgoing packets of containers: scenarios O."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address

import pytest

from tests.harness import Namespace, Regime, connect, ping, serve, tcp, udp, until, watch
from tests.harness.probe import Packet
from tests.harness.sandbox import CLIENT, HOST, HOST_TOO
from tests.harness.serve import listening
from tests.system.packets.asking import SHORT, dnats, listed, opened, peer

pytestmark = pytest.mark.depends_on()


def test_o1_outgoing_packets_have_the_host_address(regime: Regime) -> None:
    port = regime.port()
    with serve(regime.client, "client", tcp=[port], udp=[port]):
        for container in (regime.x1, regime.y1):
            assert peer(tcp(container.ns, CLIENT, port)) == HOST
            assert peer(udp(container.ns, CLIENT, port)) == HOST


def test_o2_without_masquerade_the_client_sees_the_container_address(regime: Regime) -> None:
    port = regime.port()
    options = {"com.docker.network.bridge.enable_ip_masquerade": "false"}
    with (
        regime.network(options=options) as network,
        regime.container(network=network) as made,
        serve(regime.client, "client", udp=[port]) as there,
    ):
        assert made.address is not None
        until(lambda: network.bridge in regime.sandbox.rules(), True)
        regime.client.ip(f"route add {made.address}/128 via {HOST} dev ext0")
        try:
            assert peer(udp(made.ns, CLIENT, port)) == made.address
        finally:
            regime.client.ip(f"route del {made.address}/128")
        assert [each.peer for each in there.received] == [made.address]


FAR_CLIENT = IPv6Address("2001:db8:ff::1")
"""An address of the client that is on no link of the host."""
RENUMBERED = IPv6Address("2001:db8:2::1")


def test_o5_renumbered_host_masquerades_with_its_new_address(regime: Regime) -> None:
    port = regime.port()
    host, client = regime.host, regime.client
    client.ip(f"address add {FAR_CLIENT}/128 dev lo nodad")
    client.ip("route add 2001:db8:2::/64 dev ext0")
    host.ip(f"route add {FAR_CLIENT}/128 via fe80::ff:fe00:2 dev ext0")
    try:
        with (
            serve(client, "client", tcp=[port], udp=[port]),
            connect(regime.x1.ns, FAR_CLIENT, port, kind=socket.SOCK_DGRAM) as old,
        ):
            assert peer(old.ask()) == HOST
            host.ip(f"address add {RENUMBERED}/64 dev ext0 nodad")
            for address in (HOST, HOST_TOO):
                host.ip(f"address del {address}/64 dev ext0")
            assert peer(tcp(regime.x1.ns, FAR_CLIENT, port)) == RENUMBERED
            # The former flow ends with the old address, and continues from the new one.
            assert until(lambda: peer(old.ask(timeout=SHORT)), RENUMBERED) == RENUMBERED
            assert peer(tcp(client, RENUMBERED, 8080, source=FAR_CLIENT)) == FAR_CLIENT
    finally:
        for address in (HOST_TOO, HOST):
            host.ip(f"address replace {address}/64 dev ext0 nodad")
        host.ip(f"address del {RENUMBERED}/64 dev ext0")
        host.ip(f"route del {FAR_CLIENT}/128")
        client.ip("route del 2001:db8:2::/64 dev ext0")
        client.ip(f"address del {FAR_CLIENT}/128 dev lo")
    assert opened(client, 8080).server == "x1"


BEYOND = IPv6Address("2001:db8:f::2")
SENT_BYTES = 200_000


@contextmanager
def narrow_link(regime: Regime) -> Iterator[Namespace]:
    """A peer behind the client, on a link with an MTU of 1280 at the client and 1500 at the peer.

    The peer is the namespace of the wire, whose other links form a switch.
    """
    client, beyond = regime.client, regime.sandbox.wire
    client.ip(f"link add far0 mtu 1280 type veth peer name far1 netns {beyond.path.name}")
    try:
        client.ip("link set far0 up")
        client.ip("address add 2001:db8:f::1/64 dev far0 nodad")
        client.sysctl("net.ipv6.conf.all.forwarding", 1)
        beyond.ip("link set far1 mtu 1500 up")
        beyond.ip(f"address add {BEYOND}/64 dev far1 nodad")
        beyond.ip("route add 2001:db8:1::/64 via 2001:db8:f::1")
        regime.host.ip(f"route add 2001:db8:f::/64 via {CLIENT} dev ext0")
        yield beyond
    finally:
        regime.host.ip("route del 2001:db8:f::/64")
        client.sysctl("net.ipv6.conf.all.forwarding", 0)
        client.ip("link del far0")


def transferred(source: socket.socket, target: socket.socket) -> int:
    """The number of the SENT_BYTES that arrive through a connection."""
    for sock in (source, target):
        sock.settimeout(5)
    writer = threading.Thread(target=source.sendall, args=(bytes(SENT_BYTES),))
    writer.start()
    came = 0
    while came < SENT_BYTES and (data := target.recv(65536)):
        came += len(data)
    writer.join()
    return came


def too_big(packets: list[Packet]) -> list[Packet]:
    return [each for each in packets if (each.protocol, each.port) == ("icmp6", 2)]


def test_o8_container_receives_packet_too_big_for_a_smaller_path_mtu(
    regime: Regime,
) -> None:
    port = regime.port()
    with (
        narrow_link(regime) as beyond,
        regime.container(publish=[f"{port}:90"]) as made,
        beyond.within(lambda: listening(port, socket.SOCK_STREAM)) as there,
        made.ns.within(lambda: listening(90, socket.SOCK_STREAM)) as here,
    ):
        there.setblocking(True)
        here.setblocking(True)
        with (
            watch(regime.x1.ns) as packets,
            connect(regime.x1.ns, BEYOND, port) as outward,
            there.accept()[0] as arrived,
        ):
            assert transferred(outward.socket, arrived) == SENT_BYTES
            assert too_big(packets())
        until(lambda: dnats(regime.sandbox.rules(), port), lambda found: bool(found))
        with (
            watch(made.ns) as packets,
            connect(beyond, HOST, port) as inward,
            here.accept()[0] as served,
        ):
            assert served.getpeername()[0] == str(BEYOND)
            assert transferred(served, inward.socket) == SENT_BYTES
            assert too_big(packets())


ALL_NODES, MLD_ROUTERS = IPv6Address("ff02::1"), IPv6Address("ff02::16")


def test_o10_link_local_traffic_is_not_masqueraded(regime: Regime) -> None:
    x1, x2 = regime.x1, regime.x2
    came = len(x2.server.received)
    gateway, *_ = addresses(regime.host, "brX scope link")
    with watch(regime.client) as packets:
        udp(x1.ns, f"{ALL_NODES}%eth0", 53, source=x1.address, timeout=SHORT)
        assert [each.peer for each in x2.server.received[came:]] == [x1.address]
        for each in (x1, x2):
            each.ns.ip("-6 neigh flush all")
        assert ping(x1.ns, f"{gateway}%eth0")
        assert x2.address is not None
        assert ping(x1.ns, x2.address)
        assert [
            each for each in packets() if each.destination.is_multicast and each.port == 53
        ] == []


def test_o10_duplicate_address_detection_and_mld_reports_work(regime: Regime) -> None:
    added = {"fd00:a::2", "fd00:a::abcd"}
    space = regime.x2.ns
    knobs = {
        "net.ipv6.conf.eth0.accept_dad": 1,
        "net.ipv6.conf.eth0.router_solicitation_delay": 0,
        "net.ipv6.neigh.eth0.retrans_time_ms": 100,
    }
    before = {key: space.sysctl(key) for key in knobs}
    try:
        for key, value in knobs.items():
            space.sysctl(key, value)
        with watch(regime.host) as packets:
            for address in added:
                space.ip(f"address add {address}/64 dev eth0")
            unused = until(lambda: addresses(space, "eth0 tentative"), {"fd00:a::2": True})
            assert unused == {"fd00:a::2": True}
            sources = {each.source for each in packets() if each.destination == MLD_ROUTERS}
        assert sources
        assert all(each.is_link_local or each.is_unspecified for each in sources), sources
    finally:
        for address in added:
            space.ip(f"address del {address}/64 dev eth0")
        for key, old in before.items():
            space.sysctl(key, old)


def addresses(ns: Namespace, where: str) -> dict[str, bool]:
    """IPv6 address -> True if it is a duplicate; `where` are words of `ip address show dev`."""
    links = json.loads(ns.ip(f"-j -6 address show dev {where}"))
    found = [each for link in links for each in link.get("addr_info", ()) if each]
    return {each["local"]: each.get("dadfailed", False) for each in found}


def test_o7_outgoing_pings_are_answered(regime: Regime) -> None:
    assert ping(regime.x1.ns, CLIENT)
    assert ping(regime.y1.ns, CLIENT)


def test_o3_network_with_a_source_address_uses_it(regime: Regime) -> None:
    port = regime.port()
    options = {"com.docker.network.host_ipv6": "2001:db8:1::10"}
    with (
        regime.network(options=options) as network,
        regime.container(network=network) as made,
        serve(regime.client, "client", tcp=[port], udp=[port]),
    ):
        until(lambda: network.bridge in regime.sandbox.rules(), True)
        wanted = IPv6Address("2001:db8:1::10")
        assert peer(tcp(made.ns, CLIENT, port)) == wanted
        assert peer(udp(made.ns, CLIENT, port)) == wanted


@pytest.mark.ours
def test_source_address_of_a_routed_prefix_is_used(regime: Regime) -> None:
    """Q17: the router sends the prefix to the host; no interface has the address."""
    port, wanted = regime.port(), IPv6Address("2001:db8:f::10")
    regime.client.ip(f"route add 2001:db8:f::/64 via {HOST} dev ext0")
    try:
        with (
            regime.network(options={"com.docker.network.host_ipv6": str(wanted)}) as network,
            regime.container(network=network) as made,
            serve(regime.client, "client", tcp=[port], udp=[port]),
        ):
            until(lambda: f"SNAT --to-source {wanted}" in regime.sandbox.rules(), True)
            assert peer(tcp(made.ns, CLIENT, port)) == wanted
            assert peer(udp(made.ns, CLIENT, port)) == wanted
            rows = listed(regime.daemon, "networks")
            assert [row["Warnings"] for row in rows if row["Name"] == network.name] == [[]]
    finally:
        regime.client.ip(f"route del 2001:db8:f::/64 via {HOST} dev ext0")


def test_network_is_closed_and_masqueraded_before_its_first_container(regime: Regime) -> None:
    with regime.network() as network:
        masqueraded = f"! -o {network.bridge} -m addrtype ! --src-type LOCAL -j MASQUERADE"
        rules = until(lambda: regime.sandbox.rules(), lambda text: masqueraded in text)
        assert masqueraded in rules
        # The filter table is written first, so the network must be closed now.
        assert f"! -i {network.bridge} -o {network.bridge} -j DROP" in rules
    gone = until(lambda: network.bridge in regime.sandbox.rules(), False)
    assert not gone
