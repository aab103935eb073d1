"""What only the newest engine has: networks without IPv4, gateway priorities, IPv6 NAT by default.

These run with `make test-all`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Network

import pytest

from tests.lab import Answer, Bus, Daemon, Engine, Sandbox, serve, tcp, until
from tests.lab.sandbox import CLIENT, HOST
from tests.lab.tree import Suite
from tests.packets.asking import dnats, listed, opened, peer

pytestmark = pytest.mark.newest
MODE = "com.docker.network.bridge.gateway_mode_ipv6"


@dataclass(frozen=True, kw_only=True)
class Lab:
    sandbox: Sandbox
    engine: Engine
    daemon: Daemon


@contextmanager
def newest(suite: Suite, *, ip6tables: bool = False) -> Iterator[Lab]:
    with (
        Sandbox() as sandbox,
        Engine(sandbox, suite=suite, ip6tables=ip6tables) as engine,
        Bus(sandbox.dir) as bus,
        Daemon(sandbox, engine.endpoint, bus=bus.address) as daemon,
    ):
        yield Lab(sandbox=sandbox, engine=engine, daemon=daemon)


def test_p12_a_network_without_ipv4_publishes_as_any_other(suite: Suite) -> None:
    with newest(suite) as lab:
        lab.engine.network("six", "fd00:6::/64", "--ipv4=false")
        made = lab.engine.run("x1", "six", publish=["8080:80"])
        with serve(made.ns, "x1", tcp=[80]):
            assert opened(lab.sandbox.client, 8080).local == made.address


def test_m2_a_gateway_priority_decides(suite: Suite) -> None:
    with newest(suite) as lab:
        lab.engine.network("a", "fd00:1:a::/64", bridge="br-a")
        lab.engine.network("b", "fd00:1:b::/64", bridge="br-b")
        made = lab.engine.run("x1", "a", publish=["8080:80"])
        with serve(made.ns, "x1", tcp=[80]):
            assert opened(lab.sandbox.client, 8080).local in IPv6Network("fd00:1:a::/64")
            lab.engine.docker("network", "connect", "--gw-priority=1", "b", "x1")
            answer = until(
                lambda: tcp(lab.sandbox.client, HOST, 8080),
                lambda each: (
                    isinstance(each, Answer)
                    and each.peer == CLIENT
                    and each.local in IPv6Network("fd00:1:b::/64")
                ),
            )
            assert isinstance(answer, Answer)
            assert answer.local in IPv6Network("fd00:1:b::/64")
            assert len(dnats(lab.sandbox.rules(), 8080)) == 1


def test_m8_a_routed_network_beside_the_gateway_is_open_in_its_own_way(suite: Suite) -> None:
    with newest(suite) as lab:
        lab.engine.network("a", "fd00:1:a::/64", bridge="br-a")
        lab.engine.network("r", "fd00:1:f::/64", bridge="br-r", options={MODE: "routed"})
        made = lab.engine.run("x1", "a", publish=["8080:80"])
        lab.engine.docker("network", "connect", "r", "x1")
        routed = lab.engine.container("x1", network="r").address
        assert routed is not None
        with serve(made.ns, "x1", tcp=[80, 81]):
            opened(lab.sandbox.client, 8080)
            direct = until(
                lambda: tcp(lab.sandbox.rogue, routed, 80), lambda each: isinstance(each, Answer)
            )
            assert isinstance(direct, Answer)
            assert not isinstance(tcp(lab.sandbox.rogue, routed, 81, timeout=0.3), Answer)


def test_c1_c2_an_engine_that_does_it_by_default_is_left_alone(suite: Suite) -> None:
    with newest(suite, ip6tables=True) as lab:
        lab.engine.network("X", "fd00:a::/64")
        made = lab.engine.run("x1", "X", "--restart=always", publish=["8080:80"])
        with serve(made.ns, "x1", tcp=[80]):
            assert peer(tcp(lab.sandbox.client, HOST, 8080)) == CLIENT
        rows = until(lambda: listed(lab.daemon, "mappings"), lambda found: len(found) == 1)
        assert [row["State"] for row in rows] == ["native"]
        assert "brX" not in "".join(
            line for line in lab.sandbox.rules().splitlines() if "IPV6NAT-DNAT" in line
        )
        lab.engine.stop()
        lab.engine.start()
        rows = until(
            lambda: listed(lab.daemon, "mappings"),
            lambda found: [row["State"] for row in found] == ["native"],
            timeout=15,
        )
        assert [row["State"] for row in rows] == ["native"]
        again = lab.engine.container("x1")
        with serve(again.ns, "again", tcp=[80]):
            assert peer(tcp(lab.sandbox.client, HOST, 8080)) == CLIENT
