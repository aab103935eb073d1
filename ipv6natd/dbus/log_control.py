"""org.freedesktop.LogControl1, the interface that `systemctl service-log-level` uses."""

from __future__ import annotations

from typing import Any

from ipv6natd.dbus.connection import ERROR, BusError
from ipv6natd.system import logs

WRITABLE = {
    "LogLevel": (tuple(logs.LEVELS), logs.set_level),
    "LogTarget": (logs.TARGETS, logs.set_target),
}
"""Property -> the legal values, and the function that sets it."""


def properties() -> dict[str, str]:
    """The three properties."""
    return {
        "LogLevel": logs.level(),
        "LogTarget": logs.target(),
        "SyslogIdentifier": logs.IDENTIFIER,
    }


def set_property(name: str, value: Any) -> None:
    """Set a writable property. Raises BusError for an illegal value."""
    legal, set_ = WRITABLE[name]
    if value not in legal:
        raise BusError(ERROR + "InvalidArgs", f"{name} is one of {', '.join(legal)}, not {value!r}")
    try:
        set_(value)
    except OSError as error:
        text = f"the journal cannot be reached at {logs.SOCKET}: {error.strerror}"
        raise BusError(ERROR + "FileNotFound", text) from None
