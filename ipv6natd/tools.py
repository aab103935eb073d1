"""Tools of the host: where they are looked for, and how one is run.

What a tool is told and what its answer means is its caller's business.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

DIRECTORIES = ("/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin")
"""Where tools are looked for. Not $PATH: root runs what is found."""


def find(name: str, directories: Iterable[str] = DIRECTORIES) -> str | None:
    """The path of a tool, None where this host does not have it."""
    for directory in directories:
        path = Path(directory, name)
        if os.access(path, os.X_OK):
            return str(path)
    return None


def said(name: str, *words: str, timeout: float, stdin: str = "") -> str:
    """What a tool answers; "" where it is missing, refuses or hangs: then a fact is missing."""
    path = find(name)
    if path is None:
        return ""
    try:
        done = call([path, *words], timeout=timeout, stdin=stdin)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def call(
    argv: list[str],
    *,
    timeout: float,
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
    started: Callable[[int], None] = lambda _: None,
) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end, by its path and without a shell, in an environment of ours.

    Raises OSError where it cannot be run, subprocess.TimeoutExpired after `timeout` seconds; it is
    killed then. How it ended is for the caller to look at. `started` is told its process id.
    """
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Comments of other people may hold any byte, and must come back as they were.
        encoding="utf-8",
        errors="surrogateescape",
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", **(environment or {})},
        cwd="/",
    ) as process:
        started(process.pid)
        try:
            out, err = process.communicate(stdin, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(argv, process.returncode, out, err)
