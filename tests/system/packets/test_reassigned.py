"""An engine that restarts gives addresses to other containers: Q7."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest

from tests.harness import Daemon, Engine, Namespace, Sandbox, Wanted, until
from tests.harness.sandbox import HOST

pytestmark = [pytest.mark.ours]
PORTS = {8080: "one", 8081: "two"}
BESIDE = ("quiet", "three", "four", "five", "six")
"""More containers that restart with the engine. All have a server, and none publishes a port."""
MAX_RESTARTS = 6


@dataclass
class Answers:
    """Which container answered, for each port; "" if none did."""

    by_port: dict[int, list[str]] = field(default_factory=lambda: {port: [] for port in PORTS})

    @property
    def wrong(self) -> list[tuple[int, str]]:
        return [
            (port, name)
            for port, names in self.by_port.items()
            for name in names
            if name not in ("", PORTS[port])
        ]


def ask(port: int) -> str:
    """The name of the container that answers on a port of the host."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        sock.settimeout(0.2)
        try:
            sock.connect((str(HOST), port))
            sock.send(b"GET /name HTTP/1.0\r\n\r\n")
            data = b""
            while block := sock.recv(1000):
                data += block
        except OSError:
            return ""
        return data.partition(b"\r\n\r\n")[2].decode().strip()


def last(names: list[str]) -> str:
    return names[-1] if names else ""


@contextmanager
def asking(client: Namespace) -> Iterator[Answers]:
    """Ask both ports 20 times a second."""
    answers, done = Answers(), threading.Event()

    def loop() -> None:
        while not done.wait(0.05):
            for port, names in answers.by_port.items():
                names.append(ask(port))

    asker = threading.Thread(target=lambda: client.within(loop))
    asker.start()
    try:
        yield answers
    finally:
        done.set()
        asker.join()


def web(engine: Engine, name: str, *publish: str) -> None:
    serving = f"mkdir -p /www; echo {name} >/www/name; exec httpd -f -h /www"
    engine.run(name, "X", "--restart=always", publish=publish, cmd=("sh", "-c", serving))


def addresses(engine: Engine) -> list[object]:
    return [engine.container(name).address for name in (*PORTS.values(), *BESIDE)]


@contextmanager
def lab(wanted: Wanted, *flags: str) -> Iterator[tuple[Sandbox, Engine, Daemon]]:
    with (
        Sandbox(wanted.variant) as sandbox,
        Engine(sandbox, *flags, userland_proxy=wanted.proxy, suite=wanted.suite) as engine,
    ):
        engine.network("X", "fd00:a::/64")
        for port, name in PORTS.items():
            web(engine, name, f"{port}:80")
        for name in BESIDE:
            web(engine, name)
        with Daemon(sandbox, engine.endpoint, start=False) as daemon:
            daemon.start()
            for port, name in PORTS.items():
                once = partial(sandbox.client.within, partial(ask, port))
                assert until(once, name) == name
            yield sandbox, engine, daemon


@pytest.mark.depends_on("engine", "proxy")
@pytest.mark.parametrize("end", ["kill", "stop"])
def test_port_leads_to_no_other_container_while_the_engine_restarts(
    wanted: Wanted, end: str
) -> None:
    with lab(wanted) as (sandbox, engine, _):
        for _ in range(MAX_RESTARTS):
            before = addresses(engine)
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
                for port, names in answers.by_port.items():
                    until(partial(last, names), PORTS[port], timeout=15)
            assert answers.wrong == []
            assert [names[-1] for names in answers.by_port.values()] == list(PORTS.values())
            if addresses(engine) != before:
                return
        pytest.fail("no container got another address")


@pytest.mark.depends_on("engine", "proxy")
def test_no_port_is_refused_with_live_restore(wanted: Wanted) -> None:
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


@pytest.mark.depends_on("variant")
def test_start_without_the_engine_closes_ports_only_if_a_container_may_have_left(
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
        assert "--dport 8080" not in sandbox.rules()
        engine.start()
        assert until(asked, set(PORTS.values()), timeout=15) == set(PORTS.values())


@pytest.mark.depends_on("variant")
def test_port_leads_to_no_other_container_after_a_crash(wanted: Wanted) -> None:
    """The engine starts at the first connection, as with docker.socket, and takes its time."""
    with lab(wanted) as (sandbox, engine, daemon):
        for _ in range(3):
            time.sleep(1)
            daemon.kill9()
            engine.stop()
            engine.start_on_demand()
            with asking(sandbox.client) as answers:
                daemon.start(wait=None)
                for port, names in answers.by_port.items():
                    until(partial(last, names), PORTS[port], timeout=20)
            assert answers.wrong == []
            assert [names[-1] for names in answers.by_port.values()] == list(PORTS.values())


@pytest.mark.depends_on("variant")
def test_port_of_an_unrelated_bridge_closes_nothing(wanted: Wanted) -> None:
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
