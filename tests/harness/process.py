"""Start and end other programs, so that none outlives the lab."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.harness.needs import PATH

LAB = f"v6n{os.getpid()}"
"""The prefix of the names of all namespaces, folders and cgroups of this process's labs."""

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

MARK = "IPV6NATD_LAB"
"""A variable in the environment of each process of the lab, to find leftovers."""


class LabError(Exception):
    """A tool of the lab failed; the text contains its output."""


def run(
    *argv: str,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 60,
) -> str:
    """Run a command for at most `timeout` seconds, and return its output."""
    done = subprocess.run(
        argv,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env=environment(env),
        cwd=cwd,
    )
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}")
    return done.stdout


def spawn(
    argv: Sequence[str], *, log: IO[bytes] | int, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program in the background.

    The kernel kills the program when the calling thread ends, so even a killed test run leaves no
    process. Call this from the main thread. The program gets its own session: Ctrl-C must reach
    only the test process, which then removes the lab in order.
    """
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *argv],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=environment(env),
    )


def end(process: subprocess.Popen[bytes], *, patience: float = 10) -> int:
    """Send SIGTERM, and SIGKILL after `patience` seconds; returns the exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait(10)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Delay signals that stop us until the end of the context.

    Set-up and removal must be complete: an interrupted `ip netns delete` would leave the namespace.
    This uses handlers and no mask, because another thread would take a signal that this one blocks.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = {number: signal.signal(number, lambda got, _: asked.append(got)) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if asked:
            signal.raise_signal(asked[0])


def tail(path: Path, lines: int = 12) -> str:
    """The last lines of a log, for an error message."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment without the caller's variables, such as DOCKER_HOST, proxies, a bus."""
    clean = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root", MARK: LAB}
    return clean | dict(extra or {})
