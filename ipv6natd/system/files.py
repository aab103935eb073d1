"""Files of ours in folders that may belong to another user: read, and replaced as a whole.

What stands there in our way, a link to a file of root's for one, is not gone through. Whose the
folder itself is and how one gets there is up to who named it.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path


def open_file(name: str | Path, flags: int, mode: int = 0o600, folder: int | None = None) -> int:
    """A descriptor of a file in a folder, both as for os.open; never through a link.

    Nor does it wait for whoever is at the other end of a pipe. Raises OSError.
    """
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, mode, dir_fd=folder)


def read(path: Path) -> str:
    """The text of a plain file. Raises OSError, and ValueError where it is not UTF-8."""
    with os.fdopen(open_file(path, os.O_RDONLY), encoding="utf-8") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        return file.read()


def replace(path: Path, text: str, *, mode: int, sync: bool = False) -> None:
    """Put a file in the place of `path`, for good with `sync`. Raises OSError.

    The suffix of its name until then is ".new".
    """
    new = path.with_suffix(".new").name
    # By its descriptor: nobody can put another folder in its place between two steps.
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        with suppress(FileNotFoundError):
            os.unlink(new, dir_fd=folder)
        made = open_file(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, folder)
        with os.fdopen(made, "w", encoding="utf-8") as file:
            os.fchmod(made, mode)
            file.write(text)
            file.flush()
            if sync:
                os.fsync(made)
        os.rename(new, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)
