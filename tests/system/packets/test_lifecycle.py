"""Starts, stops, restarts and losses: scenarios T. Each builds a lab of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.harness import (
    Answer,
    Bus,
    Daemon,
    Engine,
    Failure,
    Sandbox,
    Wanted,
    connect,
    serve,
    tcp,
    until,
)
from tests.harness.sandbox import CLIENT, HOST, ROGUE
from tests.system.packets.asking import dnats, knocking, opened, peer, server
from tests.system.packets.small import Small, small

pytestmark = pytest.mark.depends_on("variant", "proxy")

NOTHING = """\
*raw
-A OUTPUT -j ACCEPT
-D OUTPUT -j ACCEPT
COMMIT
*filter
-A FORWARD -j ACCEPT
-D FORWARD -j ACCEPT
COMMIT
*nat
-A OUTPUT -j ACCEPT
-D OUTPUT -j ACCEPT
COMMIT
"""
"""Tables without rules. nft shows a table only after the first write to it."""

FOREIGN = """\
*raw
-A PREROUTING -s 2001:db8:99::/48 -j DROP
COMMIT
*filter
:DOCKER-USER - [0:0]
:MINE - [0:0]
-A FORWARD -i vmbr0 -m comment --comment "a \\"quoted\\" one" -j MINE
-A DOCKER-USER -s 2001:db8:99::/48 -j DROP
-A MINE -j ACCEPT
COMMIT
*nat
-A PREROUTING -p tcp -m tcp --dport 9 -j RETURN
-A POSTROUTING -s 2001:db8:f::/64 -j MASQUERADE
COMMIT
"""


@pytest.fixture(scope="module")
def lab(wanted: Wanted, tools: None) -> Iterator[Small]:  # noqa: ARG001
    """A lab whose daemon the tests start and stop; each test begins without rules of ipv6natd."""
    with small(wanted, "--live-restore") as made:
        yield made


@pytest.fixture
def fresh(lab: Small) -> Iterator[Small]:
    assert lab.own() == []
    yield lab
    if lab.daemon.process is not None and lab.daemon.process.poll() is None:
        lab.daemon.stop()
    lab.daemon.flush()


def load(lab: Small, text: str) -> None:
    file = lab.sandbox.dir / "foreign.rules"
    file.write_text(text)
    lab.sandbox.host.run(f"ip6tables-{lab.sandbox.variant}-restore", str(file))


@pytest.mark.parametrize("foreign", [NOTHING, FOREIGN], ids=["nothing", "foreign"])
@pytest.mark.parametrize("way", ["-cleanup", "-flush"])
def test_t3_cleanup_and_flush_restore_the_former_tables(
    fresh: Small, way: str, foreign: str
) -> None:
    load(fresh, foreign)
    before = fresh.sandbox.rules()
    fresh.daemon.start(*([way] if way == "-cleanup" else []))
    opened(fresh.client, 8080)
    assert fresh.own() != []
    assert fresh.daemon.stop() == 0
    if way == "-flush":
        assert fresh.own() != []
        assert "1 mapping stays open" in fresh.daemon.log
        fresh.daemon.flush()
    after = fresh.sandbox.rules()
    if "DOCKER-USER -s" in foreign:
        # A DOCKER-USER with rules of the user keeps the jump to it.
        jump = "-A FORWARD -m comment --comment ipv6natd -j DOCKER-USER\n"
        assert after.count(jump) == 1
        after = after.replace(jump, "")
        fresh.sandbox.host.run(f"ip6tables-{fresh.sandbox.variant}", "-D", *jump.split()[1:])
    assert after == before
    load(fresh, NOTHING)


def test_t2_restart_under_traffic_loses_and_cuts_no_connection(fresh: Small) -> None:
    fresh.daemon.start()
    opened(fresh.client, 8080)
    with (
        knocking(fresh.client, 8080) as knocks,
        connect(fresh.client, HOST, 8080) as conversation,
    ):
        for _ in range(3):
            fresh.daemon.stop()
            fresh.daemon.start()
        assert server(conversation.ask()) == "x1"
    assert knocks.wrong == []
    assert knocks.count > 100


def test_t4_start_after_a_kill_adds_no_duplicate_rules(fresh: Small) -> None:
    fresh.daemon.start()
    opened(fresh.client, 8080)
    before = fresh.sandbox.rules()
    fresh.daemon.kill9()
    assert fresh.sandbox.rules() == before
    opened(fresh.client, 8080)
    fresh.daemon.start()
    assert fresh.sandbox.rules() == before


def test_t4_stale_chain_of_an_earlier_start_is_removed(fresh: Small) -> None:
    load(
        fresh,
        "*filter\n:IPV6NAT-OLD - [0:0]\n"
        "-A FORWARD -j IPV6NAT-OLD\n-A IPV6NAT-OLD -j ACCEPT\nCOMMIT\n",
    )
    fresh.daemon.start()
    opened(fresh.client, 8080)
    assert "IPV6NAT-OLD" not in fresh.sandbox.rules()


@pytest.mark.depends_on
def test_t9_rules_stay_while_the_engine_is_down_and_it_is_followed_again(fresh: Small) -> None:
    fresh.daemon.start()
    opened(fresh.client, 8080)
    before = fresh.sandbox.rules()
    fresh.engine.kill()
    try:
        fresh.daemon.wait_state("waiting-for-docker")
        assert fresh.sandbox.rules() == before
        opened(fresh.client, 8080)
        time.sleep(3)
    finally:
        fresh.engine.start()
    fresh.daemon.wait_state("synced")
    assert fresh.sandbox.rules() == before
    opened(fresh.client, 8080)


def test_t9_without_retry_a_lost_engine_ends_the_daemon_and_rules_stay(fresh: Small) -> None:
    fresh.daemon.start("-retry=false")
    opened(fresh.client, 8080)
    fresh.engine.kill()
    try:
        assert fresh.daemon.process is not None
        assert fresh.daemon.process.wait(10) == 1
        assert fresh.own() != []
    finally:
        fresh.engine.start()


def test_networks_are_closed_after_a_boot_before_the_engine_answers(fresh: Small) -> None:
    """Containers may run before the daemon reads their networks: here the engine is down."""
    address = fresh.x1.address
    assert address is not None
    fresh.daemon.start()
    opened(fresh.client, 8080)
    closed = [line for line in fresh.own() if "FORWARD" in line]
    fresh.daemon.stop()
    fresh.engine.kill()
    try:
        load(fresh, NOTHING)
        assert peer(tcp(fresh.sandbox.rogue, address, 80)) == ROGUE
        fresh.daemon.start(wait="waiting-for-docker")
        assert [line for line in fresh.own() if "FORWARD" in line] == closed
        assert tcp(fresh.sandbox.rogue, address, 80, timeout=0.3) is Failure.TIMEOUT
    finally:
        fresh.engine.start()
    opened(fresh.client, 8080)


def test_t13_reload_applies_a_valid_configuration_and_rejects_an_invalid_one(
    fresh: Small,
) -> None:
    fresh.daemon.start()
    opened(fresh.client, 8080)
    good = fresh.daemon.config.read_text()
    rules = fresh.sandbox.rules()
    fresh.daemon.configure(*good.splitlines(), 'nat_prefixes = "oops"')
    fresh.daemon.reload()
    assert "nat_prefixes" in fresh.daemon.status
    assert fresh.sandbox.rules() == rules
    fresh.daemon.configure(*good.splitlines(), 'nat_prefixes = ["fd99::/16"]')
    fresh.daemon.reload()
    until(lambda: dnats(fresh.sandbox.rules(), 8080), [])
    assert dnats(fresh.sandbox.rules(), 8080) == []
    fresh.daemon.config.write_text(good)
    fresh.daemon.reload()
    opened(fresh.client, 8080)


@pytest.mark.depends_on
def test_t11_short_lived_containers_leave_no_rules(fresh: Small) -> None:
    fresh.daemon.start()
    opened(fresh.client, 8080)
    before = fresh.sandbox.rules()
    words = ("run", "--network=X", "--rm")
    for number in range(5):
        fresh.engine.docker(*words, f"--publish={9000 + number}:80", "lab:1", "echo")
        name = f"brief{number}"
        fresh.engine.docker(*words, "-d", f"--name={name}", "-p", "9100:80", "lab:1", "sleep", "9")
        fresh.engine.docker("rm", "--force", name, check=False)
    assert until(fresh.sandbox.rules, before) == before
    assert fresh.daemon.status.startswith("synced")
    assert "Traceback" not in fresh.daemon.log


def test_rules_work_without_a_bus_and_the_name_is_owned_when_it_starts(
    fresh: Small,
) -> None:
    bus = Bus(fresh.sandbox.dir)
    ask = ("get-property", "org.ipv6natd1", "/org/ipv6natd1", "org.ipv6natd1.Manager")
    without, fresh.daemon.bus = fresh.daemon.bus, bus.address
    try:
        fresh.daemon.start()
        opened(fresh.client, 8080)
        assert "cannot reach the system bus" in fresh.daemon.log
        for _ in range(2):  # the second time after the end of a bus
            with bus:
                state = until(
                    lambda: bus.busctl(*ask, "State", check=False), 's "synced"', timeout=10
                )
                assert state == 's "synced"'
            opened(fresh.client, 8080)
    finally:
        fresh.daemon.bus = without


def test_t1_daemon_started_before_the_engine_waits_for_it(
    tools: None,  # noqa: ARG001
    wanted: Wanted,
) -> None:
    with Sandbox(wanted.variant) as sandbox, ExitStack() as stack:
        endpoint = f"unix://{sandbox.dir}/engine/docker.sock"
        daemon = stack.enter_context(Daemon(sandbox, endpoint, start=False))
        daemon.start(wait="waiting-for-docker")
        assert daemon.notices.count("READY=1") == 1
        assert "IPV6NAT" not in sandbox.rules()
        engine = stack.enter_context(
            Engine(sandbox, userland_proxy=wanted.proxy, suite=wanted.suite)
        )
        daemon.wait_state("synced")
        engine.network("X", "fd00:a::/64")
        x1 = engine.run("x1", "X", publish=["8080:80"])
        with serve(x1.ns, "x1", tcp=[80]):
            opened(sandbox.client, 8080)


@pytest.mark.depends_on
def test_t5_engine_restart_removes_rules_of_stopped_containers(
    tools: None,  # noqa: ARG001
    wanted: Wanted,
) -> None:
    with small(wanted) as lab:
        lab.daemon.start()
        kept = lab.engine.run("kept", "X", "--restart=always", publish=["8081:80"])
        with serve(kept.ns, "kept", tcp=[80]):
            opened(lab.client, 8080)
            opened(lab.client, 8081)
        lab.engine.stop()
        lab.engine.start()
        lab.daemon.wait_state("synced")
        again = lab.engine.container("kept")
        with serve(again.ns, "again", tcp=[80]):
            answer = until(
                lambda: tcp(lab.client, HOST, 8081),
                lambda each: isinstance(each, Answer) and each.peer == CLIENT,
                timeout=10,
            )
            assert server(answer) == "again"
        until(lambda: dnats(lab.sandbox.rules(), 8080), [])
        assert dnats(lab.sandbox.rules(), 8080) == []
        assert len(dnats(lab.sandbox.rules(), 8081)) == 1
        assert tcp(lab.client, HOST, 8080) is Failure.REFUSED


def test_unknown_configuration_key_exits_78_and_writes_no_rules(fresh: Small) -> None:
    good = fresh.daemon.config.read_text()
    fresh.daemon.configure("clean_up = true")
    try:
        fresh.daemon.start(wait=None)
        assert fresh.daemon.process is not None
        assert fresh.daemon.process.wait(10) == 78
        assert "unknown key 'clean_up'; did you mean 'cleanup'?" in fresh.daemon.log
        assert str(fresh.daemon.config) in fresh.daemon.log
        assert fresh.own() == []
    finally:
        fresh.daemon.config.write_text(good)


def test_sd_notify_sends_ready_status_and_stopping(fresh: Small) -> None:
    fresh.daemon.start()
    opened(fresh.client, 8080)
    assert fresh.daemon.stop() == 0

    def kinds() -> list[str]:
        return [notice.partition("=")[0] for notice in fresh.daemon.notices]

    # The lab reads the last datagram in a thread.
    words = until(kinds, lambda kinds: kinds[-1] == "STOPPING")
    assert words[0] in ("READY", "STATUS")
    assert words.count("READY") == 1
    assert words[-1] == "STOPPING"
    assert json.dumps(fresh.daemon.status).count("1 mapping,") == 1
