"""Whether the engine on this host was told to write IPv6 rules: no API tells.

Its command line wins over its configuration file, as with dockerd itself. Under the service's
sandbox the command line of another process cannot be read; the file still can.
"""

from __future__ import annotations

import json
import re
import socket
import struct
from pathlib import Path

PID_FILE = Path("/run/docker.pid")
CONFIG_FILE = Path("/etc/docker/daemon.json")
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_FLAG = re.compile(r"--ip6tables(?:=(.*))?")
_CONFIG = re.compile(r"--config-file=(.+)")


def ip6tables(endpoint: str) -> bool | None:
    """What the engine was told; None where nothing says anything.

    Connects to a Unix socket: ask only once the engine runs. An engine behind tcp:// is taken for
    this host's own, since only its bridges could be of any use here.
    """
    path = endpoint.removeprefix("unix://")
    pid = (_listener(path) if path != endpoint else 0) or _pid()
    config, root = CONFIG_FILE, Path(f"/proc/{pid}/root")
    for word in _command_line(pid):
        if flag := _FLAG.fullmatch(word):
            return flag[1] not in _FALSE
        if named := _CONFIG.fullmatch(word):
            config = Path(named[1])
    try:
        # Where the engine sees it; that is a place of its own in a container or a chroot.
        text = root.joinpath(config.relative_to("/")).read_text(encoding="utf-8")
    except (OSError, ValueError):
        text = _text(config)
    try:
        value = json.loads(text or "{}").get("ip6tables")
    except (ValueError, AttributeError):
        return None
    return value if isinstance(value, bool) else None


def _listener(path: str) -> int:
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


def _pid() -> int:
    text = _text(PID_FILE).strip()
    return int(text) if text.isdecimal() else 0


def _command_line(pid: int) -> list[str]:
    return _text(Path(f"/proc/{pid}/cmdline")).split("\0") if pid else []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
