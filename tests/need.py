"""What a test needs and this machine lacks: skipped on a desk, failed in CI."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def need(*tools: str) -> None:
    """Go on only as root and with these tools."""
    if os.geteuid() != 0:
        lack("root")
    for tool in tools:
        if shutil.which(tool, path=_PATH) is None:
            lack(tool)


def lack(what: str) -> NoReturn:
    """End the test because `what` is missing: in CI nothing may go untested silently."""
    if os.environ.get("CI"):
        pytest.fail(f"this test needs {what}")
    pytest.skip(f"needs {what}")
