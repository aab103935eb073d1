"""Kills a process between two of its system calls.

`python -m tests.stress.soak.tracer PID N [children]`

The tracer traces all threads of PID, and new threads, but not new processes. It counts the system
calls that can change something outside the process (EFFECTS): the moment of a kill between two
other calls has no visible effect. Before the Nth call the tracer kills the process with SIGKILL,
and with "children" its child processes too, as systemd does. With N = 0 it only counts.

It prints "ready" when it counts, and at the end "killed NAME" or "counted COUNT".
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path

EFFECTS = {
    1: "write",
    3: "close",
    18: "pwrite64",
    20: "writev",
    42: "connect",
    44: "sendto",
    46: "sendmsg",
    48: "shutdown",
    54: "setsockopt",
    56: "clone",
    57: "fork",
    58: "vfork",
    59: "execve",
    62: "kill",
    73: "flock",
    74: "fsync",
    77: "ftruncate",
    82: "rename",
    83: "mkdir",
    87: "unlink",
    234: "tgkill",
    257: "openat",
    263: "unlinkat",
    264: "renameat",
    307: "sendmmsg",
    316: "renameat2",
    435: "clone3",
}
"""System calls of x86-64 by number."""

SEIZE, INTERRUPT, SYSCALL, SYSCALL_INFO = 0x4206, 0x4207, 24, 0x420E
SYSGOOD, TRACE_CLONE = 1, 8
SYSCALL_STOP = signal.SIGTRAP | 0x80
WALL = 0x40000000
ENTRY = 1
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
LIBC.ptrace.restype = ctypes.c_long


def ptrace(request: int, task: int, address: int = 0, data: int = 0) -> int:
    """Call ptrace. ProcessLookupError if the task has ended."""
    done: int = LIBC.ptrace(request, task, address, data)
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return done


def attach(pid: int) -> None:
    """Trace all threads, including new threads that start meanwhile."""
    known: set[int] = set()
    while new := {int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()} - known:
        known |= new
        for task in new:
            with suppress(OSError):  # the thread has ended, or is traced already
                ptrace(SEIZE, task, 0, SYSGOOD | TRACE_CLONE)
                ptrace(INTERRUPT, task)


def entered(task: int) -> int | None:
    """The number of the system call that a task enters; None if it returns from one."""
    buffer = ctypes.create_string_buffer(88)
    ptrace(SYSCALL_INFO, task, len(buffer), ctypes.addressof(buffer))
    if buffer.raw[0] != ENTRY:
        return None
    number: int = struct.unpack_from("=Q", buffer.raw, 24)[0]
    return number


def go_on(task: int, status: int) -> None:
    """Continue a stopped task until its next system call, and deliver its signal."""
    number, event = os.WSTOPSIG(status), status >> 16
    passed = 0 if number in (SYSCALL_STOP, signal.SIGTRAP) or event else number
    with suppress(ProcessLookupError):
        ptrace(SYSCALL, task, 0, passed)


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def trace(pid: int, wanted: int, *, with_children: bool) -> str:
    """Count, and kill at the wanted call; returns the text for the end."""
    count, said = 0, ""
    while True:
        try:
            task, status = os.waitpid(-1, WALL)
        except ChildProcessError:
            return said or f"counted {count}"
        except KeyboardInterrupt:
            return f"counted {count}"
        if not os.WIFSTOPPED(status):
            continue
        with suppress(ProcessLookupError):
            if os.WSTOPSIG(status) == SYSCALL_STOP and (name := EFFECTS.get(entered(task) or -1)):
                count += 1
                if count == wanted:
                    said = f"killed {name}"
                    doomed = [*children(pid)] if with_children else []
                    for each in (pid, *doomed):
                        with suppress(ProcessLookupError):
                            os.kill(each, signal.SIGKILL)
                    continue
        go_on(task, status)


def main(pid: int, wanted: int, *, with_children: bool) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    attach(pid)
    print("ready", flush=True)
    print(trace(pid, wanted, with_children=with_children), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), with_children=len(sys.argv) > 3)
