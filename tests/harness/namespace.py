"""Sockets and commands inside another network namespace."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.harness.process import run

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A network namespace, with its file."""

    name: str
    path: Path

    def within(self, action: Callable[[], T]) -> T:
        """Run an action in this namespace, in its own thread, and return the result.

        A namespace belongs to a thread. A socket stays in the namespace in which it was created.
        """
        result: list[T] = []
        failure: list[BaseException] = []

        def body() -> None:
            try:
                enter(self.path)
                result.append(action())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=body, name=f"in {self.name}", daemon=True)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return result[0]

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        return self.within(lambda: socket.socket(family, kind, protocol))

    def flows(self, *words: str) -> str:
        """What `conntrack -L` prints of IPv6, without its count, which can break a line."""
        command = ("conntrack", "-L", "-f", "ipv6", *words)
        return self.run("sh", "-c", 'exec "$@" 2>/dev/null', "sh", *command, check=False)

    def run(self, *argv: str, check: bool = True) -> str:
        """The output of a command in this namespace. Its /sys is that of the machine."""
        return run("nsenter", f"--net={self.path}", *argv, check=check)

    def ip(self, words: str) -> str:
        """`ip` with these words, in this namespace."""
        return self.run("ip", *words.split())

    def sysctl(self, key: str, value: str | int | None = None) -> str:
        """Read, or write and read, a sysctl. Use slashes if a link's name has dots."""
        path = Path("/proc/sys") / (key if "/" in key else key.replace(".", "/"))

        def action() -> str:
            if value is not None:
                path.write_text(f"{value}\n")
            return path.read_text().strip()

        return self.within(action)


def enter(path: Path) -> None:
    """Move the calling thread into a network namespace (os.setns comes with Python 3.12)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if LIBC.setns(descriptor, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)
