"""The rule of a named port is in force when `docker start` returns."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.harness import Daemon, Engine, Failure, Namespace, Sandbox, Wanted, serve, tcp, until
from tests.harness.engine import IMAGE
from tests.harness.process import LabError
from tests.harness.sandbox import CLIENT, HOST
from tests.harness.starting import End, import_image, start
from tests.system.packets.asking import dnats, opened, server

pytestmark = [pytest.mark.ours]
TIMES = 5


@contextmanager
def lab(wanted: Wanted) -> Iterator[tuple[Sandbox, Engine, Daemon]]:
    with (
        Sandbox(wanted.variant) as sandbox,
        Engine(sandbox, userland_proxy=wanted.proxy, suite=wanted.suite) as engine,
    ):
        for name, subnet in (("X", "fd00:a::/64"), ("Y", "fd00:b::/64")):
            engine.network(name, subnet)
        with Daemon(sandbox, engine.endpoint) as daemon:
            yield sandbox, engine, daemon


def leads_to(target: str, sandbox: Sandbox, port: int) -> bool:
    return target in str(dnats(sandbox.rules(), port))


@pytest.mark.depends_on("variant", "engine", "proxy")
def test_named_port_is_forwarded_when_start_returns(wanted: Wanted) -> None:
    """On a busy machine, a rule may come later."""
    at_return = 0
    with lab(wanted) as (sandbox, engine, _):
        engine.docker("create", "--name=web", "--network=X", "-p8080:80", IMAGE, "sleep", "9999")
        # Others take the address meanwhile, so that each start gets a new one.
        for number in range(TIMES):
            engine.docker("start", "web")
            at_return += bool(dnats(sandbox.rules(), 8080))
            web = engine.container("web")
            target = f"[{web.address}]:80"
            assert until(partial(leads_to, target, sandbox, 8080), wanted=True)
            with serve(web.ns, "web", tcp=[80]):
                assert opened(sandbox.client, 8080).peer == CLIENT
            engine.docker("kill", "web")
            assert until(lambda: dnats(sandbox.rules(), 8080), []) == []
            engine.run(f"other{number}", "X")
        assert at_return > TIMES // 2


@pytest.mark.depends_on("variant", "engine", "proxy")
def test_no_client_hangs_that_connects_while_a_container_starts(wanted: Wanted) -> None:
    with lab(wanted) as (sandbox, engine, _):
        import_image(engine)
        ends: Counter[End] = Counter()
        for number in range(TIMES):
            connections = start(engine, sandbox.client, f"box{number}", 8080, interval=0.01)
            ends.update(connection.end for connection in connections)
        assert ends[End.HUNG] == 0, ends
        assert ends[End.CORRECT] > TIMES


@pytest.mark.depends_on("engine")
def test_named_port_is_forwarded_after_run_and_restart(wanted: Wanted) -> None:
    """`docker run` starts the container 1 ms after it has created it. On a busy machine the inspect
    of its ports may come too late for the facts of the start."""
    with lab(wanted) as (sandbox, engine, _):
        for number in range(TIMES):
            name, port = f"box{number}", 9000 + number
            words = ("run", "--detach", f"--name={name}", "--network=X", f"--publish={port}:80")
            engine.docker(*words, IMAGE, "sleep", "9999")
            target = f"[{engine.container(name).address}]:80"
            assert until(partial(leads_to, target, sandbox, port), wanted=True)
            engine.docker("restart", "--time=0", name)
            target = f"[{engine.container(name).address}]:80"
            assert until(partial(leads_to, target, sandbox, port), wanted=True)


@pytest.mark.depends_on("engine")
def test_rule_leads_to_the_gateway_network_of_several(wanted: Wanted) -> None:
    with lab(wanted) as (sandbox, engine, _):
        engine.docker("create", "--name=web", "--network=Y", "-p8080:80", IMAGE, "sleep", "9999")
        engine.docker("network", "connect", "X", "web")
        engine.docker("start", "web")
        target = f"[{engine.container('web', network='X').address}]:80"
        assert until(partial(leads_to, target, sandbox, 8080), wanted=True)


@pytest.mark.depends_on("variant", "engine", "proxy")
def test_start_that_fails_leaves_no_rule_and_disturbs_none(wanted: Wanted) -> None:
    with lab(wanted) as (sandbox, engine, daemon):
        web = engine.run("web", "X", publish=["8080:80"])
        with serve(web.ns, "web", tcp=[80]):
            opened(sandbox.client, 8080)
            before = dnats(sandbox.rules(), 8080)
            for words in (("-p8080:80", IMAGE, "sleep", "9999"), ("-p8081:80", IMAGE, "/missing")):
                with pytest.raises(LabError):
                    engine.docker("run", "-d", "--network=X", *words)
            assert until(lambda: dnats(sandbox.rules(), 8081), []) == []
            assert dnats(sandbox.rules(), 8080) == before
            assert opened(sandbox.client, 8080).peer == CLIENT
        assert daemon.log.count("published [::]:8080/tcp") == 1


@pytest.mark.depends_on("variant", "engine", "proxy")
def test_start_that_fails_takes_no_client_of_a_service_of_the_host(wanted: Wanted) -> None:
    """The container's address is known before the engine finds the port in use."""
    servers: Counter[str | Failure] = Counter()
    done = threading.Event()

    def ask(client: Namespace) -> None:
        while not done.is_set():
            servers[server(tcp(client, HOST, 8081))] += 1

    with lab(wanted) as (sandbox, engine, _), serve(sandbox.host, "service", tcp=[8081]):
        asking = threading.Thread(target=ask, args=(sandbox.client,))
        asking.start()
        try:
            for _ in range(TIMES):
                with pytest.raises(LabError):
                    engine.docker("run", "-d", "--network=X", "-p8081:80", IMAGE, "sleep", "9999")
        finally:
            done.set()
            asking.join()
        assert set(servers) == {"service"}, servers
        assert servers["service"] > TIMES
