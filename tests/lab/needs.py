"""What a test needs from the machine, and how it says that it is missing."""

from __future__ import annotations

import os
import shutil

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""The distribution's tools first and alone: another docker in /usr/local may be too new to talk to
the engine that is tested."""


def need(*tools: str) -> None:
    """Skip the test on a desk that lacks a tool, or root; fail it in CI, which must have them."""
    missing = [tool for tool in tools if shutil.which(tool, path=PATH) is None]
    if os.geteuid() != 0:
        missing.append("root")
    if not missing:
        return
    import pytest  # Here, because the demo uses the lab and does not install it.

    text = f"needs {', '.join(missing)}; `make test` as root installs what is missing"
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)
