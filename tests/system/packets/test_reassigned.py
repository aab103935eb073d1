"""An engine that restarts gives addresses to other containers: Q7."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest

from ipv6natd.host.rule_files import files_with_our_rules
from tests.harness import Daemon, Engine, Sandbox, Wanted, exchange, until
from tests.harness.exchange import PORTS, ask, asking
from tests.harness.process import end
from tests.harness.relay import Relay

pytestmark = [pytest.mark.ours]
MAX_RESTARTS = 6


@contextmanager
def lab(wanted: Wanted, *flags: str) -> Iterator[tuple[Sandbox, Engine, Daemon]]:
    with (
        Sandbox(wanted.variant) as sandbox,
        Engine(sandbox, *flags, userland_proxy=wanted.proxy, suite=wanted.suite) as engine,
    ):
        exchange.run_all(engine)
        with Daemon(sandbox, engine.endpoint, start=False) as daemon:
            daemon.start()
            assert exchange.answered_once(sandbox.client)
            yield sandbox, engine, daemon


@pytest.mark.depends_on
@pytest.mark.parametrize("end", ["kill", "stop"])
def test_q7_port_leads_to_no_other_container_while_the_engine_restarts(
    wanted: Wanted, end: str
) -> None:
    with lab(wanted) as (sandbox, engine, _):
        for _ in range(MAX_RESTARTS):
            before = exchange.addresses(engine)
            with asking(sandbox.client) as answers:
                time.sleep(0.5)
                if end == "kill":
                    engine.kill()
                    # The containers go on, and so do their ports.
                    count = {port: len(names) for port, names in answers.by_port.items()}
                    time.sleep(1)
                    for port, name in PORTS.items():
                        meanwhile = answers.by_port[port][count[port] + 1 :]
                        assert set(meanwhile) == {name}
                else:
                    engine.stop()
                engine.start()
                assert answers.await_all()
            assert answers.wrong == []
            if exchange.addresses(engine) != before:
                return
        pytest.fail("no container got another address")


@pytest.mark.depends_on
def test_q7_no_port_is_refused_with_live_restore(wanted: Wanted) -> None:
    with lab(wanted, "--live-restore") as (sandbox, engine, daemon):
        with asking(sandbox.client) as answers:
            for stop in (engine.kill, engine.stop):
                stop()
                time.sleep(0.5)
                engine.start()
                time.sleep(1)
        for port, name in PORTS.items():
            assert set(answers.by_port[port]) == {name}
        assert "withdrew" not in daemon.log


@pytest.mark.depends_on
def test_q7_start_without_the_engine_closes_ports_only_if_a_container_may_have_left(
    wanted: Wanted,
) -> None:
    with lab(wanted) as (sandbox, engine, daemon):

        def asked() -> set[str]:
            return {sandbox.client.within(partial(ask, port)) for port in PORTS}

        def restarted(*, kill: bool) -> set[str]:
            time.sleep(1)  # until the ports are saved
            daemon.kill9() if kill else daemon.stop()
            daemon.start(wait="waiting-for-docker")
            return asked()

        engine.kill()  # and its containers go on
        for kill in (False, True, True):
            assert restarted(kill=kill) == set(PORTS.values())
        # The rules of a version that saved no ports.
        daemon.stop()
        (file,) = sandbox.dir.rglob("ports")
        file.unlink()
        daemon.start(wait="waiting-for-docker")
        assert until(asked, {""}, timeout=2) == {""}
        engine.start()
        assert until(asked, set(PORTS.values()), timeout=15) == set(PORTS.values())
        daemon.stop()
        engine.stop()
        daemon.start(wait="waiting-for-docker")
        assert "the ports are closed until it answers" in daemon.log
        assert "--to-destination" not in sandbox.rules()
        engine.start()
        assert until(asked, set(PORTS.values()), timeout=15) == set(PORTS.values())


@pytest.mark.depends_on("variant")
def test_q7_ports_that_another_program_restores_at_boot_are_closed(wanted: Wanted) -> None:
    """For example `netfilter-persistent save`, which also saves our rules."""
    with lab(wanted) as (sandbox, engine, daemon):
        saved = sandbox.dir / "rules.v6"
        saved.write_text(sandbox.host.run(f"ip6tables-{sandbox.variant}-save"))
        assert any("contains rules of ipv6natd" in each for each in files_with_our_rules([saved]))
        daemon.stop()
        engine.stop()
        daemon.flush()
        for file in sandbox.dir.rglob("ports"):
            file.unlink()  # /run is empty after a boot
        sandbox.host.run(f"ip6tables-{sandbox.variant}-restore", str(saved))
        assert targets(sandbox) == len(PORTS)
        daemon.start(wait="waiting-for-docker")
        assert until(partial(targets, sandbox), 0, timeout=3) == 0
        engine.start()
        assert until(partial(targets, sandbox), len(PORTS), timeout=15) == len(PORTS)
        for port, name in PORTS.items():
            answer = partial(sandbox.client.within, partial(ask, port))
            assert until(answer, name, timeout=15) == name


@pytest.mark.depends_on("engine")
def test_q7_end_that_the_engine_has_not_reported_closes_the_ports_of_its_network(
    wanted: Wanted,
) -> None:
    """The engine is killed between the end of a container and its event."""
    with (
        lab(wanted, "--live-restore") as (sandbox, engine, daemon),
        Relay(engine.socket, sandbox.dir / "relay.sock") as relay,
    ):
        daemon.stop()
        daemon.endpoint = relay.endpoint
        daemon.start()
        relay.deaf = True
        with asking(sandbox.client) as answers:
            engine.docker("stop", "--time=0", "one")
            engine.kill()
            assert until(partial(targets, sandbox), 0, timeout=3) == 0
            for kill in (False, True):
                daemon.kill9() if kill else daemon.stop()
                daemon.start(wait="waiting-for-docker")
                assert until(partial(targets, sandbox), 0, timeout=3) == 0
            relay.deaf = False
            engine.start()
            engine.docker("start", "one")
            assert answers.await_all()
        assert answers.wrong == []


@pytest.mark.depends_on("engine")
def test_q7_end_whose_port_goes_after_its_event_names_no_other_container(wanted: Wanted) -> None:
    """The engine is killed at the event of an end, and another container ends while it is down.

    On Docker 20.10 the port of the first one is still there then.
    """
    with lab(wanted, "--live-restore") as (sandbox, engine, _):
        one = engine.container("one")
        with ExitStack() as started, asking(sandbox.client) as answers:
            events = engine.start_docker("events", "--filter=event=die", output=subprocess.PIPE)
            started.callback(end, events)
            time.sleep(0.5)
            started.callback(end, engine.start_docker("kill", "quiet"))
            assert events.stdout is not None
            output = started.enter_context(events.stdout)
            assert b"die" in output.readline()
            engine.kill()
            engine.kill_container(one)
            time.sleep(0.5)
            engine.start()
            engine.docker("start", "quiet")
            assert answers.await_all()
        assert answers.wrong == []


@pytest.mark.depends_on("engine")
@pytest.mark.parametrize(
    "leave",
    [("stop", "--time=0", "quiet"), ("network", "disconnect", exchange.NETWORK, "quiet")],
    ids=["stop", "disconnect"],
)
def test_q7_departure_that_the_engine_has_reported_closes_no_port(
    wanted: Wanted, leave: tuple[str, ...]
) -> None:
    """The engine is killed within a second after that, so no list confirms who left."""
    with lab(wanted, "--live-restore") as (sandbox, engine, daemon):
        engine.docker(*leave)
        time.sleep(0.3)
        engine.kill()
        daemon.wait_state("waiting-for-docker")
        time.sleep(0.5)
        assert targets(sandbox) == len(PORTS)
        engine.start()


@pytest.mark.slow
@pytest.mark.depends_on
def test_q7_engine_whose_answers_hang_closes_the_ports_of_a_network_that_a_container_left(
    wanted: Wanted,
) -> None:
    """Its event stream is open."""
    with (
        lab(wanted) as (sandbox, engine, daemon),
        Relay(engine.socket, sandbox.dir / "relay.sock") as relay,
    ):
        daemon.stop()
        daemon.endpoint = relay.endpoint
        daemon.start()
        assert until(partial(targets, sandbox), 2) == 2
        relay.delay = 10.0
        engine.docker("rm", "--force", "quiet")
        assert until(partial(targets, sandbox), 0, timeout=9) == 0
        assert "lost the Docker engine" not in daemon.log
        relay.delay = 0.0
        assert until(partial(targets, sandbox), 2, timeout=30) == 2


def targets(sandbox: Sandbox) -> int:
    """The number of ports that lead to a container."""
    return sandbox.rules().count("--to-destination")


@pytest.mark.depends_on
def test_q7_port_leads_to_no_other_container_after_a_crash(wanted: Wanted) -> None:
    """The engine starts at the first connection, as with docker.socket, and takes its time."""
    with lab(wanted) as (sandbox, engine, daemon):
        for _ in range(3):
            time.sleep(1)
            daemon.kill9()
            engine.stop()
            engine.start_on_demand()
            with asking(sandbox.client) as answers:
                daemon.start(wait=None)
                assert answers.await_all(timeout=20)
            assert answers.wrong == []


@pytest.mark.depends_on
def test_q7_port_of_an_unrelated_bridge_closes_nothing(wanted: Wanted) -> None:
    """As of an LXC container that ends, while ipv6natd has not heard of the engine."""
    with lab(wanted, "--live-restore") as (sandbox, engine, daemon):
        host = sandbox.host
        host.ip("link add lxcbr3 type bridge")
        for number in (1, 2):
            host.ip(f"link add vethlxc{number} type veth peer name lxc{number}")
            host.ip(f"link set vethlxc{number} master lxcbr3")
        time.sleep(1)
        engine.kill()
        daemon.stop()
        host.ip("link del vethlxc1")
        daemon.start(wait="waiting-for-docker")
        host.ip("link del vethlxc2")
        time.sleep(1)
        for port, name in PORTS.items():
            assert sandbox.client.within(partial(ask, port)) == name
        engine.start()
