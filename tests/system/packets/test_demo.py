"""The demo and the tour."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ipv6natd.ctl.commands import COMMANDS
from tests import ROOT
from tests.harness.process import run
from tests.harness.sandbox import CLIENT

TOUR = ROOT / "docs" / "tour.md"
DEMO = (sys.executable, "-m", "tests.harness.demo")


@pytest.fixture(scope="module")
def shown(tools: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:  # noqa: ARG001
    """The demo's output and its tour, made in a namespace without any network."""
    page = tmp_path_factory.mktemp("demo") / "tour.md"
    text = run("unshare", "--net", *DEMO, "--tour", str(page), cwd=ROOT)
    return text, page.read_text()


def test_demo_shows_page_client_mapping_and_rules(shown: tuple[str, str]) -> None:
    text, _ = shown
    assert "hello from hello" in text
    assert f"client [{CLIENT}]" in text
    assert '"ContainerName" s "hello"' in text
    assert "--to-destination [fd00:a::2]:80" in text
    assert text.splitlines()[-1].startswith("DEMO OK")


def test_tour_matches_the_output_of_the_commands(shown: tuple[str, str]) -> None:
    _, page = shown
    if os.environ.get("UPDATE_DOCS"):
        TOUR.write_text(page)
    stands = TOUR.read_text() if TOUR.exists() else ""
    command = "UPDATE_DOCS=1 .venv/bin/pytest tests/system/packets/test_demo.py"
    assert stands.splitlines() == page.splitlines(), f"docs/tour.md is stale: {command}"


def test_tour_has_every_command(shown: tuple[str, str]) -> None:
    _, page = shown
    assert "$ ipv6natctl\n" in page  # status
    missing = [each for each in COMMANDS if f"$ ipv6natctl {each}" not in page]
    assert missing == ["status"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", ["A sandbox", "ipv6natd on the host", "The client fetches"])
def test_interrupted_demo_exits_130_and_removes_everything(
    tools: None,  # noqa: ARG001
    at: str,
    number: signal.Signals,
) -> None:
    """The check at the end of the run finds leftovers too; this test finds them by name."""
    with subprocess.Popen(DEMO, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if at in line:
                process.send_signal(number)
                break
        rest = process.stdout.read()
        assert process.wait(20) == 130
    assert "DEMO INTERRUPTED" in rest.splitlines()[-1]
    assert list(Path("/run/netns").glob(f"v6n{process.pid}-*")) == []
    assert list(Path("/sys/fs/cgroup").glob(f"**/v6n{process.pid}-*")) == []
