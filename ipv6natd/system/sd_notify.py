"""What systemd is told: READY, STATUS, RELOADING, STOPPING, WATCHDOG.

The only file that imports sdnotify. When to say what is the daemon's business.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from sdnotify import SystemdNotifier

from ipv6natd.system.terminal import printable

MAX_STATUS_BYTES = 3000
"""Bytes of a status."""


class Notifier:
    """A line to systemd; everything is a no-op when no systemd asked for it."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Open the line if $NOTIFY_SOCKET names one."""
        # Made without one, the library's object leaks a socket.
        self._notifier = SystemdNotifier() if environ.get("NOTIFY_SOCKET") else None

    def ready(self, status: str = "") -> None:
        """Started, or reloaded; the status, if any, goes in the same datagram."""
        self._send("READY=1", *([_status(status)] if status else []))

    def status(self, text: str) -> None:
        """What `systemctl status` shows, in one line."""
        self._send(_status(text))

    def reloading(self) -> None:
        """A reload began; `ready` ends it. systemd wants the time in the same datagram."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """The daemon is about to end."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """The daemon's loop is alive."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Hang up; later calls do nothing."""
        if self._notifier is not None and self._notifier.socket is not None:
            self._notifier.socket.close()
        self._notifier = None

    def _send(self, *assignments: str) -> None:
        if self._notifier is not None:
            # The library encodes as Latin-1 and drops in silence what that cannot hold, while
            # systemd reads UTF-8: hand over characters whose Latin-1 bytes are the UTF-8 ones.
            data = "\n".join(assignments).encode("utf-8", "replace")
            self._notifier.notify(data.decode("latin-1"))


def _status(text: str) -> str:
    # A newline would begin the next assignment, a NUL ends the text for systemd, systemctl hands
    # everything else to the terminal, and a message of more than 4096 bytes systemd drops as a
    # whole, the READY in it too.
    line = printable(" ".join(text.replace("\0", " ").splitlines())).encode("utf-8", "replace")
    return "STATUS=" + line[:MAX_STATUS_BYTES].decode("utf-8", "ignore")


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two calls of `watchdog`, a third of what systemd allows; None: not asked.

    The variables are those of sd_watchdog_enabled(3); a wrong pid means that they are inherited
    from a parent that was meant.
    """
    limit = environ.get("WATCHDOG_USEC", "")
    pid = environ.get("WATCHDOG_PID", "")
    if not limit.isdecimal() or int(limit) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(limit) / 1_000_000 / 3
