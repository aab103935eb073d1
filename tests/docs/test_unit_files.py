"""The unit files, checked by systemd."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests import ROOT
from tests.harness.needs import need
from tests.harness.process import environment

UNIT = ROOT / "systemd" / "ipv6natd.service"


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    need("systemd-analyze")
    return subprocess.run(
        ("systemd-analyze", *words), check=False, capture_output=True, text=True, env=environment()
    )


def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    # systemd-analyze needs existing programs, and ipv6natd is not installed here.
    text, replaced = re.subn(r"/usr/bin/ipv6nat(d$|ctl)", "/bin/true", UNIT.read_text(), flags=re.M)
    assert replaced == 2
    there = tmp_path / UNIT.name
    there.write_text(text)
    done = analyze("--man=no", "verify", str(there))
    # Messages about other units of this machine are ignored.
    assert UNIT.name not in done.stdout + done.stderr
    assert done.returncode == 0, done.stderr


def test_the_sandbox_is_no_wider_than_it_was() -> None:
    done = analyze("security", "--no-pager", "--offline=true", "--threshold=17", str(UNIT))
    assert done.returncode == 0, done.stdout
