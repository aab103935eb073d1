"""What the host itself says: facts from /sys and /proc that no engine tells."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address
from itertools import islice
from pathlib import Path

_NET = Path("/sys/class/net")
_ADDRESSES = Path("/proc/thread-self/net/if_inet6")
"""Of the thread and not of the process: a thread can be in another network namespace."""
_ENOUGH = 8


def userland_proxy(bridges: Iterable[str]) -> bool:
    """Whether the engine that made these bridges runs its userland proxy.

    dockerd sets hairpin_mode on a container's bridge port exactly when it runs without the proxy.
    A few ports tell: all of one engine are alike. With no port at all there is no container, and
    so nothing that depends on the answer.
    """
    return not any(
        _reads_one(mode)
        for bridge in bridges
        for mode in islice(_NET.glob(f"{bridge}/brif/*/hairpin_mode"), _ENOUGH)
    )


def addresses() -> frozenset[IPv6Address]:
    """Every IPv6 address of the host, whatever its scope; none where IPv6 is switched off."""
    try:
        lines = _ADDRESSES.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(IPv6Address(int(line[:32], 16)) for line in lines)


def _reads_one(path: Path) -> bool:
    try:
        return path.read_text().strip() == "1"
    except OSError:  # the container left meanwhile
        return False
