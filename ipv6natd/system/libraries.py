"""The Python libraries that the commands need, and a sentence for one that is missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

PACKAGES = {
    "dbus_next": ("python3-dbus-next", "python-dbus-next", "dbus-next"),
    "docker": ("python3-docker", "python-docker", "docker"),
    "requests": ("python3-requests", "python-requests", "requests"),
    "sdnotify": ("python3-sdnotify", "python-sdnotify", "sdnotify"),
}
"""Library -> its packages in Debian, in Arch Linux and on PyPI."""


@contextmanager
def needed_libraries(command: str) -> Iterator[None]:
    """Exit with status 1 and a sentence on the standard error if an import finds no library."""
    try:
        yield
    except ModuleNotFoundError as error:
        packages = PACKAGES.get((error.name or "").partition(".")[0])
        if packages is None:
            raise
        debian, arch, pypi = packages
        sys.exit(
            f"{command}: the Python library {pypi} is missing; install it: "
            f"apt install {debian}, pacman -S {arch}, or pip install {pypi}"
        )
