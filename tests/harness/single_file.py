"""ipv6natd.pyz, made in a folder, with the names of both commands."""

from __future__ import annotations

from pathlib import Path

from tests import ROOT
from tests.harness.process import run
from tests.harness.supply import NEWEST, need_newest


def single_file(folder: Path) -> Path:
    """Make the file, and links to it with the names of the commands; returns the folder."""
    need_newest()
    run(str(ROOT / "packaging" / "pyz.sh"), str(NEWEST), str(folder))
    for name in ("ipv6natd", "ipv6natctl"):
        (folder / name).symlink_to("ipv6natd.pyz")
    return folder
