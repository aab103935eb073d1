"""Where messages go: into the journal with fields, or to the standard error as text.

A message brings fields as `extra={"fields": {"NAME": "value"}}`. Whatever comes from a container
or a network may hold anything: no message becomes two, and none reaches a terminal as an escape.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Mapping
from copy import copy

from ipv6natd.system.terminal import printable

IDENTIFIER = "ipv6natd"
SOCKET = "/run/systemd/journal/socket"
SEND_TIMEOUT = 1.0
"""Seconds that a message waits for a journal that is busy, before the standard error gets it."""
LEVELS = {
    **{"emerg": 70, "alert": 60, "crit": logging.CRITICAL, "err": logging.ERROR},
    **{"warning": logging.WARNING, "notice": 25, "info": logging.INFO, "debug": logging.DEBUG},
}
"""syslog's names, the most important first: their places are their priorities."""
TARGETS = ("journal", "console")


def start(*, debug: bool) -> None:
    """Log to the journal where the standard error is it, else as lines with the time."""
    try:
        set_target("journal" if _stderr_is_the_journal() else "console")
    except OSError:
        set_target("console")
    logging.getLogger().setLevel(logging.DEBUG if debug else logging.INFO)
    for chatty in ("asyncio", "urllib3", "docker", "requests"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def level() -> str:
    """syslog's name for what is logged at least."""
    now = logging.getLogger().level
    return next(name for name, number in LEVELS.items() if number <= max(now, logging.DEBUG))


def set_level(name: str) -> None:
    """Log what is as important as this, and more. KeyError for a name that syslog has not."""
    logging.getLogger().setLevel(LEVELS[name])


def target() -> str:
    """One of TARGETS."""
    ours = [each for each in logging.getLogger().handlers if isinstance(each, JournalHandler)]
    return "journal" if ours else "console"


def set_target(name: str) -> None:
    """Log there from now on. KeyError for a name that is not in TARGETS, OSError if it is gone."""
    handler = {"journal": JournalHandler, "console": ConsoleHandler}[name]()
    root = logging.getLogger()
    for each in root.handlers[:]:
        if isinstance(each, ConsoleHandler):
            root.removeHandler(each)
            each.close()
    root.addHandler(handler)


class ConsoleHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Lines on the standard error. In the journal a leading <N> gives their priority."""

    def __init__(self) -> None:
        """Write to what the standard error is now."""
        super().__init__(sys.stderr)
        self._prefix = _stderr_is_the_journal()
        form = "%(message)s" if self._prefix else "%(asctime)s %(levelname)-7s %(message)s"
        self.setFormatter(_Formatter(form))

    def format(self, record: logging.LogRecord) -> str:
        """One line, or several of a tool's own words or a traceback."""
        text = super().format(record)
        if not self._prefix:
            return text
        return "\n".join(f"<{_priority(record)}>{line}" for line in text.splitlines() or [""])


class JournalHandler(ConsoleHandler):
    """Entries with fields, by the journal's own protocol; what does not fit goes the other way."""

    def __init__(self) -> None:
        """Raises OSError when there is no journal."""
        super().__init__()
        self._message_formatter = _Formatter("%(message)s")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(SEND_TIMEOUT)
        try:
            self._socket.connect(SOCKET)
        except OSError:
            self._socket.close()
            raise

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record, or print it."""
        try:
            fields = {
                "MESSAGE": self._message_formatter.format(record),
                "PRIORITY": str(_priority(record)),
                "SYSLOG_IDENTIFIER": IDENTIFIER,
                **getattr(record, "fields", {}),
            }
            self._socket.send(datagram(fields))
        except OSError:
            super().emit(record)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
        super().close()


class _Formatter(logging.Formatter):
    """Strings among a message's arguments are escaped; exceptions keep the lines of their tools."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            record = copy(record)  # others read it too
            record.args = tuple(
                printable(each) if isinstance(each, str) else each for each in record.args or ()
            )
        return "\n".join(printable(line) for line in super().format(record).split("\n"))


def datagram(fields: Mapping[str, str]) -> bytes:
    """One datagram: NAME=value lines, or a length before a value that has lines of its own."""
    data = bytearray()
    for name, text in fields.items():
        value = text.encode("utf-8", "backslashreplace")
        if b"\n" in value:
            data += name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
        else:
            data += name.encode() + b"=" + value + b"\n"
    return bytes(data)


def _priority(record: logging.LogRecord) -> int:
    numbers = enumerate(LEVELS.values())
    return next((place for place, number in numbers if record.levelno >= number), 7)


def _stderr_is_the_journal() -> bool:
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
