"""The lab itself, without ipv6natd: it shows missing and wrong rules, so that tests can fail.

No test here starts the daemon; a test that needs rules has hand-written rules.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import cast

import pytest

from tests.harness import (
    Answer,
    Bus,
    Container,
    Engine,
    Failure,
    Sandbox,
    connect,
    ping,
    serve,
    tcp,
    tree,
    udp,
    until,
    watch,
)
from tests.harness.process import MARK
from tests.harness.sandbox import CLIENT, CLIENT4, HOST, HOST4, HOST_LINK_LOCAL, HOST_TOO, ROGUE

X1 = IPv6Address("fd00:a::2")
GATEWAY = IPv6Address("fd00:a::1")
FORGED = IPv6Address("fd00:a::9")

RULES = """\
*nat
-A PREROUTING -p tcp --dport 8080 -j DNAT --to-destination [fd00:a::2]:80
-A PREROUTING -p udp --dport 5353 -j DNAT --to-destination [fd00:a::2]:53
-A POSTROUTING -s fd00:a::/64 -o ext0 -j MASQUERADE
COMMIT
*filter
-A FORWARD -o brX -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT
-A FORWARD -o brX -j DROP
COMMIT
"""


@dataclass(frozen=True, kw_only=True)
class Bare:
    """A lab without NAT for IPv6."""

    sandbox: Sandbox
    engine: Engine
    x1: Container


@pytest.fixture(scope="module", params=[True, False], ids=["proxy", "noproxy"])
def bare(request: pytest.FixtureRequest, tools: None) -> Iterator[Bare]:  # noqa: ARG001
    proxy = cast(bool, request.param)
    with Sandbox() as sandbox, Engine(sandbox, userland_proxy=proxy) as engine:
        engine.network("X", "fd00:a::/64")
        x1 = engine.run("x1", "X", publish=["8080:80", "5353:53/udp"])
        with serve(x1.ns, "x1", tcp=[80, 81], udp=[53]):
            yield Bare(sandbox=sandbox, engine=engine, x1=x1)


def test_lab_peers_connect_over_tcp_and_udp(bare: Bare) -> None:
    with serve(bare.sandbox.client, "client", tcp=[7000], udp=[7000]) as server:
        assert seen(tcp(bare.sandbox.host, CLIENT, 7000)) == HOST
        assert seen(udp(bare.sandbox.rogue, CLIENT, 7000)) == ROGUE
        assert seen(tcp(bare.sandbox.host, CLIENT4, 7000)) == HOST4
        assert tcp(bare.sandbox.host, CLIENT, 7001) is Failure.REFUSED
        assert udp(bare.sandbox.host, CLIENT, 7001) is Failure.REFUSED
        assert seen(tcp(bare.sandbox.host, CLIENT, 7000, source=HOST_TOO)) == HOST_TOO
        assert [each.protocol for each in server.received] == ["tcp", "udp", "tcp", "tcp"]


def test_lab_server_replies_from_the_requested_address(bare: Bare) -> None:
    with serve(bare.sandbox.host, "host", udp=[7000]):
        answer = udp(bare.sandbox.client, HOST_TOO, 7000)
        assert isinstance(answer, Answer)
        assert answer.local == HOST_TOO
        linked = udp(bare.sandbox.client, HOST_LINK_LOCAL, 7000)
        assert isinstance(linked, Answer)
        assert linked.peer.is_link_local


def test_without_nat_the_proxy_hides_the_client_or_requests_time_out(bare: Bare) -> None:
    by_tcp = tcp(bare.sandbox.client, HOST, 8080)
    by_udp = udp(bare.sandbox.client, HOST, 5353)
    if bare.engine.userland_proxy:
        assert (seen(by_tcp), seen(by_udp)) == (GATEWAY, GATEWAY)
        # The proxy replies to a datagram from the host's first address, whatever the destination.
        assert udp(bare.sandbox.client, HOST_TOO, 5353, timeout=0.2) is Failure.TIMEOUT
    else:
        assert (by_tcp, by_udp) == (Failure.TIMEOUT, Failure.TIMEOUT)
        # The engine's own socket still accepts the connection.
        with connect(bare.sandbox.client, HOST, 8080):
            pass


def test_without_rules_the_rogue_reaches_every_container_port(bare: Bare) -> None:
    assert bare.x1.address == X1
    assert seen(tcp(bare.sandbox.rogue, X1, 81)) == ROGUE
    assert seen(udp(bare.sandbox.rogue, X1, 53)) == ROGUE
    assert ping(bare.sandbox.rogue, X1)
    assert not ping(bare.sandbox.rogue, "fd00:a::99", timeout=0.2)
    assert tcp(bare.sandbox.client, X1, 80) is Failure.UNREACHABLE


def test_without_rules_a_forged_source_reaches_the_container(bare: Bare) -> None:
    with watch(bare.x1.ns) as packets:
        udp(bare.sandbox.rogue, X1, 53, source=FORGED, forged=True, timeout=0.1)
        tcp(bare.sandbox.rogue, X1, 81, source=FORGED, forged=True, timeout=0.1)
        arrived = {(p.protocol, p.port) for p in packets() if p.source == FORGED}
    assert arrived >= {("udp", 53), ("tcp", 81)}


def test_without_rules_a_container_gets_no_reply_from_the_client(bare: Bare) -> None:
    with serve(bare.sandbox.client, "client", tcp=[7000], udp=[7000]) as server:
        assert udp(bare.x1.ns, CLIENT, 7000, timeout=0.2) is not None
        assert [each.peer for each in server.received] == [X1]


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_hand_written_rules_show_the_client_and_block_the_rogue(bare: Bare, variant: str) -> None:
    host = bare.sandbox.host
    host.run("sh", "-c", f"ip6tables-{variant}-restore <<'END'\n{RULES}END")
    try:
        assert seen(tcp(bare.sandbox.client, HOST, 8080)) == CLIENT
        assert seen(udp(bare.sandbox.client, HOST_TOO, 5353)) == CLIENT
        assert tcp(bare.sandbox.rogue, X1, 81, timeout=0.2) is Failure.TIMEOUT
        with serve(bare.sandbox.client, "client", tcp=[7000]):
            assert seen(tcp(bare.x1.ns, CLIENT, 7000)) == HOST
    finally:
        for table in ("nat", "filter"):
            host.run(f"ip6tables-{variant}", "-t", table, "-F")
    assert tcp(bare.sandbox.client, HOST, 8080) != CLIENT


def test_sandbox_rules_have_no_counters(bare: Bare) -> None:
    host = bare.sandbox.host
    host.run("ip6tables-nft", "-A", "INPUT", "-d", "2001:db8::1", "-j", "DROP")
    text = bare.sandbox.rules("nft")
    host.run("ip6tables-nft", "-F", "INPUT")
    assert "-A INPUT -d 2001:db8::1/128 -j DROP\n" in text
    assert ":INPUT ACCEPT\n" in text


def test_conversation_uses_one_connection(bare: Bare) -> None:
    with connect(bare.sandbox.host, X1, 80) as conversation:
        first, second = conversation.ask(), conversation.ask()
    assert first == second
    assert isinstance(first, Answer)


def test_lab_engine_can_be_stopped_killed_and_started(bare: Bare) -> None:
    with Sandbox() as sandbox, Engine(sandbox, "--live-restore") as engine:
        engine.network("X", "fd00:a::/64")
        made = engine.run("kept", "X", publish=["80"])
        assert made.port() >= 32768
        for end in (engine.stop, engine.kill):
            end()
            with serve(made.ns, "kept", tcp=[80]):
                assert seen(tcp(sandbox.host, X1, 80)) == GATEWAY
            engine.start()
            assert engine.container("kept").id == made.id
    assert bare.engine.docker("ps", "--quiet", "--no-trunc") == bare.x1.id


def test_lab_with_a_paused_container_is_removed() -> None:
    with Sandbox() as sandbox, Engine(sandbox) as engine:
        engine.network("X", "fd00:a::/64")
        engine.run("paused", "X")
        engine.docker("pause", "paused")


@pytest.mark.slow
@pytest.mark.parametrize("ip6tables", [False, True], ids=["off", "on"])
def test_engine_of_each_suite_runs_and_does_not_change_its_tree(
    suite: tree.Suite | None, ip6tables: bool
) -> None:
    before = last_change(suite)
    with Sandbox() as sandbox, Engine(sandbox, suite=suite, ip6tables=ip6tables) as engine:
        assert engine.version in engine.docker("version", "--format={{.Server.Version}}")
        network = engine.network("X", "fd00:a::/64")
        x1 = engine.run("x1", "X", publish=["8080:80"], ip6="fd00:a::2")
        with serve(x1.ns, "x1", tcp=[80]):
            answer = tcp(sandbox.client, HOST, 8080)
            assert seen(answer) == (CLIENT if ip6tables else GATEWAY)
        assert (network.bridge in sandbox.rules()) == ip6tables
        engine.kill()
        engine.start()
    assert last_change(suite) == before


def last_change(suite: tree.Suite | None) -> float:
    """The time of the last change in a tree, from its folders."""
    if suite is None:
        return 0
    root = tree.path(suite)
    places = [at for name in ("etc", "root", "run", "tmp", "var") for at in root.glob(f"{name}/**")]
    return max(place.stat().st_ctime for place in (root, *places))


def test_lab_bus_restarts_at_the_same_address(tmp_path: Path) -> None:
    with Bus(tmp_path) as bus:
        assert "org.freedesktop.DBus" in bus.busctl("list")
        bus.stop()
        assert "Failed" in bus.busctl("list", check=False)
        bus.start()
        assert "org.freedesktop.DBus" in bus.busctl("list")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_interrupted_lab_leaves_no_process_or_namespace(
    tools: None,  # noqa: ARG001
    number: signal.Signals,
) -> None:
    """After SIGKILL no process remains, and the next lab removes the namespaces and folders."""
    script = (
        "import signal; interrupted = signal.default_int_handler\n"
        # Tests in the background of a shell ignore SIGINT.
        "for each in (signal.SIGINT, signal.SIGTERM): signal.signal(each, interrupted)\n"
        "from tests.harness import *; import time\n"
        "with Sandbox() as s, Engine(s) as e, Bus(s.dir):\n"
        "    e.network('X', 'fd00:a::/64'); e.run('x1', 'X', publish=['80'])\n"
        "    print('up', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        process.wait(20)
    with Sandbox():
        pass
    assert until(lambda: remains(process.pid), [], timeout=5) == []


def remains(lab: int) -> list[str]:
    """The remaining processes, namespaces and folders of a lab."""
    found = [str(path) for path in Path("/run/netns").glob(f"v6n{lab}-*")]
    found += [str(path) for path in Path(tempfile.gettempdir()).glob(f"v6n{lab}-*")]
    # Not by glob: it fails if another lab removes its folder meanwhile.
    for top, names, _ in os.walk("/sys/fs/cgroup"):
        found += [f"{top}/{name}" for name in names if name.startswith(f"v6n{lab}-")]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}=v6n{lab}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(folder.name)
        except OSError:
            continue
    return found


def seen(answer: Answer | Failure) -> object:
    """The peer that the server saw, or the failure."""
    return answer.peer if isinstance(answer, Answer) else answer
