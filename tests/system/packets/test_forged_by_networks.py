"""Forged sources where several networks meet: containers on two networks, networks that the engine
manages, an ipvlan network, and a prefix that the host routes to a container."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address, IPv6Network

import pytest

from tests.harness import (
    Answer,
    Bus,
    Container,
    Daemon,
    Engine,
    Failure,
    Namespace,
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
from tests.harness.probe import PATIENCE
from tests.harness.sandbox import CLIENT, HOST, ROGUE, Variant
from tests.system.packets.asking import SHORT, listed, repeated, server
from tests.system.packets.test_coexistence import remove_bridge_rules
from tests.system.packets.test_forged import (
    GATEWAY,
    GATEWAY_Y,
    MODE,
    X1,
    X2,
    Y1,
    Attacker,
    Upgraded,
    restore_former_rules,
    upgraded,  # noqa: F401  (a fixture)
)
from tests.system.packets.test_forged_inwards import link_local

pytestmark = [pytest.mark.ours]
each_regime = pytest.mark.depends_on("variant", "proxy")
BEYOND = IPv6Address("fd00:ee::7")
IN_IPVLAN = IPv6Address("fd00:e::2")
PUBLIC = IPv6Address("2001:db8:9::2")
OUTPUT_JUMP = "-A OUTPUT -m comment --comment ipv6natd -j IPV6NAT-OUTPUT"
GATEWAY_J, J1 = IPv6Address("fd00:c::1"), IPv6Address("fd00:c::2")


def second_address(regime: Regime, name: str, network: str) -> IPv6Address:
    """Connect the container of X, wait for the rule, and return its address on the network."""
    address = connected(regime.engine, name, network)
    until(lambda: f"-s {address}/128 -i brX -j RETURN" in regime.sandbox.rules(), True)
    return address


def connected(engine: Engine, name: str, network: str) -> IPv6Address:
    engine.docker("network", "connect", network, name)
    (facts,) = json.loads(engine.docker("inspect", name))
    return IPv6Address(facts["NetworkSettings"]["Networks"][network]["GlobalIPv6Address"])


@each_regime
@pytest.mark.parametrize("end", ["disconnect", "removal"])
def test_neighbour_reaches_no_container_by_its_address_on_another_network(
    regime: Regime, end: str
) -> None:
    """evil sends to itself, by its gateway, as a neighbour's address on another network. The
    neighbour leaves the network, or ends and another container gets the address."""
    with ExitStack() as stack:
        other = stack.enter_context(regime.network())
        evil = stack.enter_context(regime.container(network="X"))
        assert evil.address is not None
        by = forge.hardware(regime.host, "brX")
        attacker = Attacker(ns=evil.ns, link="eth0", by=by, honest=evil.address)
        with regime.container(network="X", udp=(54,), name="two") as victim:
            address = second_address(regime, "two", other.name)
            attacker.send(forge.datagram(address, evil.address, (54, 7700)))
            time.sleep(SHORT)
            assert "orig-port-src=54" not in regime.host.flows("-p", "udp", "-s", str(address))
            received = victim.server.received
            if end == "disconnect":
                regime.engine.docker("network", "disconnect", "X", "two")
                until(lambda: f"{address}/128" in regime.sandbox.rules(), False)
                assert isinstance(
                    udp(evil.ns, GATEWAY, 54, source_port=7700, timeout=SHORT), Failure
                )
        if end == "removal":
            until(lambda: f"{address}/128" in regime.sandbox.rules(), False)
            heir = stack.enter_context(regime.container(network=other, udp=(54,), ip6=str(address)))
            received = heir.server.received
            assert isinstance(udp(evil.ns, GATEWAY, 54, source_port=7700, timeout=SHORT), Failure)
        assert received == []


@each_regime
def test_neighbour_creates_no_entry_while_a_container_is_connected(regime: Regime) -> None:
    """The raw table lets the new address in for replies only when the filter table drops its first
    packets."""
    subnet = IPv6Network("fd00:f00d::/64")
    # A bridge gives the addresses to its containers in turn.
    guesses = [subnet[number] for number in range(2, 6)]
    with (
        regime.network(subnet=str(subnet)) as other,
        regime.container(network="X") as evil,
    ):
        assert evil.address is not None
        by = forge.hardware(regime.host, "brX")
        attacker = Attacker(ns=evil.ns, link="eth0", by=by, honest=evil.address)
        packets = [forge.datagram(guess, evil.address, (54, 7700)) for guess in guesses]
        for number in range(3):
            with (
                regime.container(network="X", udp=(54,), name=f"two{number}") as victim,
                repeated(lambda: attacker.send(*packets), 0.0005),
            ):
                address = second_address(regime, f"two{number}", other.name)
                assert address in guesses
                time.sleep(SHORT)
                flows = regime.host.flows("-p", "udp", "-s", str(address), "--orig-port-src=54")
                assert flows == ""
                reply = udp(evil.ns, GATEWAY, 54, source_port=7700, timeout=SHORT)
                assert isinstance(reply, Failure)
                assert victim.server.received == []


@each_regime
def test_container_answers_clients_of_its_address_on_another_network(regime: Regime) -> None:
    """Its replies come in by the network of its default route."""
    with (
        regime.network(options={MODE: "nat-unprotected"}) as other,
        regime.container(network="X", tcp=(81,), udp=(54,), name="both"),
    ):
        address = second_address(regime, "both", other.name)
        regime.client.ip(f"route add {address} via {HOST} dev ext0")
        try:
            assert server(tcp(regime.client, address, 81)) == "both"
            assert server(udp(regime.client, address, 54)) == "both"
        finally:
            regime.client.ip(f"route del {address} via {HOST} dev ext0")


@contextmanager
def listening(ns: Namespace, port: int) -> Iterator[socket.socket]:
    with ns.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::", port))
        sock.listen()
        sock.settimeout(PATIENCE)
        yield sock


@each_regime
@pytest.mark.parametrize("then", ["disconnect", "restart"])
def test_open_connection_outlives_another_default_route(regime: Regime, then: str) -> None:
    """It is older than the default route by another network. The server sends next."""
    engine, port = regime.engine, regime.port()
    other = engine.network("A0", "fd00:a0::/64")
    try:
        with (
            regime.container(network="X", name="push") as made,
            listening(regime.client, port) as sock,
            connect(made.ns, CLIENT, port) as conversation,
        ):
            there, _ = sock.accept()
            with there:
                engine.docker("network", "connect", "A0", "push")
                assert until(lambda: f"-i {other.bridge} -j RETURN" in regime.sandbox.rules(), True)
                if then == "disconnect":
                    engine.docker("network", "disconnect", "A0", "push")
                else:
                    regime.daemon.stop()
                    regime.daemon.start()
                time.sleep(1)
                there.send(b"pushed")
                conversation.socket.settimeout(PATIENCE)
                assert conversation.socket.recv(9) == b"pushed"
    finally:
        engine.docker("network", "rm", "A0")


@each_regime
def test_container_routes_a_part_of_another_network_beside_a_container_on_both(
    regime: Regime,
) -> None:
    part, behind, port = "fd00:b::8000/113", IPv6Address("fd00:b::8005"), regime.port()
    regime.x2.ns.ip(f"address add {behind}/128 dev eth0 nodad")
    regime.host.ip(f"route add {part} via {X2} dev brX")
    try:
        until(lambda: part in regime.sandbox.rules(), True)
        with (
            regime.container(network="X", name="beside"),
            serve(regime.client, "client", tcp=[port]),
        ):
            second_address(regime, "beside", "Y")
            assert server(tcp(regime.x2.ns, CLIENT, port, source=behind)) == "client"
    finally:
        regime.host.ip(f"route del {part} via {X2} dev brX")
        regime.x2.ns.ip(f"address del {behind}/128 dev eth0")


def sends_nothing_out(regime: Regime, attacker: Attacker, *sources: IPv6Address) -> None:
    """Neither to the client nor to a published port, by addresses of the host and by its own."""
    before = len(regime.x1.server.received)
    with watch(regime.client) as packets:
        for number, source in enumerate(sources):
            attacker.send(forge.datagram(source, CLIENT, (7100, 7110 + number)))
            attacker.send(forge.datagram(source, HOST, (7120 + number, 5353)))
        time.sleep(SHORT)
        assert [each for each in packets() if 7100 <= each.port < 7130] == []
    assert regime.x1.server.received[before:] == []


@each_regime
def test_internal_network_without_ipv6_is_closed_to_ipv6(regime: Regime) -> None:
    """A container can enable IPv6 there if its user permits it, and send frames in any case."""
    docker = regime.engine.docker
    docker("network", "create", "--internal", "-o", "com.docker.network.bridge.name=brZ", "z")
    try:
        with regime.container(network="z", name="z1") as made:
            host = link_local(regime.host, "brZ")
            for scope in ("all", "eth0"):
                made.ns.sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", 0)
            made.ns.ip("address add fe80::77/64 dev eth0 nodad")
            by = forge.hardware(regime.host, "brZ")
            assert isinstance(tcp(made.ns, f"{host}%eth0", 8080, timeout=SHORT), Failure)
            assert isinstance(udp(made.ns, f"{host}%eth0", 5353, timeout=SHORT), Failure)
            attacker = Attacker(ns=made.ns, link="eth0", by=by, honest=BEYOND)
            sends_nothing_out(regime, attacker, BEYOND, CLIENT, X1)
    finally:
        docker("network", "rm", "z")


@each_regime
def test_internal_network_outside_of_nat_prefixes_is_closed(regime: Regime) -> None:
    gateway, public = IPv6Address("2001:db8:78::1"), "2001:db8:78::/64"
    regime.engine.network("gi", public, "--internal")
    try:
        with regime.container(network="gi", name="gi1", tcp=(80,)) as made:
            assert made.address is not None
            made.ns.ip(f"route replace default via {gateway}")
            assert isinstance(tcp(made.ns, gateway, 8080, timeout=SHORT), Failure)
            assert isinstance(udp(made.ns, gateway, 5353, timeout=SHORT), Failure)
            by = forge.hardware(regime.host, "brgi")
            attacker = Attacker(ns=made.ns, link="eth0", by=by, honest=made.address)
            sends_nothing_out(regime, attacker, made.address, CLIENT)
            regime.client.ip(f"route add {public} via {HOST} dev ext0")
            try:
                refused = tcp(regime.client, made.address, 80, timeout=SHORT)
                assert isinstance(refused, Failure)
            finally:
                regime.client.ip(f"route del {public} via {HOST} dev ext0")
            assert server(tcp(regime.host, made.address, 80)) == "gi1"
    finally:
        regime.engine.docker("network", "rm", "gi")


@each_regime
def test_internal_container_reaches_no_port_by_a_flow_that_is_older(regime: Regime) -> None:
    i1, port = regime.i1.ns, regime.port()
    addresses = (f"{link_local(regime.host, 'brI')}%eth0", str(GATEWAY_J))
    for address in addresses:
        udp(i1, address, port, source_port=6001, timeout=0.1)
    with regime.container(network="X", udp=(53,), publish=(f"{port}:53/udp",)) as made:
        until(lambda: f"--dport {port} " in regime.sandbox.rules(), True)
        for address in addresses * 3:
            assert isinstance(udp(i1, address, port, source_port=6001, timeout=SHORT), Failure)
        assert made.server.received == []


@each_regime
def test_ipvlan_container_sends_as_no_container(regime: Regime) -> None:
    """The kernel sends the packets of ipvlan l3 containers by OUTPUT, as a raw socket of the host
    does. Such a socket sends them here, because not every kernel has ipvlan."""
    regime.engine.docker(
        *("network", "create", "-d", "ipvlan", "--ipv6", "--subnet", "fd00:e::/64"),
        *("-o", "parent=ext0", "-o", "ipvlan_mode=l3", "ipvlan"),
    )
    try:
        assert until(lambda: OUTPUT_JUMP in regime.sandbox.rules(), True)
        with (
            watch(regime.client) as packets,
            regime.host.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock,
        ):
            with pytest.raises(PermissionError):
                sock.sendto(forge.datagram(X1, CLIENT, (54, 7800)), (str(CLIENT), 0))
            with pytest.raises(PermissionError):
                sock.sendto(forge.datagram(IN_IPVLAN, X1, (54, 54)), (str(X1), 0))
            sock.sendto(forge.datagram(BEYOND, CLIENT, (54, 7801)), (str(CLIENT), 0))
            until(lambda: [each for each in packets() if each.port == 7801] != [], True)
            assert [each for each in packets() if each.port == 7800] == []
        assert isinstance(udp(regime.client, HOST, 54, source_port=7800, timeout=SHORT), Failure)
        # The host's own packets, and what it rejects in a container's name, pass.
        assert server(tcp(regime.host, X1, 81)) == "x1"
        assert server(tcp(regime.client, HOST, 8080)) == "x1"
        assert tcp(regime.client, HOST, 7999, timeout=SHORT) is Failure.REFUSED
    finally:
        regime.engine.docker("network", "rm", "ipvlan")
    assert not until(lambda: OUTPUT_JUMP in regime.sandbox.rules(), False)


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Networks of the engine beside Y, which ipv6natd manages: X, J (internal) and the public G.

    Y's container publishes 8081 and 5354/udp, G's container 8082 with nft.
    """

    sandbox: Sandbox
    daemon: Daemon
    containers: dict[str, Container] = field(default_factory=dict)

    def ns(self, name: str) -> Namespace:
        return self.containers[name].ns


