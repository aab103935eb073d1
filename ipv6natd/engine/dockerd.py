"""What no API says about the dockerd of this host: is it stopped, and does it write IPv6 rules.

`stopped_unit`: where docker.socket is active, systemd listens on the engine's socket while
docker.service is stopped, and a connect starts the engine. So systemd is asked before each connect.
A host without systemd has no such socket.

`ip6tables_option`: the command line wins over the configuration file, as in dockerd itself. In the
service's sandbox the command line of another process cannot be read; the file can.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ipv6natd.system.process import run

_BUSCTL = "/usr/bin/busctl"
_UNIT_PREFIX = "/org/freedesktop/systemd1/unit/docker_2e"
_RUNNING = frozenset({"active", "activating", "reloading"})

PID_FILE = Path("/run/docker.pid")
CONFIG_FILE = Path("/etc/docker/daemon.json")
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_IP6TABLES_FLAG = re.compile(r"--ip6tables(?:=(.*))?")
_CONFIG_FLAG = re.compile(r"--config-file=(.+)")


def stopped_unit(endpoint: str) -> str:
    """Why a connect to `endpoint` must not be tried now, as a sentence; empty where it may be."""
    path = endpoint.removeprefix("unix://")
    if path == endpoint or not Path(_BUSCTL).exists():
        return ""
    if _unit_property("socket", "Unit", "ActiveState") != "active":
        return ""
    listens = {os.path.realpath(each) for each in _listen_paths()}
    if os.path.realpath(path) not in listens:
        return ""
    state = _unit_property("service", "Unit", "ActiveState")
    if not isinstance(state, str) or state in _RUNNING:
        return ""
    return f"docker.service is {state} and is not started by looking; systemctl start docker"


def _listen_paths() -> Iterator[str]:
    listen = _unit_property("socket", "Socket", "Listen")
    for entry in listen if isinstance(listen, list) else []:
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str):
            yield entry[1]


def _unit_property(unit: str, interface: str, name: str) -> Any:
    """A property of docker.socket or docker.service; None where nobody can tell."""
    command = [
        _BUSCTL,
        "--json=short",
        "--timeout=5",
        "get-property",
        "org.freedesktop.systemd1",
        f"{_UNIT_PREFIX}{unit}",
        f"org.freedesktop.systemd1.{interface}",
        name,
    ]
    address = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS")
    environment = {"DBUS_SYSTEM_BUS_ADDRESS": address} if address else {}
    try:
        answer = run(command, timeout=10, environment=environment)
        return json.loads(answer.stdout).get("data")
    except (OSError, subprocess.TimeoutExpired, ValueError, AttributeError):
        return None


def ip6tables_option(endpoint: str) -> bool | None:
    """What the engine was told; None where nothing says anything.

    Connects to a Unix socket: ask only once the engine runs. An engine behind tcp:// is taken for
    this host's own, since only its bridges could be of any use here.
    """
    path = endpoint.removeprefix("unix://")
    pid = (_listening_pid(path) if path != endpoint else 0) or _pid_from_file()
    config, root = CONFIG_FILE, Path(f"/proc/{pid}/root")
    for word in _command_line(pid):
        if flag := _IP6TABLES_FLAG.fullmatch(word):
            return flag[1] not in _FALSE
        if named := _CONFIG_FLAG.fullmatch(word):
            config = Path(named[1])
    try:
        # Where the engine sees it; that is a place of its own in a container or a chroot.
        text = root.joinpath(config.relative_to("/")).read_text(encoding="utf-8")
    except (OSError, ValueError):
        text = _read_text(config)
    try:
        value = json.loads(text or "{}").get("ip6tables")
    except (ValueError, AttributeError):
        return None
    return value if isinstance(value, bool) else None


def _listening_pid(path: str) -> int:
    """The process that listens on a socket; 0 where that is systemd, for the engine, or nobody."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(path)
            data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        return 0
    pid: int = struct.unpack("3i", data)[0]
    return pid if pid > 1 else 0


def _pid_from_file() -> int:
    text = _read_text(PID_FILE).strip()
    return int(text) if text.isdecimal() else 0


def _command_line(pid: int) -> list[str]:
    return _read_text(Path(f"/proc/{pid}/cmdline")).split("\0") if pid else []


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
