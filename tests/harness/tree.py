"""Suites of Debian, each in a folder, for engines, packages and hosts that this machine is not.

A tree is made once, by `make` (tests/harness/trees.py), and then only read: whatever runs in it
runs on an overlay over it. Tests never make one, since nothing that `pytest` does may need a
network. To have one made again, with newer packages, remove its folder. Each is three things:

- `root`, a host with an engine and systemd, which engines run in and which boots;
- in its cache for apt, all that the package of ipv6natd pulls in, what it has to live beside, and
  what README has people install to build it;
- `build`, a layer over it with what packages are built with.
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
from tests.harness.process import LabError, spawn, tail, undisturbed

Suite = Literal["bookworm", "trixie", "sid"]
SUITES: tuple[Suite, ...] = get_args(Suite)

HOST = (
    *("docker.io", "iptables"),
    *("systemd", "systemd-sysv", "dbus", "iproute2", "kmod", "procps"),
    *("python3", "ca-certificates", "libpam-systemd", "dbus-user-session"),
)
"""The engine with both variants of iptables, which it only recommends (containerd and runc come
with it), what makes a host that boots, and what any server has that was not made in a minute."""

LATER = (
    *("python3-docker", "python3-dbus-next", "python3-sdnotify", "python3-iptables"),
    *("nftables", "conntrack", "polkitd"),
    *("firewalld", "ufw"),
    *("rootlesskit", "slirp4netns", "uidmap"),
    *("autopkgtest", "python3-pytest", "python3-hypothesis"),
)
"""Installed by tests, in a host that has no network: downloaded with all that they pull in."""

BUILD_DEP = (
    *("dpkg-dev", "make", "debhelper", "dh-python", "bash-completion"),
    *("pybuild-plugin-pyproject", "python3-all", "python3-hatchling"),
    *("python3-docker", "python3-dbus-next", "python3-sdnotify", "python3-iptables"),
)
"""What packaging/deb/debian/control asks for, without the compilers of build-essential, which
nothing here uses."""

BUILD = (*BUILD_DEP, "fakeroot", "lintian", "python3-pytest")

ARCH = ("makepkg", "libarchive-tools", "python3-build", "python3-installer")
"""What builds the package for Arch; Debian 13's makepkg is the newer one."""

CLONE = ("git", "build-essential", *BUILD_DEP)
"""What there has to be for README's lines in a clone, by those lines or before; downloaded, and
without what these recommend: `apt build-dep` installs that as little."""

PACMAN = ("pacman-package-manager", "sudo")
"""What a host of Debian 13 lacks besides, to have Arch's lines run on it."""

PATIENCE = 1200.0
"""Seconds. Making a tree takes three minutes on a good line, and 1.2 GB of disk."""

INSTALL = ROOT / "tests" / "install.sh"

# A process namespace, so that whatever maintainer scripts start ends with it; a mount namespace,
# because debootstrap leaves /proc mounted in the tree when it is interrupted.
APART = ("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--mount-proc")

SCRIPT = """
set -eu
suite=$1 root=$2 layer=$3 host=$4 later=$5 clone=$6 build=$7
get() {
    # Signatures count, dates do not: unstable's index is good for a week only, which a mirror that
    # lags or a machine whose clock runs ahead is soon past.
    chroot "$1" apt-get -q -y -o Acquire::Check-Valid-Until=false "${@:2}"
}
debootstrap --variant=minbase --force-check-gpg "$suite" "$root"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"   # nothing may start a service
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
    """Where trees stand."""
    return Path(os.environ.get("IPV6NATD_TREES") or "/var/cache/ipv6natd-tests")


def ready(suite: Suite) -> bool:
    """Whether the tree is there, complete and with all that this version of the lab wants in it."""
    return set(wanted(suite)) <= versions(suite).keys()


def wanted(suite: Suite) -> tuple[str, ...]:
    return (*host(suite), *LATER, *clone(suite), *tools(suite))


def host(suite: Suite) -> tuple[str, ...]:
    # The command line is a package of its own from Debian 13 on.
    return HOST if suite == "bookworm" else (*HOST, "docker-cli")


def tools(suite: Suite) -> tuple[str, ...]:
    return (*BUILD, *ARCH, "shellcheck") if suite == "trixie" else BUILD


def clone(suite: Suite) -> tuple[str, ...]:
    return (*CLONE, *ARCH, *PACMAN) if suite == "trixie" else CLONE


def path(suite: Suite) -> Path:
    """The root of a tree that is there."""
    if not ready(suite):
        raise LabError(f"no tree of Debian {suite} in {folder()}; {hint(suite)}")
    return folder() / suite / "root"


def workshop(suite: Suite) -> tuple[Path, Path]:
    """The layers of a tree with what packages are built with, the upper one first."""
    root = path(suite)
    return root.with_name("build"), root


def hint(suite: Suite) -> str:
    return f"`.venv/bin/python -m tests.harness.trees {suite}` as root makes it"


def versions(suite: Suite) -> dict[str, str]:
    """The stamp: packages and their versions, "later" for those that were only downloaded.

    It comes with a complete tree, and not before.
    """
    try:
        found: dict[str, str] = json.loads((folder() / suite / "stamp.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found


def make(suite: Suite) -> None:
    """Make the tree, unless it is there; without a network this fails after saying why."""
    if ready(suite):
        return
    if os.geteuid() != 0:
        raise LabError(f"The tree of Debian {suite} in {folder()} is to be made by root.")
    folder().mkdir(parents=True, exist_ok=True)
    with locked(folder() / f"{suite}.lock"):
        if ready(suite):  # by another run, for which we waited
            return
        # What makes trees is not needed to use them, so it is installed only now.
        if subprocess.run([str(INSTALL), "trees"], check=False).returncode != 0:
            raise LabError(f"No tree of Debian {suite} without that.")
        began = time.monotonic()
        print(f"Making a tree of Debian {suite} in {folder()}, once; minutes ...", flush=True)
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
    """Put a complete tree in its place, and away what stood there."""
    with undisturbed():
        with suppress(FileNotFoundError):
            place.rename(place.with_suffix(".old"))
        part.rename(place)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Two runs at once make one tree."""
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another run is making it; waiting ...", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def removed(place: Path) -> Iterator[None]:
    """Without this folder, before and after: one that is left comes from a run that was killed."""
    try:
        remove(place)
        yield
    finally:
        remove(place)


def remove(place: Path) -> None:
    with undisturbed(), suppress(FileNotFoundError):
        shutil.rmtree(place)