@contextmanager
def beside(variant: Variant, *, proxy: bool) -> Iterator[Beside]:
    with (
        Sandbox(variant) as sandbox,
        Engine(sandbox, userland_proxy=proxy, ip6tables=True) as engine,
        Bus(sandbox.dir) as bus,
        ExitStack() as stack,
    ):
        for name, subnet in (("X", "fd00:a::/64"), ("Y", "fd00:b::/64"), ("G", "2001:db8:9::/64")):
            engine.network(name, subnet)
        engine.network("J", "fd00:c::/64", "--internal")
        # Docker 20.10 without its proxy writes no rule for the second TCP port with legacy.
        published = ("8082:80",) if variant == "nft" else ()
        made = {
            "x1": engine.run("x1", "X", ip6=str(X1)),
            "y1": engine.run("y1", "Y", ip6=str(Y1), publish=("8081:80", "5354:53/udp")),
            "g1": engine.run("g1", "G", ip6=str(PUBLIC), publish=published),
            "j1": engine.run("j1", "J", ip6=str(J1)),
        }
        for name, container in made.items():
            there = stack.enter_context(serve(container.ns, name, tcp=[80, 81], udp=[53, 54]))
            made[name] = replace(container, server=there)
        remove_bridge_rules(sandbox, "brY")
        with Daemon(sandbox, engine.endpoint, bus=bus.address) as daemon:
            yield Beside(sandbox=sandbox, daemon=daemon, containers=made)


