"""Tools of the host: where they are looked for, and how one is run.

The only file that starts a process: by its path, never through a shell, in an environment of ours.
What a tool is told and what its answer means is its caller's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from ipv6natd.system.threads import in_thread

TOOL_DIRECTORIES = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")
"""Where tools are looked for. Not $PATH: root runs what is found. Nor /usr/local, in which a group
may write on some hosts."""
BASE_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
"""The environment of each, but for what its caller adds."""
KILL_TIMEOUT = 2.0
"""Seconds in which a process that was killed ends, unless the kernel holds it."""
PROBE_TIMEOUT = 5.0
"""Seconds that a tool may take that does nothing."""
AGENT_TIMEOUT = 20.0
"""Seconds that an agent may take until it can ask."""


def which(name: str, directories: Iterable[str] = TOOL_DIRECTORIES) -> str | None:
    """The path of a tool, None where this host does not have it."""
    for directory in directories:
        path = Path(directory, name)
        if os.access(path, os.X_OK):
            return str(path)
    return None


def output_of(name: str, *words: str, timeout: float, stdin: str = "") -> str:
    """What a tool answers; "" where it is missing, refuses or hangs: then a fact is missing."""
    path = which(name)
    if path is None:
        return ""
    try:
        done = run([path, *words], timeout=timeout, stdin=stdin)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def run(
    argv: list[str],
    *,
    timeout: float,
    stdin: str | Iterable[str] = "",
    environment: Mapping[str, str] | None = None,
    on_start: Callable[[int], None] = lambda _: None,
) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end, by its path and without a shell, in an environment of ours.

    Raises OSError where it cannot be run, subprocess.TimeoutExpired after `timeout` seconds; it is
    killed then. How it ended is for the caller to look at. `on_start` gets its process id. Pieces
    of `stdin` are made while it reads those before.
    """
    deadline = time.monotonic() + timeout
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Comments of other people may hold any byte, and must come back as they were.
        encoding="utf-8",
        errors="surrogateescape",
        env=BASE_ENVIRONMENT | dict(environment or {}),
        cwd="/",
    )
    try:
        on_start(process.pid)
        _write_stdin(process, [stdin] if isinstance(stdin, str) else stdin, deadline)
        out, err = process.communicate(timeout=max(deadline - time.monotonic(), 0))
    except BaseException:
        process.kill()
        # One that hangs in the kernel does not end even so, and must not hold up its caller too.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_TIMEOUT)
        raise
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):  # what was not read any more
                assert pipe is not None
                pipe.close()
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def _write_stdin(process: subprocess.Popen[str], pieces: Iterable[str], deadline: float) -> None:
    """Write to a tool that may not read, say because it waits for a lock."""
    assert process.stdin is not None
    pipe = process.stdin.fileno()
    os.set_blocking(pipe, False)
    room = select.poll()
    room.register(pipe, select.POLLOUT)
    for piece in pieces:
        left = piece.encode("utf-8", "surrogateescape")
        while left:
            wait = deadline - time.monotonic()
            if wait <= 0 or not room.poll(wait * 1000):
                raise subprocess.TimeoutExpired(process.args, wait)
            try:
                left = left[os.write(pipe, left) :]
            except BrokenPipeError:
                return  # it has read enough; how it ends tells why


async def spawn_monitor(*argv: str) -> asyncio.subprocess.Process:
    """Start a tool that goes on by itself, its words on a pipe. Raises OSError if it cannot be run.

    The kernel ends it with us, however we end: nobody would be left who reads it.
    """
    return await asyncio.create_subprocess_exec(
        *await in_thread(_pdeathsig_prefix),
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=BASE_ENVIRONMENT,
        cwd="/",
    )


def _pdeathsig_prefix() -> list[str]:
    """What a command begins with so that it ends when we do, even when we are killed.

    Nothing under the service's sandbox, which lets setpriv do nothing; there systemd ends whatever
    is left of a service.
    """
    setpriv, true = which("setpriv"), which("true")
    if setpriv is None or true is None:
        return []
    words = [setpriv, "--pdeathsig", "TERM"]
    try:
        return words if run([*words, true], timeout=PROBE_TIMEOUT).returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        return []


@contextlib.contextmanager
def polkit_agent(argv: list[str], environment: Mapping[str, str]) -> Iterator[None]:
    """Run a tool beside us on our own terminal, from when it is ready until the context is left.

    It takes `--notify-fd`, and closes that when it is ready or has failed.
    """
    ready, tell = os.pipe()
    command = [argv[0], "--notify-fd", str(tell), *argv[1:]]
    try:
        with subprocess.Popen(
            command, pass_fds=(tell,), env=BASE_ENVIRONMENT | dict(environment)
        ) as process:
            os.close(tell)
            tell = -1
            select.select([ready], [], [], AGENT_TIMEOUT)
            try:
                yield
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(KILL_TIMEOUT)
                process.kill()
    finally:
        os.close(ready)
        if tell >= 0:
            os.close(tell)
