"""Switches IPv6 forwarding on once our filter table is in force, and back before it goes.

What to change is decided in sysctls.py. What was found is written down before it is changed, in a
folder that no boot outlives, as no sysctl does. Of the calling thread's network namespace.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.host.facts import ra_default_routes
from ipv6natd.host.sysctls import (
    FORWARDING,
    SysctlChange,
    accept_ra_changes,
    accept_ra_interfaces,
    disables_forwarding,
    format_changes,
    forwarding_changes,
    merged,
    parse_changes,
    parse_interfaces,
    reverted,
)
from ipv6natd.sync.saved_rules import SavedFilter
from ipv6natd.system import files
from ipv6natd.system.messages import MessageId, log_fields

log = logging.getLogger(__name__)
T = TypeVar("T")

FOLDER = "/run/ipv6natd"
CHANGES_FILE, RA_INTERFACES_FILE = "sysctls", "advertised"
_CONF = Path("/proc/sys/net/ipv6/conf")
_MASK = Path("/etc/sysctl.d/60-ipv6natd.conf")
_DISABLE_HINT = "to have it left alone: ip_forward = false in /etc/ipv6natd/ipv6natd.toml"


class Forwarding:
    """Forwarding of this host. From any thread; each call blocks for some milliseconds."""

    def __init__(
        self, *, wanted: bool = True, environ: Mapping[str, str] = os.environ, conf: Path = _CONF
    ) -> None:
        """`wanted` is the setting ip_forward. What was found is kept in $RUNTIME_DIRECTORY, and
        beside the kept filter table the interfaces that are to heed advertisements."""
        self._wanted = wanted
        runtime = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or FOLDER
        self._changes_file = Path(runtime, CHANGES_FILE)
        self._ra_interfaces_file = SavedFilter(environ).path.with_name(RA_INTERFACES_FILE)
        self._conf = conf
        self._lock = threading.Lock()
        self._applied = False
        self._switched_on = False
        self._last_message = ""

    def set_wanted(self, wanted: bool) -> None:
        """The setting was read again; it counts from the next pass on."""
        if wanted != self._wanted:
            self._wanted, self._applied = wanted, False

    def keep_ra_routes(self) -> None:
        """Keep the default routes that come from router advertisements, before anybody forwards.

        The engine switches forwarding on, too: at its start, and with its first network that has
        IPv6. Interfaces that had such a route before the host was booted may have none yet, or not
        be there; call it every now and then.
        """
        with self._lock:
            if not self._may_write():
                return
            known = _read_saved(self._ra_interfaces_file, parse_interfaces) or frozenset()
            names = set(known)
            if self._value(FORWARDING) == "0":
                names.update(route.interface for route in ra_default_routes())
            now = {key: self._value(key) for key in (f"{name}/accept_ra" for name in names)}
            changes = accept_ra_changes(now, names)
            if changes and self._apply(changes) and (more := accept_ra_interfaces(changes) - known):
                self._save_ra_interfaces(known | more)

    def _save_ra_interfaces(self, names: Iterable[str]) -> None:
        try:
            self._save(self._ra_interfaces_file, "".join(f"{name}\n" for name in sorted(names)))
        except OSError as error:
            self._log_once(
                logging.WARNING, f"{self._ra_interfaces_file} cannot be written: {error}"
            )

    def update(self, filter_in_force: bool) -> bool:
        """Told after each pass that our filter table is in force, and before it is taken out.

        On once, so that whoever switches it off later is obeyed; once more where `ipv6natd -flush`
        has put it back meanwhile. Tells whether it was switched on now. Raises FirewallError if it
        cannot be put back.
        """
        if not filter_in_force:
            self._applied = False
            self.restore()
        elif not self._applied or (self._switched_on and not self._changes_file.exists()):
            self._applied = True
            self.keep_ra_routes()
            with self._lock:
                self._switched_on = self._switch_on()
            return self._switched_on
        return False

    def restore(self) -> None:
        """Bring back what was found, where it is still as we set it. Raises FirewallError."""
        with self._lock:
            changes = _read_saved(self._changes_file, parse_changes) or ()
            try:
                self._restore_values(changes)
                self._changes_file.unlink(missing_ok=True)
            except OSError as error:
                raise FirewallError(
                    "what was found in net.ipv6.conf cannot be put back, so our rules stay: "
                    f"{error}; run: sysctl -w net.ipv6.conf.all.forwarding=0"
                ) from None

    def _restore_values(self, changes: Iterable[SysctlChange]) -> None:
        now = {key: self._value(key) for key in (FORWARDING, *(change.key for change in changes))}
        for change in reverted(changes, now):
            self._write(change.key, change.previous)
            if change.previous != change.value:
                text = "%s was %s and is %s again, as it was found before our rules"
                log.info(
                    text,
                    change.name,
                    change.value,
                    change.previous,
                    extra=log_fields(MessageId.SYSCTL),
                )

    def _switch_on(self) -> bool:
        """Whether there was something to change, and it was changed."""
        if self._value(FORWARDING) != "0" or not self._may_write():
            return False
        paths = self._conf.glob("*/forwarding")
        now = {key: self._value(key) for key in (str(p.relative_to(self._conf)) for p in paths)}
        return self._apply(forwarding_changes(now))

    def _may_write(self) -> bool:
        if self._wanted and disables_forwarding(_read_text(_MASK)):
            self._log_once(logging.INFO, f"forwarding is left alone, as {_MASK} says")
            return False
        return self._wanted

    def _apply(self, changes: Iterable[SysctlChange]) -> bool:
        """Whether what was found was written down, and all was changed."""
        saved = _read_saved(self._changes_file, parse_changes) or ()
        done: list[SysctlChange] = []
        try:
            self._save(self._changes_file, format_changes(merged(saved, changes)))
            for change in changes:
                if change.previous != change.value:
                    self._write(change.key, change.value)
                    log.info("%s", _change_text(change), extra=log_fields(MessageId.SYSCTL))
                done.append(change)
        except OSError as error:
            self._log_once(logging.WARNING, f"forwarding cannot be prepared: {error}")
            with suppress(OSError):
                # What somebody else then does by hand is not ours to put back.
                self._save(self._changes_file, format_changes(merged(saved, done)))
            return False
        return True

    def _log_once(self, level: int, text: str) -> None:
        log.log(logging.DEBUG if self._last_message == text else level, "%s", text)
        self._last_message = text

    def _value(self, key: str) -> str:
        """ "" where it is not there: an interface that has gone, or no IPv6."""
        return (_read_text(self._conf / key) or "").strip()

    def _write(self, key: str, value: str) -> None:
        (self._conf / key).write_text(f"{value}\n")

    def _save(self, path: Path, text: str) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.replace(path, text, mode=0o600, sync=True)


def _change_text(change: SysctlChange) -> str:
    why = "containers are reached by forwarding, and the rules that guard it are in force"
    if change.key != FORWARDING:
        why = (
            "its default route comes from router advertisements, which a host that forwards heeds "
            "only with 2"
        )
    return f"{change.name} was {change.previous} and is {change.value} now: {why}; {_DISABLE_HINT}"


def _read_saved(path: Path, parsed: Callable[[str], T]) -> T | None:
    """None where nothing was kept, or nothing that we wrote."""
    try:
        return parsed(files.read(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("%s cannot be used: %s", path, error)
        return None


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
