"""The state of docker.service, and the option ip6tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ipv6natd.engine import dockerd as engine_unit
from ipv6natd.engine.dockerd import stopped_unit

SOCKET = "/run/docker.sock"
LOCAL = f"unix://{SOCKET}"
LISTEN = [["Stream", SOCKET]]

# endpoint, state of docker.socket, its Listen property, state of docker.service, result is a reason
TABLE = {
    "stopped by an administrator": (LOCAL, "active", LISTEN, "inactive", True),
    "failed": (LOCAL, "active", LISTEN, "failed", True),
    "stopping": (LOCAL, "active", LISTEN, "deactivating", True),
    "one of two sockets": (LOCAL, "active", [["Stream", "/run/x"], *LISTEN], "inactive", True),
    "running": (LOCAL, "active", LISTEN, "active", False),
    "starting": (LOCAL, "active", LISTEN, "activating", False),
    "reloading": (LOCAL, "active", LISTEN, "reloading", False),
    "no socket unit": (LOCAL, "inactive", LISTEN, "inactive", False),
    "no systemd": (LOCAL, None, None, None, False),
    "no listening socket": (LOCAL, "active", [], "inactive", False),
    "a socket of another engine": ("unix:///run/other.sock", "active", LISTEN, "inactive", False),
    "an engine at tcp": ("tcp://192.0.2.1:2375", "active", LISTEN, "inactive", False),
    "an engine at http": ("http://h:1", "active", LISTEN, "inactive", False),
    "unreadable state of the service": (LOCAL, "active", LISTEN, None, False),
    "unreadable list of sockets": (LOCAL, "active", None, "inactive", False),
}


@pytest.fixture(autouse=True)
def _has_busctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_unit, "_BUSCTL", "/")


@pytest.mark.parametrize("case", TABLE)
def test_stopped_unit_returns_a_reason_only_for_a_stopped_engine(
    monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """While docker.socket is active, a connect would start the engine."""
    endpoint, socket, listen, service, stopped = TABLE[case]
    answers = {
        ("socket", "Unit", "ActiveState"): socket,
        ("socket", "Socket", "Listen"): listen,
        ("service", "Unit", "ActiveState"): service,
    }
    monkeypatch.setattr(engine_unit, "_unit_property", lambda *asked: answers[asked])
    reason = stopped_unit(endpoint)
    assert bool(reason) is stopped
    assert reason == "" or f"docker.service is {service}" in reason
    assert reason == "" or "systemctl start docker" in reason


def test_stopped_unit_resolves_links_to_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/var/run is a link to /run."""
    (tmp_path / "run").mkdir()
    (tmp_path / "var").symlink_to("run")
    answers = {"ActiveState": "active", "Listen": [["Stream", f"{tmp_path}/run/docker.sock"]]}

    def answer(unit: str, _: str, name: str) -> Any:
        return "inactive" if unit == "service" else answers[name]

    monkeypatch.setattr(engine_unit, "_unit_property", answer)
    assert stopped_unit(f"unix://{tmp_path}/var/docker.sock")


def test_stopped_unit_without_busctl_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: str) -> Any:
        raise AssertionError

    monkeypatch.setattr(engine_unit, "_BUSCTL", "/nonexistent/busctl")
    monkeypatch.setattr(engine_unit, "_unit_property", never)
    assert stopped_unit(LOCAL) == ""


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ('echo \'{"type":"s","data":"active"}\'', "active"),
        ("echo '{}'", None),
        ("echo '[]'", None),
        ("echo nothing of the kind", None),
        ("exit 1", None),
    ],
)
def test_unit_property_is_the_output_of_busctl_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, answer: str | None
) -> None:
    tool = tmp_path / "busctl"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(engine_unit, "_BUSCTL", str(tool))
    assert engine_unit._unit_property("socket", "Unit", "ActiveState") == answer


def test_unit_property_uses_the_system_bus_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "busctl"
    tool.write_text(f'#!/bin/sh\necho "$@ $DBUS_SYSTEM_BUS_ADDRESS" > {tmp_path}/asked\n')
    tool.chmod(0o755)
    monkeypatch.setattr(engine_unit, "_BUSCTL", str(tool))
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
    engine_unit._unit_property("service", "Unit", "ActiveState")
    asked = (tmp_path / "asked").read_text().split()
    assert asked[-4:] == [
        "/org/freedesktop/systemd1/unit/docker_2eservice",
        "org.freedesktop.systemd1.Unit",
        "ActiveState",
        "unix:path=/nonexistent",
    ]
