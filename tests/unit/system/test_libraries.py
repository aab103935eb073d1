"""A missing library gives one sentence and no traceback."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from ipv6natd.system.libraries import PACKAGES, needed_libraries

DAEMON = """
import contextlib
import ipv6natd.cli as cli
cli.only_instance = contextlib.nullcontext
cli.close_networks = cli.asyncio.run = lambda _: None
cli.main([])
"""
CONTROL = "from ipv6natd.ctl import main; main()"


@pytest.mark.parametrize(
    ("script", "library"),
    [
        *((DAEMON, library) for library in PACKAGES),
        *((CONTROL, library) for library in ("dbus_next", "sdnotify")),
    ],
)
def test_missing_library_is_named_with_its_packages(script: str, library: str) -> None:
    """Q21. ipv6natctl does not need sdnotify."""
    hidden = f"import sys; sys.modules[{library!r}] = None\n"
    ended = subprocess.run(
        [sys.executable, "-c", hidden + script, "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if script == CONTROL and library == "sdnotify":
        assert ended.returncode == 0
        return
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    debian, arch, pypi = PACKAGES[library]
    assert line.startswith(("ipv6natd: ", "ipv6natctl: "))
    assert f" {pypi} is missing; install it: apt install {debian}, pacman -S {arch}, " in line


def test_other_missing_module_is_an_error_of_ours() -> None:
    with pytest.raises(ModuleNotFoundError), needed_libraries("ipv6natd"):
        importlib.import_module("ipv6natd.no_such_module")
