"""Bursts of changes, and changes while the daemon does not run: more of the scenarios T.

`make test-all` runs the loops in the length of the scenarios; CI runs a few rounds.
"""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness import Failure, Wanted, connect, serve, until
from tests.harness.relay import Relay
from tests.harness.sandbox import HOST
from tests.system.packets.asking import SHORT, dnats, knocking, opened, server
from tests.system.packets.small import Small, small

CI = [Wanted(None, "nft", True)]
ALL = [*CI, Wanted(None, "legacy", False), Wanted("sid", "nft", True)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every = metafunc.config.getoption("--engines") == "all"
    wanted = [pytest.param(each, id=each.id) for each in (ALL if every else CI)]
    metafunc.parametrize("wanted", wanted, scope="module")


@pytest.fixture(scope="module")
def made(wanted: Wanted, tools: None) -> Iterator[Small]:  # noqa: ARG001
    with small(wanted, "--live-restore") as lab:
        yield lab


@pytest.fixture
def lab(made: Small) -> Iterator[Small]:
    """A lab with a running daemon; asserts at the end that the rules have not changed."""
    if made.daemon.process is None:
        made.daemon.start()
    opened(made.client, 8080)
    before = made.sandbox.rules()
    yield made
    assert until(made.sandbox.rules, before) == before
    assert made.daemon.status.startswith("synced")
    assert "Traceback" not in made.daemon.log


@pytest.fixture
def thorough(request: pytest.FixtureRequest, wanted: Wanted) -> bool:
    """True if the test runs all rounds of the scenario: once in a run of all tests."""
    return request.config.getoption("--engines") == "all" and wanted == CI[0]


def test_t6_engine_restart_with_live_restore_cuts_no_connection(lab: Small) -> None:
    with knocking(lab.client, 8080) as knocks, connect(lab.client, HOST, 8080) as conversation:
        lab.engine.stop()
        lab.daemon.wait_state("waiting-for-docker")
        lab.engine.start()
        lab.daemon.wait_state("synced")
        assert server(conversation.ask()) == "x1"
    assert knocks.wrong == []
    assert knocks.count > 50


def test_t7_restart_of_daemon_and_containers_restores_all_ports(lab: Small, thorough: bool) -> None:
    rounds, count = (50, 20) if thorough else (1, 5)
    names = {9000 + number: f"box{number}" for number in range(count)}
    try:
        for port, name in names.items():
            lab.engine.run(name, "X", publish=[f"{port}:80"])
        for _ in range(rounds):
            with ThreadPoolExecutor(count) as pool:
                restarts = [
                    pool.submit(lab.engine.docker, "restart", "--time=0", name)
                    for name in names.values()
                ]
                lab.daemon.stop()
                lab.daemon.start()
            # With so many simultaneous restarts, the engine sometimes fails to start a container,
            # or a container ends without an error of the command.
            failures = [str(error) for restart in restarts if (error := restart.exception())]
            assert [text for text in failures if "id already in use" not in text] == []
            addresses = {port: address(lab, name) for port, name in names.items()}
            wanted = {port: [str(each)] if each else [] for port, each in addresses.items()}
            assert list(addresses.values()).count(None) <= max(len(failures), count // 5)
            assert until(lambda: targets(lab, names), wanted, timeout=10) == wanted
    finally:
        lab.engine.rm(*names.values())


def targets(lab: Small, ports: dict[int, str]) -> dict[int, list[str]]:
    """Port -> destination addresses of its DNAT rules."""
    rules = lab.sandbox.rules()
    to = re.compile(r"--to-destination \[(\S+)\]:80$")
    return {
        port: [found[1] for line in dnats(rules, port) if (found := to.search(line))]
        for port in ports
    }


def address(lab: Small, name: str) -> object:
    return lab.engine.container(name).address


def test_t8_repeatedly_recreated_service_leaves_no_rules(lab: Small, thorough: bool) -> None:
    """As `docker compose up --force-recreate` does; each second time with its network."""
    before = lab.sandbox.rules()
    for number in range(200 if thorough else 2):
        lab.engine.network("S", "fd00:5::/64")
        for _ in range(2):
            lab.engine.run("service", "S", publish=["9000:80", "9001:81/udp"])
            lab.engine.rm("service")
        lab.engine.docker("network", "rm", "S")
        if number % 50 == 49:
            assert until(lab.sandbox.rules, before) == before


def test_t12_network_removed_during_inspect_leaves_no_rules(lab: Small, thorough: bool) -> None:
    for number in range(20 if thorough else 2):
        lab.engine.network("N", "fd00:6::/64")
        lab.engine.run("gone", "N", publish=["9000:80"])
        if number % 2:
            lab.engine.docker("network", "disconnect", "--force", "N", "gone")
            lab.engine.docker("network", "rm", "N")
            lab.engine.rm("gone")
        else:
            lab.engine.rm("gone")
            lab.engine.docker("network", "rm", "N")


def test_t15_stopped_daemon_keeps_its_rules_and_catches_up_after_sigcont(lab: Small) -> None:
    before = lab.sandbox.rules()
    lab.daemon.signal(signal.SIGSTOP)
    try:
        made = lab.engine.run("x2", "X", publish=["8081:80"])
        opened(lab.client, 8080)
        assert lab.sandbox.rules() == before
    finally:
        lab.daemon.signal(signal.SIGCONT)
    try:
        with serve(made.ns, "x2", tcp=[80]):
            assert server(opened(lab.client, 8081)) == "x2"
    finally:
        lab.engine.rm("x2")


def test_u8_flow_to_a_container_removed_while_the_daemon_was_dead_is_refused(lab: Small) -> None:
    """The flow does not reach the next container with the same address and no published port."""
    lab.daemon.stop()
    with connect(lab.client, HOST, 5353, kind=socket.SOCK_DGRAM) as conversation:
        try:
            lab.daemon.start()
            made = lab.engine.run("x2", "X", publish=["5353:53/udp"], ip6="fd00:a::22")
            with serve(made.ns, "x2", udp=[53]):
                assert until(lambda: server(conversation.ask(timeout=SHORT)), "x2") == "x2"
            lab.daemon.kill9()
            lab.engine.rm("x2")
            conversation.ask(timeout=SHORT)
            made = lab.engine.run("x3", "X", ip6="fd00:a::22")
            with serve(made.ns, "x3", udp=[53]):
                lab.daemon.start()
                told = until(lambda: conversation.ask(timeout=SHORT), Failure.REFUSED)
                assert told is Failure.REFUSED
        finally:
            lab.engine.docker("rm", "--force", "x2", "x3", check=False)


def test_t10_lost_events_are_recovered_by_the_next_list(lab: Small) -> None:
    """First an open event stream without events, then a closed event stream."""
    good, endpoint = lab.daemon.config.read_text(), lab.daemon.endpoint
    with Relay(lab.engine.socket, lab.sandbox.dir / "relay.sock") as relay:
        lab.daemon.stop()
        lab.daemon.endpoint = relay.endpoint
        lab.daemon.configure(*good.splitlines(), "resync_interval = 10")
        lab.daemon.start()
        relay.deaf = True
        try:
            lab.engine.run("x2", "X", publish=["8081:80"])
            time.sleep(1)
            assert dnats(lab.sandbox.rules(), 8081) == []
            assert until(lambda: len(dnats(lab.sandbox.rules(), 8081)), 1, timeout=20) == 1
            lab.engine.rm("x2")
            assert len(dnats(lab.sandbox.rules(), 8081)) == 1
            relay.deaf = False
            relay.cut()
            assert until(lambda: dnats(lab.sandbox.rules(), 8081), [], timeout=5) == []
        finally:
            lab.engine.docker("rm", "--force", "x2", check=False)
            lab.daemon.config.write_text(good)
            lab.daemon.endpoint = endpoint
            lab.daemon.stop()
    lab.daemon.start()
