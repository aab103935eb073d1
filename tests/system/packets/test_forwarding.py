"""Forwarding of the host: enabled after the filter table is in force, disabled before its removal.

The engine runs with `--ip-forward=false`: otherwise it enables IPv6 forwarding itself, at its
start and with its first IPv6 network, with or without rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from tests.harness import Answer, Bus, Daemon, Engine, Namespace, Sandbox, forge, serve, tcp, until
from tests.harness.sandbox import CLIENT
from tests.system.packets.asking import opened
from tests.system.packets.test_forged_earlier import LLDP
from tests.system.packets.test_forged_entries import host_port_of

FORWARDING = "net.ipv6.conf.all.forwarding"
FORCE = "net.ipv6.conf.all.force_forwarding"
BEHIND = IPv6Address("2001:db8:99::1")
"""An address in a network that the host routes to the client."""
SHORT_TIMEOUT = 0.3


@dataclass(frozen=True, kw_only=True)
class Small:
    """A host without forwarding, with an engine that does not enable it, and x1 on port 8080."""

    sandbox: Sandbox
    engine: Engine
    daemon: Daemon

    @property
    def forwarding(self) -> str:
        return self.sandbox.host.sysctl(FORWARDING)

    @property
    def routes(self) -> bool:
        """True if the host forwards packets of the rogue."""
        return isinstance(tcp(self.sandbox.rogue, BEHIND, 7001, timeout=SHORT_TIMEOUT), Answer)


@contextmanager
def small(*settings: str) -> Iterator[Small]:
    with (
        Sandbox() as sandbox,
        Engine(sandbox, "--ip-forward=false") as engine,
        Bus(sandbox.dir) as bus,
        Daemon(sandbox, engine.endpoint, bus=bus.address, settings=settings, start=False) as daemon,
    ):
        sandbox.host.sysctl(FORWARDING, 0)
        sandbox.client.ip(f"address add {BEHIND}/64 dev ext0 nodad")
        sandbox.host.ip(f"-6 route add {BEHIND}/64 via {CLIENT} dev ext0".replace("::1/", "::/"))
        engine.network("X", "fd00:a::/64")
        made = engine.run("x1", "X", publish=["8080:80"])
        with serve(made.ns, "x1", tcp=[80]), serve(sandbox.client, "behind", tcp=[7001]):
            yield Small(sandbox=sandbox, engine=engine, daemon=daemon)


def test_forwarding_waits_for_the_filter_table(tools: None) -> None:  # noqa: ARG001
    with small() as lab:
        lab.engine.stop()
        lab.daemon.start(wait="waiting-for-docker")
        assert lab.forwarding == "0"
        assert not lab.routes

        lab.engine.start()
        lab.daemon.wait_state("synced")
        assert lab.forwarding == "1"
        log = lab.daemon.log
        switched = f"{FORWARDING} was 0 and is 1 now"
        assert log.count(switched) == 1
        assert 0 < log.rindex("rule added") < log.index(switched)


@pytest.mark.usefixtures("tools")
def test_route_that_a_container_advertises_is_not_kept() -> None:
    """Its frame, which bridges do not forward, comes in by the bridge's port, as by an uplink."""
    with small() as lab:
        host, made = lab.sandbox.host, lab.engine.container("x1")
        port = host_port_of(host, made)
        packet = forge.advertisement(IPv6Address("fe80::66"), forge.hardware(made.ns, "eth0"))
        forge.send(made.ns, [packet], link="eth0", by=LLDP)
        routes = until(lambda: host.ip("-6 route show default"), lambda found: port in found)
        assert port in routes

        lab.daemon.start()
        assert lab.forwarding == "1"
        assert host.sysctl(f"net/ipv6/conf/{port}/accept_ra") == "1"
        assert port not in host.ip("-6 route show default")


def test_forwarding_is_disabled_before_rules_are_removed_and_enabled_after(tools: None) -> None:  # noqa: ARG001
    with small() as lab:
        lab.daemon.start()
        opened(lab.sandbox.client, 8080)
        # A stop or a restart keeps forwarding and the rules.
        assert lab.daemon.stop() == 0
        assert lab.forwarding == "1"
        lab.daemon.start()
        assert lab.forwarding == "1"

        lab.daemon.ctl("cleanup")
        assert "IPV6NAT" not in lab.sandbox.rules()
        assert lab.forwarding == "0"
        assert not lab.routes
        log = lab.daemon.log
        assert log.index(f"{FORWARDING} was 1 and is 0 again") < log.rindex("rule removed")

        lab.daemon.ctl("resync")
        opened(lab.sandbox.client, 8080)
        assert lab.forwarding == "1"

        # Another process flushes the rules; the daemon restores the rules and forwarding.
        lab.daemon.flush()
        assert until(lambda: lab.forwarding, "1", timeout=6) == "1"
        opened(lab.sandbox.client, 8080)

        lab.daemon.stop()
        assert "forwarding stays on" not in lab.daemon.flush()
        assert lab.forwarding == "0"
        assert "IPV6NAT" not in lab.sandbox.rules()


