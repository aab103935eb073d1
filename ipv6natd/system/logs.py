"""Sends log messages to the journal, with fields, or to the standard error, as text.

A message gets fields by `extra={"fields": {"NAME": "value"}}`. Names of containers and networks can
contain any characters: line breaks and escape sequences in arguments are escaped.
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
"""Seconds to wait for a busy journal before the message goes to the standard error."""
LEVELS = {
    **{"emerg": 70, "alert": 60, "crit": logging.CRITICAL, "err": logging.ERROR},
    **{"warning": logging.WARNING, "notice": 25, "info": logging.INFO, "debug": logging.DEBUG},
}
"""The level names of syslog; the position of a name is its syslog priority."""
TARGETS = ("journal", "console")


def start(*, debug: bool) -> None:
    """Log to the journal if the standard error is the journal, else as lines with the time."""
    try:
        set_target("journal" if _stderr_is_the_journal() else "console")
    except OSError:
        set_target("console")
    logging.getLogger().setLevel(logging.DEBUG if debug else logging.INFO)
    for chatty in ("asyncio", "urllib3", "docker", "requests"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def level() -> str:
    """The syslog name of the lowest level that is logged."""
    lowest = max(logging.getLogger().level, logging.DEBUG)
    return next(name for name, number in LEVELS.items() if number <= lowest)


def set_level(name: str) -> None:
    """Log this level and the more important ones. Raises KeyError for an unknown name."""
    logging.getLogger().setLevel(LEVELS[name])


def target() -> str:
    """The current target, one of TARGETS."""
    handlers = logging.getLogger().handlers
    to_journal = any(isinstance(handler, JournalHandler) for handler in handlers)
    return "journal" if to_journal else "console"


def set_target(name: str) -> None:
    """Log to this target. Raises KeyError for an unknown name, OSError without a journal."""
    new = {"journal": JournalHandler, "console": ConsoleHandler}[name]()
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, ConsoleHandler):
            root.removeHandler(handler)
            handler.close()
    root.addHandler(new)


class ConsoleHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes lines to the standard error; if that is the journal, with the priority as <N>."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._prefix = _stderr_is_the_journal()
        form = "%(message)s" if self._prefix else "%(asctime)s %(levelname)-7s %(message)s"
        self.setFormatter(_Formatter(form))

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, or several for the output of a tool or a traceback."""
        text = super().format(record)
        if not self._prefix:
            return text
        return "\n".join(f"<{_priority(record)}>{line}" for line in text.splitlines() or [""])


class JournalHandler(ConsoleHandler):
    """Sends entries with fields by the journal's own protocol.

    An entry that is too large for one datagram goes to the standard error.
    """

    def __init__(self) -> None:
        """Connect to the journal. Raises OSError without a journal."""
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
        """Send the record; on failure, write it to the standard error."""
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
        """Close the socket."""
        self._socket.close()
        super().close()


class _Formatter(logging.Formatter):
    """Escapes the strings among the arguments; the text of an exception keeps its lines."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            record = copy(record)  # other handlers get the same record
            record.args = tuple(
                printable(argument) if isinstance(argument, str) else argument
                for argument in record.args or ()
            )
        return "\n".join(printable(line) for line in super().format(record).split("\n"))


def datagram(fields: Mapping[str, str]) -> bytes:
    """The fields in the journal's protocol: NAME=value lines; multi-line values have a length.

    https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
    """
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
    return next((priority for priority, number in numbers if record.levelno >= number), 7)


def _stderr_is_the_journal() -> bool:
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
