"""The modules of the package, for tests that read their sources."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tests import ROOT

PACKAGE = ROOT / "ipv6natd"


@cache
def modules() -> dict[str, Path]:
    """The path of each module, by its name without the package, such as "policy.ruleset"."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found
