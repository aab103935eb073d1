"""How the lab starts and ends other programs, so that none outlives it."""

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
"""Begins the names of all namespaces, folders and cgroups of this process's labs."""

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

MARK = "IPV6NATD_LAB"
"""Stands in the environment of whatever the lab starts, for the search for leftovers."""


class LabError(Exception):
    """A tool of the lab did not do what it was asked; the text holds its own words."""


def run(
    *argv: str,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 60,
) -> str:
    """The output of a command that ends by itself within `timeout` seconds."""
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
    """Start a program that stays.

    The kernel kills it when the thread that called this dies, so that even a killed test run
    leaves none; call it from the main thread. Its session is its own: Ctrl-C must reach only us,
    who then take the lab down in order.
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
    """Ask a program to stop, insist after `patience` seconds; its exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait(10)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put off signals that ask us to stop until something is done that must not stop half-way.

    Setting up and taking down is: an interrupted `ip netns delete` would leave what it was to
    delete. By handlers, not by a mask, since any thread would take a signal that ours blocks.
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
    """The end of a log, for an error's text."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Nothing of the caller's environment matters to the lab: DOCKER_HOST, proxies, a bus."""
    clean = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/root", MARK: LAB}
    return clean | dict(extra or {})
