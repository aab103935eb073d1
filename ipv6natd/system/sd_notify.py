"""Sends READY, STATUS, RELOADING, STOPPING and WATCHDOG to systemd.

The only file that imports sdnotify. The daemon decides when to send them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from sdnotify import SystemdNotifier

from ipv6natd.system.terminal import printable

MAX_STATUS_BYTES = 3000
"""Maximum length of a status."""


class Notifier:
    """The connection to systemd; without $NOTIFY_SOCKET every method does nothing."""

    def __init__(self) -> None:
        # Without the variable, an object of the library leaks a socket.
        self._notifier = SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None

    def ready(self, status: str) -> None:
        """The start or reload is complete; the status is sent in the same datagram."""
        self._send("READY=1", _status(status))

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._send(_status(text))

    def reloading(self) -> None:
        """A reload begins; `ready` ends it. systemd requires the time in the same datagram."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """The daemon begins to stop."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """The loop of the daemon runs."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket; later calls do nothing."""
        if self._notifier is not None and self._notifier.socket is not None:
            self._notifier.socket.close()
        self._notifier = None

    def _send(self, *assignments: str) -> None:
        if self._notifier is not None:
            # The library encodes as Latin-1 and silently drops a text with other characters, and
            # systemd reads UTF-8. So pass characters whose Latin-1 bytes are the UTF-8 bytes.
            data = "\n".join(assignments).encode("utf-8", "replace")
            self._notifier.notify(data.decode("latin-1"))


def _status(text: str) -> str:
    # A newline would begin the next assignment, and a NUL ends the text for systemd. systemctl
    # prints all other characters to the terminal. systemd drops a datagram of more than 4096 bytes
    # with the READY in it.
    line = printable(" ".join(text.replace("\0", " ").splitlines())).encode("utf-8", "replace")
    return "STATUS=" + line[:MAX_STATUS_BYTES].decode("utf-8", "ignore")


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two calls of `watchdog`, a third of the limit; None without a watchdog.

    The variables are described in sd_watchdog_enabled(3). Another pid in them means that they were
    inherited from a parent process.
    """
    limit = environ.get("WATCHDOG_USEC", "")
    pid = environ.get("WATCHDOG_PID", "")
    if not limit.isdecimal() or int(limit) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(limit) / 1_000_000 / 3
