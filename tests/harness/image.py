"""The container image of this source. `python -m tests.harness.image` makes what it is based on.

The base is a minimal Debian with the dependencies of the package, made once and kept beside the
trees. To get newer packages, remove its folder.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import ROOT
from tests.harness import tree, workshop
from tests.harness.needs import lack
from tests.harness.process import run

_SCRIPTS = ROOT / "packaging" / "container"


def base() -> Path:
    """The folder of the base."""
    return tree.folder() / "image"


def make_base() -> int:
    """Make the base if it does not exist; returns the exit code."""
    if base().exists():
        return 0
    tree.folder().mkdir(parents=True, exist_ok=True)
    with tree.locked(tree.folder() / "image.lock"):
        if base().exists():  # another run has made it meanwhile
            return 0
        code = subprocess.run([str(tree.INSTALL), "trees"], check=False).returncode
        if code != 0:
            return code
        print(f"Making the base of the container image in {base()}, once; a minute ...", flush=True)
        return subprocess.run([_SCRIPTS / "base.sh", base()], check=False).returncode


def image(folder: Path) -> Path:
    """Build the image of this source in a folder. Returns the archive for `docker load`."""
    if not base().exists():
        lack("the base of the container image; `make tree-image` makes it")
    tree.need("trixie")
    build = workshop.begin("trixie", folder, "packaging/deb/build.sh /out -d")
    workshop.finish(build, folder)
    (package,) = folder.glob("ipv6natd_*_all.deb")
    archive = folder / "ipv6natd-image.tar"
    words = (str(_SCRIPTS / "build.sh"), str(package), str(archive))
    run(*words, env={"BASE": str(base())}, timeout=300)
    return archive


if __name__ == "__main__":
    sys.exit(make_base())
