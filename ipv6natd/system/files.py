"""Reads files of the kernel, and reads and replaces files of ipv6natd.

The directory of such a file may belong to another user. A symbolic link in the place of the file is
never followed: it could lead to a file of root. The path of the directory itself is trusted; it
comes from the configuration.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def open_file(name: str | Path, flags: int, mode: int = 0o600, folder: int | None = None) -> int:
    """Open a file relative to the descriptor `folder`, never through a symbolic link.

    Does not wait for the other end of a pipe. Raises OSError.
    """
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, mode, dir_fd=folder)


def read(path: Path) -> str:
    """Return the text of a regular file. Raises OSError, and ValueError if it is not UTF-8."""
    with os.fdopen(open_file(path, os.O_RDONLY), encoding="utf-8") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return file.read()


def read_text(path: Path) -> str:
    """The text of a file; "" if it does not exist: no IPv6, no br_netfilter, or just removed."""
    try:
        return path.read_text(errors="replace")
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return ""


def read_rows(path: Path) -> Iterator[list[str]]:
    """The columns of each line of a table in /proc; no line if the file does not exist.

    Only spaces and newlines end them: the kernel accepts other characters that are white space for
    Python, such as U+001C and U+2028, in the name of an interface.
    """
    with suppress(OSError):
        for line in path.read_bytes().decode(errors="replace").split("\n"):
            if columns := [column for column in line.split(" ") if column]:
                yield columns


def read_word(path: Path) -> str:
    """Like `read_text`, without white space at both ends."""
    return read_text(path).strip()


def read_link(path: Path) -> str:
    """The target of a link; "" if it does not exist or belongs to another user's process."""
    try:
        return str(path.readlink())
    except OSError:
        return ""


def replace(path: Path, text: str, *, mode: int, sync: bool = False) -> None:
    """Replace the file `path` atomically; with `sync`, it survives a power failure. Raises OSError.

    The new file has the suffix ".new" until it is complete.
    """
    new = path.with_suffix(".new").name
    # The descriptor keeps the directory fixed: a rename of its path changes nothing here.
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        with suppress(FileNotFoundError):
            os.unlink(new, dir_fd=folder)
        descriptor = open_file(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, folder)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            if sync:
                os.fsync(descriptor)
        os.rename(new, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def link(path: Path, target: str) -> None:
    """Make a symbolic link, and its folder; it takes the place of an older one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)