@pytest.mark.depends_on("proxy")
@pytest.mark.parametrize("proxy", [True, False], ids=["proxy", "noproxy"])
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_networks_of_the_engine_stay_closed_beside_ours(
    tools: None,  # noqa: ARG001
    variant: Variant,
    proxy: bool,
) -> None:
    """With its own rules, the engine closes them. One is outside nat_prefixes, one is internal."""
    with beside(variant, proxy=proxy) as lab:
        managed = {each["Name"]: each["ManagedBy"] for each in listed(lab.daemon, "networks")}
        assert managed == {"X": "engine", "Y": "ipv6natd", "G": "engine", "J": "engine"}
        assert not any("nat_prefixes" in each["Reason"] for each in listed(lab.daemon, "skipped"))
        y1, j1, g1 = lab.ns("y1"), lab.ns("j1"), lab.containers["g1"]
        assert server(tcp(lab.sandbox.client, HOST, 8081)) == "y1"
        if variant == "nft":
            assert server(tcp(lab.sandbox.client, HOST, 8082)) == "g1"
        assert isinstance(tcp(y1, PUBLIC, 81, timeout=SHORT), Failure)
        assert isinstance(tcp(y1, X1, 81, timeout=SHORT), Failure)
        assert isinstance(tcp(j1, GATEWAY_J, 8081, timeout=SHORT), Failure)
        assert isinstance(udp(j1, GATEWAY_J, 5354, timeout=SHORT), Failure)
        by = forge.hardware(lab.sandbox.host, "brY")
        attacker = Attacker(ns=y1, link="eth0", by=by, honest=Y1)
        attacker.send(forge.datagram(PUBLIC, Y1, (54, 4445)))
        time.sleep(SHORT)
        for address in (GATEWAY_Y, PUBLIC):
            assert isinstance(udp(y1, address, 54, source_port=4445, timeout=SHORT), Failure)
        assert [each for each in g1.server.received if each.port == 54] == []
        by = forge.hardware(lab.sandbox.host, "brJ")
        sends_no_answers_out(lab.sandbox, Attacker(ns=j1, link="eth0", by=by, honest=J1))


