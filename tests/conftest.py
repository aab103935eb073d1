"""What holds for every test: nothing of ours outlives the run, and how it ended is remembered."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.lab import behaviour, tree
from tests.lab.leftovers import leftovers
from tests.lab.process import LAB, MARK
from tests.lab.regime import Wanted
from tests.lab.report import OWN, Outcome, Ran, Report, said, scenarios

LEFT = pytest.StashKey[list[str]]()
REPORT = pytest.StashKey[Report]()
OUTCOMES = pytest.StashKey[list[Outcome]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engines",
        choices=("ci", "all"),
        default="ci",
        help="packet tests with the engines that CI has time for, or with all (make test-all)",
    )
    parser.addoption(
        "--report",
        metavar="FOLDER",
        help="write engines.md and behaviour.md here: what the packet tests said",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = Report(Path(config.rootpath))
    os.environ[MARK] = LAB
    # Terminated like interrupted: fixtures clean up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember how a test ended; it has passed only if its setup and teardown have."""
    phase = yield
    outcomes = item.stash.setdefault(OUTCOMES, [])
    # pytest tells a failure that is none of ours, of an engine alone, as skipped.
    differs = phase.when == "call" and phase.skipped and hasattr(phase, "wasxfail")
    outcomes.append("failed" if differs else phase.outcome)
    if phase.when == "teardown" and isinstance(item, pytest.Function):
        bad: list[Outcome] = [each for each in outcomes if each != "passed"]
        item.config.stash[REPORT].ran.append(ran(item, (bad or outcomes)[-1]))
    return phase


def ran(item: pytest.Function, outcome: Outcome) -> Ran:
    params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    wanted = next((each for each in params.values() if isinstance(each, Wanted)), None)
    return Ran(
        name=item.nodeid,
        scenarios=scenarios(item.originalname, item.function.__doc__),
        engine=version(wanted.suite if wanted else params.get("suite")),
        where=wanted.id if wanted and "regime" in params else OWN,
        native=item.get_closest_marker("native") is not None,
        outcome=outcome,
    )


@cache
def version(suite: tree.Suite | None) -> str:
    """Of an engine, by what is installed: such as "20.10.24"."""
    text = tree.versions(suite).get("docker.io", "") if suite else said("dockerd", "--version")
    found = re.search(r"[0-9]+(\.[0-9]+)+", text)
    return found[0] if found else f"of {suite or 'this machine'}"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    folder = session.config.getoption("--report")
    if folder and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        behaviour.write(session.config.stash[REPORT], Path(folder))
    left = leftovers()
    session.config.stash[LEFT] = left
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in config.stash.get(LEFT, []):
        terminalreporter.write_line(f"LEFT BEHIND: {line}", red=True)
