"""Unit tests of the commands that change: the password agent, and flush without a daemon."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from ipv6natd.ctl import control
from ipv6natd.dbus.connection import ERROR, BusError
from ipv6natd.sync import offline
from ipv6natd.system import process

AGENT = """#!/bin/sh
echo "$$ $*" >"$0.ran"
eval "exec $2>&-"  # --notify-fd: registered
exec sleep 600
"""


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for pkttyagent, a plain user, and a terminal."""
    path = tmp_path / "pkttyagent"
    path.write_text(AGENT)
    path.chmod(0o755)
    monkeypatch.setattr(process, "which", lambda _: str(path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    return path


def ran(agent: Path) -> list[str]:
    record = agent.with_name("pkttyagent.ran")
    return record.read_text().split() if record.exists() else []


def test_agent_runs_during_the_call_of_a_plain_user_on_a_terminal(agent: Path) -> None:
    with control._polkit_agent():
        number, *words = ran(agent)
        assert words[2:] == ["--fallback", "--process", str(os.getpid())]
        assert Path(f"/proc/{number}").exists()
    assert not Path(f"/proc/{number}").exists()


def test_agent_that_fails_at_once_does_not_delay_the_call(agent: Path) -> None:
    agent.write_text("#!/bin/sh\nexit 1\n")
    began = time.monotonic()
    with control._polkit_agent():
        pass
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("caller", ["root", "script"])
def test_agent_does_not_run_for_root_and_scripts(
    agent: Path, monkeypatch: pytest.MonkeyPatch, caller: str
) -> None:
    if caller == "root":
        monkeypatch.setattr(os, "geteuid", lambda: 0)
    else:
        monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    with control._polkit_agent():
        assert ran(agent) == []


@pytest.mark.parametrize(("name", "has_note"), [("ServiceUnknown", False), ("NoServer", True)])
def test_flush_without_a_bus_warns_that_a_daemon_may_write_again(
    monkeypatch: pytest.MonkeyPatch, name: str, has_note: bool
) -> None:
    monkeypatch.setattr(offline, "flush", lambda _: 9)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    result = control._flush_without_daemon(BusError(ERROR + name, "no bus"))
    assert (result.value, result.code) == ({"Removed": 9}, 0)
    assert result.note.endswith(": systemctl stop ipv6natd") == has_note
