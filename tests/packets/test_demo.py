"""The demo, as a newcomer runs it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.process import run
from tests.lab.sandbox import CLIENT

ROOT = Path(__file__).parents[2]
DEMO = (sys.executable, "-m", "tests.demo")


def test_the_demo_shows_page_client_mapping_and_rules(tools: None) -> None:  # noqa: ARG001
    """In a namespace without any network, so that it can need none."""
    text = run("unshare", "--net", *DEMO, cwd=ROOT)
    assert "hello from hello" in text
    assert f"client [{CLIENT}]" in text
    assert '"ContainerName" s "hello"' in text
    assert "--to-destination [fd00:a::2]:80" in text
    assert text.splitlines()[-1].startswith("DEMO OK")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", ["A sandbox", "ipv6natd on the host", "The client fetches"])
def test_an_interrupted_demo_says_so_and_leaves_nothing(
    tools: None,  # noqa: ARG001
    at: str,
    number: signal.Signals,
) -> None:
    """What it should have left is seen by the check at the end of the run, and here by name."""
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
