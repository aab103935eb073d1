"""Finds and runs the tools of the host.

The only file that starts processes: by path, without a shell, in a clean environment. The caller
chooses the arguments and interprets the output.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ipv6natd.system.threads import in_thread

TOOL_DIRECTORIES = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")
"""Where tools are searched. Not in $PATH, because root runs them. Not in /usr/local: on some hosts
a group may write there."""
BASE_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
"""The environment of every process; the caller can add variables."""
KILL_TIMEOUT = 2.0
"""Seconds to wait for a killed process. A process in uninterruptible sleep does not end."""
PROBE_TIMEOUT = 5.0
"""Seconds that a test call of a tool may take."""
AGENT_TIMEOUT = 20.0
"""Seconds until a polkit agent must be registered."""
_IN_IMAGE = "IPV6NATD_CONTAINER"
"""A variable of the container image."""


def in_image() -> bool:
    """True if this process runs in a container of the image of ipv6natd."""
    return _IN_IMAGE in os.environ


def which(name: str) -> str | None:
    """The path of a tool; None if this host does not have it."""
    for directory in TOOL_DIRECTORIES:
        path = Path(directory, name)
        if os.access(path, os.X_OK):
            return str(path)
    return None


def kernel_sees_our_pids() -> bool:
    """False in a pid namespace of its own, as in a container: the kernel reports other numbers."""
    # PROC_PID_INIT_INO of the kernel.
    return Path("/proc/self/ns/pid").stat().st_ino == 0xEFFFFFFC


def output_of(name: str, *words: str, timeout: float, stdin: str = "") -> str:
    """The standard output of a tool; "" if the tool is missing, fails or exceeds the time."""
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
    stdin: str = "",
    environment: Mapping[str, str] | None = None,
    executable: str | None = None,
    on_start: Callable[[int], None] = lambda _: None,
) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end and return its output and exit code.

    `executable` is the file to run instead of the first word, which is the name that it sees.

    Raises OSError if it cannot be started. After `timeout` seconds kills it and raises
    subprocess.TimeoutExpired. `on_start` gets the process id.
    """
    process = subprocess.Popen(
        argv,
        executable=executable,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Comments in rules of other programs can contain any byte and must be written back as read.
        encoding="utf-8",
        errors="surrogateescape",
        env=BASE_ENVIRONMENT | dict(environment or {}),
        cwd="/",
    )
    try:
        on_start(process.pid)
        out, err = process.communicate(stdin, timeout)
    except BaseException:
        process.kill()
        # A process in uninterruptible sleep does not end even now. The caller must not wait for it.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_TIMEOUT)
        raise
    finally:
        _close_pipes(process)
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def _close_pipes(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError):  # buffered input that the tool did not read
            assert pipe is not None
            pipe.close()


async def spawn_monitor(*argv: str) -> asyncio.subprocess.Process:
    """Start a tool that runs until it is stopped; its output is a pipe.

    The kernel ends it when this process ends, also when that is killed. Raises OSError if it cannot
    be started.
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
    """The command prefix that ends a tool together with this process, also when that is killed.

    Empty in the sandbox of the service, which forbids setpriv; there systemd ends all processes of
    the service.
    """
    path, *words = which("setpriv"), "--pdeathsig", "TERM"
    works = output_of("setpriv", *words, "echo", "yes", timeout=PROBE_TIMEOUT)
    return [path, *words] if path and works else []


@contextlib.contextmanager
def polkit_agent(argv: list[str], environment: Mapping[str, str]) -> Iterator[None]:
    """Run a polkit agent on this terminal until the context ends; wait until it is registered.

    The agent takes `--notify-fd`, and closes that descriptor when it is registered or has failed.
    """
    ready, notify = socket.socketpair()
    with ready, notify:
        command = [argv[0], "--notify-fd", str(notify.fileno()), *argv[1:]]
        with subprocess.Popen(
            command, pass_fds=[notify.fileno()], env=BASE_ENVIRONMENT | dict(environment)
        ) as process:
            notify.close()
            select.select([ready], [], [], AGENT_TIMEOUT)
            try:
                yield
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(KILL_TIMEOUT)
                process.kill()
