from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ipv6natd.engine import dockerd as engine_unit
from ipv6natd.engine.dockerd import stopped_unit

SOCKET = "/run/docker.sock"
LOCAL = f"unix://{SOCKET}"
LISTEN = [["Stream", SOCKET]]

# endpoint, state of docker.socket, where it listens, state of docker.service, whether to stay away
TABLE = {
    "stopped by somebody": (LOCAL, "active", LISTEN, "inactive", True),
    "failed": (LOCAL, "active", LISTEN, "failed", True),
    "on its way down": (LOCAL, "active", LISTEN, "deactivating", True),
    "one of two sockets": (LOCAL, "active", [["Stream", "/run/x"], *LISTEN], "inactive", True),
    "running": (LOCAL, "active", LISTEN, "active", False),
    "starting": (LOCAL, "active", LISTEN, "activating", False),
    "reloading": (LOCAL, "active", LISTEN, "reloading", False),
    "no socket unit": (LOCAL, "inactive", LISTEN, "inactive", False),
    "no systemd": (LOCAL, None, None, None, False),
    "a socket that nobody listens on for it": (LOCAL, "active", [], "inactive", False),
    "a socket of another engine": ("unix:///run/other.sock", "active", LISTEN, "inactive", False),
    "an engine elsewhere": ("tcp://192.0.2.1:2375", "active", LISTEN, "inactive", False),
    "an engine elsewhere by http": ("http://h:1", "active", LISTEN, "inactive", False),
    "nobody can tell the service": (LOCAL, "active", LISTEN, None, False),
    "nobody can tell the sockets": (LOCAL, "active", None, "inactive", False),
    "an odd list of sockets": (LOCAL, "active", [5, ["Stream"], ["a", 5]], "inactive", False),
    "an odd state": (LOCAL, "active", LISTEN, ["inactive"], False),
}


@pytest.fixture(autouse=True)
def _has_busctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_unit, "_BUSCTL", "/")


@pytest.mark.parametrize("case", TABLE)
def test_an_engine_that_somebody_stopped_is_not_woken(
    monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Decision 12: with docker.socket active a mere connect would start it."""
    endpoint, socket, listen, service, stay_away = TABLE[case]
    answers = {
        ("socket", "Unit", "ActiveState"): socket,
        ("socket", "Socket", "Listen"): listen,
        ("service", "Unit", "ActiveState"): service,
    }
    monkeypatch.setattr(engine_unit, "_unit_property", lambda *asked: answers[asked])
    reason = stopped_unit(endpoint)
    assert bool(reason) is stay_away
    assert reason == "" or f"docker.service is {service}" in reason
    assert reason == "" or "systemctl start docker" in reason


def test_a_socket_is_known_by_any_of_its_names(
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


def test_a_host_without_busctl_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_what_busctl_says_is_read_or_nobody_can_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, answer: str | None
) -> None:
    tool = tmp_path / "busctl"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(engine_unit, "_BUSCTL", str(tool))
    assert engine_unit._unit_property("socket", "Unit", "ActiveState") == answer


def test_busctl_is_asked_about_the_unit_on_the_bus_of_the_host(
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
