"""What holds for every test: nothing of ours outlives the run."""

from __future__ import annotations

import os
import signal

import pytest

from tests.lab.leftovers import leftovers
from tests.lab.process import LAB, MARK

LEFT = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engines",
        choices=("ci", "all"),
        default="ci",
        help="packet tests with the engines that CI has time for, or with all (make test-all)",
    )
    parser.addoption(
        "--report", metavar="FILE", help="write here what the packet tests said on each engine"
    )


def pytest_configure() -> None:
    os.environ[MARK] = LAB
    # Terminated like interrupted: fixtures clean up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    left = leftovers()
    session.config.stash[LEFT] = left
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in config.stash.get(LEFT, []):
        terminalreporter.write_line(f"LEFT BEHIND: {line}", red=True)
