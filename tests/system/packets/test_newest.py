"""Features of the newest engine: networks without IPv4, gateway priorities, IPv6 NAT by default.

These run with `make test-all`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.harness import Answer, Bus, Daemon, Engine, Regime, Sandbox, serve, tcp, until
from tests.harness.process import LabError
from tests.harness.sandbox import CLIENT, HOST
from tests.harness.tree import Suite
from tests.system.packets.asking import SHORT, dnats, listed, opened, peer

pytestmark = [pytest.mark.newest, pytest.mark.depends_on("engine")]
MISSING = "Docker's own IPv6 rule of port 8080/tcp is missing"
MODE = "com.docker.network.bridge.gateway_mode_ipv6"


@dataclass(frozen=True, kw_only=True)
class Lab:
    sandbox: Sandbox
    engine: Engine
    daemon: Daemon


@contextmanager
def newest(suite: Suite, *, ip6tables: bool | None = False) -> Iterator[Lab]:
    with (
        Sandbox() as sandbox,
        Engine(sandbox, suite=suite, ip6tables=ip6tables) as engine,
        Bus(sandbox.dir) as bus,
        Daemon(sandbox, engine.endpoint, bus=bus.address) as daemon,
    ):
        yield Lab(sandbox=sandbox, engine=engine, daemon=daemon)


def test_p12_network_without_ipv4_publishes_ports(regime: Regime) -> None:
    port = regime.port()
    with (
        regime.network("--ipv4=false") as network,
        regime.container(network=network, publish=[f"{port}:80"]) as made,
    ):
        assert opened(regime.client, port).local == made.address


def test_m2_gateway_priority_selects_the_network(regime: Regime) -> None:
    port = regime.port()
    with (
        regime.network() as first,
        regime.network() as second,
        regime.container(network=first, publish=[f"{port}:80"], name="m2") as made,
    ):
        assert opened(regime.client, port).local == made.address
        regime.engine.docker("network", "connect", "--gw-priority=1", second.name, "m2")
        later = regime.engine.container("m2", network=second.name).address
        answer = until(
            lambda: tcp(regime.client, HOST, port),
            lambda each: isinstance(each, Answer) and each.peer == CLIENT and each.local == later,
        )
        assert isinstance(answer, Answer)
        assert answer.local == later
        assert len(dnats(regime.sandbox.rules(), port)) == 1


def test_m8_routed_network_beside_the_gateway_network_opens_its_ports(regime: Regime) -> None:
    port = regime.port()
    with (
        regime.network() as gateway,
        regime.network(options={MODE: "routed"}) as beside,
        regime.container(network=gateway, publish=[f"{port}:80"], tcp=(80, 81), name="m8"),
    ):
        regime.engine.docker("network", "connect", beside.name, "m8")
        routed = regime.engine.container("m8", network=beside.name).address
        assert routed is not None
        opened(regime.client, port)
        direct = until(lambda: tcp(regime.rogue, routed, 80), lambda e: isinstance(e, Answer))
        assert isinstance(direct, Answer)
        assert not isinstance(tcp(regime.rogue, routed, 81, timeout=SHORT), Answer)


def test_c1_c2_engine_with_ip6tables_by_default_is_unchanged(suite: Suite) -> None:
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


@pytest.mark.parametrize("ip6tables", [None, True])
def test_flushed_rules_of_a_running_engine_are_never_leftovers(
    suite: Suite, ip6tables: bool | None
) -> None:
    """Q8: without the option in its configuration, the engine has IPv6 NAT by default."""
    with newest(suite, ip6tables=ip6tables) as lab:
        lab.engine.network("X", "fd00:a::/64")
        one = lab.engine.run("x1", "X", "--restart=always", publish=["8080:80"])
        with serve(one.ns, "x1", tcp=[80]):
            assert peer(tcp(lab.sandbox.client, HOST, 8080)) == CLIENT
            rows = until(lambda: listed(lab.daemon, "mappings"), bool)
            assert [row["State"] for row in rows] == ["native"]
            lab.sandbox.host.run("ip6tables-nft", "-t", "nat", "-F")
            lab.daemon.ctl("resync")
            assert until(lambda: MISSING in lab.daemon.status, True, timeout=90)
            assert lab.daemon.status.endswith("systemctl restart docker")
            with pytest.raises(LabError, match="writes IPv6 rules itself"):
                lab.daemon.ctl("cleanup", "--leftovers")
            assert (
                json.loads(lab.daemon.ctl("cleanup", "--leftovers", "--dry-run", "--json=short"))
                == []
            )
            if ip6tables is None:
                # Nobody knows whether the engine still writes them, so ipv6natd does.
                assert until(lambda: peer(tcp(lab.sandbox.client, HOST, 8080)), CLIENT) == CLIENT
        lab.engine.run("x2", "X", publish=["8081:80"])
        lab.engine.stop()
        lab.engine.start()
        assert not until(lambda: MISSING in lab.daemon.status, False, timeout=90)
        rows = listed(lab.daemon, "mappings")
        assert {row["State"] for row in rows} == {"native"}
        again = lab.engine.container("x1")
        with serve(again.ns, "again", tcp=[80]):
            assert peer(tcp(lab.sandbox.client, HOST, 8080)) == CLIENT
