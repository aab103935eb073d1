"""The files for systemd, as systemd itself reads them."""

from __future__ import annotations

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
    # It wants the program to be there, which it is on no machine that only tests.
    text = UNIT.read_text()
    assert "ExecStart=/usr/bin/ipv6natd\n" in text
    there = tmp_path / UNIT.name
    there.write_text(text.replace("ExecStart=/usr/bin/ipv6natd\n", "ExecStart=/bin/true\n"))
    done = analyze("--man=no", "verify", str(there))
    # Of other units on this machine it may say what it likes.
    assert UNIT.name not in done.stdout + done.stderr
    assert done.returncode == 0, done.stderr


def test_the_sandbox_is_no_wider_than_it_was() -> None:
    done = analyze("security", "--no-pager", "--offline=true", "--threshold=17", str(UNIT))
    assert done.returncode == 0, done.stdout
