"""The results of Docker alone, for tests that otherwise need ipv6natd or flags of the engine.

The other tests of scenarios also run in a native regime. A failure here is no fault:
docs/behaviour.md reports it as the result of Docker.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address

import pytest

from tests.harness import (
    Answer,
    Container,
    Engine,
    Failure,
    Namespace,
    Regime,
    Sandbox,
    connect,
    serve,
    tcp,
    udp,
    until,
)
from tests.harness.process import LabError
from tests.harness.regime import DEFAULT_BRIDGE
from tests.harness.sandbox import CLIENT, HOST, HOST_TOO, ROGUE
from tests.harness.tree import Suite
from tests.system.packets.asking import SHORT, dnats, opened, peer, server
from tests.system.packets.test_flows import entries, far, flow, published

pytestmark = [pytest.mark.native, pytest.mark.newest, pytest.mark.depends_on("engine")]

FORWARDING = "net.ipv6.conf.{}.forwarding"
REPAIR_TIMEOUT = 6.0
"""Seconds to wait for a repair."""


@dataclass(frozen=True, kw_only=True)
class Small:
    """A host with an engine, a network X and, on it, x1 with port 8080."""

    sandbox: Sandbox
    engine: Engine
    x1: Container

    @property
    def client(self) -> Namespace:
        return self.sandbox.client

    def ip6tables(self, *words: str) -> None:
        self.sandbox.host.run(f"ip6tables-{self.sandbox.variant}", *words)

    def answers(self) -> object:
        """The client address that x1 sees, or the last result if x1 does not see the client."""
        return until(
            lambda: peer(tcp(self.client, HOST, 8080, timeout=SHORT)),
            CLIENT,
            timeout=REPAIR_TIMEOUT,
        )


@contextmanager
def small(suite: Suite, *args: str, forwarding: bool = True) -> Iterator[Small]:
    with Sandbox() as sandbox:
        for scope in ("all", "default"):
            sandbox.host.sysctl(FORWARDING.format(scope), int(forwarding))
        with Engine(sandbox, *args, suite=suite, ip6tables=True) as engine:
            engine.network("X", "fd00:a::/64")
            x1 = engine.run("x1", "X", "--restart=always", publish=["8080:80"])
            with serve(x1.ns, "x1", tcp=[80, 81]):
                yield Small(sandbox=sandbox, engine=engine, x1=x1)


def starts(regime: Regime, *publish: str) -> bool:
    """True if the engine starts a container with these bindings."""
    try:
        with regime.container(publish=publish):
            return True
    except LabError:
        return False


# Bindings and options.


def test_b8_engine_with_an_ipv4_loopback_default_binding_opens_no_port(suite: Suite) -> None:
    flags = (*DEFAULT_BRIDGE, "--ip=127.0.0.1")
    with Sandbox() as sandbox, Engine(sandbox, *flags, suite=suite, ip6tables=True) as engine:
        made = engine.run("box8", "bridge", publish=["8080:80", "[::]:8081:80"])
        with serve(made.ns, "box8", tcp=[80]):
            opened(sandbox.client, 8081)
            assert tcp(sandbox.client, HOST, 8080) is Failure.REFUSED


def test_b12_binding_to_a_missing_address_works_once_the_host_has_it(regime: Regime) -> None:
    assert starts(regime, f"[2001:db8:1::66]:{regime.port()}:80")


def test_v5_direct_routing_opens_only_published_ports(suite: Suite) -> None:
    with small(suite, "--allow-direct-routing") as lab:
        assert lab.x1.address is not None
        opened(lab.client, 8080)
        assert peer(tcp(lab.sandbox.rogue, lab.x1.address, 80)) == ROGUE
        assert tcp(lab.sandbox.rogue, lab.x1.address, 81, timeout=SHORT) is Failure.TIMEOUT


# Unrelated flows from before the container.


def test_u4_address_binding_affects_only_flows_to_that_address(regime: Regime) -> None:
    port = regime.port()
    with flow(regime.client, port) as other:
        assert other.ask() is Failure.REFUSED
        mine = entries(regime, port)
        assert len(mine) == 1
        with published(regime, f"[{HOST_TOO}]:{port}:53/udp"):
            assert entries(regime, port) == mine
        assert entries(regime, port) == mine


def test_u5_unrelated_flows_with_the_same_ports_are_kept(regime: Regime) -> None:
    outside, inside = regime.port(), regime.port()
    with (
        far(regime),
        serve(regime.client, "client", udp=(outside, inside)),
        serve(regime.host, "host", udp=[inside]),
    ):
        for port in (outside, inside):
            assert server(udp(regime.rogue, IPv6Address("2001:db8:5::5"), port)) == "client"
            assert server(udp(regime.y1.ns, CLIENT, port)) == "client"
        assert server(udp(regime.client, HOST, inside)) == "host"
        before = entries(regime, outside) | entries(regime, inside)
        assert len(before) == 5
        with published(regime, f"{outside}:{inside}/udp", inside):
            pass
        assert before - entries(regime, outside) - entries(regime, inside) == set()


# Starts and stops of the engine, whose rules are its own.


def test_t3_stopped_engine_removes_its_rules(suite: Suite) -> None:
    with small(suite) as lab:
        lab.engine.stop()
        assert "DOCKER" not in lab.sandbox.rules()


def test_t4_start_after_a_kill_adds_no_duplicate_rules(suite: Suite) -> None:
    with small(suite, "--live-restore") as lab:
        before = lab.sandbox.rules()
        lab.engine.kill()
        lab.engine.start()
        opened(lab.client, 8080)
        assert sorted(lab.sandbox.rules().splitlines()) == sorted(before.splitlines())


def test_t5_engine_restart_removes_rules_of_stopped_containers(suite: Suite) -> None:
    with small(suite) as lab:
        lab.engine.run("x2", "X", publish=["8082:80"])
        lab.engine.stop()
        lab.engine.start()
        again = lab.engine.container("x1")
        with serve(again.ns, "again", tcp=[80]):
            assert opened(lab.client, 8080).server == "again"
        assert dnats(lab.sandbox.rules(), 8082) == []
        assert len(dnats(lab.sandbox.rules(), 8080)) == 1


def test_t6_engine_restart_with_live_restore_keeps_connections(suite: Suite) -> None:
    with small(suite, "--live-restore") as lab, connect(lab.client, HOST, 8080) as conversation:
        assert server(conversation.ask()) == "x1"
        seen: list[object] = []
        done = threading.Event()

        def knock() -> None:
            while not done.is_set():
                seen.append(peer(tcp(lab.client, HOST, 8080, timeout=SHORT)))

        knocker = threading.Thread(target=knock)
        knocker.start()
        try:
            lab.engine.stop()
            lab.engine.start()
        finally:
            done.set()
            knocker.join()
        assert server(conversation.ask()) == "x1"
        assert set(seen) == {CLIENT}


def test_t8_repeatedly_recreated_container_leaves_no_rule(suite: Suite) -> None:
    with small(suite) as lab:
        before = lab.sandbox.rules()
        for _ in range(10):
            lab.engine.run("x2", "X", publish=["8082:80", "8083:53/udp"])
            lab.engine.rm("x2")
        assert lab.sandbox.rules() == before


def test_t9_rules_stay_while_the_engine_is_down(suite: Suite) -> None:
    with small(suite, "--live-restore") as lab:
        lab.engine.kill()
        try:
            opened(lab.client, 8080)
        finally:
            lab.engine.start()
        opened(lab.client, 8080)


# Other programs that write to the tables.


def test_f1_flushed_tables_are_restored_without_an_engine_event(suite: Suite) -> None:
    with small(suite) as lab:
        for words in (("-F",), ("-t", "nat", "-F")):
            lab.ip6tables(*words)
        assert lab.answers() == CLIENT


def test_f5_flushed_nft_ruleset_is_restored(suite: Suite) -> None:
    with small(suite) as lab:
        for table in ("filter", "nat", "raw"):
            lab.sandbox.host.run("nft", "delete", "table", "ip6", table)
        assert lab.answers() == CLIENT


def test_f6_deleted_rule_is_restored(suite: Suite) -> None:
    with small(suite) as lab:
        for rule in dnats(lab.sandbox.rules(), 8080):
            lab.ip6tables("-t", "nat", "-D", *rule.split()[1:])
        assert lab.answers() == CLIENT


def test_f7_reject_rule_inserted_first_in_forward_has_no_effect(suite: Suite) -> None:
    with small(suite) as lab:
        lab.ip6tables("-I", "FORWARD", "-i", "ext0", "-j", "REJECT")
        assert lab.answers() == CLIENT


def test_c8_forward_policy_drop_has_no_effect(suite: Suite) -> None:
    with small(suite) as lab, serve(lab.client, "client", tcp=[7]):
        lab.ip6tables("-P", "FORWARD", "DROP")
        opened(lab.client, 8080)
        assert peer(tcp(lab.x1.ns, CLIENT, 7)) == HOST


# The host.


def test_k1_engine_enables_forwarding_and_ports_are_open(suite: Suite) -> None:
    with small(suite, forwarding=False) as lab:
        assert lab.sandbox.host.sysctl(FORWARDING.format("all")) == "1"
        opened(lab.client, 8080)


def test_i15_bridge_without_docker_still_forwards(suite: Suite) -> None:
    """On a host where the engine enables forwarding: the regime's host has it enabled before."""
    with small(suite, forwarding=False) as lab:
        host, wire = lab.sandbox.host, lab.sandbox.wire
        host.ip("link add vmbr0 type bridge")
        host.ip("link set vmbr0 up")
        host.ip("address add fd00:ffff::1/64 dev vmbr0 nodad")
        host.ip(f"link add vm0 type veth peer name vm1 netns {wire.path.name}")
        host.ip("link set vm0 master vmbr0 up")
        wire.ip("link set vm1 up")
        wire.ip("address add fd00:ffff::2/64 dev vm1 nodad")
        wire.ip("-6 route add 2001:db8:1::/64 via fd00:ffff::1 dev vm1")
        with serve(wire, "vm", tcp=[80]):
            answer = tcp(lab.sandbox.rogue, "fd00:ffff::2", 80)
            assert isinstance(answer, Answer)
