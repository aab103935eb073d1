"""ipv6natd, run as systemd does, in the host's network namespace."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tests import ROOT
from tests.harness.process import LabError, end, environment, run, spawn, tail, undisturbed
from tests.harness.sandbox import Sandbox, Variant

BIN = ROOT / ".venv" / "bin"
LINES_OF_A_FAILURE = 40
"""Lines of the log that a failed test shows."""


class Daemon:
    """The daemon, its configuration, its notifications to systemd, and its log.

    The daemon runs under `ip netns exec`, so /sys has the links of the namespace. `bus` is an
    address; without it there is no bus. `settings` are lines of the configuration file.
    """

    executables = BIN
    """The folder with ipv6natd and ipv6natctl."""

    def __init__(
        self,
        sandbox: Sandbox,
        endpoint: str,
        *,
        bus: str | None = None,
        backend: Variant | str | None = None,
        settings: Iterable[str] = (),
        args: Iterable[str] = ("-debug",),
        start: bool = True,
    ) -> None:
        self.sandbox = sandbox
        self.endpoint = endpoint
        self.args = tuple(args)
        self.dir = sandbox.dir / "daemon"
        self.config = self.dir / "ipv6natd.toml"
        self.env: dict[str, str] = {}
        """Additional environment, from the next start on."""
        self.bus = bus or f"unix:path={self.dir}/no-bus"
        self.notices: list[str] = []
        """All assignments received at NOTIFY_SOCKET, in order, such as "READY=1"."""
        self.process: subprocess.Popen[bytes] | None = None
        self._settings = [f'backend = "{backend or sandbox.variant}"', *settings]
        self._start = start
        self._arrived = threading.Condition()
        self._notify: socket.socket | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        for name in ("state", "runtime"):
            (self.dir / name).mkdir(parents=True, exist_ok=True)
        self.configure(*self._settings)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        (self.dir / "notify").unlink(missing_ok=True)
        self._notify.bind(str(self.dir / "notify"))
        self._reader = threading.Thread(target=self._read, args=(self._notify,), daemon=True)
        self._reader.start()
        try:
            if self._start:
                self.start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with undisturbed():
            self._close()
        if error is not None:
            # pytest shows the output of a failed test.
            print(f"the log of ipv6natd ends with:\n{tail(self._log, LINES_OF_A_FAILURE)}")

    def configure(self, *lines: str) -> None:
        """Write the configuration file; `reload` applies it."""
        self.config.write_text("".join(f"{line}\n" for line in lines))

    def start(self, *args: str, wait: str | None = "synced") -> None:
        """Start the daemon, and wait for READY and for a state (None: do not wait)."""
        self.notices.clear()
        with self._log.open("ab") as log:
            self.process = spawn(
                [*self._here, *self.command, *self.flags, *self.args, *args],
                log=log,
                env=self._env() | {"NOTIFY_SOCKET": str(self.dir / "notify")},
            )
        if wait is not None:
            self.wait_for(lambda: "READY=1" in self.notices, "READY=1")
            self.wait_state(wait)

    @property
    def command(self) -> list[str]:
        """The command of the daemon."""
        return [str(self.executables / "ipv6natd")]

    @property
    def flags(self) -> tuple[str, ...]:
        """The arguments before `args`."""
        return ("-endpoint", self.endpoint, "-config", str(self.config))

    def stop(self) -> int:
        """Send SIGTERM, as systemd does; returns the exit code."""
        return end(self._running())

    def kill9(self) -> None:
        process = self._running()
        process.kill()
        process.wait(10)

    def reload(self) -> None:
        """Send SIGHUP, and wait until the daemon is ready again."""
        before = self.notices.count("READY=1")
        self.signal(signal.SIGHUP)
        self.wait_for(lambda: self.notices.count("READY=1") > before, "READY=1 after SIGHUP")

    @property
    def pid(self) -> int:
        return self._running().pid

    def signal(self, number: signal.Signals) -> None:
        self._running().send_signal(number)

    def flush(self) -> str:
        """`ipv6natd -flush` on this host: removes all our rules, without bus or engine."""
        return self.tool("ipv6natd", "-flush", "-config", str(self.config))

    def ctl(self, *words: str, check: bool = True) -> str:
        """`ipv6natctl` on this host's bus."""
        return self.tool("ipv6natctl", *words, check=check)

    @contextmanager
    def watching(self, *words: str) -> Iterator[Iterator[str]]:
        """`ipv6natctl` that runs until the end of the context; yields its output."""
        argv = (*self._here, str(self.executables / "ipv6natctl"), *words)
        with subprocess.Popen(argv, env=environment(self._env()), stdout=-1, text=True) as process:
            assert process.stdout is not None
            try:
                yield process.stdout
            finally:
                process.terminate()

    def tool(self, name: str, *words: str, check: bool = True) -> str:
        """Run one of the project's executables in the daemon's namespace."""
        return run(*self._here, str(self.executables / name), *words, env=self._env(), check=check)

    def ended(self, name: str, *words: str) -> tuple[int, str]:
        """Run one of the project's executables; its exit code, and all its output."""
        argv = (*self._here, str(self.executables / name), *words)
        done = subprocess.run(
            argv, env=environment(self._env()), capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    @property
    def status(self) -> str:
        """The last STATUS= line."""
        lines = [notice for notice in self.notices if notice.startswith("STATUS=")]
        return lines[-1].removeprefix("STATUS=") if lines else ""

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_state(self, *states: str, timeout: float = 15) -> str:
        """Wait until the status begins with one of these words; returns the status."""
        pattern = re.compile(rf"({'|'.join(map(re.escape, states))})\b")
        self.wait_for(lambda: pattern.match(self.status) is not None, " or ".join(states), timeout)
        return self.status

    def wait_for(self, met: Callable[[], bool], what: str, timeout: float = 15) -> None:
        """Wait until a notification makes `met` true, or until the daemon ends."""
        deadline = time.monotonic() + timeout
        with self._arrived:
            while not met():
                gone = self.process is not None and self.process.poll() is not None
                if gone or time.monotonic() > deadline:
                    why = "ipv6natd ended" if gone else f"nothing in {timeout} s"
                    raise LabError(f"{what}: {why}; status {self.status!r}\n{tail(self._log)}")
                self._arrived.wait(0.1)

    @property
    def _log(self) -> Path:
        return self.dir / "log"

    @property
    def _here(self) -> tuple[str, ...]:
        return "ip", "netns", "exec", self.sandbox.host.path.name

    def _env(self) -> dict[str, str]:
        return {
            "PATH": self.sandbox.path,
            "DBUS_SYSTEM_BUS_ADDRESS": self.bus,
            "STATE_DIRECTORY": f"{self.dir}/state",
            "RUNTIME_DIRECTORY": f"{self.dir}/runtime",
            "MALLOC_ARENA_MAX": "1",  # as in the unit
            "PYTHONUNBUFFERED": "1",
        } | self.env

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise LabError("ipv6natd was not started")
        return self.process

    def _read(self, notify: socket.socket) -> None:
        while data := notify.recv(65536):
            with self._arrived:
                self.notices += data.decode().splitlines()
                self._arrived.notify_all()

    def _close(self) -> None:
        if self.process is not None:
            end(self.process)
        if self._notify is not None:
            # An empty datagram ends the reader.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"", str(self.dir / "notify"))
            if self._reader is not None:
                self._reader.join()
            self._notify.close()
            (self.dir / "notify").unlink()
