"""Kills a process between two of its system calls.

`python -m tests.stress.soak.tracer PID N [children]`

All threads of PID are traced, and those that they make; processes that they make are not. Counted
are entries into system calls by which anything outside of the process can change (EFFECTS): between
two others, nobody can tell where it ended. Before the Nth the process is killed by SIGKILL, with
its children if so asked, as systemd does. With N = 0 it is counted only.

Says "ready" when it counts, and at the end how far it came: "killed NAME" or "counted COUNT".
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
"""Of x86-64, by number."""

SEIZE, INTERRUPT, SYSCALL, SYSCALL_INFO = 0x4206, 0x4207, 24, 0x420E
SYSGOOD, TRACE_CLONE = 1, 8
SYSCALL_STOP = signal.SIGTRAP | 0x80
WALL = 0x40000000
ENTRY = 1
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
LIBC.ptrace.restype = ctypes.c_long


def ptrace(request: int, task: int, address: int = 0, data: int = 0) -> int:
    """Raises ProcessLookupError where the task has gone."""
    done: int = LIBC.ptrace(request, task, address, data)
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return done


def attach(pid: int) -> None:
    """Trace all its threads; those that come meanwhile are made by one that is traced, or seen."""
    known: set[int] = set()
    while new := {int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()} - known:
        known |= new
        for task in new:
            with suppress(OSError):  # it has ended, or is traced by inheritance
                ptrace(SEIZE, task, 0, SYSGOOD | TRACE_CLONE)
                ptrace(INTERRUPT, task)


def entered(task: int) -> int | None:
    """The number of the system call that a task is about to make; None: it comes back from one."""
    buffer = ctypes.create_string_buffer(88)
    ptrace(SYSCALL_INFO, task, len(buffer), ctypes.addressof(buffer))
    if buffer.raw[0] != ENTRY:
        return None
    number: int = struct.unpack_from("=Q", buffer.raw, 24)[0]
    return number


def go_on(task: int, status: int) -> None:
    """Let a stopped task run to its next system call, with the signal that it stopped for."""
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
    """Count, and kill at the wanted place; what there is to say at the end."""
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
