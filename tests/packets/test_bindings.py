"""Which address of the host a port is bound to, by labels and settings: B9 to B16, O4, O6."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest

from tests.lab import Daemon, Engine, Failure, Regime, Sandbox, serve, tcp, until
from tests.lab.sandbox import CLIENT, HOST, HOST_TOO
from tests.packets.asking import dnats, listed, opened, peer, server

V4 = "com.docker.network.bridge.host_binding_ipv4"
V6 = "com.docker.network.bridge.host_binding_ipv6"
SOURCE = "com.docker.network.host_ipv6"
LATE = IPv6Address("2001:db8:1::66")


def test_b9_a_default_binding_may_be_an_ipv6_address(regime: Regime) -> None:
    port = regime.port()
    with (
        regime.network(options={V4: str(HOST_TOO)}) as network,
        regime.container(network=network, publish=[f"{port}:80"]),
    ):
        opened(regime.client, port, address=HOST_TOO)
        assert tcp(regime.client, HOST, port) is Failure.REFUSED


@pytest.mark.parametrize("options", [{V6: str(HOST_TOO)}, {V4: "127.0.0.1", V6: str(HOST_TOO)}])
def test_b10_b11_the_default_for_ipv6_bindings_counts(
    regime: Regime, options: dict[str, str]
) -> None:
    port = regime.port()
    with (
        regime.network(options=options) as network,
        regime.container(network=network, publish=[f"{port}:80"]),
    ):
        opened(regime.client, port, address=HOST_TOO)
        assert peer(tcp(regime.client, HOST, port)) != CLIENT


def test_b12_a_binding_to_an_address_comes_to_life_with_it(regime: Regime) -> None:
    port = regime.port()
    options = {V6: str(LATE)}
    with (
        regime.network(options=options) as network,
        regime.container(network=network, publish=[f"{port}:80"]),
    ):
        assert until(lambda: len(dnats(regime.sandbox.rules(), port)), 1) == 1
        (row,) = [row for row in listed(regime.daemon, "networks") if row["Name"] == network.name]
        assert str(LATE) in row["Warnings"][0]
        regime.host.ip(f"address add {LATE}/64 dev ext0 nodad preferred_lft 0")
        try:
            opened(regime.client, port, address=LATE)
        finally:
            regime.host.ip(f"address del {LATE}/64 dev ext0")


def test_b13_two_containers_share_a_port_on_two_addresses(regime: Regime) -> None:
    port = regime.port()
    with (
        regime.container(publish=[f"[{HOST}]:{port}:80"]) as one,
        regime.container(publish=[f"[{HOST_TOO}]:{port}:80"]) as two,
    ):
        assert opened(regime.client, port).server == one.name
        assert opened(regime.client, port, address=HOST_TOO).server == two.name


def test_b3_b16_settings_that_read_ipv4_bindings_for_ipv6(tools: None) -> None:  # noqa: ARG001
    settings = (
        "ipv4_any_means_ipv6 = true",
        f'address_map = {{ "192.0.2.10" = "{HOST_TOO}" }}',
    )
    with (
        Sandbox() as sandbox,
        Engine(sandbox) as engine,
        Daemon(sandbox, engine.endpoint, settings=settings),
    ):
        engine.network("X", "fd00:a::/64")
        published = ["0.0.0.0:8080:80", "192.0.2.10:8443:80", "192.0.2.1:8444:80"]
        made = engine.run("x1", "X", publish=published)
        with serve(made.ns, "x1", tcp=[80]):
            opened(sandbox.client, 8080)
            opened(sandbox.client, 8443, address=HOST_TOO)
            assert tcp(sandbox.client, HOST, 8443) is Failure.REFUSED
            assert tcp(sandbox.client, HOST_TOO, 8444) is Failure.REFUSED


def test_o4_a_source_address_that_is_not_the_hosts_is_warned_of_and_left(regime: Regime) -> None:
    port = regime.port()
    with (
        regime.network(options={SOURCE: str(LATE)}) as network,
        regime.container(network=network) as made,
        serve(regime.client, "client", tcp=[port]),
    ):
        until(lambda: network.bridge in regime.sandbox.rules(), True)
        assert peer(tcp(made.ns, CLIENT, port)) == HOST
        (row,) = [row for row in listed(regime.daemon, "networks") if row["Name"] == network.name]
        assert str(LATE) in row["Warnings"][0]


def test_o6_the_hosts_own_address_in_a_subnet_is_not_rewritten(regime: Regime) -> None:
    port = regime.port()
    gateway = IPv6Address("fd00:a::1")
    regime.client.ip(f"route add {gateway}/128 via {HOST} dev ext0")
    try:
        with serve(regime.client, "client", tcp=[port]):
            answer = tcp(regime.host, CLIENT, port, source=gateway)
            assert (server(answer), peer(answer)) == ("client", gateway)
    finally:
        regime.client.ip(f"route del {gateway}/128")
