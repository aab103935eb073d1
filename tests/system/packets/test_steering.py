"""Calls over the bus: cleanup until a resync, reload, and permissions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.harness import Bus, Daemon, Engine, Sandbox, serve, until
from tests.harness.process import LabError
from tests.system.packets.asking import opened

WHERE = ("org.ipv6natd1", "/org/ipv6natd1")
MANAGER = "org.ipv6natd1.Manager"


@dataclass(frozen=True, kw_only=True)
class Lab:
    sandbox: Sandbox
    engine: Engine
    bus: Bus
    daemon: Daemon

    def call(self, member: str) -> str:
        return self.bus.busctl("call", *WHERE, MANAGER, member)

    def shown(self, name: str) -> str:
        return self.bus.busctl("get-property", *WHERE, MANAGER, name)


@pytest.fixture(scope="module")
def lab(tools: None) -> Iterator[Lab]:  # noqa: ARG001
    """An engine without its proxy, so that a port without a rule has no answer."""
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox("nft"))
        engine = stack.enter_context(Engine(sandbox, userland_proxy=False))
        bus = stack.enter_context(Bus(sandbox.dir))
        quiet = ("-debug=false",)
        daemon = stack.enter_context(
            Daemon(sandbox, engine.endpoint, bus=bus.address, args=quiet, start=False)
        )
        engine.network("X", "fd00:a::/64")
        for table in ("raw", "filter", "nat"):
            for verb in ("-A", "-D"):  # nft shows no table before the first write to it
                sandbox.host.run("ip6tables-nft", "-t", table, verb, "OUTPUT", "-j", "ACCEPT")
        yield Lab(sandbox=sandbox, engine=engine, bus=bus, daemon=daemon)


@pytest.fixture(autouse=True)
def running(lab: Lab) -> Iterator[str]:
    """A started daemon, flushed at the end. The value is the rules before its start."""
    before = lab.sandbox.rules()
    lab.daemon.start()
    yield before
    if lab.daemon.process is not None and lab.daemon.process.poll() is None:
        lab.daemon.stop()
    lab.daemon.flush()


def test_cleanup_keeps_the_tables_clean_until_resync(lab: Lab, running: str) -> None:
    before = running
    x1 = lab.engine.run("x1", "X", publish=["8080:80"])
    with serve(x1.ns, "x1", tcp=[80]):
        opened(lab.sandbox.client, 8080)
        lab.call("Cleanup")
        assert lab.sandbox.rules() == before
        assert lab.shown("State") == 's "stopped"'
        assert lab.call("ListMappings") == "aa{sv} 0"
        assert lab.daemon.wait_state("stopped").endswith("ipv6natctl resync")
        # Events are read, but no rule is written: not even by a reload.
        x2 = lab.engine.run("x2", "X", publish=["8081:80"])
        lab.daemon.reload()
        assert lab.sandbox.rules() == before
        assert not list((lab.daemon.dir / "state").glob("filter*"))
        with serve(x2.ns, "x2", tcp=[80]):
            lab.call("Resync")
            assert lab.shown("State") == 's "synced"'
            opened(lab.sandbox.client, 8080)
            opened(lab.sandbox.client, 8081)
        lab.engine.rm("x2")
    lab.call("Cleanup")
    assert lab.daemon.stop() == 0
    assert "all rules were removed before" in lab.daemon.log
    assert lab.sandbox.rules() == before


def test_reload_returns_once_in_force_and_reports_invalid_settings(lab: Lab) -> None:
    good = lab.daemon.config.read_text()
    lab.daemon.configure(*good.splitlines(), 'nat_prefixes = ["fd99::/16"]')
    lab.call("Reload")
    assert lab.shown("NetworkCount") == "u 0"
    lab.daemon.configure(*good.splitlines(), 'nat_prefixes = "oops"')
    with pytest.raises(LabError, match="nat_prefixes"):
        lab.call("Reload")
    assert lab.shown("NetworkCount") == "u 0"
    lab.daemon.config.write_text(good)
    lab.call("Reload")
    assert lab.shown("NetworkCount") == "u 1"


def test_plain_user_reads_and_cannot_change_anything(lab: Lab) -> None:
    lab.sandbox.dir.chmod(0o755)
    asking = ("setpriv", "--reuid=65534", "--clear-groups", "busctl")
    call = (f"--address={lab.bus.address}", "call", *WHERE, MANAGER)
    rules = lab.sandbox.rules()
    assert lab.sandbox.host.run(*asking, *call, "ListNetworks").startswith("aa{sv} 1")
    for member in ("Resync", "Reload", "Cleanup", "CleanupLeftovers"):
        with pytest.raises(LabError, match="Access denied"):
            lab.sandbox.host.run(*asking, *call, member)
    assert lab.sandbox.rules() == rules


def test_rules_are_logged_at_level_debug(lab: Lab) -> None:
    seen = len(lab.daemon.log)
    where = ("/org/freedesktop/LogControl1", "org.freedesktop.LogControl1", "LogLevel")
    x3 = lab.engine.run("x3", "X", publish=["8083:80"])
    with serve(x3.ns, "x3", tcp=[80]):
        opened(lab.sandbox.client, 8083)
        # The rules are in force a moment before the log line.
        told = "published [::]:8083/tcp -> x3"
        assert until(lambda: told in lab.daemon.log[seen:], True, timeout=10)
        assert "rule added" not in lab.daemon.log[seen:]
        lab.bus.busctl("set-property", "org.ipv6natd1", *where, "s", "debug")
    lab.engine.rm("x3")
    until(lambda: "rule removed: ip6tables" in lab.daemon.log[seen:], True, timeout=10)
    assert re.search("rule removed: ip6tables .*--dport 8083", lab.daemon.log[seen:])
