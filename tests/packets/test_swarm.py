"""Swarm: tasks on docker_gwbridge, scenarios W. One node is enough; ingress is left to Docker."""

from __future__ import annotations

import json

import pytest

from tests.lab import Answer, Daemon, Engine, Failure, Sandbox, serve, tcp, udp, until
from tests.lab.sandbox import CLIENT, HOST, HOST4, Variant
from tests.packets.asking import dnats, opened, peer

GWBRIDGE = "fd00:3984:3989::/64"


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_w1_w2_w3_w6_a_tasks_way_out_and_its_host_port(
    tools: None,  # noqa: ARG001
    variant: Variant,
) -> None:
    with (
        Sandbox(variant) as sandbox,
        Engine(sandbox) as engine,
        Daemon(sandbox, engine.endpoint) as daemon,
    ):
        engine.network("docker_gwbridge", GWBRIDGE, bridge="docker_gwbridge")
        engine.docker("swarm", "init", f"--advertise-addr={HOST4}")
        engine.docker("network", "create", "-d", "overlay", "ov")
        publish = "--publish=mode=host,target=80,published=8080"
        words = ("service", "create", "--detach", "--name=web", "--network=ov", publish)
        engine.docker(*words, "lab:1", "sleep", "infinity")
        first = task(engine)
        with serve(first.ns, "first", tcp=[80]), serve(sandbox.client, "client", udp=[7000]):
            assert opened(sandbox.client, 8080).server == "first"
            assert peer(udp(first.ns, CLIENT, 7000)) == HOST

        engine.docker("service", "update", "--detach", "--force", "web")
        again = until(lambda: task(engine), lambda made: made.id != first.id, timeout=30)
        assert again.id != first.id
        with serve(again.ns, "again", tcp=[80]):
            answer = until(
                lambda: tcp(sandbox.client, HOST, 8080),
                lambda each: isinstance(each, Answer) and each.peer == CLIENT,
                timeout=10,
            )
            assert isinstance(answer, Answer)
            assert answer.server == "again"
            assert len(dnats(sandbox.rules(), 8080)) == 1
            assert "Traceback" not in daemon.log

        engine.docker("service", "rm", "web")
        assert until(lambda: dnats(sandbox.rules(), 8080), [], timeout=15) == []
        assert tcp(sandbox.client, HOST, 8080) is Failure.REFUSED


def task(engine: Engine):  # type: ignore[no-untyped-def]
    """The service's running container, once there is one."""
    names = until(
        lambda: engine.docker("ps", "--filter=name=web.", "--format={{.Names}}").split(),
        lambda found: len(found) == 1,
        timeout=30,
    )
    assert names, json.dumps(engine.docker("service", "ps", "web"))
    return engine.container(names[0])
