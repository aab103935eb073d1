"""Forged sources: an attacker cannot use the address of a container, a neighbour or the host.

The attackers are y1, with CAP_NET_RAW as Docker gives it to every container, and the rogue on the
segment, where FORWARD's policy is ACCEPT. tests/harness/forge.py sends their packets past their
own stacks. The client is their accomplice, and receives the packets that leave the host.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

import pytest

from tests.harness import (
    Bus,
    Container,
    Daemon,
    Engine,
    Failure,
    Namespace,
    Network,
    Regime,
    Sandbox,
    connect,
    forge,
    serve,
    tcp,
    udp,
    until,
    watch,
)
from tests.harness.daemon import BIN
from tests.harness.probe import Packet
from tests.harness.sandbox import CLIENT, HOST, HOST_TOO, ROGUE
from tests.system.packets.asking import SHORT, listed, opened, peer, server
from tests.system.packets.test_coexistence import remove_bridge_rules

pytestmark = [pytest.mark.ours, pytest.mark.depends_on("variant", "proxy")]

X1, X2, Y1 = IPv6Address("fd00:a::2"), IPv6Address("fd00:a::3"), IPv6Address("fd00:b::2")
GATEWAY, GATEWAY_Y = IPv6Address("fd00:a::1"), IPv6Address("fd00:b::1")
STRANGER = IPv6Address("2001:db8:77::1")
ALL_NODES = IPv6Address("ff02::1")
NDP = range(133, 138)
BRIDGE = "com.docker.network.bridge"
MODE = f"{BRIDGE}.gateway_mode_ipv6"
OPTIONS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "nat": ({}, ()),
    "routed": ({MODE: "routed"}, ()),
    "nat-unprotected": ({MODE: "nat-unprotected"}, ()),
    "no masquerade": ({f"{BRIDGE}.enable_ip_masquerade": "false"}, ()),
    "no icc": ({f"{BRIDGE}.enable_icc": "false"}, ()),
    "host_ipv6": ({"com.docker.network.host_ipv6": str(HOST_TOO)}, ()),
    "trusted": ({f"{BRIDGE}.trusted_host_interfaces": "ext0"}, ()),
    "internal": ({}, ("--internal",)),
}


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """A sender: its namespace, its link, and the hardware address of the host on this link."""

    ns: Namespace
    link: str
    by: bytes
    honest: IPv6Address
    """A source that the rules permit from there."""

    def send(self, *packets: bytes) -> None:
        forge.send(self.ns, list(packets), link=self.link, by=self.by)


def attackers(regime: Regime) -> dict[str, Attacker]:
    host = regime.host
    return {
        "container": Attacker(
            ns=regime.y1.ns, link="eth0", by=forge.hardware(host, "brY"), honest=Y1
        ),
        "segment": Attacker(
            ns=regime.rogue, link="ext0", by=forge.hardware(host, "ext0"), honest=STRANGER
        ),
    }


def arrived_at_client(packets: Callable[[], list[Packet]]) -> list[Packet]:
    """The packets that arrived at the client, without neighbour discovery."""
    return [
        each
        for each in packets()
        if not each.outgoing
        and each.destination == CLIENT
        and not (each.protocol == "icmp6" and each.port in NDP)
    ]


def send_each_kind(
    attacker: Attacker, source: IPv6Address, to: IPv6Address, ports: tuple[int, int]
) -> int:
    """Send a first packet of each kind; return the number of kinds."""
    kinds = forge.kinds(source, to, ports)
    for packets in kinds.values():
        attacker.send(*packets)
    return len(kinds)


@contextmanager
def victim(regime: Regime, kind: str) -> Iterator[tuple[Network, Container]]:
    options, args = OPTIONS[kind]
    with (
        regime.network(*args, options=options) as network,
        regime.container(network=network, udp=(54,)) as made,
    ):
        assert made.address is not None
        until(lambda: f" -i {network.bridge} " in regime.sandbox.rules(), True)
        yield network, made


@pytest.mark.depends_on("variant")
@pytest.mark.parametrize("who", ["container", "segment"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_first_packet_with_a_container_source_does_not_leave_the_host(
    regime: Regime, kind: str, who: str
) -> None:
    """Of any protocol, behind extension headers, in fragments."""
    attacker = attackers(regime)[who]
    with victim(regime, kind) as (_, made), watch(regime.client) as packets:
        assert made.address is not None
        before = len(made.server.received)
        send_each_kind(attacker, made.address, CLIENT, (54, 4444))
        # Packets with a permitted source follow on the same path.
        count = send_each_kind(attacker, attacker.honest, CLIENT, (55, 4444))
        arrived = until(lambda: arrived_at_client(packets), lambda found: len(found) >= count)
        assert len(arrived) >= count
        assert [each for each in arrived if each.source == made.address] == []
        assert [each for each in arrived if each.source_port == 54] == []
        kinds_of = {each.protocol for each in arrived}
        assert {"udp", "tcp", "icmp6", "47", "253", "60"} <= kinds_of, kinds_of
        # A reply to the forged packet does not reach the victim either.
        for address in (HOST, HOST_TOO):
            udp(regime.client, address, 54, source_port=4444, timeout=0.1)
        assert made.server.received[before:] == []
    assert f"src={made.address} dst={CLIENT}" not in regime.host.flows()


def test_forged_datagram_to_the_attacker_opens_no_container_port(regime: Regime) -> None:
    """x1 publishes 53 and not 54."""
    attacker, before = attackers(regime)["container"], len(regime.x1.server.received)
    with attacker.ns.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind((str(Y1), 4445))
        sock.settimeout(SHORT)
        attacker.send(forge.datagram(X1, Y1, (54, 4445)))
        for address in (GATEWAY_Y, X1, HOST):
            sock.sendto(b"?\n", (str(address), 54))
        with pytest.raises(TimeoutError):
            sock.recv(4096)
    assert [each for each in regime.x1.server.received[before:] if each.port == 54] == []


@pytest.mark.parametrize("who", ["container", "segment"])
def test_two_forged_packets_with_both_endpoints_open_no_port(regime: Regime, who: str) -> None:
    """The first packet goes from the victim to an address of the host and is not forwarded. The
    second goes from the host to the victim, and conntrack takes it for a reply to the first."""
    attacker, received = attackers(regime)[who], regime.x1.server.received
    opened(regime.client, 8080)
    before = len(received)
    for port, address in enumerate((HOST, HOST_TOO, GATEWAY, GATEWAY_Y), 7100):
        attacker.send(forge.datagram(X1, address, (54, port)))
        attacker.send(forge.datagram(address, X1, (port, 54)))
    udp(regime.client, HOST, 5353, source_port=7777)
    until(lambda: [each.peer_port for each in received[before:]], [7777])
    assert [(each.peer, each.peer_port) for each in received[before:]] == [(CLIENT, 7777)]


def test_forged_simultaneous_open_opens_no_port(regime: Regime) -> None:
    """The attacker sends the packets of both endpoints, for an entry that admits a reply."""
    attacker = attackers(regime)["container"]
    with watch(regime.x1.ns) as packets:
        for port in range(6000, 6004):
            attacker.send(
                forge.packet(X1, Y1, forge.TCP, forge.tcp_body(X1, Y1, (81, port))),
                *(
                    forge.packet(Y1, to, forge.TCP, forge.tcp_body(Y1, to, (port, 81)))
                    for to in (GATEWAY_Y, HOST)
                ),
            )
        assert tcp(attacker.ns, X1, 81, timeout=SHORT) is Failure.TIMEOUT
        assert [each for each in packets() if each.source == Y1] == []


@pytest.mark.parametrize("who", ["container", "segment"])
def test_forged_gateway_or_host_source_reaches_no_container(regime: Regime, who: str) -> None:
    """Q20: with the source of a neighbour or a free address, by the proxy and by a group too."""
    attacker, received = attackers(regime)[who], regime.x1.server.received
    opened(regime.client, 8080)
    before = len(received)
    sources = [GATEWAY, GATEWAY_Y, HOST, HOST_TOO, X2, IPv6Address("fd00:a::9")]
    if who == "segment":
        sources.append(Y1)
        # The proxy would receive a packet to the multicast group or to the anycast address.
        for group in (ALL_NODES, IPv6Address("2001:db8:1::")):
            attacker.send(forge.datagram(STRANGER, group, (7000, 5353)))
    for source in sources:
        for target, port in ((HOST, 5353), (HOST_TOO, 5353), (X1, 53), (X1, 54), (ALL_NODES, 5353)):
            attacker.send(forge.datagram(source, target, (7000, port)))
    udp(regime.client, HOST, 5353, source_port=7777)
    until(lambda: [each.peer_port for each in received[before:]], [7777])
    assert [(each.peer, each.peer_port) for each in received[before:]] == [(CLIENT, 7777)]


def test_icmpv6_error_about_an_open_flow_with_a_forged_source_is_dropped(regime: Regime) -> None:
    with (
        watch(regime.x1.ns) as packets,
        connect(regime.client, HOST, 5353, kind=socket.SOCK_DGRAM) as flow,
    ):
        assert server(flow.ask()) == "x1"
        port = flow.socket.getsockname()[1]
        about = forge.datagram(HOST, CLIENT, (5353, port))
        attacker = attackers(regime)["segment"]
        for source in (GATEWAY, HOST_TOO, X2, Y1, ROGUE):
            body = forge.error_body(source, HOST, about)
            attacker.send(forge.packet(source, HOST, forge.ICMPV6, body))

        def errors() -> list[IPv6Address]:
            found = [each for each in packets() if (each.protocol, each.port) == ("icmp6", 1)]
            return [each.source for each in found if not each.outgoing]

        assert until(errors, [ROGUE]) == [ROGUE]


def test_container_sends_only_with_sources_of_its_network_and_its_routes(
    regime: Regime,
) -> None:
    attacker = attackers(regime)["container"]
    beyond = IPv6Address("fd00:ee::7")
    with watch(regime.client) as packets:

        def sources() -> set[IPv6Address]:
            attacker.send(
                forge.datagram(beyond, CLIENT, (7001, 4444)),
                forge.datagram(IPv6Address("2001:db8:1::99"), CLIENT, (7002, 4444)),
                forge.datagram(Y1, CLIENT, (7003, 4444)),
            )
            return {each.source for each in arrived_at_client(packets)}

        assert until(sources, lambda found: HOST in found) == {HOST}
        regime.host.ip(f"route add fd00:ee::/64 via {Y1} dev brY")
        try:
            assert until(sources, lambda found: beyond in found) == {HOST, beyond}
        finally:
            regime.host.ip(f"route del fd00:ee::/64 via {Y1} dev brY")
        until(lambda: "fd00:ee::/64" in regime.sandbox.rules(), False)
        before = len(arrived_at_client(packets))
        sources()
        udp(regime.y1.ns, CLIENT, 4444, timeout=0.1)
        assert {each.source for each in arrived_at_client(packets)[before:]} == {HOST}


def test_lan_inside_a_wider_subnet_is_not_forged_and_not_masqueraded(regime: Regime) -> None:
    """A network with a /48, and a route of the host for a /64 of it on the external link."""
    port, lan = regime.port(), IPv6Network("fd00:9:1:5::/64")
    guest = lan[2]
    regime.host.ip(f"address add {lan[1]}/64 dev ext0 nodad")
    regime.rogue.ip(f"route add {lan} via {HOST} dev ext0")
    regime.client.ip(f"address add {guest}/64 dev ext0 nodad")
    regime.client.ip(f"route add {ROGUE}/128 via {lan[1]} dev ext0")
    try:
        with (
            regime.network(subnet="fd00:9:1::/48") as network,
            regime.container(
                network=network, publish=[f"{port}:80", f"{port}:53/udp"], udp=[53]
            ) as made,
            serve(regime.rogue, "rogue", udp=[port]) as there,
        ):
            assert made.address is not None
            opened(regime.client, port)
            # A container of this network looks for the address on its own link, hence the SNAT.
            answer = tcp(regime.client, HOST, port, source=guest)
            assert (server(answer), peer(answer)) == (made.name, IPv6Address("fd00:9:1::1"))
            assert peer(tcp(regime.client, HOST, 8080, source=guest)) == guest
            assert peer(udp(regime.client, HOST, 5353, source=guest)) == guest
            # Packets that the host forwards for the LAN keep their source.
            assert peer(udp(regime.client, ROGUE, port, source=guest)) == guest
            # Other sources of the subnet are forged outside, and sources of the LAN are inside.
            count, before = len(there.received), len(made.server.received)
            inside = Attacker(
                ns=made.ns,
                link="eth0",
                by=forge.hardware(regime.host, network.bridge),
                honest=made.address,
            )
            attackers(regime)["segment"].send(
                forge.datagram(IPv6Address("fd00:9:1:6::9"), HOST, (7000, port))
            )
            inside.send(
                forge.datagram(guest, ROGUE, (7000, port)),
                forge.datagram(made.address, ROGUE, (7001, port)),
            )
            until(lambda: len(there.received), count + 1)
            assert [each.peer for each in there.received[count:]] == [HOST]
            assert made.server.received[before:] == []
    finally:
        regime.client.ip(f"route del {ROGUE}/128 dev ext0")
        regime.client.ip(f"address del {guest}/64 dev ext0")
        regime.rogue.ip(f"route del {lan} dev ext0")
        regime.host.ip(f"address del {lan[1]}/64 dev ext0")


def test_forged_source_in_a_network_of_the_engine_is_dropped(tools: None) -> None:  # noqa: ARG001
    """The engine manages X, ipv6natd manages Y; the attackers are on Y, on X and on the segment."""
    with (
        Sandbox() as sandbox,
        Engine(sandbox, ip6tables=True) as engine,
        Bus(sandbox.dir) as bus,
    ):
        for name, subnet in (("X", "fd00:a::/64"), ("Y", "fd00:b::/64")):
            engine.network(name, subnet)
        x1 = engine.run("x1", "X", ip6=str(X1), publish=["5355:53/udp"])
        y1 = engine.run("y1", "Y", ip6=str(Y1))
        remove_bridge_rules(sandbox, "brY")
        with Daemon(sandbox, engine.endpoint, bus=bus.address) as daemon:
            managed = {each["Name"]: each["ManagedBy"] for each in listed(daemon, "networks")}
            assert managed == {"X": "engine", "Y": "ipv6natd"}

            def attacker(ns: Namespace, link: str, far: str, honest: IPv6Address) -> Attacker:
                by = forge.hardware(sandbox.host, far)
                return Attacker(ns=ns, link=link, by=by, honest=honest)

            on_x = attacker(x1.ns, "eth0", "brX", X1)
            on_y = attacker(y1.ns, "eth0", "brY", Y1)
            segment = attacker(sandbox.rogue, "ext0", "ext0", STRANGER)
            # The engine's policy would drop the packets of the segment.
            sandbox.host.run(f"ip6tables-{sandbox.variant}", "-P", "FORWARD", "ACCEPT")
            pairs = ((on_y, X1), (on_x, Y1), (segment, X1), (segment, Y1))
            for port, (sender, victim) in enumerate(pairs, 60):
                with watch(sandbox.client) as packets:
                    sender.send(forge.datagram(victim, CLIENT, (54, 4444)))
                    sender.send(forge.datagram(sender.honest, CLIENT, (port, 4444)))
                    found = until(partial(arrived_at_client, packets), lambda seen: bool(seen))
                    assert [each.source_port for each in found] == [port], victim
            with serve(x1.ns, "x1", udp=[53]) as server:
                for source in (HOST, HOST_TOO, STRANGER):
                    segment.send(forge.datagram(source, HOST, (70, 5355)))
                    segment.send(forge.datagram(source, X1, (70, 53)))
                assert until(lambda: len(server.received) > 0, True)
                time.sleep(SHORT)
                assert {each.peer for each in server.received} == {STRANGER}


FORMER_FILTER_TABLE = """\
*filter
:IPV6NAT-FORWARD - [0:0]
:IPV6NAT-CT - [0:0]
-A FORWARD -m comment --comment ipv6natd -j DOCKER-USER
-A FORWARD -m comment --comment ipv6natd -j IPV6NAT-FORWARD
-A IPV6NAT-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j IPV6NAT-CT
-A IPV6NAT-FORWARD -o brX -m conntrack --ctstate DNAT -j ACCEPT
-A IPV6NAT-FORWARD ! -i brX -o brX -j DROP
-A IPV6NAT-FORWARD -o brY -m conntrack --ctstate DNAT -j ACCEPT
-A IPV6NAT-FORWARD ! -i brY -o brY -j DROP
-A IPV6NAT-FORWARD -i brX -o brX -j ACCEPT
-A IPV6NAT-FORWARD -i brY -o brY -j ACCEPT
-A IPV6NAT-FORWARD -i brX ! -o brX -m conntrack --ctstate INVALID -j DROP
-A IPV6NAT-FORWARD -i brY ! -o brY -m conntrack --ctstate INVALID -j DROP
-A IPV6NAT-FORWARD -i brX -j ACCEPT
-A IPV6NAT-FORWARD -i brY -j ACCEPT
-A IPV6NAT-CT -i brX -j ACCEPT
-A IPV6NAT-CT -o brX -j ACCEPT
-A IPV6NAT-CT -i brY -j ACCEPT
-A IPV6NAT-CT -o brY -j ACCEPT
COMMIT
"""
"""The saved filter table of a version that checked no source."""


@dataclass(frozen=True, kw_only=True)
class Upgraded:
    """A lab with a daemon that the test may stop, with x1 on X and the attacker on Y."""

    sandbox: Sandbox
    daemon: Daemon
    x1: Container
    attacker: Attacker

    def tool(self, *words: str) -> None:
        self.sandbox.host.run(f"ip6tables-{self.sandbox.variant}", *words)


@pytest.fixture(params=["nft", "legacy"])
def upgraded(request: pytest.FixtureRequest, tools: None) -> Iterator[Upgraded]:  # noqa: ARG001
    with (
        Sandbox(request.param) as sandbox,
        Engine(sandbox, userland_proxy=False) as engine,
        Daemon(sandbox, engine.endpoint) as daemon,
    ):
        engine.network("X", "fd00:a::/64")
        engine.network("Y", "fd00:b::/64")
        x1 = engine.run("x1", "X", ip6=str(X1), publish=("5353:53/udp",))
        y1 = engine.run("y1", "Y", ip6=str(Y1))
        by = forge.hardware(sandbox.host, "brY")
        attacker = Attacker(ns=y1.ns, link="eth0", by=by, honest=Y1)
        with serve(x1.ns, "x1", udp=[53, 54]) as there:
            until(lambda: "--dport 5353" in sandbox.rules(), True)
            made = replace(x1, server=there)
            yield Upgraded(sandbox=sandbox, daemon=daemon, x1=made, attacker=attacker)


WITHOUT_RAW = """
from ipv6natd import cli
from ipv6natd.firewall import libiptc
from ipv6natd.firewall.backend import MissingTable
from ipv6natd.netfilter.rules import Table

