"""A new network namespace for each test that uses the fixture."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.needs import need

_CLONE_NEWNET = 0x40000000
_NUMBERS = itertools.count()


@contextmanager
def fresh_namespace() -> Iterator[str]:
    """Run this thread and its child processes in a new namespace, which is removed at the end."""
    name = f"ipv6natd-test-{os.getpid()}-{next(_NUMBERS)}"
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        subprocess.run(["ip", "netns", "add", name], check=True)
        try:
            there = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
            _enter(there)
            os.close(there)
            yield name
        finally:
            _enter(home)
            subprocess.run(["ip", "netns", "delete", name], check=True)
    finally:
        os.close(home)


def _enter(namespace: int) -> None:
    # os.setns comes with Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture
def namespace() -> Iterator[str]:
    need("ip")
    with fresh_namespace() as name:
        yield name


@pytest.fixture
def xtables_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock file for the test: another process may hold the host's lock."""
    path = tmp_path / "xtables.lock"
    path.touch()
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path))
    return path
