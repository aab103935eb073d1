"""A network on a bridge of the host's own, with guests of other programs: Q18."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network

import pytest

from tests.harness import (
    Answer,
    Container,
    Daemon,
    Engine,
    Failure,
    Namespace,
    Sandbox,
    Wanted,
    forge,
    serve,
    tcp,
    until,
    watch,
)
from tests.harness.sandbox import CLIENT, HOST, ROGUE, namespace
from tests.system.packets.asking import SHORT, opened

pytestmark = [pytest.mark.ours]
LAN = IPv6Network("2001:db8:5::/64")
"""The prefix of the guests. The host has its first address, on the bridge."""
NOTED = "has ports that belong to no container"


@dataclass(frozen=True, kw_only=True)
class Lab:
    sandbox: Sandbox
    daemon: Daemon
    web: Container
    """It publishes 8080:80."""
    guests: list[Namespace]

    @property
    def client(self) -> Namespace:
        return self.sandbox.client


def address(number: int) -> IPv6Address:
    """The address of a guest."""
    return LAN[0x10 + number]


@contextmanager
def shared(
    wanted: Wanted, *, count: int = 2, port: str = "tap", advertised: bool = False
) -> Iterator[Lab]:
    """A lab with guests, whose ports have been on the bridge longer than those of containers.

    With `advertised`, the prefix is from a router advertisement, as systemd-networkd writes it.
    """
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(wanted.variant))
        host = sandbox.host
        host.ip("link add br0 type bridge")
        host.ip("link set br0 up")
        sandbox.client.ip(f"route add {LAN} via {HOST} dev ext0")
        guests = [stack.enter_context(namespace(sandbox.name, f"g{n}")) for n in range(count)]
        for number, guest in enumerate(guests):
            host.ip(f"link add {port}{number} type veth peer name eth0 netns {guest.path.name}")
            host.ip(f"link set {port}{number} master br0 up")
            guest.ip("link set eth0 up")
            guest.ip(f"address add {address(number)}/64 dev eth0 nodad")
            guest.ip(f"route add default via {LAN[1]}")
        engine = stack.enter_context(
            Engine(sandbox, userland_proxy=wanted.proxy, suite=wanted.suite)
        )
        engine.network("X", "fd00:a::/64", bridge="br0")
        # Now, because dockerd removes other addresses of the bridge (libnetwork, setup_verify.go).
        host.ip(f"address add {LAN[1]}/64 dev br0 nodad" + " noprefixroute" * advertised)
        if advertised:
            host.ip(f"route add {LAN} dev br0 proto ra")
        web = engine.run("web", "X", publish=["8080:80"])
        stack.enter_context(serve(web.ns, "web", tcp=[80, 81]))
        daemon = stack.enter_context(Daemon(sandbox, engine.endpoint))
        yield Lab(sandbox=sandbox, daemon=daemon, web=web, guests=guests)


def seen(answer: Answer | Failure) -> tuple[str, IPv6Address] | None:
    """The name of the server, and the address that it saw."""
    if isinstance(answer, Failure):
        return None
    assert isinstance(answer.peer, IPv6Address)
    return answer.server, answer.peer


@pytest.mark.depends_on
@pytest.mark.parametrize("advertised", [False, True])
def test_q18_guests_keep_their_connections_and_are_protected_as_containers(
    wanted: Wanted, advertised: bool
) -> None:
    with shared(wanted, advertised=advertised) as lab, ExitStack() as stack:
        first, second = lab.guests
        for ns, name in ((lab.client, "client"), (lab.sandbox.host, "host"), (second, "second")):
            stack.enter_context(serve(ns, name, tcp=[7]))
        assert seen(tcp(first, CLIENT, 7)) == ("client", address(0))
        assert seen(tcp(first, HOST, 7)) == ("host", address(0))
        assert seen(tcp(first, LAN[1], 7)) == ("host", address(0))
        assert seen(tcp(first, address(1), 7)) == ("second", address(0))
        assert seen(tcp(lab.web.ns, address(1), 7)) is not None
        assert seen(tcp(first, HOST, 8080)) is not None
        assert opened(lab.client, 8080).peer == CLIENT
        # As Docker with rules of its own. A note names it.
        assert tcp(lab.client, address(1), 7, timeout=0.3) is Failure.TIMEOUT
        assert lab.daemon.status.startswith("synced")
        # The host is checked beside the passes.
        assert until(lambda: NOTED in lab.daemon.log, wanted=True)
        noted = next(line for line in lab.daemon.log.splitlines() if NOTED in line)
        assert "(tap0, tap1)" in noted
        command = noted.rpartition(": ")[2].replace("ADDRESS", str(address(1)))
        tool, *words = command.split()
        lab.sandbox.host.run(f"{tool}-{wanted.variant}", *words)
        assert seen(tcp(lab.client, address(1), 7)) == ("second", CLIENT)
        assert lab.web.address is not None
        assert isinstance(tcp(lab.client, lab.web.address, 81, timeout=0.3), Failure)


@pytest.mark.depends_on("variant", "proxy")
@pytest.mark.parametrize("guests", [0, 1])
def test_container_on_a_bridge_that_accepts_advertisements_sends_from_no_lan(
    wanted: Wanted, guests: int
) -> None:
    """Guests may have any address, except for those that another interface leads to."""
    beyond = IPv6Address("2001:db8:77::9")
    with shared(wanted, count=guests, advertised=True) as lab, ExitStack() as stack:
        by = forge.hardware(lab.sandbox.host, "br0")
        assert lab.web.address is not None
        opened(lab.client, 8080)
        seen_by = [stack.enter_context(watch(ns)) for ns in (lab.client, lab.sandbox.rogue)]
        flows = [(CLIENT, ROGUE), (ROGUE, CLIENT), (beyond, CLIENT), (lab.web.address, CLIENT)]
        for port, (source, destination) in enumerate(flows, 6210):
            packet = forge.datagram(source, destination, (6200, port))
            forge.send(lab.web.ns, [packet], link="eth0", by=by)
        time.sleep(SHORT)
        ports = {packet.port for packets in seen_by for packet in packets() if not packet.outgoing}
        assert ports & set(range(6210, 6214)) == ({6212, 6213} if guests else {6213})


@pytest.mark.depends_on("variant")
@pytest.mark.parametrize("port", ["tap", "vethguest"])
def test_q18_guests_do_not_hide_that_the_engine_runs_without_its_proxy(
    wanted: Wanted, port: str
) -> None:
    """Their ports are not in hairpin mode. A proxy would serve the containers of the bridge."""
    with shared(wanted._replace(proxy=False), count=12, port=port) as lab:
        assert seen(tcp(lab.web.ns, HOST, 8080)) is not None
