"""The needs of a test, and its end if the machine does not have them."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""Only the distribution's tools: a docker in /usr/local may be too new for the tested engine."""


def need(*tools: str) -> None:
    """Without a tool or root, skip the test; in CI, fail it."""
    missing = [tool for tool in tools if shutil.which(tool, path=PATH) is None]
    if os.geteuid() != 0:
        missing.append("root")
    if not missing:
        return
    lack(f"{', '.join(missing)}; `make test` as root installs what is missing")


def lack(what: str) -> None:
    """End the test, because the machine lacks something: as skipped, or in CI as failed."""
    import pytest  # Not at the top: the demo uses the lab and has no pytest.

    if os.environ.get("CI"):
        pytest.fail(f"needs {what}")
    pytest.skip(f"needs {what}")


def alone() -> NoReturn:
    """End a test that needs ipv6natd, in a lab whose engine does IPv6 NAT itself."""
    import pytest

    pytest.skip("needs ipv6natd, but this lab has only the engine")
