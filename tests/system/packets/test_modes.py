"""The ports that the options of a network open: scenarios V1 to V6."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.harness import (
    Container,
    Daemon,
    Engine,
    Failure,
    Network,
    Regime,
    Sandbox,
    ping,
    serve,
    until,
)
from tests.harness import tcp as fetch
from tests.harness.sandbox import CLIENT, HOST, ROGUE, Variant
from tests.system.packets.asking import SHORT, dnats, opened, peer, server

pytestmark = pytest.mark.depends_on("proxy", "engine")

MODE = "com.docker.network.bridge.gateway_mode_ipv6"
TRUSTED = "com.docker.network.bridge.trusted_host_interfaces"
FORGED = "fd00:a::9"


@contextmanager
def served(
    regime: Regime, options: dict[str, str], port: int, *network_args: str
) -> Iterator[tuple[Network, Container]]:
    """A network with these options and a container that listens on 80 and 81 and publishes 80.

    Docker 26 and older store unknown options, and ipv6natd applies them.
    """
    with (
        regime.network(*network_args, options=options) as network,
        regime.container(network=network, publish=[f"{port}:80"], tcp=(80, 81)) as made,
    ):
        assert made.address is not None
        until(lambda: f"-i {network.bridge} " in regime.sandbox.rules(), True)
        yield network, made


def direct(regime: Regime, made: Container, port: int) -> object:
    assert made.address is not None
    return peer(fetch(regime.rogue, made.address, port, timeout=SHORT))


def test_v1_routed_network_opens_published_ports_and_pings_without_nat(
    regime: Regime,
) -> None:
    port = regime.port()
    with served(regime, {MODE: "routed"}, port) as (network, made):
        assert made.address is not None
        assert until(lambda: direct(regime, made, 80), ROGUE) == ROGUE
        assert direct(regime, made, 81) is Failure.TIMEOUT
        assert ping(regime.rogue, made.address)
        forged = fetch(regime.rogue, made.address, 80, source=FORGED, forged=True, timeout=SHORT)
        assert isinstance(forged, Failure)
        assert made.server.from_peer(made.address.__class__(FORGED)) == []
        assert dnats(regime.sandbox.rules(), port) == []
        if regime.native:
            return  # the engine masquerades for its proxy, or for the host's own requests
        rules = regime.sandbox.rules().splitlines()
        assert [rule for rule in rules if network.bridge in rule and "MASQUERADE" in rule] == []


def test_v2_unprotected_network_uses_nat_and_opens_all_ports(regime: Regime) -> None:
    port = regime.port()
    with served(regime, {MODE: "nat-unprotected"}, port) as (_, made):
        assert made.address is not None
        opened(regime.client, port)
        assert direct(regime, made, 80) == ROGUE
        assert direct(regime, made, 81) == ROGUE
        assert ping(regime.rogue, made.address)
        assert peer(fetch(regime.y1.ns, made.address, 81)) != Failure.TIMEOUT


def test_v3_isolated_network_accepts_and_sends_no_packets(regime: Regime) -> None:
    port = regime.port()
    with served(regime, {MODE: "isolated"}, port, "--internal") as (network, made):
        assert direct(regime, made, 80) is Failure.TIMEOUT
        with serve(regime.client, "client", tcp=[port]) as there:
            assert isinstance(fetch(made.ns, CLIENT, port, timeout=SHORT), Failure)
            assert there.received == []
        with regime.container(network=network) as neighbour:
            assert made.address is not None
            assert server(fetch(neighbour.ns, made.address, 80)) == made.name


def test_v4_trusted_interface_opens_published_ports_on_the_container_address(
    regime: Regime,
) -> None:
    port = regime.port()
    with served(regime, {TRUSTED: "ext0"}, port) as (_, made):
        opened(regime.client, port)
        assert direct(regime, made, 80) == ROGUE
        assert direct(regime, made, 81) is Failure.TIMEOUT
        assert made.address is not None
        assert fetch(regime.y1.ns, made.address, 80, timeout=SHORT) is Failure.TIMEOUT


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_v5_v6_direct_routing_opens_published_ports_and_fwmark_opens_all(
    tools: None,  # noqa: ARG001
    variant: Variant,
) -> None:
    with (
        Sandbox(variant) as sandbox,
        Engine(sandbox) as engine,
        Daemon(sandbox, engine.endpoint, settings=("allow_direct_routing = true",)) as daemon,
    ):
        engine.network("X", "fd00:a::/64")
        made = engine.run("x1", "X", publish=["8080:80"])
        assert made.address is not None
        with serve(made.ns, "x1", tcp=[80, 81]):
            opened(sandbox.client, 8080)
            assert peer(fetch(sandbox.rogue, made.address, 80)) == ROGUE
            closed = fetch(sandbox.rogue, made.address, 81, timeout=SHORT)
            assert closed is Failure.TIMEOUT

            good = daemon.config.read_text().replace(
                "allow_direct_routing = true", 'accept_fwmark = "0x1/0x1"'
            )
            daemon.config.write_text(good)
            daemon.reload()
            mark = ("-t", "mangle", "-s", str(ROGUE), "-j", "MARK", "--set-mark", "0x3")
            sandbox.host.run(f"ip6tables-{variant}", "-A", "PREROUTING", *mark)
            assert peer(fetch(sandbox.rogue, made.address, 81)) == ROGUE
            assert peer(fetch(sandbox.client, HOST, 8080)) == CLIENT
