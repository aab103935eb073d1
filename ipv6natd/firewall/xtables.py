"""The kernel interface of the legacy variant: lock, names and sizes of tables."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.firewall.tools import LOCK_VARIABLE, TOOL_TIMEOUT
from ipv6natd.netfilter.rules import Table
from ipv6natd.system.files import open_file

LOCK_FILE = "/run/xtables.lock"

_TABLE_NAMES = Path("/proc/thread-self/net/ip6_tables_names")
"""Of the thread, not of the process: a thread can be in another network namespace."""
_IP6T_SO_GET_INFO = 64
_INFO = struct.Struct("=32s13I")
"""struct ip6t_getinfo of linux/netfilter_ipv6/ip6_tables.h, a stable interface of the kernel."""


@contextmanager
def xtables_lock() -> Iterator[None]:
    """Hold the lock that all legacy tools hold while they read, change and commit.

    Raises FirewallError after TOOL_TIMEOUT seconds.
    """
    path = os.environ.get(LOCK_VARIABLE) or LOCK_FILE
    try:
        lock = open_file(path, os.O_RDONLY | os.O_CREAT)
    except OSError as error:
        raise FirewallError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        deadline = time.monotonic() + TOOL_TIMEOUT
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() >= deadline:
                raise FirewallError(
                    f"{path} was held by another program for {TOOL_TIMEOUT:g} s; "
                    f"`fuser {path}` names it"
                )
            time.sleep(0.01)
        yield
    finally:
        os.close(lock)


def existing_tables() -> set[str]:
    """The tables that the kernel has. To ask for a table by name would create it."""
    try:
        return set(_TABLE_NAMES.read_text().split())
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise FirewallError(f"{_TABLE_NAMES} cannot be read: {error.strerror}") from error


def table_sizes() -> dict[Table, tuple[int, int]]:
    """The sizes of all tables; cheap enough for every second. Raises FirewallError.

    An edit that keeps the number of entries and bytes is not visible.
    """
    return {table: table_size(table) for table in Table}


def table_size(table: Table) -> tuple[int, int]:
    """Entries and bytes of a table, (0, 0) for a missing one. Raises FirewallError.

    Calls libc: the kernel reads the table's name from the buffer, and Python's getsockopt passes no
    input.
    """
    if table not in existing_tables():
        return 0, 0
    libc = ctypes.CDLL(None, use_errno=True)
    info = ctypes.create_string_buffer(_INFO.pack(table.encode(), *[0] * 13), _INFO.size)
    size = ctypes.c_uint32(_INFO.size)
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            option = (raw.fileno(), socket.IPPROTO_IPV6, _IP6T_SO_GET_INFO)
            if libc.getsockopt(*option, info, ctypes.byref(size)):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except OSError as error:
        raise FirewallError(f"legacy table {table} has no size: {error.strerror}") from error
    *_, entries, length = _INFO.unpack(info.raw)
    return entries, length
