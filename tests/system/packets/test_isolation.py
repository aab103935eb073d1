"""Closed by default: scenarios I. The rogue has a route to every container, the client has none."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from ipaddress import IPv6Address

import pytest

from tests.harness import Answer, Failure, Regime, connect, ping, serve, tcp, udp, until, watch
from tests.harness.sandbox import CLIENT, HOST, ROGUE
from tests.system.packets.asking import SHORT, dnats, opened, peer, server, stopped

pytestmark = pytest.mark.depends_on("proxy")

X1, I1 = IPv6Address("fd00:a::2"), IPv6Address("fd00:c::2")
FORGED = IPv6Address("fd00:a::9")


@pytest.mark.parametrize("port", [81, 80], ids=["i1-unpublished", "i2-published"])
def test_i1_i2_container_address_is_closed_to_outside_hosts(regime: Regime, port: int) -> None:
    with watch(regime.x1.ns) as packets:
        assert tcp(regime.rogue, X1, port, timeout=SHORT) is Failure.TIMEOUT
        assert udp(regime.rogue, X1, 53, timeout=SHORT) is Failure.TIMEOUT
        assert [each for each in packets() if each.source == ROGUE] == []


def test_i4_container_does_not_answer_pings_from_outside(regime: Regime) -> None:
    assert not ping(regime.rogue, X1, timeout=SHORT)
    assert not ping(regime.y1.ns, X1, timeout=SHORT)


def test_i5_container_address_is_closed_to_other_networks(regime: Regime) -> None:
    for port in (80, 81):
        assert tcp(regime.y1.ns, X1, port, timeout=SHORT) is Failure.TIMEOUT
    assert udp(regime.y1.ns, X1, 53, timeout=SHORT) is Failure.TIMEOUT


def test_i6_without_icc_neighbours_are_blocked_and_published_ports_work(regime: Regime) -> None:
    port = regime.port()
    options = {"com.docker.network.bridge.enable_icc": "false"}
    with (
        regime.network(options=options) as network,
        regime.container(network=network, publish=[f"{port}:80"]) as one,
        regime.container(network=network) as two,
    ):
        opened(regime.client, port)
        assert one.address is not None
        assert tcp(two.ns, one.address, 80, timeout=SHORT) is Failure.TIMEOUT
        assert server(tcp(two.ns, HOST, port)) == one.name


def test_i7_internal_network_accepts_and_sends_no_packets(regime: Regime) -> None:
    port = regime.port()
    with serve(regime.client, "client", tcp=[port], udp=[port]) as there:
        # An internal container has no default route on some engines and one on others.
        assert isinstance(tcp(regime.i1.ns, CLIENT, port, timeout=SHORT), Failure)
        assert isinstance(udp(regime.i1.ns, CLIENT, port, timeout=SHORT), Failure)
        assert there.received == []
    regime.client.ip(f"route add {I1}/128 via {HOST} dev ext0")
    try:
        with watch(regime.i1.ns) as packets:
            for caller in (regime.client, regime.rogue, regime.y1.ns):
                assert isinstance(tcp(caller, I1, 80, timeout=SHORT), Failure)
                assert isinstance(udp(caller, I1, 53, timeout=SHORT), Failure)
            assert [each for each in packets() if each.protocol in ("tcp", "udp")] == []
    finally:
        regime.client.ip(f"route del {I1}/128")


def test_i7_internal_container_with_a_default_route_sends_no_packets_out(regime: Regime) -> None:
    port = regime.port()
    route = "default via fd00:c::1 metric 9"  # beside the one that some engines make
    regime.i1.ns.ip(f"-6 route add {route}")
    try:
        with serve(regime.client, "client", udp=[port]) as there:
            assert isinstance(udp(regime.i1.ns, CLIENT, port, timeout=SHORT), Failure)
            assert isinstance(udp(regime.i1.ns, X1, 53, timeout=SHORT), Failure)
            assert there.received == []
    finally:
        regime.i1.ns.ip(f"-6 route del {route}")


def test_i8_internal_neighbours_connect_after_a_neighbour_cache_flush(
    regime: Regime,
) -> None:
    for space in (regime.i1.ns, regime.i2.ns):
        space.ip("-6 neigh flush all")
    answer = tcp(regime.i2.ns, I1, 80)
    assert (server(answer), peer(answer)) == ("i1", IPv6Address("fd00:c::3"))


def test_k6_neighbours_connect_while_forward_drops_all_packets(regime: Regime) -> None:
    """With br_netfilter, bridged frames pass FORWARD, neighbour discovery too."""
    assert regime.host.sysctl("net.bridge.bridge-nf-call-ip6tables") == "1"
    tool = f"ip6tables-{regime.variant}"
    regime.host.run(tool, "-P", "FORWARD", "DROP")
    try:
        regime.host.run(tool, "-A", "FORWARD", "-j", "DROP")
        for one, two in ((regime.x1, regime.x2), (regime.i1, regime.i2)):
            for each in (one, two):
                each.ns.ip("-6 neigh flush all")
            assert one.address is not None
            assert server(tcp(two.ns, one.address, 80)) == one.name
    finally:
        regime.host.run(tool, "-D", "FORWARD", "-j", "DROP", check=False)
        regime.host.run(tool, "-P", "FORWARD", "ACCEPT")


def test_i9_host_reaches_an_internal_container(regime: Regime) -> None:
    assert server(tcp(regime.host, I1, 80)) == "i1"


def test_i10_published_port_on_an_internal_network_has_no_rule(regime: Regime) -> None:
    port, probe = regime.port(), regime.port()
    with (
        regime.container(network="I", publish=[f"{port}:80"]),
        regime.container(publish=[f"{probe}:80"]),
    ):
        opened(regime.client, probe)
        assert dnats(regime.sandbox.rules(), port) == []
        assert tcp(regime.client, HOST, port) is Failure.REFUSED


@pytest.mark.parametrize(
    ("address", "tcp_port", "udp_port"), [(X1, 81, 53), (X1, 80, 54), (HOST, 8080, 5353)]
)
def test_i11_forged_neighbour_source_reaches_no_container_or_published_port(
    regime: Regime, address: IPv6Address, tcp_port: int, udp_port: int
) -> None:
    with watch(regime.x1.ns) as packets:
        tcp(regime.rogue, address, tcp_port, source=FORGED, forged=True, timeout=SHORT)
        udp(regime.rogue, address, udp_port, source=FORGED, forged=True, timeout=SHORT)
        arrived = [each for each in packets() if each.source == FORGED and each.protocol != "icmp6"]
    assert arrived == []


def test_i11_flow_with_a_source_in_a_new_network_is_dropped(
    regime: Regime,
) -> None:
    """A bug found by the soak: a flow from before the network stayed open."""
    source = IPv6Address("fd00:77::66")

    def count_arrived() -> int:
        return sum(each.source == source and each.protocol == "udp" for each in packets())

    with (
        watch(regime.x1.ns) as packets,
        connect(
            *(regime.rogue, HOST, 5353),
            kind=socket.SOCK_DGRAM,
            source=source,
            forged=True,
            timeout=SHORT,
        ) as flow,
    ):
        flow.socket.send(b"?")
        until(count_arrived, lambda count: count > 0)
        with regime.network(subnet="fd00:77::/64"):
            until(lambda: "-s fd00:77::/64 ! -i" in regime.sandbox.rules(), True)
            # The daemon writes the rules first and deletes the entry of the flow after that.
            time.sleep(0.5)
            before = count_arrived()
            flow.socket.send(b"?")
            time.sleep(0.3)
            assert before > 0
            assert count_arrived() == before


@pytest.mark.ours
def test_i2_connection_opened_while_rules_were_flushed_is_blocked_after_repair(
    regime: Regime,
) -> None:
    target = (X1, 81)
    tool = f"ip6tables-{regime.variant}"
    with ExitStack() as stack:
        with stopped(regime):
            regime.host.run(tool, "-F", "IPV6NAT-FORWARD")
            spaces = (regime.host, regime.x2.ns)
            others = [stack.enter_context(connect(space, *target)) for space in spaces]
            rogue, by_udp = (
                stack.enter_context(connect(regime.rogue, target[0], port, kind=kind))
                for kind, port in ((socket.SOCK_STREAM, 81), (socket.SOCK_DGRAM, 54))
            )
            assert all(server(each.ask()) == "x1" for each in (*others, rogue, by_udp))
        assert until(lambda: server(by_udp.ask(timeout=SHORT)), Failure.TIMEOUT) is Failure.TIMEOUT
        assert rogue.ask(timeout=SHORT) is Failure.TIMEOUT
        assert [server(each.ask()) for each in others] == ["x1", "x1"]


def test_i12_docker_user_rules_are_evaluated_first(regime: Regime) -> None:
    host = regime.host
    rule = ("DOCKER-USER", "-i", "ext0", "-s", str(CLIENT), "-j", "DROP")
    by_port = (
        *("DOCKER-USER", "-i", "ext0", "-p", "tcp", "-m", "conntrack"),
        *("--ctorigdstport", "8080", "-j", "DROP"),
    )
    tool = f"ip6tables-{regime.variant}"
    opened(regime.client, 8080)
    host.run(tool, "-I", *rule)
    try:
        assert tcp(regime.client, HOST, 8080, timeout=SHORT) is Failure.TIMEOUT
        assert peer(tcp(regime.rogue, HOST, 8080)) == ROGUE
    finally:
        host.run(tool, "-D", *rule)
    host.run(tool, "-I", *by_port)
    try:
        assert tcp(regime.rogue, HOST, 8080, timeout=SHORT) is Failure.TIMEOUT
        assert peer(tcp(regime.client, HOST, 8443)) == CLIENT
    finally:
        host.run(tool, "-D", *by_port)
    opened(regime.client, 8080)


def test_i13_rule_appended_to_docker_user_is_evaluated(regime: Regime) -> None:
    tool = f"ip6tables-{regime.variant}"
    regime.host.run(tool, "-A", "DOCKER-USER", "-s", str(CLIENT), "-j", "DROP")
    try:
        assert tcp(regime.client, HOST, 8080, timeout=SHORT) is Failure.TIMEOUT
    finally:
        regime.host.run(tool, "-D", "DOCKER-USER", "-s", str(CLIENT), "-j", "DROP")
    opened(regime.client, 8080)


def test_i14_open_connection_survives_changes_of_other_containers(regime: Regime) -> None:
    with connect(regime.client, HOST, 8080) as conversation:
        assert server(conversation.ask()) == "x1"
        port = regime.port()
        with regime.network() as network, regime.container(network=network, publish=[f"{port}:80"]):
            opened(regime.client, port)
            assert server(conversation.ask()) == "x1"
        until(lambda: network.bridge in regime.sandbox.rules(), False)
        assert server(conversation.ask()) == "x1"


def test_i15_bridge_without_docker_still_forwards(regime: Regime) -> None:
    """A virtual machine's bridge: no rule of ipv6natd accepts or drops its packets."""
    host, address = regime.host, IPv6Address("fd00:ffff::2")
    host.ip("link add vmbr0 type bridge")
    host.ip("link set vmbr0 up")
    host.ip("address add fd00:ffff::1/64 dev vmbr0 nodad")
    host.ip(f"link add vm0 type veth peer name vm1 netns {regime.sandbox.wire.path.name}")
    host.ip("link set vm0 master vmbr0 up")
    wire = regime.sandbox.wire
    wire.ip("link set vm1 up")
    wire.ip(f"address add {address}/64 dev vm1 nodad")
    wire.ip("-6 route add 2001:db8:1::/64 via fd00:ffff::1 dev vm1")
    try:
        with serve(wire, "vm", tcp=[80]):
            # A port that has just joined a bridge takes a moment before it forwards.
            answer = until(
                lambda: tcp(regime.rogue, address, 80, timeout=0.3),
                lambda each: isinstance(each, Answer),
            )
            assert (server(answer), peer(answer)) == ("vm", ROGUE)
        with serve(regime.rogue, "rogue", tcp=[80]):
            answer = tcp(wire, ROGUE, 80, source=address)
            assert (server(answer), peer(answer)) == ("rogue", address)
    finally:
        host.ip("link del vm0")
        host.ip("link del vmbr0")
