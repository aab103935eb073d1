"""Swarm: tasks on docker_gwbridge, scenarios W. One node is enough; ingress is left to Docker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network

import pytest

from tests.harness import (
    Answer,
    Bus,
    Container,
    Daemon,
    Engine,
    Failure,
    Sandbox,
    Wanted,
    serve,
    tcp,
    udp,
    until,
)
from tests.harness.needs import alone
from tests.harness.sandbox import CLIENT, HOST, HOST4
from tests.system.packets.asking import SHORT, dnats, listed, opened, peer, server

GWBRIDGE = IPv6Network("fd00:3984:3989::/64")
NO_ICC = {"com.docker.network.bridge.enable_icc": "false"}
"""The options with which Docker creates docker_gwbridge."""


@dataclass(frozen=True, kw_only=True)
class Swarm:
    """A swarm of one, with docker_gwbridge on a ULA subnet and an overlay network "ov"."""

    sandbox: Sandbox
    engine: Engine
    _daemon: Daemon | None

    @property
    def native(self) -> bool:
        return self._daemon is None

    @property
    def daemon(self) -> Daemon:
        """The daemon. Ends the test in the regime without ipv6natd."""
        return self._daemon or alone()

    def service(self, name: str, publish: str) -> Container:
        """Create a service with one task; return the task's container."""
        # The first process of a container ignores signals that it does not handle.
        quick = "--stop-signal=KILL"
        words = ("service", "create", "--detach", f"--name={name}", "--network=ov", quick)
        self.engine.docker(*words, f"--publish={publish}", "lab:1", "sleep", "infinity")
        return self.task(name)

    def task(self, service: str) -> Container:
        """The service's running container; waits for it."""
        names = until(
            lambda: self.engine.docker(
                "ps", f"--filter=name={service}.", "--format={{.Names}}"
            ).split(),
            lambda found: len(found) == 1,
            timeout=30,
        )
        assert names, self.engine.docker("service", "ps", service)
        return self.engine.container(names[0])

    def gateway(self, task: Container) -> IPv6Address:
        """The task's address on docker_gwbridge; only `docker network inspect` has it."""
        (facts,) = json.loads(self.engine.docker("network", "inspect", "docker_gwbridge"))
        return IPv6Address(facts["Containers"][task.id]["IPv6Address"].partition("/")[0])


NATIVE = Wanted("sid", "nft", True, native=True)
WANTED = [
    pytest.param(Wanted(None, "nft", True), id="nft"),
    pytest.param(Wanted(None, "legacy", True), id="legacy", marks=pytest.mark.slow),
    pytest.param(NATIVE, id=NATIVE.id, marks=pytest.mark.native),
]


@pytest.fixture(scope="module", params=WANTED)
def swarm(request: pytest.FixtureRequest, tools: None) -> Iterator[Swarm]:  # noqa: ARG001
    wanted: Wanted = request.param
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(wanted.variant))
        engine = stack.enter_context(Engine(sandbox, suite=wanted.suite, ip6tables=wanted.native))
        daemon = None
        if not wanted.native:
            bus = stack.enter_context(Bus(sandbox.dir))
            daemon = stack.enter_context(Daemon(sandbox, engine.endpoint, bus=bus.address))
        engine.network("docker_gwbridge", GWBRIDGE, bridge="docker_gwbridge", options=NO_ICC)
        engine.docker("swarm", "init", f"--advertise-addr={HOST4}")
        engine.docker("network", "create", "-d", "overlay", "ov")
        yield Swarm(sandbox=sandbox, engine=engine, _daemon=daemon)
        assert daemon is None or "Traceback" not in daemon.log


@pytest.fixture(scope="module")
def web(swarm: Swarm) -> Container:
    return swarm.service("web", "mode=host,target=80,published=8080")


def test_w4_w5_ingress_port_has_no_rule_and_tasks_are_isolated(
    swarm: Swarm, web: Container
) -> None:
    other = swarm.service("other", "target=80,published=8090")
    try:
        with serve(web.ns, "web", tcp=[80]), serve(other.ns, "other", tcp=[80]):
            assert opened(swarm.sandbox.client, 8080).server == "web"
            assert not isinstance(tcp(swarm.sandbox.client, HOST, 8090), Answer)
            assert dnats(swarm.sandbox.rules(), 8090) == []
            for one, another in ((web, other), (other, web)):
                to = swarm.gateway(another)
                assert server(tcp(another.ns, to, 80)) in ("web", "other")
                assert tcp(one.ns, to, 80, timeout=SHORT) is Failure.TIMEOUT
        if swarm.native:
            return
        (row,) = (each for each in listed(swarm.daemon, "skipped") if each["Network"] == "ingress")
        assert "in ingress mode are left to Docker" in row["Reason"]
    finally:
        swarm.engine.docker("service", "rm", "other")


def test_w1_w2_w3_w6_task_with_a_host_port_is_reached_and_masqueraded(
    swarm: Swarm, web: Container
) -> None:
    client = swarm.sandbox.client
    with serve(web.ns, "first", tcp=[80]), serve(client, "client", udp=[7000]):
        assert opened(client, 8080).server == "first"
        assert peer(udp(web.ns, CLIENT, 7000)) == HOST

    swarm.engine.docker("service", "update", "--detach", "--force", "web")
    again = until(lambda: swarm.task("web"), lambda made: made.id != web.id, timeout=30)
    assert again.id != web.id
    with serve(again.ns, "again", tcp=[80]):
        answer = until(
            lambda: tcp(client, HOST, 8080),
            lambda each: isinstance(each, Answer) and each.peer == CLIENT,
            timeout=10,
        )
        assert isinstance(answer, Answer)
        assert answer.server == "again"
        assert len(dnats(swarm.sandbox.rules(), 8080)) == 1

    swarm.engine.docker("service", "rm", "web")
    assert until(lambda: dnats(swarm.sandbox.rules(), 8080), [], timeout=15) == []
    # The rule goes with the task, and the engine's own proxy listens a moment longer.
    refused = until(lambda: tcp(client, HOST, 8080), Failure.REFUSED, timeout=15)
    assert refused is Failure.REFUSED
