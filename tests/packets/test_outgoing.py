"""What containers send out: scenarios O, and that forged or broken packets do not leave."""

from __future__ import annotations

from ipaddress import IPv6Address

from tests.lab import Regime, ping, serve, tcp, udp, until
from tests.lab.sandbox import CLIENT, HOST
from tests.packets.asking import peer


def test_o1_what_goes_out_carries_the_hosts_address(regime: Regime) -> None:
    port = regime.port()
    with serve(regime.client, "client", tcp=[port], udp=[port]):
        for container in (regime.x1, regime.y1):
            assert peer(tcp(container.ns, CLIENT, port)) == HOST
            assert peer(udp(container.ns, CLIENT, port)) == HOST


def test_o2_without_masquerade_the_container_shows_its_own_address(regime: Regime) -> None:
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


def test_o7_pings_go_out_and_come_back(regime: Regime) -> None:
    assert ping(regime.x1.ns, CLIENT)
    assert ping(regime.y1.ns, CLIENT)


def test_o3_a_network_with_a_source_address_uses_it(regime: Regime) -> None:
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


def test_a_network_is_closed_and_masqueraded_before_its_first_container(regime: Regime) -> None:
    with regime.network() as network:
        masqueraded = f"! -o {network.bridge} -m addrtype ! --src-type LOCAL -j MASQUERADE"
        rules = until(lambda: regime.sandbox.rules(), lambda text: masqueraded in text)
        assert masqueraded in rules
        # The filter table is written first: by now it must be closed.
        assert f"! -i {network.bridge} -o {network.bridge} -j DROP" in rules
    gone = until(lambda: network.bridge in regime.sandbox.rules(), False)
    assert not gone
