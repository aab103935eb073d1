"""Builds packages in a suite's tree, with the layer of build tools and this source.

Everything is in memory and in separate namespaces, and is removed when the script ends.
"""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

from tests import ROOT
from tests.harness import tree
from tests.harness.process import LabError, run, spawn, tail

SCRIPT = """
set -e
mount -t tmpfs tmpfs /mnt
cd /mnt
mkdir upper work root got more
mount -t overlay -o "lowerdir=$1,upperdir=upper,workdir=work" overlay root
# The downloads of the tree, which the layer of tools hides: so the build needs no network.
archives=var/cache/apt/archives
mount -t overlay -o "lowerdir=${1##*:}/$archives,upperdir=got,workdir=more" overlay root/$archives
mkdir root/src root/out
mount -t proc proc root/proc
mount --rbind /dev root/dev
mount -t tmpfs tmpfs root/tmp
mount --rbind "$2" root/out
tar -x -C root/src -f "$2/source.tar"
exec chroot root sh -ec "cd /src; $3"
"""


def begin(suite: tree.Suite, folder: Path, script: str) -> subprocess.Popen[bytes]:
    """Start a script in /src, with this source. `folder` is /out there and gets the log."""
    pack(folder / "source.tar")
    layers = ":".join(map(str, tree.workshop(suite)))
    apart = ("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--mount-proc")
    words = ("sh", "-c", SCRIPT, "workshop", layers, str(folder), script)
    with (folder / "log").open("wb") as log:
        return spawn((*apart, "--kill-child", *words), log=log)


def finish(process: subprocess.Popen[bytes], folder: Path, *, timeout: float = 120) -> str:
    """Wait for a started script, and return its output. LabError if it failed."""
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
        code = -1
    if code != 0:
        raise LabError(f"exit {code} in the workshop:\n{tail(folder / 'log', 30)}")
    return (folder / "log").read_text(errors="replace")


def pack(file: Path) -> None:
    """Write the current source, with uncommitted changes and without files that git ignores."""
    with tarfile.open(file, "w") as tar:
        for name in sources():
            tar.add(ROOT / name, name)


def sources() -> list[str]:
    listed = ("--cached", "--others", "--exclude-standard")
    names = run("git", "-C", str(ROOT), "ls-files", *listed).splitlines()
    return [name for name in names if (ROOT / name).exists()]
