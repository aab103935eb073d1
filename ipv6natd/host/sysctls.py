"""Decides which sysctls to change for forwarding, and which to restore: values -> SysctlChange.

Pure; sync/forwarding.py reads and writes. A key is a path below /proc/sys/net/ipv6/conf.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Mapping as Map
from dataclasses import dataclass, replace

from ipv6natd.model import is_interface

FORWARDING = "all/forwarding"
_ACCEPT_RA = "/accept_ra"
_CHANGE = re.compile(r"([^/ ]+/(?:accept_ra|forwarding)) ([0-2]) ([0-2])\n")
_ON = re.compile(r"^\s*-?net[./]ipv6[./]conf[./]all[./]forwarding\s*=\s*1\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SysctlChange:
    """One sysctl, its previous value, and the value to set."""

    key: str
    previous: str
    value: str

    @property
    def name(self) -> str:
        """The name for sysctl(8) and sysctl.d(5): "net.ipv6.conf.eth0/7.accept_ra"."""
        interface, _, knob = self.key.partition("/")
        return f"net.ipv6.conf.{interface.replace('.', '/')}.{knob}"


def accept_ra_changes(now: Map[str, str], advertised: Iterable[str]) -> tuple[SysctlChange, ...]:
    """The changes that keep default routes from router advertisements while the host forwards.

    When forwarding is switched on, the kernel deletes these routes on interfaces with accept_ra=1,
    and ignores advertisements there. With 2 it accepts them. While forwarding is off, 2 means the
    same as 1. A value of 0 is not changed.
    """
    keys = (f"{interface}{_ACCEPT_RA}" for interface in sorted(set(advertised)))
    return tuple(
        SysctlChange(key=key, previous="1", value="2") for key in keys if now.get(key) == "1"
    )


def forwarding_changes(now: Map[str, str]) -> tuple[SysctlChange, ...]:
    """The changes that switch forwarding on; () if it is on.

    A write to all/forwarding sets the value of every interface. The changes from 1 to 1 restore an
    interface that had 1 when forwarding is switched off again.
    """
    if now.get(FORWARDING) != "0":
        return ()
    already_on = (key for key in sorted(now) if now[key] == "1" and _is_storable(key))
    return (
        *(SysctlChange(key=key, previous="1", value="1") for key in already_on),
        SysctlChange(key=FORWARDING, previous="0", value="1"),
    )


def _is_storable(key: str) -> bool:
    """True if a file can store the key: interface names can have bytes that are not UTF-8."""
    interface, _, knob = key.partition("/")
    return knob == "forwarding" and is_interface(interface) and interface.isprintable()


def reverted(changes: Iterable[SysctlChange], now: Map[str, str]) -> tuple[SysctlChange, ...]:
    """The changes to revert, in the order of writing: forwarding first.

    A value that another program has set since stays. If another program, for example the Docker
    engine, has switched forwarding on, accept_ra stays too: else the default route would be lost.
    """
    changes = tuple(changes)
    turns_off = any(one.key == FORWARDING and now.get(one.key) == one.value for one in changes)
    if now.get(FORWARDING) == "1" and not turns_off:
        return ()
    unchanged = (
        change
        for change in changes
        if now.get(change.key)
        == (change.previous if turns_off and _is_link(change) else change.value)
    )
    return tuple(sorted(unchanged, key=lambda change: (change.key != FORWARDING, change.key)))


def begun(changes: Iterable[SysctlChange]) -> tuple[SysctlChange, ...]:
    """The same changes to revert, as they are saved before forwarding is switched off.

    This sets the value of every interface to 0. If we are killed before the value of an interface
    is restored, its 0 is ours, and the next removal restores it.
    """
    changes = tuple(changes)
    if all(change.key != FORWARDING for change in changes):
        return changes
    return tuple(replace(one, value="0") if _is_link(one) else one for one in changes)


def _is_link(change: SysctlChange) -> bool:
    """True for the forwarding of one interface. A write to all/forwarding sets its value too."""
    return change.key.endswith("/forwarding") and change.key != FORWARDING


def merged(old: Iterable[SysctlChange], new: Iterable[SysctlChange]) -> tuple[SysctlChange, ...]:
    """All changes; for a key in both, the old one with the first previous value.

    If the new changes switch forwarding on, a restore that had begun is over: see `begun`.
    """
    old, new = tuple(old), tuple(new)
    if any(change.key == FORWARDING for change in new):
        old = tuple(replace(one, value=one.previous) if _is_link(one) else one for one in old)
    by_key = {change.key: change for change in new} | {change.key: change for change in old}
    return tuple(by_key.values())


def accept_ra_interfaces(changes: Iterable[SysctlChange]) -> frozenset[str]:
    """The interfaces that accept router advertisements because of these changes."""
    keys = (change.key for change in changes if change.key.endswith(_ACCEPT_RA))
    return frozenset(key.removesuffix(_ACCEPT_RA) for key in keys)


def format_changes(changes: Iterable[SysctlChange]) -> str:
    """The changes as text for a file."""
    return "".join(f"{change.key} {change.previous} {change.value}\n" for change in changes)


def parse_changes(text: str) -> tuple[SysctlChange, ...]:
    """The changes in the text of `format_changes`. Raises ValueError for any other text."""
    changes = tuple(
        SysctlChange(key=key, previous=previous, value=value)
        for key, previous, value in _CHANGE.findall(text)
    )
    interfaces = (change.key.partition("/")[0] for change in changes)
    if format_changes(changes) != text or not all(map(is_interface, interfaces)):
        raise ValueError("it is not a list of sysctl changes")
    return changes


def parse_interfaces(text: str) -> frozenset[str]:
    """The names of interfaces, one in each line. Raises ValueError for an invalid name."""
    *names, rest = text.split("\n")
    if rest or not all(map(is_interface, names)):
        raise ValueError("it is not a list of interface names")
    return frozenset(names)


def disables_forwarding(text: str) -> bool:
    """True if the text of /etc/sysctl.d/60-ipv6natd.conf switches forwarding off.

    Earlier packages switched forwarding on by a file of this name in /usr/lib/sysctl.d. A link to
    /dev/null in /etc was the documented way to prevent this.
    """
    return not _ON.search(text)
