"""Resources of this process's labs that still exist: namespaces, folders, mounts, processes."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.harness.process import LAB, MARK


def leftovers() -> list[str]:
    """One line for each remaining resource."""
    return [*named(), *mounts(), *processes()]


def named() -> list[str]:
    """Namespaces, folders and cgroups with our prefix."""
    places = [Path("/run/netns"), Path(tempfile.gettempdir()), Path("/sys/fs/cgroup")]
    places += Path("/sys/fs/cgroup").glob("*/")
    return [str(path) for place in places for path in place.glob(f"{LAB}-*")]


def mounts() -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [f"mount {line}" for line in lines if f"{LAB}-" in line]


def processes() -> list[str]:
    """Processes with our mark in their environment, or in one of our cgroups."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            marked = f"{MARK}={LAB}".encode() in (folder / "environ").read_bytes().split(b"\0")
            if folder.name == str(os.getpid()):
                continue
            if marked or f"/{LAB}-" in (folder / "cgroup").read_text():
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.append(f"process {folder.name}: {command}")
    return found