def sends_no_answers_out(sandbox: Sandbox, attacker: Attacker) -> None:
    """In answers and ICMPv6 errors of the host to a forged source."""
    hop = bytearray(forge.datagram(CLIENT, IPv6Address("2001:db8:1::77"), (7503, 9)))
    hop[7] = 1
    with (
        serve(sandbox.host, "service", udp=[6700]) as service,
        watch(sandbox.client) as packets,
    ):
        attacker.send(
            forge.datagram(CLIENT, HOST, (7501, 9)),
            forge.datagram(CLIENT, HOST, (7502, 6700)),
            bytes(hop),
            forge.datagram(CLIENT, IPv6Address("3fff::1"), (7504, 9)),
        )
        time.sleep(SHORT)
        arrived = [each for each in packets() if not each.outgoing]
        assert [each for each in arrived if each.protocol == "udp" or each.port in (1, 3)] == []
        assert service.received == []


@pytest.mark.depends_on("proxy")
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_container_answers_by_a_default_route_in_a_network_of_the_engine(
    tools: None,  # noqa: ARG001
    variant: Variant,
) -> None:
    with (
        Sandbox(variant) as sandbox,
        Engine(sandbox, ip6tables=True) as engine,
        Bus(sandbox.dir) as bus,
    ):
        engine.network("X", "fd00:a::/64")
        engine.network("Y", "fd00:b::/64", options={MODE: "nat-unprotected"})
        for name in "XY":
            engine.run(f"{name}1", name)
        both = engine.run("both", "X")
        address = connected(engine, "both", "Y")
        remove_bridge_rules(sandbox, "brY")
        sandbox.client.ip(f"route add fd00:b::/64 via {HOST} dev ext0")
        with (
            serve(both.ns, "both", tcp=[81], udp=[54]),
            Daemon(sandbox, engine.endpoint, bus=bus.address),
        ):
            assert server(tcp(sandbox.client, address, 81)) == "both"
            assert server(udp(sandbox.client, address, 54)) == "both"


