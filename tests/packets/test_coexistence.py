"""Beside an engine that does IPv6 NAT itself: scenarios C."""

from __future__ import annotations

import pytest

from tests.lab import Bus, Daemon, Engine, Sandbox, serve, tcp, until
from tests.lab.sandbox import CLIENT, HOST, Variant
from tests.packets.asking import listed, opened, peer


def of_the_engine(rules: str) -> list[str]:
    """All but ours; 20.10 makes no DOCKER-USER for IPv6, so that one is ours too."""
    mine = ("IPV6NAT", "ipv6natd", ":DOCKER-USER")
    return [line for line in rules.splitlines() if not any(word in line for word in mine)]


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_c1_c4_c5_an_engine_that_is_switched_is_followed_either_way(
    tools: None,  # noqa: ARG001
    variant: Variant,
) -> None:
    """20.10, experimental and told to; then told not to, with its rules left behind; then again."""
    with (
        Sandbox(variant) as sandbox,
        Engine(sandbox, ip6tables=True) as engine,
        Bus(sandbox.dir) as bus,
    ):
        engine.network("X", "fd00:a::/64")
        x1 = engine.run("x1", "X", "--restart=always", publish=["8080:80"])
        native = sandbox.rules()
        with Daemon(sandbox, engine.endpoint, bus=bus.address) as daemon:
            with serve(x1.ns, "x1", tcp=[80]):
                assert peer(tcp(sandbox.client, HOST, 8080)) == CLIENT
            (row,) = listed(daemon, "mappings")
            assert row["State"] == "native"
            assert [each["ManagedBy"] for each in listed(daemon, "networks")] == ["engine"]
            assert of_the_engine(sandbox.rules()) == of_the_engine(native)
            assert "--dport 8080 -j DNAT" not in "\n".join(ours(sandbox.rules()))

            engine.stop()
            engine.ip6tables = False
            engine.start()
            state = until(lambda: states(daemon), ["active"], timeout=15)
            assert state == ["active"]
            x1 = engine.container("x1")
            with serve(x1.ns, "x1", tcp=[80]):
                opened(sandbox.client, 8080)

            engine.stop()
            engine.ip6tables = True
            engine.start()
            state = until(lambda: states(daemon), ["native"], timeout=15)
            assert state == ["native"]
            x1 = engine.container("x1")
            with serve(x1.ns, "x1", tcp=[80]):
                assert peer(tcp(sandbox.client, HOST, 8080)) == CLIENT
            assert not any("DNAT --to" in line for line in ours(sandbox.rules()))


def ours(rules: str) -> list[str]:
    return [line for line in rules.splitlines() if "-A IPV6NAT-" in line]


def states(daemon: Daemon) -> list[str]:
    return [row["State"] for row in listed(daemon, "mappings")]
