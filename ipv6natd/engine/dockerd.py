"""Facts about dockerd that its API does not give: is it stopped, and its option ip6tables.

`stopped_unit`: where docker.socket is active, systemd listens on the engine's socket while
docker.service is stopped, and a connect starts the engine. So the states of both units are read
before each connect. A host without systemd has no such socket.

`ip6tables_option`: the command line overrides the configuration file, as in dockerd. The service's
sandbox hides the command line of the process; systemd gives that of docker.service, without the
variables in it.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

from ipv6natd.model import BOOLEANS
from ipv6natd.system.process import run

_BUSCTL = "/usr/bin/busctl"
_UNIT_PREFIX = "/org/freedesktop/systemd1/unit/docker_2e"
_RUNNING = frozenset({"active", "activating", "reloading"})

_PROC = Path("/proc")
PID_FILE = Path("/run/docker.pid")
CONFIG_FILE = Path("/etc/docker/daemon.json")
_ENCODING = "utf-8-sig"
"""UTF-8, also with a byte order mark, which Docker 28 accepts in its configuration."""
_IP6TABLES_FLAG = re.compile(r"--ip6tables(?:=(.*))?")
_CONFIG_FLAG = re.compile(r"--config-file(?:=(.+))?")


def stopped_unit(endpoint: str) -> str:
    """The reason why a connect to `endpoint` would start a stopped engine; "" if it would not."""
    path = endpoint.removeprefix("unix://")
    if path == endpoint or not Path(_BUSCTL).exists():
        return ""
    if _unit_property("socket", "Unit", "ActiveState") != "active":
        return ""
    listen = _unit_property("socket", "Socket", "Listen") or []  # of the type a(ss)
    if os.path.realpath(path) not in {os.path.realpath(address) for _, address in listen}:
        return ""
    state = _unit_property("service", "Unit", "ActiveState")
    if state is None or state in _RUNNING:
        return ""
    return f"docker.service is {state}, and ipv6natd does not start it: systemctl start docker"


def _unit_property(unit: str, interface: str, name: str) -> Any:
    """A property of docker.socket or docker.service; None if it cannot be read."""
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
        completed = run(command, timeout=10, environment=environment)
        return json.loads(completed.stdout).get("data")
    except (OSError, subprocess.TimeoutExpired, ValueError, AttributeError):
        return None


def ip6tables_option(endpoint: str) -> bool | None:
    """The option ip6tables of the engine; None if it is not set or cannot be read.

    Connects to the engine's Unix socket: call it only while the engine runs. An engine at tcp:// is
    assumed to run on this host, because only bridges of this host are useful here.
    """
    path = endpoint.removeprefix("unix://")
    pid = (_listening_pid(path) if path != endpoint else 0) or _pid_from_file()
    config, root, option = CONFIG_FILE, _PROC / str(pid) / "root", None
    for argument, following in pairwise([*_command_line(pid), ""]):
        # dockerd uses the last one of several.
        if flag := _IP6TABLES_FLAG.fullmatch(argument):
            option = BOOLEANS.get(flag[1]) is not False
        if file := _CONFIG_FLAG.fullmatch(argument):
            config = Path(file[1] or following)
    if option is not None:
        return option
    try:
        # In the root directory of the engine, which differs in a container or a chroot.
        text = root.joinpath(config.relative_to("/")).read_text(encoding=_ENCODING)
    except UnicodeDecodeError:
        return None
    except (OSError, ValueError):
        text = _read_text(config)
    try:
        value = json.loads(text or "{}").get("ip6tables")
    except (ValueError, AttributeError):
        return None
    return value if isinstance(value, bool) else None


def _listening_pid(path: str) -> int:
    """The process that listens on a socket; 0 for none, or for systemd (socket activation)."""
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
    """The arguments of the engine; [] if unknown."""
    if text := _read_text(_PROC / str(pid) / "cmdline"):
        return text.split("\0")
    if pid and _unit_property("service", "Service", "MainPID") == pid:
        for _, arguments, *_ in _unit_property("service", "Service", "ExecStart") or []:
            return list(arguments)
    return []


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding=_ENCODING)
    except (OSError, ValueError):
        return ""