opened = libiptc._open_table

def open_table(name):
    if name is Table.RAW:
        raise MissingTable("the kernel has no table raw", name)
    return opened(name)

libiptc._open_table = open_table
cli.main()
"""


class DaemonWithoutRaw(Daemon):
    """The daemon on a kernel without the raw table of legacy ip6tables."""

    @property
    def command(self) -> list[str]:
        """See Daemon."""
        return [str(BIN / "python"), "-c", WITHOUT_RAW]


def test_i3_kernel_without_raw_closes_ports_and_drops_forged_first_packets(
    tools: None,  # noqa: ARG001
) -> None:
    with (
        Sandbox("legacy") as sandbox,
        Engine(sandbox, userland_proxy=False) as engine,
        DaemonWithoutRaw(sandbox, engine.endpoint, start=False) as daemon,
    ):
        engine.network("X", "fd00:a::/64")
        engine.network("Y", "fd00:b::/64")
        x1 = engine.run("x1", "X", ip6=str(X1), publish=("8080:80",))
        y1 = engine.run("y1", "Y", ip6=str(Y1))
        daemon.start(wait="degraded")
        assert "modprobe ip6table_raw" in daemon.status
        assert "*raw" not in sandbox.rules()
        by = forge.hardware(sandbox.host, "brY")
        attacker = Attacker(ns=y1.ns, link="eth0", by=by, honest=Y1)
        with serve(x1.ns, "x1", tcp=[80], udp=[54]), watch(sandbox.client) as packets:
            opened(sandbox.client, 8080)
            attacker.send(forge.datagram(X1, CLIENT, (54, 4444)))
            for caller in (sandbox.rogue, y1.ns):
                assert tcp(caller, X1, 80, timeout=SHORT) is Failure.TIMEOUT
                assert udp(caller, X1, 54, timeout=SHORT) is Failure.TIMEOUT
            forged = [packet for packet in arrived_at_client(packets) if packet.protocol == "udp"]
            assert forged == []


def saved_filter_table(daemon: Daemon) -> Path:
    return daemon.dir / "state/filter.rules"


def restore_former_rules(upgraded: Upgraded) -> None:
    """Put the rules of the former version into the tables and into the saved file."""
    saved_filter_table(upgraded.daemon).write_text(FORMER_FILTER_TABLE)
    upgraded.tool("-F", "IPV6NAT-HOST")
    for words in (("-F", "PREROUTING"), ("-F", "IPV6NAT-SRC"), ("-X", "IPV6NAT-SRC")):
        upgraded.tool("-t", "raw", *words)


def test_upgrade_deletes_possibly_forged_conntrack_entries(upgraded: Upgraded) -> None:
    """The former rules checked no source, so any sender may have created an entry."""
    attacker, daemon = upgraded.attacker, upgraded.daemon
    daemon.stop()
    restore_former_rules(upgraded)
    with attacker.ns.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind((str(Y1), 4446))
        sock.settimeout(SHORT)
        attacker.send(forge.datagram(X1, Y1, (54, 4446)))
        assert sock.recv(4096) == b"?\n"  # the forged datagram returned to the attacker

        def answered() -> bool:
            sock.sendto(b"?\n", (str(GATEWAY_Y), 54))
            try:
                return sock.recv(4096).startswith(b"x1 ")
            except TimeoutError:
                return False

        assert answered()
        daemon.start()
        assert until(answered, False) is False
        assert not answered()
        assert not answered()


def test_saved_rules_of_a_former_version_open_no_port(upgraded: Upgraded) -> None:
    """The saved rules checked no source. No packet passes until the engine answers."""
    attacker, daemon, sandbox = upgraded.attacker, upgraded.daemon, upgraded.sandbox
    daemon.stop()
    daemon.flush()
    saved_filter_table(daemon).write_text(FORMER_FILTER_TABLE)
    daemon.endpoint = f"unix://{sandbox.dir}/nobody.sock"
    daemon.start(wait="waiting-for-docker")
    with watch(sandbox.client) as packets:
        attacker.send(forge.datagram(X1, CLIENT, (54, 4444)))
        attacker.send(forge.datagram(Y1, CLIENT, (55, 4444)))
        assert udp(sandbox.rogue, X1, 54, timeout=SHORT) is Failure.TIMEOUT
        assert arrived_at_client(packets) == []
    assert upgraded.x1.server.received == []
