"""What holds for every test: nothing of ours outlives the run, and how it ended is remembered.

Tests run in several workers (pytest-xdist): they wait more than they compute. A shared lab belongs
to one of them, with all its tests.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Generator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.harness import behaviour, story, supply, tree
from tests.harness.leftovers import leftovers
from tests.harness.process import LAB, MARK
from tests.harness.regime import Wanted
from tests.harness.report import OWN, Outcome, Ran, Report, said, scenarios
from tests.harness.story import Check

LEFT = pytest.StashKey[list[str]]()
REPORT = pytest.StashKey[Report]()
OUTCOMES = pytest.StashKey[list[Outcome]]()
CHECKS = pytest.StashKey[list[Check]]()
SUPPLIED = pytest.StashKey[list[supply.Ran]]()
SPENT = pytest.StashKey[dict[str, Counter[str]]]()
"""By folder: how many tests there are, and the milliseconds of their set-up, call and teardown."""
RAN, CHECK = "ran", "check"
"""How a worker tells the one that started it what ran, beside engines and on booted hosts."""


QUICK = ("tests/unit", "tests/docs", "tests/harness")
"""The folders whose tests need Python alone; each of these tests may run in any worker."""


def _folder(name: str) -> str:
    """The folder of a test in the table of times, from the name of the test."""
    return "/".join(name.split("/")[: 2 if name.startswith(QUICK) else 3])


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
        help="write the pages of what ran here: engines, behaviour, booted, supply",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = Report(Path(config.rootpath))
    config.stash[CHECKS] = []
    config.stash[SUPPLIED] = []
    config.stash[LEFT] = []
    config.stash[SPENT] = {}
    config.pluginmanager.register(Listener(config))
    os.environ[MARK] = LAB
    # Terminated like interrupted: fixtures clean up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_itemcollected(item: pytest.Item) -> None:
    # So early, because a worker reads the marks before it hears of `pytest_collection_modifyitems`.
    if item.config.pluginmanager.hasplugin("xdist") and (group := sharing(item)):
        item.add_marker(pytest.mark.xdist_group(group))


def sharing(item: pytest.Item) -> str:
    """The name of the lab that a test shares with others, "" for one that shares none."""
    params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    file = item.path.relative_to(item.config.rootpath)
    if any(map(file.is_relative_to, QUICK)):
        return ""
    if "regime" in params:
        return str(params["regime"].id)
    if "combination" in params:
        return f"supply-{params['combination'].id}"
    if "wanted" in params:
        return f"{file}-{params['wanted'].id}"
    if "host" in params:
        return f"boot-{params['host']}"
    if "clone" in params:
        return f"{file}-{params['clone']}"
    return str(file)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember how a test ended; it has passed only if its setup and teardown have."""
    phase = yield
    # A worker tells what was printed and logged; what is no UTF-8 would end it.
    phase.sections = [
        (title, text.encode(errors="backslashreplace").decode()) for title, text in phase.sections
    ]
    outcomes = item.stash.setdefault(OUTCOMES, [])
    # pytest tells a failure that is none of ours, of an engine alone, as skipped.
    differs = phase.when == "call" and phase.skipped and hasattr(phase, "wasxfail")
    outcomes.append("failed" if differs else phase.outcome)
    if phase.when == "teardown" and isinstance(item, pytest.Function):
        bad: list[Outcome] = [each for each in outcomes if each != "passed"]
        outcome = (bad or outcomes)[-1]
        params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
        if suite := params.get("host") or params.get("clone"):
            check = Check(suite=suite, name=item.originalname, outcome=outcome)
            phase.user_properties.append((CHECK, asdict(check)))
        elif not item.nodeid.startswith("tests/system/supply/"):
            phase.user_properties.append((RAN, asdict(ran(item, outcome))))
    return phase


class Listener:
    """Hears what ran and what was left, here or in a worker."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        folder = _folder(report.nodeid)
        spent = self.config.stash[SPENT].setdefault(folder, Counter())
        spent["milliseconds"] += round(report.duration * 1000)
        spent["tests"] += report.when == "call"
        for name, value in report.user_properties:
            if name == RAN:
                assert isinstance(value, dict)
                self.config.stash[REPORT].ran.append(Ran(**value))
            if name == CHECK:
                assert isinstance(value, dict)
                self.config.stash[CHECKS].append(Check(**value))
            # What a test tells by itself is told with each of its phases.
            if name == supply.TOLD and report.when == "teardown":
                assert isinstance(value, dict)
                self.config.stash[SUPPLIED].append(supply.Ran(**value))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        # A worker that broke down has said nothing; that alone fails the run.
        self.config.stash[LEFT] += getattr(node, "workeroutput", {}).get("left", [])


def ran(item: pytest.Function, outcome: Outcome) -> Ran:
    params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    wanted = next((each for each in params.values() if isinstance(each, Wanted)), None)
    return Ran(
        # Workers know a test by its lab, too.
        name=item.nodeid.removesuffix(f"@{sharing(item)}"),
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
    left = session.config.stash[LEFT]
    left += leftovers()
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left"] = left
        return
    folder = session.config.getoption("--report")
    if folder and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        if any(
            each.name.startswith("tests/system/packets/")
            for each in session.config.stash[REPORT].ran
        ):
            behaviour.write(session.config.stash[REPORT], Path(folder))
        story.write(session.config.stash[CHECKS], session.config.rootpath, Path(folder))
        supply.write(session.config.stash[SUPPLIED], Path(folder))
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in config.stash[LEFT]:
        terminalreporter.write_line(f"LEFT BEHIND: {line}", red=True)
    terminalreporter.section("time spent, of all workers together")
    for folder, spent in sorted(config.stash[SPENT].items()):
        seconds, tests = spent["milliseconds"] / 1000, spent["tests"]
        terminalreporter.write_line(f"{folder:<24} {tests:>6} tests {seconds:>8.0f} s")
