"""Switches IPv6 forwarding on while our filter table is in force.

`host.sysctls` decides what to change. The old values are saved before a change, in a folder that a
boot empties, because a boot resets sysctls too. Works on the network namespace of the thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.host.facts import is_bridge_port, ra_default_routes
from ipv6natd.host.sysctls import (
    FORWARDING,
    SysctlChange,
    accept_ra_changes,
    accept_ra_interfaces,
    begun,
    disables_forwarding,
    format_changes,
    forwarding_changes,
    merged,
    parse_changes,
    parse_interfaces,
    reverted,
)
from ipv6natd.sync.saved_rules import SavedRules, read_saved, unit_folder, write_saved
from ipv6natd.system.files import read_text, read_word
from ipv6natd.system.messages import MessageId, log_fields

log = logging.getLogger(__name__)

FOLDER = "/run/ipv6natd"
CHANGES_FILE, RA_INTERFACES_FILE = "sysctls", "advertised"
_CONF = Path("/proc/sys/net/ipv6/conf")
_MASK = Path("/etc/sysctl.d/60-ipv6natd.conf")
_DISABLE_HINT = "to keep it unchanged: ip_forward = false in /etc/ipv6natd/ipv6natd.toml"


def forwarding_is_on() -> bool:
    """True if this host forwards IPv6 packets."""
    return read_word(_CONF / FORWARDING) == "1"


class Forwarding:
    """Forwarding of this host. May be called from any thread; a call blocks for milliseconds."""

    def __init__(self, *, wanted: bool = True) -> None:
        """The old values are saved in $RUNTIME_DIRECTORY; the interfaces that need router
        advertisements (RA) beside the saved rules."""
        self.wanted = wanted
        """The setting ip_forward; a change takes effect in the next pass."""
        self._changes_file = unit_folder("RUNTIME_DIRECTORY", FOLDER) / CHANGES_FILE
        self._ra_interfaces_file = SavedRules().path.with_name(RA_INTERFACES_FILE)
        self._lock = threading.Lock()
        self._applied: bool | None = None
        """The setting that is applied; None without our filter table."""
        self._switched_on = False
        self._last_message = ""

    def keep_ra_routes(self) -> None:
        """Set accept_ra=2 where default routes come from router advertisements.

        It must be set before forwarding is on: the kernel then ignores advertisements with
        accept_ra=1. The engine switches forwarding on too, at its start and with its first IPv6
        network. After a boot an interface may appear, or get such a route, later; so call this
        regularly.
        """
        with self._lock:
            if not self._may_write():
                return
            known = read_saved(self._ra_interfaces_file, parse_interfaces) or frozenset()
            # An earlier version saved ports of containers too.
            names = {name for name in known if not is_bridge_port(name)}
            if read_word(_CONF / FORWARDING) == "0":
                names.update(route.interface for route in ra_default_routes())
            now = {key: read_word(_CONF / key) for key in (f"{name}/accept_ra" for name in names)}
            changes = accept_ra_changes(now, names)
            if changes and self._apply(changes) and (more := accept_ra_interfaces(changes) - known):
                self._save_ra_interfaces(known | more)

    def _save_ra_interfaces(self, names: Iterable[str]) -> None:
        try:
            write_saved(self._ra_interfaces_file, "".join(f"{name}\n" for name in sorted(names)))
        except OSError as error:
            text = f"{self._ra_interfaces_file} cannot be written: {error}"
            self._log_once(logging.WARNING, text)

    def update(self, filter_in_force: bool) -> bool:
        """Switch forwarding on after the filter table is written, or restore it before removal.

        It is switched on once, so that an administrator can switch it off later; and once more
        after `ipv6natd -flush` restored it. Returns whether it was switched on now. Raises
        FirewallError if it cannot be restored.
        """
        if not filter_in_force:
            self._applied = None
            self.restore()
        elif self._applied != self.wanted or (
            self._switched_on and not self._changes_file.exists()
        ):
            self._applied = self.wanted
            self.keep_ra_routes()
            with self._lock:
                self._switched_on = self._switch_on()
            return self._switched_on
        return False

    def restore(self) -> None:
        """Restore the old values where ours are still set. Raises FirewallError."""
        with self._lock:
            changes = read_saved(self._changes_file, parse_changes) or ()
            try:
                self._restore_values(changes)
                self._changes_file.unlink(missing_ok=True)
            except OSError as error:
                raise FirewallError(
                    "cannot restore net.ipv6.conf, so our rules stay in force: "
                    f"{error}; run: sysctl -w net.ipv6.conf.all.forwarding=0"
                ) from None

    def _restore_values(self, changes: Iterable[SysctlChange]) -> None:
        now = {
            key: read_word(_CONF / key) for key in (FORWARDING, *(change.key for change in changes))
        }
        back = reverted(changes, now)
        self._save_rest(begun(back))
        for change in back:
            self._write(change.key, change.previous)
            if change.key == FORWARDING:
                # Who switches it on from now on is another program.
                self._save_rest(begun(back)[1:])
            if change.previous != change.value:
                text = f"{change.name} was {change.value} and is {change.previous} again"
                extra = log_fields(MessageId.SYSCTL)
                log.info("%s, its value before our rules", text, extra=extra)

    def _save_rest(self, changes: tuple[SysctlChange, ...]) -> None:
        """Save what is left to revert, for a removal that is repeated after a kill."""
        if changes:
            with suppress(OSError):  # without it, this removal restores all values too
                write_saved(self._changes_file, format_changes(changes))

    def _switch_on(self) -> bool:
        """Returns whether forwarding was off and is on now."""
        if read_word(_CONF / FORWARDING) != "0" or not self._may_write():
            return False
        paths = _CONF.glob("*/forwarding")
        now = {key: read_word(_CONF / key) for key in (str(p.relative_to(_CONF)) for p in paths)}
        return self._apply(forwarding_changes(now))

    def _may_write(self) -> bool:
        if self.wanted and _MASK.exists() and disables_forwarding(read_text(_MASK)):
            self._log_once(logging.INFO, f"forwarding is not changed: {_MASK} disables it")
            return False
        return self.wanted

    def _apply(self, changes: Iterable[SysctlChange]) -> bool:
        """Save the old values, then set the new ones; returns whether all of it succeeded."""
        saved = read_saved(self._changes_file, parse_changes) or ()
        done: list[SysctlChange] = []
        try:
            write_saved(self._changes_file, format_changes(merged(saved, changes)))
            for change in changes:
                if change.previous != change.value:
                    self._write(change.key, change.value)
                    log.info("%s", _change_text(change), extra=log_fields(MessageId.SYSCTL))
                done.append(change)
        except OSError as error:
            self._log_once(logging.WARNING, f"cannot change forwarding: {error}")
            with suppress(OSError):
                # A change that an administrator makes later must not be restored.
                write_saved(self._changes_file, format_changes(merged(saved, done)))
            return False
        return True

    def _log_once(self, level: int, text: str) -> None:
        log.log(logging.DEBUG if self._last_message == text else level, "%s", text)
        self._last_message = text

    def _write(self, key: str, value: str) -> None:
        (_CONF / key).write_text(f"{value}\n")


def _change_text(change: SysctlChange) -> str:
    why = "containers need forwarding, and the rules that protect this host are in force"
    if change.key != FORWARDING:
        why = (
            "its default route comes from router advertisements, which a host that forwards "
            "accepts only with accept_ra=2"
        )
    return f"{change.name} was {change.previous} and is {change.value} now: {why}; {_DISABLE_HINT}"
