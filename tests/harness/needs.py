"""What a test needs from the machine, and how it says that it is missing."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

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
    lack(f"{', '.join(missing)}; `make test` as root installs what is missing")


def lack(what: str) -> None:
    """End the test because something is missing: in CI nothing may go untested silently."""
    import pytest  # Here, because the demo uses the lab and does not install it.

    if os.environ.get("CI"):
        pytest.fail(f"needs {what}")
    pytest.skip(f"needs {what}")


def alone() -> NoReturn:
    """End the test where it asks ipv6natd, in a lab whose engine does IPv6 NAT by itself."""
    import pytest

    pytest.skip("asks ipv6natd, which is not here: the engine does it alone")
