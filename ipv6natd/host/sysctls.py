"""Which sysctls forwarding needs, and which of them go back to what was found: values -> Change.

Pure; forwarding.py reads, writes and remembers. A key is a path below /proc/sys/net/ipv6/conf.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Mapping as Map
from dataclasses import dataclass

from ipv6natd.model import is_interface

FORWARDING = "all/forwarding"
_ACCEPT_RA = "/accept_ra"
_CHANGE = re.compile(r"([^/ ]+)/(?:accept_ra|forwarding) [0-2] [0-2]")
_ON = re.compile(r"^\s*-?net[./]ipv6[./]conf[./]all[./]forwarding\s*=\s*1\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SysctlChange:
    """One sysctl: the value that was found, and the value that is set."""

    key: str
    previous: str
    value: str

    @property
    def name(self) -> str:
        """As sysctl(8) and sysctl.d(5) word it: "net.ipv6.conf.eth0/7.accept_ra"."""
        interface, _, knob = self.key.partition("/")
        return f"net.ipv6.conf.{interface.replace('.', '/')}.{knob}"


def accept_ra_changes(now: Map[str, str], advertised: Iterable[str]) -> tuple[SysctlChange, ...]:
    """What keeps the default routes that come from router advertisements while the host forwards.

    As forwarding comes on, the kernel deletes those of each interface with accept_ra=1, and heeds
    no more advertisements there. With 2 it heeds them, and while forwarding is off 2 is as 1. What
    somebody set to 0 stays.
    """
    keys = (f"{each}{_ACCEPT_RA}" for each in sorted(set(advertised)))
    return tuple(
        SysctlChange(key=key, previous="1", value="2") for key in keys if now.get(key) == "1"
    )


def forwarding_changes(now: Map[str, str]) -> tuple[SysctlChange, ...]:
    """What switches forwarding on; () where it is on.

    The kernel writes the value of all to each interface, on and off: one that had 1 has it again
    in the end.
    """
    if now.get(FORWARDING) != "0":
        return ()
    own = (key for key in sorted(now) if now[key] == "1" and _is_storable(key))
    return (
        *(SysctlChange(key=key, previous="1", value="1") for key in own),
        SysctlChange(key=FORWARDING, previous="0", value="1"),
    )


def _is_storable(key: str) -> bool:
    """True for a key that a file gives back: the kernel takes names of bytes that are no text."""
    interface, _, knob = key.partition("/")
    return knob == "forwarding" and is_interface(interface) and interface.isprintable()


def reverted(changes: Iterable[SysctlChange], now: Map[str, str]) -> tuple[SysctlChange, ...]:
    """The changes that go back to what was found, in the order of writing: forwarding first.

    A value that is no longer ours was set by somebody else, and stays. Where somebody else has the
    host forward, the Docker engine for one, accept_ra stays too: the default route would go.
    """
    ours = [each for each in changes if now.get(each.key) == each.value]
    off = now.get(FORWARDING) != "1" or any(each.key == FORWARDING for each in ours)
    return tuple(sorted(ours, key=lambda each: (each.key != FORWARDING, each.key))) if off else ()


def merged(old: Iterable[SysctlChange], new: Iterable[SysctlChange]) -> tuple[SysctlChange, ...]:
    """Both: for each key counts what was found first."""
    return tuple(({each.key: each for each in new} | {each.key: each for each in old}).values())


def accept_ra_interfaces(changes: Iterable[SysctlChange]) -> frozenset[str]:
    """The interfaces that heed router advertisements by these changes."""
    keys = (each.key for each in changes if each.key.endswith(_ACCEPT_RA))
    return frozenset(key.removesuffix(_ACCEPT_RA) for key in keys)


def format_changes(changes: Iterable[SysctlChange]) -> str:
    """The changes as a file keeps them."""
    return "".join(f"{each.key} {each.previous} {each.value}\n" for each in changes)


def parse_changes(text: str) -> tuple[SysctlChange, ...]:
    """What a file keeps. Raises ValueError for what changes_text does not write."""
    *lines, rest = text.split("\n")
    found = [_CHANGE.fullmatch(line) for line in lines]
    if rest or not all(each and is_interface(each[1]) for each in found):
        raise ValueError("these are no changes of sysctls")
    words = (line.split(" ") for line in lines)
    return tuple(SysctlChange(key=key, previous=was, value=now) for key, was, now in words)


def parse_interfaces(text: str) -> frozenset[str]:
    """Names of interfaces, one a line. Raises ValueError for what cannot be one."""
    *names, rest = text.split("\n")
    if rest or not all(map(is_interface, names)):
        raise ValueError("these are no names of interfaces")
    return frozenset(names)


def disables_forwarding(text: str | None) -> bool:
    """Whether /etc/sysctl.d/60-ipv6natd.conf switches forwarding off; None where it is not there.

    Earlier packages switched forwarding on by a file of that name in /usr/lib/sysctl.d, and said
    that a link to /dev/null there leaves forwarding alone.
    """
    return text is not None and not _ON.search(text)
