"""Published ports: scenarios P, B, R and U, from a peer on the wire to the container's server."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv6Address, IPv6Network
from typing import Any

import pytest

from tests.harness import (
    Answer,
    Daemon,
    Engine,
    Failure,
    Regime,
    Sandbox,
    ping,
    serve,
    tcp,
    udp,
    until,
)
from tests.harness.process import LabError
from tests.harness.sandbox import CLIENT, HOST, HOST_TOO, Variant
from tests.system.packets.asking import SHORT, dnats, listed, opened, peer, server

pytestmark = pytest.mark.depends_on("proxy", "engine")


def test_p1_u1_container_sees_the_client(regime: Regime) -> None:
    answer = opened(regime.client, 8080)
    assert (answer.server, answer.port) == ("x1", 80)
    by_udp = udp(regime.client, HOST, 5353)
    assert (server(by_udp), peer(by_udp)) == ("x1", CLIENT)


def test_p2_port_is_published_on_every_host_address(regime: Regime) -> None:
    assert opened(regime.client, 8080, address=HOST_TOO).server == "x1"
    assert peer(udp(regime.client, HOST_TOO, 5353)) == CLIENT


def test_p3_port_is_published_at_once_on_a_new_host_address(regime: Regime) -> None:
    late = IPv6Address("2001:db8:1::77")
    regime.host.ip(f"address add {late}/64 dev ext0 nodad")
    try:
        # The kernel answers for a new address after a moment.
        until(lambda: ping(regime.client, late), True)
        assert peer(tcp(regime.client, late, 8080)) == CLIENT
    finally:
        regime.host.ip(f"address del {late}/64 dev ext0")


def test_p4_only_published_ports_of_a_container_are_open(regime: Regime) -> None:
    assert opened(regime.client, 8080).port == 80
    assert opened(regime.client, 8443).port == 443
    assert tcp(regime.client, HOST, 9999) is Failure.REFUSED


def test_p5_two_containers_are_reached_by_their_own_ports(regime: Regime) -> None:
    first, second = regime.port(), regime.port()
    with (
        regime.container(publish=[f"{first}:80"]) as one,
        regime.container(publish=[f"{second}:80"]) as two,
    ):
        assert opened(regime.client, first).server == one.name
        assert opened(regime.client, second).server == two.name


def test_p6_port_follows_a_restarted_container_to_its_new_address(regime: Regime) -> None:
    port = regime.port()
    most = 0
    done = threading.Event()

    def count() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, len(dnats(regime.sandbox.rules(), port)))

    with (
        regime.network() as network,
        regime.container(network=network, publish=[f"{port}:80"], name="p6") as before,
    ):
        opened(regime.client, port)
        watcher = threading.Thread(target=count)
        watcher.start()
        try:
            regime.engine.docker("stop", "p6")
            with regime.container(network=network) as filler:
                assert filler.address == before.address
                regime.engine.docker("start", "p6")
                after = regime.engine.container("p6", network=network.name)
                assert after.address != before.address
                with serve(after.ns, "again", tcp=[80]):
                    answer = opened(regime.client, port)
                assert (answer.server, answer.local) == ("again", after.address)
        finally:
            done.set()
            watcher.join()
    assert most == 1


def test_p7_port_leads_to_a_fixed_container_address(regime: Regime) -> None:
    port = regime.port()
    with regime.container(ip6="fd00:a::50", publish=[f"{port}:80"]):
        assert opened(regime.client, port).local == IPv6Address("fd00:a::50")


def test_p8_first_connection_100_ms_after_docker_run_is_forwarded(regime: Regime) -> None:
    port = regime.port()
    with regime.container(publish=[f"{port}:80"]):
        time.sleep(0.1)
        assert peer(tcp(regime.client, HOST, port)) == CLIENT


def test_p9_stopped_container_has_no_rule_and_its_port_is_refused(regime: Regime) -> None:
    port = regime.port()
    with regime.container(publish=[f"{port}:80"], name="p9"):
        opened(regime.client, port)
        regime.engine.docker("stop", "p9")
        assert until(lambda: dnats(regime.sandbox.rules(), port), []) == []
        assert tcp(regime.client, HOST, port) is Failure.REFUSED


def test_p10_paused_container_keeps_its_rules(regime: Regime) -> None:
    port = regime.port()
    with regime.container(publish=[f"{port}:80"], name="p10"):
        opened(regime.client, port)
        before = regime.sandbox.rules()
        regime.engine.docker("pause", "p10")
        paused = regime.sandbox.rules()
        regime.engine.docker("unpause", "p10")
        assert paused == before == regime.sandbox.rules()
        opened(regime.client, port)


@pytest.mark.parametrize("interface", ["all", "eth0"])
def test_p11_q15_container_without_ipv6_is_skipped_with_the_reason(
    regime: Regime, interface: str
) -> None:
    """With eth0, it is Q15."""
    port = regime.port()
    off = f"net.ipv6.conf.{interface}.disable_ipv6=1"
    if interface == "eth0" and regime.engine.release >= (28, 0):
        with pytest.raises(LabError, match=r"endpoint\.sysctls"):
            regime.engine.run("p11", "X", "--sysctl", off)
        regime.engine.docker("rm", "--force", "p11", check=False)
        return
    with regime.container("--sysctl", off, publish=[f"{port}:80"], name="p11") as made:
        bindings = made.facts["NetworkSettings"]["Ports"]["80/tcp"]
        # Engine 28 without its proxy publishes this only on IPv4, and the user gets a message too.
        by_engine = any(":" in each["HostIp"] for each in bindings)
        assert by_engine == (regime.proxy or regime.engine.release < (28, 0))
        assert peer(tcp(regime.client, HOST, port)) != CLIENT
        assert dnats(regime.sandbox.rules(), port) == []
        if regime.native:
            return

        def skipped() -> list[dict[str, Any]]:
            rows = listed(regime.daemon, "skipped")
            return [each for each in rows if each["ContainerName"] == "p11"]

        (row,) = until(skipped, lambda found: len(found) == 1)
        assert row["Port"] == "80/tcp"
        assert "no IPv6 address" in row["Reason"]
        assert dnats(regime.sandbox.rules(), port) == []


def test_p13_default_bridge_publishes_ports(regime: Regime) -> None:
    port = regime.port()
    with regime.container(network="bridge", publish=[f"{port}:80"]):
        assert opened(regime.client, port).local in IPv6Network("fd00:d::/64")


def test_p14_q19_network_of_another_driver_has_no_rule(regime: Regime) -> None:
    port = regime.port()
    subnet = "--subnet=fd00:e::/64"
    made = regime.engine.docker(
        "network", "create", "-d", "macvlan", "-o", "parent=ext0", "--ipv6", subnet, "mv"
    )
    assert made
    try:
        with regime.container(network="mv", publish=[f"{port}:80"]) as one:
            assert one.address is not None
            with regime.container(publish=[f"{regime.port()}:80"]) as later:
                opened(regime.client, later.port())
            assert "fd00:e:" not in regime.sandbox.rules()
            assert dnats(regime.sandbox.rules(), port) == []
            if not regime.native:
                rows = listed(regime.daemon, "skipped")
                (row,) = (each for each in rows if each["ContainerName"] == one.name)
                assert "the container is on no bridge network" in row["Reason"]
                explained = json.loads(regime.daemon.ctl("explain", str(port), "--json=short"))
                assert [each["ContainerName"] for each in explained] == [one.name]
    finally:
        regime.engine.docker("network", "rm", "mv")


def test_p15_network_with_public_addresses_is_skipped_with_the_reason(regime: Regime) -> None:
    port = regime.port()
    with regime.network(subnet="2001:db8:5::/64") as network:
        with regime.container(network=network, publish=[f"{port}:80"]):
            assert peer(tcp(regime.client, HOST, port)) != CLIENT
            assert network.bridge not in regime.sandbox.rules()
        if regime.native:
            return
        rows = until(
            lambda: [r for r in listed(regime.daemon, "skipped") if r["Network"] == network.name],
            lambda found: bool(found),
        )
        assert len(rows) == 1
        assert "nat_prefixes" in rows[0]["Reason"]


def test_p16_port_used_by_the_host_is_not_forwarded(regime: Regime) -> None:
    port = regime.port()
    with serve(regime.host, "host", tcp=[port]):
        with (
            pytest.raises(LabError, match="address already in use"),
            regime.container(publish=[f"{port}:80"]),
        ):
            pass
        assert server(tcp(regime.client, HOST, port)) == "host"
        assert dnats(regime.sandbox.rules(), port) == []


@pytest.mark.parametrize(
    "binding", ["127.0.0.1:{}:80", "192.0.2.10:{}:80", "0.0.0.0:{}:80"], ids=["b1", "b2", "b3"]
)
def test_b1_b2_b3_ipv4_binding_opens_no_ipv6_port(regime: Regime, binding: str) -> None:
    port, probe = regime.port(), regime.port()
    with regime.container(publish=[binding.format(port), f"{probe}:80"]):
        opened(regime.client, probe)
        assert tcp(regime.client, HOST, port) is Failure.REFUSED
        assert dnats(regime.sandbox.rules(), port) == []


def test_b4_ipv6_wildcard_binding_opens_every_address(regime: Regime) -> None:
    port = regime.port()
    with regime.container(publish=[f"[::]:{port}:80"]):
        opened(regime.client, port)
        opened(regime.client, port, address=HOST_TOO)


def test_b5_address_binding_opens_only_that_address(regime: Regime) -> None:
    port = regime.port()
    with regime.container(publish=[f"[{HOST_TOO}]:{port}:80"]):
        opened(regime.client, port, address=HOST_TOO)
        assert tcp(regime.client, HOST, port) is Failure.REFUSED


def test_b6_loopback_binding_opens_no_port_to_peers(regime: Regime) -> None:
    port, probe = regime.port(), regime.port()
    with regime.container(publish=[f"[::1]:{port}:80", f"{probe}:80"]) as made:
        opened(regime.client, probe)
        assert tcp(regime.client, HOST, port) is Failure.REFUSED
        by_host = tcp(regime.host, "::1", port)
        assert server(by_host) == (made.name if regime.proxy else Failure.REFUSED)


def test_b7_network_with_an_ipv4_loopback_default_binding_opens_no_port(regime: Regime) -> None:
    port, probe = regime.port(), regime.port()
    options = {"com.docker.network.bridge.host_binding_ipv4": "127.0.0.1"}
    with (
        regime.network(options=options) as network,
        regime.container(network=network, publish=[f"{port}:80", f"[::]:{probe}:80"]),
    ):
        opened(regime.client, probe)
        assert tcp(regime.client, HOST, port) is Failure.REFUSED
        assert dnats(regime.sandbox.rules(), port) == []


@pytest.mark.parametrize("proxy", [True, False], ids=["proxy", "noproxy"])
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_b8_engine_with_an_ipv4_loopback_default_binding_opens_no_port(
    tools: None,  # noqa: ARG001
    variant: Variant,
    proxy: bool,
) -> None:
    flags = ("--ipv6", "--fixed-cidr-v6=fd00:d::/64", "--ip=127.0.0.1")
    with (
        Sandbox(variant) as sandbox,
        Engine(sandbox, *flags, userland_proxy=proxy) as engine,
        Daemon(sandbox, engine.endpoint),
    ):
        made = engine.run("box8", "bridge", publish=["8080:80", "[::]:8081:80"])
        with serve(made.ns, "box8", tcp=[80]):
            opened(sandbox.client, 8081)
            assert tcp(sandbox.client, HOST, 8080) is Failure.REFUSED
            assert dnats(sandbox.rules(), 8080) == []


def test_r1_ephemeral_port_is_opened_by_its_ipv6_number(regime: Regime) -> None:
    with regime.container(publish=["80"]) as made:
        opened(regime.client, made.port())


def test_r2_publish_all_opens_all_exposed_ports(regime: Regime) -> None:
    with regime.container("-P", "--expose=80", "--expose=81", tcp=(80, 81)) as made:
        assert opened(regime.client, made.port("80/tcp")).port == 80
        assert opened(regime.client, made.port("81/tcp")).port == 81


def test_r3_port_chosen_from_a_range_is_the_only_open_one(regime: Regime) -> None:
    first = regime.port(11)
    with regime.container(publish=[f"{first}-{first + 10}:80"]) as made:
        opened(regime.client, made.port())
        rules = regime.sandbox.rules()
        assert [p for p in range(first, first + 11) if dnats(rules, p)] == [made.port()]


@pytest.mark.depends_on
def test_r4_range_with_equal_ports_is_one_rule(regime: Regime) -> None:
    first, last = 30000, 30100
    run = f"{first}-{last}"
    with regime.container(publish=[f"{run}:{run}"], tcp=(first, first + 50, last)):
        for port in (first, first + 50, last):
            assert opened(regime.client, port).port == port
        lines = [line for line in regime.sandbox.rules().splitlines() if f"{first}:{last}" in line]
        assert len([line for line in lines if "DNAT" in line]) == 1
        assert len(lines) <= 3
        for outside in (first - 1, last + 1):
            assert tcp(regime.client, HOST, outside) is Failure.REFUSED


def test_r5_shifted_range_maps_each_port_to_its_own(regime: Regime) -> None:
    first = regime.port(10)
    inside = range(7000, 7010)
    with regime.container(publish=[f"{first}-{first + 9}:7000-7009/udp"], udp=inside):
        for number, port in enumerate(inside):
            answer = until(
                lambda n=number: udp(regime.client, HOST, first + n),  # type: ignore[misc]
                lambda each: peer(each) == CLIENT,
            )
            assert not isinstance(answer, Failure)
            assert (answer.port, answer.peer) == (port, CLIENT)


def test_same_source_port_to_two_addresses_reaches_the_right_shifted_port(
    regime: Regime,
) -> None:
    first = regime.port(10)
    inside = range(7100, 7110)
    publish = [f"{first}-{first + 9}:7100-7109{kind}" for kind in ("", "/udp")]
    with regime.container(publish=publish, tcp=inside, udp=inside):
        opened(regime.client, first + 9)
        for source_port, ask in ((40001, tcp), (40002, udp)):
            for address in (HOST, HOST_TOO):
                answer = ask(regime.client, address, first + 3, source_port=source_port)
                assert not isinstance(answer, Failure)
                assert answer.port == 7103


@contextmanager
def occupied_ports(regime: Regime, ports: range) -> Iterator[None]:
    """Ports that another process uses, only on IPv6."""
    with ExitStack() as stack:
        for port in ports:
            sock = stack.enter_context(regime.host.socket(socket.AF_INET6, socket.SOCK_STREAM))
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(("::", port))
            sock.listen()
        yield


def test_r6_r7_new_ipv6_port_of_a_restarted_container_is_opened(regime: Regime) -> None:
    with regime.container(publish=["80"]) as made:
        before = made.port()
        opened(regime.client, before)
        # Engines before 27 choose the ports for IPv4 and IPv6 separately, here different ones.
        with occupied_ports(regime, range(before + 1, before + 4)):
            regime.engine.docker("restart", "--time=0", made.name)
        again = regime.engine.container(made.name, network="X")
        numbers = again.port(), again.port(family=4)
        with serve(again.ns, "again", tcp=[80]):
            assert opened(regime.client, numbers[0]).server == "again"
        assert dnats(regime.sandbox.rules(), before) == []
        assert tcp(regime.client, HOST, before) is Failure.REFUSED
        if regime.native:
            assert numbers[0] == numbers[1] > before
            return
        (row,) = [row for row in listed(regime.daemon, "networks") if row["Name"] == "X"]
        if regime.engine.release >= (27, 0):
            assert numbers[0] == numbers[1] > before
            assert row["Warnings"] == []
            return
        assert numbers[0] > numbers[1] > before
        said = f"'{made.name}' on host port {numbers[0]} for IPv6 and {numbers[1]} for IPv4"
        assert said in row["Warnings"][-1]
        assert dnats(regime.sandbox.rules(), numbers[1]) == []


def test_container_with_the_same_address_and_a_new_mac_is_reached_at_once(regime: Regime) -> None:
    """Engines before 28 derive the MAC from the IPv4 address, and do not announce it."""
    with regime.network(subnet="fd00:f:0:9::/64") as network, regime.container(network=network):
        for mac in ("02:00:00:00:00:01", "02:00:00:00:00:02"):
            with regime.container(
                f"--mac-address={mac}",
                network=network,
                publish=["8091:80"],
                ip6="fd00:f:0:9::11",
            ) as made:
                if not regime.native:
                    wanted = [(8091, made.name)]
                    assert (
                        until(lambda: mapped_containers(regime, 8091), wanted, timeout=10) == wanted
                    )
                answer = tcp(regime.client, HOST, 8091)
                assert (server(answer), peer(answer)) == (made.name, CLIENT)
                assert mac in regime.host.ip(f"-6 neigh show {made.address}")


def mapped_containers(regime: Regime, port: int) -> list[tuple[int, str]]:
    """The containers with a mapping of the host port, from `ipv6natctl mappings`."""
    rows = listed(regime.daemon, "mappings")
    return [(port, row["ContainerName"]) for row in rows if row["HostPort"] == port]


def test_r8_range_of_10000_udp_ports_is_one_rule(tools: None) -> None:  # noqa: ARG001
    """Without the engine's IPv4 rules, because the engine runs one process for each rule."""
    run = "10000-19999"
    with (
        Sandbox() as sandbox,
        Engine(sandbox, "--iptables=false", userland_proxy=False) as engine,
        Daemon(sandbox, engine.endpoint),
    ):
        engine.network("X", "fd00:a::/64")
        made = engine.run("r8", "X", publish=[f"[::]:{run}:{run}/udp"])
        with serve(made.ns, "r8", udp=(10000, 19999)):
            for port in (10000, 19999):
                answer = until(
                    lambda n=port: udp(sandbox.client, HOST, n),  # type: ignore[misc]
                    lambda each: peer(each) == CLIENT,
                )
                assert isinstance(answer, Answer)
                assert (answer.port, answer.peer) == (port, CLIENT)
        rules = [line for line in sandbox.rules().splitlines() if "-j DNAT" in line]
        assert len(rules) == 1
        assert "--dport 10000:19999" in rules[0]


def test_tcp_and_udp_on_one_port_are_independent(regime: Regime) -> None:
    """U6"""
    port = regime.port()
    with (
        regime.container(publish=[f"{port}:80/tcp"]) as one,
        regime.container(publish=[f"{port}:53/udp"], tcp=(), udp=(53,)) as two,
    ):
        assert opened(regime.client, port).server == one.name
        by_udp = until(lambda: udp(regime.client, HOST, port), lambda each: peer(each) == CLIENT)
        assert server(by_udp) == two.name


def test_host_services_stay_reachable(regime: Regime) -> None:
    assert ping(regime.client, HOST)
    port = regime.port()
    with serve(regime.host, "host", tcp=[port], udp=[port]):
        assert server(tcp(regime.client, HOST, port)) == "host"
        assert server(udp(regime.client, HOST, port)) == "host"
        assert tcp(regime.client, HOST, port + 1, timeout=SHORT) is Failure.REFUSED
