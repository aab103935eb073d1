"""Containers on several networks: scenarios M. The port follows Docker's IPv6 gateway."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network

import pytest

from tests.harness import Answer, Failure, Regime, connect, ping, serve, tcp, udp, until
from tests.harness.sandbox import CLIENT, HOST
from tests.system.packets.asking import SHORT, dnats, opened, server

pytestmark = pytest.mark.depends_on("engine")


def answers_from(subnet: str) -> object:
    def reached(answer: object) -> bool:
        return (
            isinstance(answer, Answer)
            and answer.peer == CLIENT
            and answer.local in IPv6Network(subnet)
        )

    return reached


def assert_port_leads_to(regime: Regime, port: int, subnet: str) -> None:
    # A first packet during the change may go to the old address and get no answer.
    answer = until(lambda: tcp(regime.client, HOST, port, timeout=SHORT), answers_from(subnet))
    assert isinstance(answer, Answer), answer
    assert answer.local in IPv6Network(subnet)
    assert len(dnats(regime.sandbox.rules(), port)) == 1


@pytest.fixture
def strict(regime: Regime) -> Iterator[Regime]:
    """The regime with a strict reverse-path filter, such as firewalld's."""
    tool = f"ip6tables-{regime.variant}"
    rule = ("PREROUTING", "-m", "rpfilter", "--invert", "-j", "DROP")
    regime.host.run(tool, "-t", "mangle", "-A", *rule)
    yield regime
    regime.host.run(tool, "-t", "mangle", "-D", *rule)


def test_m1_m3_m4_m7_port_follows_the_gateway_on_connect_and_disconnect(strict: Regime) -> None:
    """A reply from another address would leave by a bridge without a route for it."""
    regime, port = strict, strict.port()
    docker = regime.engine.docker
    docker("network", "create", "--ipv6", "--subnet=fd00:5:b::/64", "mm-b")
    docker("network", "create", "--ipv6", "--subnet=fd00:5:a::/64", "mm-a")
    try:
        with regime.container(network="mm-b", publish=[f"{port}:80"], name="moving") as made:
            assert_port_leads_to(regime, port, "fd00:5:b::/64")
            docker("network", "connect", "mm-a", "moving")
            assert_port_leads_to(regime, port, "fd00:5:a::/64")
            # No server listens there; a refusal is an answer.
            assert udp(made.ns, CLIENT, 9) is Failure.REFUSED
            assert udp(made.ns, CLIENT, 9, source=made.address, timeout=SHORT) is Failure.TIMEOUT
            for _ in range(3):
                if not regime.native:
                    regime.daemon.ctl("resync")
                assert_port_leads_to(regime, port, "fd00:5:a::/64")
            docker("network", "disconnect", "mm-a", "moving")
            assert_port_leads_to(regime, port, "fd00:5:b::/64")
    finally:
        docker("network", "rm", "mm-a", "mm-b")


@pytest.mark.ours
@pytest.mark.depends_on("variant", "proxy")
def test_replies_from_another_network_leave_by_the_default_route(regime: Regime) -> None:
    """A container on two networks: a client, or the host, asks its address on the network without
    its default route, and open connections continue after the default route moves."""
    port, docker = regime.port(), regime.engine.docker
    docker("network", "create", "--ipv6", "--subnet=fd00:5:a::/64", "aa-new")
    options = {"com.docker.network.bridge.gateway_mode_ipv6": "nat-unprotected"}
    try:
        with (
            regime.network(options=options) as network,
            regime.container(network=network, name="two-homed", udp=(53,)) as made,
            serve(regime.client, "client", tcp=[port]),
        ):
            address = made.address
            assert address is not None
            regime.client.ip(f"route add {address} via {HOST} dev ext0")
            until(lambda: f" -i {network.bridge} " in regime.sandbox.rules(), True)
            with (
                connect(made.ns, CLIENT, port) as outgoing,
                connect(regime.client, address, 80) as incoming,
            ):
                assert (server(outgoing.ask()), server(incoming.ask())) == ("client", "two-homed")
                docker("network", "connect", "aa-new", "two-homed")
                until(lambda: str(address) in regime.sandbox.rules(), True)
                # The address of a new bridge is tentative for a second.
                until(lambda: ping(made.ns, "fd00:5:a::1"), True)
                assert (server(outgoing.ask()), server(incoming.ask())) == ("client", "two-homed")
            assert server(tcp(regime.client, address, 80)) == "two-homed"
            assert server(udp(regime.client, address, 53)) == "two-homed"
            assert ping(regime.client, address)
            assert server(tcp(regime.host, address, 80, source=HOST)) == "two-homed"
    finally:
        regime.client.run("ip", "route", "del", str(address), check=False)
        docker("rm", "--force", "two-homed", check=False)
        docker("network", "rm", "aa-new")


def test_m5_internal_network_beside_a_normal_one_is_ignored(regime: Regime) -> None:
    port = regime.port()
    with regime.container(network="I", publish=[f"{port}:80"], name="both"):
        regime.engine.docker("network", "connect", "X", "both")
        assert_port_leads_to(regime, port, "fd00:a::/64")


def test_m6_network_without_ipv6_is_ignored(regime: Regime) -> None:
    port = regime.port()
    regime.engine.docker("network", "create", "aa-v4")
    try:
        with regime.container(publish=[f"{port}:80"], name="mixed"):
            regime.engine.docker("network", "connect", "aa-v4", "mixed")
            assert_port_leads_to(regime, port, "fd00:a::/64")
    finally:
        regime.engine.docker("network", "rm", "aa-v4")


def test_h16_container_in_the_namespace_of_another_has_no_own_rules(regime: Regime) -> None:
    port = regime.port()
    with regime.container(publish=[f"{port}:80"], name="owner") as owner:
        opened(regime.client, port)
        before = regime.sandbox.rules()
        regime.engine.docker(
            "run", "-d", "--name=guest", "--network=container:owner", "lab:1", "cat"
        )
        try:
            assert opened(regime.client, port).local == owner.address
            assert regime.sandbox.rules() == before
        finally:
            regime.engine.docker("rm", "--force", "guest")
        assert opened(regime.client, port).local != IPv6Address("::")
