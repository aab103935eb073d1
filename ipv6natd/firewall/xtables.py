"""The kernel interface of the legacy variant: lock, table names and sizes, layout of entries.

The layouts are those of linux/netfilter_ipv6/ip6_tables.h, a stable interface of the kernel.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.firewall.restore import LOCK_VARIABLE
from ipv6natd.netfilter.diff import ObservedJump
from ipv6natd.netfilter.rules import COMMENT, DOCKER_USER, PREFIX, Table
from ipv6natd.system.files import open_file

LOCK_FILE = "/run/xtables.lock"
CHAIN_NAME_MAX = 28
"""Maximum length of a chain name. libiptc truncates longer names silently."""

_TABLE_NAMES = Path("/proc/thread-self/net/ip6_tables_names")
"""Of the thread, not of the process: a thread can be in another network namespace."""
_IP6T_SO_GET_INFO = 64
_INFO = struct.Struct("=32s13I")

# struct ip6t_entry: matches (addresses, interfaces with masks, protocol, tos), flags and inverted
# flags; then counters and internal fields of the kernel, which are no part of the rule.
_IP_MATCH_SIZE = 131
_FLAGS = struct.Struct("=BB")
_GOTO = 0x04
_ENTRY_SIZE = 168
_EXTENSION = struct.Struct("=H29sB")
_NAME_OFFSET = 2


@contextmanager
def xtables_lock(timeout: float) -> Iterator[None]:
    """Hold the lock that all legacy tools hold while they read, change and commit.

    Raises FirewallError after `timeout` seconds.
    """
    path = os.environ.get(LOCK_VARIABLE) or LOCK_FILE
    try:
        lock = open_file(path, os.O_RDONLY | os.O_CREAT)
    except OSError as error:
        raise FirewallError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        deadline = time.monotonic() + timeout
        while not _try_lock(lock):
            if time.monotonic() >= deadline:
                raise FirewallError(
                    f"{path} was held by another program for {timeout:g} s; `fuser {path}` names it"
                )
            time.sleep(0.01)
        yield
    finally:
        os.close(lock)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def existing_tables() -> set[str]:
    """The tables that the kernel has. To ask for a table by name would create it."""
    try:
        return set(_TABLE_NAMES.read_text().split())
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise FirewallError(f"{_TABLE_NAMES} cannot be read: {error.strerror}") from error


def table_size(table: Table) -> tuple[int, int]:
    """Entries and bytes of a table, by IP6T_SO_GET_INFO. Raises FirewallError.

    Calls libc: the kernel reads the table's name from the buffer, and Python's getsockopt passes no
    input.
    """
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


@dataclass(frozen=True, slots=True)
class Entry:
    """A rule as the kernel has it, without counters, so that two reads can be compared."""

    target: str
    ip_match: bytes
    extensions: tuple[tuple[bytes, int, bytes], ...]
    """Name, revision and data of the matches and the target; for a jump only of the matches."""

    @property
    def identity(self) -> bytes:
        """The bytes that identify the rule."""
        parts = [b"%b %d %b" % extension for extension in self.extensions]
        return b"%b%b-j %b\n" % (self.ip_match, b"".join(parts), self.target.encode())

    def is_relevant(self, chains: Container[str]) -> bool:
        """True if the rule jumps to a chain of ours or to DOCKER-USER, or is our jump to another
        chain in `chains`."""
        if self.target == DOCKER_USER or self.target.startswith(PREFIX):
            return True
        return self.target in chains and self.ours

    @property
    def ours(self) -> bool:
        """True if the rule has our comment."""
        return self._comments[-1:] == [COMMENT.encode()]

    @property
    def _comments(self) -> list[bytes]:
        return [data.split(b"\0", 1)[0] for name, _, data in self.extensions if name == b"comment"]

    @property
    def text(self) -> str:
        """The text of the rule in an ObservedJump of this variant."""
        return f"-j {self.target} #{blake2b(self.identity, digest_size=16).hexdigest()}"

    def observed_jump(self, base: str, position: int) -> ObservedJump:
        """The rule as an ObservedJump at a position."""
        flags, inverted_flags = _FLAGS.unpack_from(self.ip_match, _IP_MATCH_SIZE)
        has_match = any(self.ip_match[:_IP_MATCH_SIZE]) or inverted_flags or flags & _GOTO
        return ObservedJump(
            base=base,
            position=position,
            target=self.target,
            ours=self.ours,
            unconditional=not has_match and len(self._comments) == len(self.extensions),
            text=self.text,
        )


def parse_entry(raw: bytes, target_offset: int, target: str) -> Entry:
    """The rule in `raw`, a struct ip6t_entry with matches and target. `target`: from libiptc."""
    # The data of a jump is the offset of its chain, which changes with other chains. So the name
    # from libiptc is used. The kernel's name of such a target is empty.
    standard = raw[target_offset + _NAME_OFFSET] == 0
    end = target_offset if standard else len(raw)
    extensions = []
    offset = _ENTRY_SIZE
    while offset < end:
        size, name, revision = _EXTENSION.unpack_from(raw, offset)
        data = raw[offset + _EXTENSION.size : offset + size]
        # The kernel writes the name up to its NUL. The bytes behind it are old contents of our
        # buffer.
        extensions.append((name.split(b"\0", 1)[0], revision, data))
        offset += size
    return Entry(target, raw[: _IP_MATCH_SIZE + _FLAGS.size], tuple(extensions))


def with_chain_name(raw: bytes, target_offset: int, target: str) -> bytes:
    """`raw` with the chain's name in its jump, as libiptc needs it to find the rule."""
    start = target_offset + _NAME_OFFSET
    return b"".join((raw[:start], target.encode().ljust(29, b"\0"), raw[start + 29 :]))