@pytest.mark.depends_on
def test_upgrade_deletes_entries_with_a_source_in_a_prefix_that_is_routed_to_a_container(
    upgraded: Upgraded,  # noqa: F811
) -> None:
    """y1 is the router of fd00:ee::/64, as a VPN gateway is. The former rules checked no source."""
    daemon, sandbox, y1 = upgraded.daemon, upgraded.sandbox, upgraded.attacker.ns
    sandbox.host.ip(f"route add fd00:ee::/64 via {Y1} dev brY")
    y1.ip(f"address add {BEYOND}/128 dev eth0 nodad")
    by = forge.hardware(sandbox.host, "ext0")
    attacker = Attacker(ns=sandbox.rogue, link="ext0", by=by, honest=ROGUE)
    with serve(y1, "beyond", udp=[54]):
        until(lambda: "fd00:ee::/64" in sandbox.rules(), True)
        daemon.stop()
        restore_former_rules(upgraded)
        attacker.send(forge.datagram(BEYOND, ROGUE, (54, 4446)))

        def asked() -> Answer | Failure:
            return udp(sandbox.rogue, BEYOND, 54, source=ROGUE, source_port=4446, timeout=SHORT)

        assert server(asked()) == "beyond"
        daemon.start()
        assert until(lambda: isinstance(asked(), Answer), False) is False
        assert isinstance(asked(), Failure)