def test_removal_says_that_forwarding_stays_on(tools: None) -> None:  # noqa: ARG001
    """Q23."""
    with small() as lab:
        lab.sandbox.host.sysctl(FORWARDING, 1)
        lab.daemon.start()
        opened(lab.sandbox.client, 8080)
        lab.daemon.stop()
        assert "reach containers by their own addresses" in lab.daemon.flush()
        assert lab.forwarding == "1"
        assert "forwarding stays on" not in lab.daemon.flush()


def test_saved_filter_table_does_not_enable_forwarding(tools: None) -> None:  # noqa: ARG001
    """No container runs before the engine starts. An engine sets its policy of FORWARD only if it
    enables forwarding itself."""
    with small() as lab:
        lab.daemon.start()
        assert lab.forwarding == "1"
        lab.daemon.stop()
        lab.engine.stop()
        # As after a boot, except that the rules are still in force.
        lab.sandbox.host.sysctl(FORWARDING, 0)
        lab.daemon.start(wait="waiting-for-docker")
        assert "closed the saved networks" in lab.daemon.log
        assert lab.forwarding == "0"


@pytest.mark.parametrize("found", ["0", "1"])
def test_stop_with_cleanup_restores_the_forwarding_value(tools: None, found: str) -> None:  # noqa: ARG001
    with small("cleanup = true") as lab:
        lab.sandbox.host.sysctl(FORWARDING, found)
        lab.daemon.start()
        assert lab.forwarding == "1"
        lab.daemon.stop()
        assert lab.forwarding == found
        assert "IPV6NAT" not in lab.sandbox.rules()


def test_ip_forward_false_leaves_forwarding_off_until_a_reload(tools: None) -> None:  # noqa: ARG001
    with small("ip_forward = false") as lab:
        lab.daemon.start(wait="degraded")
        assert "IPv6 forwarding is off" in lab.daemon.status
        assert lab.forwarding == "0"
        lab.daemon.configure('backend = "nft"')
        lab.daemon.reload()
        lab.daemon.wait_state("synced")
        assert lab.forwarding == "1"


def add_vpn(host: Namespace) -> None:
    """Another network, by a link without a global address."""
    host.ip("link add vpn0 type veth peer name vpn1")
    host.ip("link set vpn0 up")
    host.ip("link set vpn1 up")


def test_forward_policy_drop_closes_an_open_router_and_no_published_port(tools: None) -> None:  # noqa: ARG001
    with small() as lab:
        host = lab.sandbox.host
        add_vpn(host)
        lab.daemon.start(wait="degraded")
        assert lab.routes
        said = lab.daemon.status
        assert "this host routes IPv6 for everyone between ext0, vpn0 and vpn1: " in said
        host.run(*said.rpartition(": ")[2].split())
        assert not lab.routes
        opened(lab.sandbox.client, 8080)
        lab.daemon.ctl("resync")
        lab.daemon.wait_state("synced")


@pytest.mark.usefixtures("tools")
@pytest.mark.skipif(
    not Path("/proc/sys", FORCE.replace(".", "/")).exists(), reason="it needs Linux 6.17"
)
def test_open_router_by_force_forwarding_is_reported_and_closed_by_its_command() -> None:
    with small("ip_forward = false") as lab:
        host = lab.sandbox.host
        add_vpn(host)
        host.sysctl(FORCE, 1)
        lab.daemon.start(wait="degraded")
        assert lab.forwarding == "0"
        assert lab.routes
        opened(lab.sandbox.client, 8080)
        said = lab.daemon.status
        assert "for everyone between ext0, vpn0 and vpn1: force_forwarding is 1 on ext0" in said
        host.run(*said.rpartition(": ")[2].split())
        assert not lab.routes
        opened(lab.sandbox.client, 8080)
        lab.daemon.ctl("resync")
        lab.daemon.wait_state("synced")


def test_open_router_on_one_interface_is_logged(tools: None) -> None:  # noqa: ARG001
    with small() as lab:
        lab.daemon.start()
        note = "this host routes IPv6 for everyone in and out by ext0"
        until(lambda: note in lab.daemon.log, True)
        assert note in lab.daemon.log
        assert lab.routes
