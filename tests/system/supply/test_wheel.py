"""The wheel and the source archive are reproducible bit for bit."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from ipv6natd import __version__
from tests import ROOT
from tests.harness import need
from tests.harness.workshop import sources

EPOCH = "1700000000"


def built(place: Path, *, umask: int, times: int, zone: str) -> dict[str, str]:
    """File name -> hash of the files that a copy of this source builds."""
    before = os.umask(umask)
    try:
        for name in sources():
            target = place / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
            target.chmod(0o777 & ~umask if os.access(ROOT / name, os.X_OK) else 0o666 & ~umask)
            os.utime(target, (times, times))
        env = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(place),
            "SOURCE_DATE_EPOCH": EPOCH,
            "TZ": zone,
            "PYTHONHASHSEED": str(umask),
        }
        build = (sys.executable, "-m", "hatchling", "build")
        subprocess.run(build, cwd=place, env=env, check=True, capture_output=True, timeout=120)
    finally:
        os.umask(before)
    files = (place / "dist").iterdir()
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in files}


def test_two_builds_are_bit_for_bit_equal(tmp_path: Path) -> None:
    need("git")
    one = built(tmp_path / "one", umask=0o022, times=1_000_000_000, zone="UTC")
    other = built(
        tmp_path / "elsewhere" / "two", umask=0o077, times=1_600_000_000, zone="Pacific/Kiritimati"
    )
    assert one == other
    assert set(one) == {
        f"ipv6natd-{__version__}-py3-none-any.whl",
        f"ipv6natd-{__version__}.tar.gz",
    }


def test_wheel_contains_only_the_package(tmp_path: Path) -> None:
    need("git")
    built(tmp_path, umask=0o022, times=1_000_000_000, zone="UTC")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {each for each in archive.namelist() if ".dist-info/" not in each}
    package = {name for name in sources() if name.startswith("ipv6natd/")}
    interfaces = {
        f"ipv6natd/{Path(name).name}"
        for name in sources()
        if name.startswith("dbus/") and name.endswith(".xml")
    }
    assert names == package | interfaces
