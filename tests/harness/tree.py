"""Trees: Debian suites in folders, for other engines, for building packages and for booted hosts.

`make` (tests/harness/trees.py) creates a tree once. Afterwards the tree is only read, with an
overlay for writes. Tests never create a tree, because `pytest` must not need a network. To get
newer packages, remove the folder of the tree. A tree has three parts:

- `root`: a host with an engine and systemd, for engines and for booted hosts;
- the apt cache of `root`: the dependencies of the package of ipv6natd, other firewalls, and the
  build dependencies that README names;
- `build`: a layer over `root` with the tools for building packages.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from tests import ROOT
from tests.harness.needs import lack
from tests.harness.process import LabError, spawn, tail, undisturbed

Suite = Literal["bookworm", "trixie", "sid"]
SUITES: tuple[Suite, ...] = get_args(Suite)

HOST = (
    *("docker.io", "iptables"),
    *("systemd", "systemd-sysv", "dbus", "iproute2", "kmod", "procps"),
    *("python3", "ca-certificates", "libpam-systemd", "dbus-user-session"),
)
"""The engine (with containerd and runc), both variants of iptables, which the engine only
recommends, and the packages of a usual server that boots."""

LATER = (
    *("python3-docker", "python3-dbus-next", "python3-sdnotify", "python3-iptables"),
    *("nftables", "conntrack", "polkitd"),
    *("firewalld", "ufw"),
    *("rootlesskit", "slirp4netns", "uidmap"),
    *("autopkgtest", "python3-pytest", "python3-hypothesis"),
)
"""Packages that tests install on a host without a network: downloaded with their dependencies."""

BUILD_DEP = (
    *("dpkg-dev", "make", "debhelper", "dh-python", "bash-completion"),
    *("pybuild-plugin-pyproject", "python3-all", "python3-hatchling"),
    *("python3-docker", "python3-dbus-next", "python3-sdnotify", "python3-iptables"),
)
"""The build dependencies of packaging/deb/debian/control, without the compilers of
build-essential, which are not needed."""

BUILD = (*BUILD_DEP, "fakeroot", "lintian", "python3-pytest")

ARCH = ("makepkg", "libarchive-tools", "python3-build", "python3-installer")
"""The tools that build the package for Arch, from Debian 13, whose makepkg is newer."""

CLONE = ("git", "build-essential", *BUILD_DEP)
"""The packages that the commands of README need in a clone. They are downloaded without
recommended packages, because `apt build-dep` does not install these either."""

PACMAN = ("pacman-package-manager", "sudo")
"""Additional packages for the commands for Arch on a host of Debian 13."""

COCKPIT = ("cockpit-bridge", "cockpit-ws", "cockpit-system")
"""What the page for Cockpit is tried with, on a host of Debian 13."""

PATIENCE = 1200.0
"""Seconds. Creating a tree takes three minutes with a fast network, and 1.2 GB of disk."""

INSTALL = ROOT / "tests" / "install.sh"

# The process namespace ends all processes that maintainer scripts start. The mount namespace is
# needed because an interrupted debootstrap leaves /proc mounted in the tree.
APART = ("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--mount-proc")

SCRIPT = """
set -eu
suite=$1 root=$2 layer=$3 host=$4 later=$5 clone=$6 build=$7
get() {
    # Signatures are checked, dates are not: the index of unstable is valid for only a week, too
    # short for a slow mirror or a machine with a fast clock.
    chroot "$1" apt-get -q -y -o Acquire::Check-Valid-Until=false "${@:2}"
}
debootstrap --variant=minbase --force-check-gpg "$suite" "$root"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"   # no package may start a service
chmod 755 "$root/usr/sbin/policy-rc.d"
get "$root" update
get "$root" --no-install-recommends install $host
get "$root" clean
get "$root" --download-only install $later
get "$root" --no-install-recommends --download-only install $clone
mkdir "$layer" "$layer.work" "$layer.root"
mount -t overlay -o "lowerdir=$root,upperdir=$layer,workdir=$layer.work" overlay "$layer.root"
get "$layer.root" --no-install-recommends install $build
get "$layer.root" clean
chroot "$layer.root" dpkg-query --show --showformat '${Package} ${Version}\n' >"$root.versions"
umount "$layer.root"
rm -rf "$layer.work" "$layer.root" "$root"/var/log/*
"""


def folder() -> Path:
    """The folder of all trees."""
    return Path(os.environ.get("IPV6NATD_TREES") or "/var/cache/ipv6natd-tests")


def ready(suite: Suite) -> bool:
    """True if the tree is complete and has all packages that this version of the lab needs."""
    return set(wanted(suite)) <= versions(suite).keys()


def need(suite: Suite) -> None:
    """End the test if there is no tree of this suite."""
    if not ready(suite):
        lack(f"a tree of Debian {suite}; {hint(suite)}")


def wanted(suite: Suite) -> tuple[str, ...]:
    return (*host(suite), *LATER, *clone(suite), *tools(suite))


def host(suite: Suite) -> tuple[str, ...]:
    # From Debian 13 on the docker command is a separate package.
    return HOST if suite == "bookworm" else (*HOST, "docker-cli")


def tools(suite: Suite) -> tuple[str, ...]:
    return (*BUILD, *ARCH, "shellcheck") if suite == "trixie" else BUILD


def clone(suite: Suite) -> tuple[str, ...]:
    return (*CLONE, *ARCH, *PACMAN, *COCKPIT) if suite == "trixie" else CLONE


def path(suite: Suite) -> Path:
    """The root of an existing tree; LabError without the tree."""
    if not ready(suite):
        raise LabError(f"no tree of Debian {suite} in {folder()}; {hint(suite)}")
    return folder() / suite / "root"


def workshop(suite: Suite) -> tuple[Path, Path]:
    """The layers of a tree with the build tools, the upper layer first."""
    root = path(suite)
    return root.with_name("build"), root


def hint(suite: Suite) -> str:
    return f"`.venv/bin/python -m tests.harness.trees {suite}` as root creates it"


def versions(suite: Suite) -> dict[str, str]:
    """The stamp: packages and their versions, "later" for packages that were only downloaded.

    Only a complete tree has a stamp.
    """
    try:
        found: dict[str, str] = json.loads((folder() / suite / "stamp.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found


def make(suite: Suite) -> None:
    """Create the tree if it does not exist. Without a network this fails with an error."""
    if ready(suite):
        return
    if os.geteuid() != 0:
        raise LabError(f"Only root can create the tree of Debian {suite} in {folder()}.")
    folder().mkdir(parents=True, exist_ok=True)
    with locked(folder() / f"{suite}.lock"):
        if ready(suite):  # another run has created it meanwhile
            return
        # These tools are installed only now, because existing trees do not need them.
        if subprocess.run([str(INSTALL), "trees"], check=False).returncode != 0:
            raise LabError(f"The tree of Debian {suite} needs these tools.")
        began = time.monotonic()
        print(f"Creating a tree of Debian {suite} in {folder()}, once; minutes ...", flush=True)
        part = folder() / f"{suite}.part"
        with removed(part), removed(folder() / f"{suite}.old"):
            build(suite, part)
            replace(part, folder() / suite)
        took = f"{time.monotonic() - began:.0f} s"
        print(f"Debian {suite} has Docker {versions(suite)['docker.io']} ({took}).", flush=True)


def build(suite: Suite, part: Path) -> None:
    part.mkdir()
    root, log = part / "root", folder() / f"{suite}.log"
    proxies = {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
    env = proxies | {"DEBIAN_FRONTEND": "noninteractive", "LANG": "C", "LC_ALL": "C"}
    with log.open("wb") as out:
        groups = (host(suite), LATER, clone(suite), tools(suite))
        lists = (" ".join(each) for each in groups)
        script = ("bash", "-c", SCRIPT, "build", suite, str(root), str(part / "build"), *lists)
        process = spawn([*APART, "--kill-child", *script], log=out, env=env)
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            late = f"no end after {PATIENCE:.0f} s"
            raise LabError(f"No tree of Debian {suite}: {late}\n{tail(log)}") from None
        finally:
            process.kill()
            process.wait(10)
    if code != 0:
        raise LabError(f"No tree of Debian {suite}: see {log}\n{tail(log)}")
    there = dict(line.split() for line in Path(f"{root}.versions").read_text().splitlines())
    later = (*LATER, *clone(suite))
    found = {
        each: there.get(each, "later") for each in wanted(suite) if each in there or each in later
    }
    found["made"] = datetime.now(UTC).date().isoformat()
    (part / "stamp.json").write_text(json.dumps(found, indent=1) + "\n")


def replace(part: Path, place: Path) -> None:
    """Move a complete tree to its place, and the old tree away."""
    with undisturbed():
        with suppress(FileNotFoundError):
            place.rename(place.with_suffix(".old"))
        part.rename(place)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock, so that two runs create one tree."""
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another run creates it; waiting ...", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def removed(place: Path) -> Iterator[None]:
    """Remove this folder before and after. An existing folder is from a killed run."""
    try:
        remove(place)
        yield
    finally:
        remove(place)


def remove(place: Path) -> None:
    with undisturbed(), suppress(FileNotFoundError):
        shutil.rmtree(place)
