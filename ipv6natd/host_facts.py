"""What the host itself says: facts from /sys that no engine tells."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

_NET = Path("/sys/class/net")
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


def _reads_one(path: Path) -> bool:
    try:
        return path.read_text().strip() == "1"
    except OSError:  # the container left meanwhile
        return False
