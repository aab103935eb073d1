"""Whether connecting to the engine's socket would start an engine that somebody stopped.

Where docker.socket is active, systemd listens on the engine's socket while docker.service is
stopped, and a mere connect starts it. So systemd is asked before each connect. A host without
systemd has no such socket.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ipv6natd.system.process import call

_BUSCTL = "/usr/bin/busctl"
_UNIT = "/org/freedesktop/systemd1/unit/docker_2e"
_RUNNING = frozenset({"active", "activating", "reloading"})


def asleep(endpoint: str) -> str:
    """Why a connect to `endpoint` must not be tried now, as a sentence; empty where it may be."""
    path = endpoint.removeprefix("unix://")
    if path == endpoint or not Path(_BUSCTL).exists():
        return ""
    if _property("socket", "Unit", "ActiveState") != "active":
        return ""
    listens = {os.path.realpath(each) for each in _listen_paths()}
    if os.path.realpath(path) not in listens:
        return ""
    state = _property("service", "Unit", "ActiveState")
    if not isinstance(state, str) or state in _RUNNING:
        return ""
    return f"docker.service is {state} and is not started by looking; systemctl start docker"


def _listen_paths() -> Iterator[str]:
    listen = _property("socket", "Socket", "Listen")
    for entry in listen if isinstance(listen, list) else []:
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str):
            yield entry[1]


def _property(unit: str, interface: str, name: str) -> Any:
    """A property of docker.socket or docker.service; None where nobody can tell."""
    command = [
        _BUSCTL,
        "--json=short",
        "--timeout=5",
        "get-property",
        "org.freedesktop.systemd1",
        f"{_UNIT}{unit}",
        f"org.freedesktop.systemd1.{interface}",
        name,
    ]
    address = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS")
    environment = {"DBUS_SYSTEM_BUS_ADDRESS": address} if address else {}
    try:
        answer = call(command, timeout=10, environment=environment)
        return json.loads(answer.stdout).get("data")
    except (OSError, subprocess.TimeoutExpired, ValueError, AttributeError):
        return None
