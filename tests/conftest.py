"""For every test: record its result, and check that no process or namespace of ours remains.

Tests run in several workers (pytest-xdist), because they wait more than they compute. A shared lab
and all its tests belong to one worker.
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
"""For each folder: the number of tests, and the milliseconds of set-up, call and teardown."""
RAN, CHECK = "ran", "check"
"""The keys under which a worker reports results: packet tests, and checks on booted hosts."""


QUICK = ("tests/unit", "tests/docs", "tests/harness")
"""The folders whose tests need only Python. Each of these tests may run in any worker."""
TEST_ALL = ("slow", "newest", "native")
"""The markers of tests that only `make test-all` runs."""
BOOT = "tests/system/boot"
"""The folder of the tests on booted hosts; docs/booted.md has their results."""


def _folder(name: str) -> str:
    """The folder of a test in the table of times, from the name of the test."""
    return "/".join(name.split("/")[: 2 if name.startswith(QUICK) else 3])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engines",
        choices=("ci", "all"),
        default="ci",
        help="packet tests with the engines of CI, or with all (make test-all)",
    )
    parser.addoption(
        "--report",
        metavar="FOLDER",
        help="write the pages of the results here: engines, behaviour, booted, supply",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = Report(Path(config.rootpath))
    config.stash[CHECKS] = []
    config.stash[SUPPLIED] = []
    config.stash[LEFT] = []
    config.stash[SPENT] = {}
    config.pluginmanager.register(Listener(config))
    os.environ[MARK] = LAB
    # SIGTERM is handled like SIGINT, so that fixtures clean up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_itemcollected(item: pytest.Item) -> None:
    # A worker reads the marks before `pytest_collection_modifyitems`.
    if item.config.pluginmanager.hasplugin("xdist") and (group := sharing(item)):
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave some tests to `make test-all`, and begin with the labs that many tests share.

    These labs take longest: without this order, the last one would run alone, on one of the cores
    (--no-loadscope-reorder).
    """
    if config.getoption("--engines") != "all":
        left_out = {item for item in items if any(map(item.get_closest_marker, TEST_ALL))}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: sharing(item) in ("", _file(item)))


def _file(item: pytest.Item) -> str:
    return str(item.path.relative_to(item.config.rootpath))


def sharing(item: pytest.Item) -> str:
    """The name of the lab that a test shares with other tests; "" without a shared lab."""
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
    if "host" in params and file.is_relative_to(BOOT):
        return f"boot-{params['host']}"
    if "clone" in params:
        return f"{file}-{params['clone']}"
    return str(file)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record the result of a test. It has passed only if setup and teardown passed too."""
    phase = yield
    # A worker sends captured output to its parent. Invalid UTF-8 would kill the worker.
    phase.sections = [
        (title, text.encode(errors="backslashreplace").decode()) for title, text in phase.sections
    ]
    outcomes = item.stash.setdefault(OUTCOMES, [])
    # pytest reports an expected failure, of an engine without ipv6natd, as skipped.
    differs = phase.when == "call" and phase.skipped and hasattr(phase, "wasxfail")
    outcomes.append("failed" if differs else phase.outcome)
    if phase.when == "teardown" and isinstance(item, pytest.Function):
        bad: list[Outcome] = [each for each in outcomes if each != "passed"]
        outcome = (bad or outcomes)[-1]
        params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
        suite = params.get("host") or params.get("clone")
        if suite and item.nodeid.startswith(BOOT):
            check = Check(suite=suite, name=item.originalname, outcome=outcome)
            phase.user_properties.append((CHECK, asdict(check)))
        if not item.nodeid.startswith("tests/system/supply/"):
            phase.user_properties.append((RAN, asdict(ran(item, outcome))))
    return phase


class Listener:
    """Collects results and leftovers of this process and of its workers."""

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
            # A property that the test itself records is in the report of each later phase.
            if name == supply.TOLD and report.when == "teardown":
                assert isinstance(value, dict)
                self.config.stash[SUPPLIED].append(supply.Ran(**value))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        # A worker that crashed reports nothing, and its crash fails the run.
        self.config.stash[LEFT] += getattr(node, "workeroutput", {}).get("left", [])


def ran(item: pytest.Function, outcome: Outcome) -> Ran:
    params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    wanted = next((each for each in params.values() if isinstance(each, Wanted)), None)
    return Ran(
        # In a worker the id of a test ends with the name of its lab.
        name=item.nodeid.removesuffix(f"@{sharing(item)}"),
        scenarios=scenarios(item.originalname, item.function.__doc__),
        engine=version(wanted.suite if wanted else params.get("suite")),
        where=wanted.id if wanted and "regime" in params else OWN,
        native=item.get_closest_marker("native") is not None,
        outcome=outcome,
    )


@cache
def version(suite: tree.Suite | None) -> str:
    """The version of an installed engine, such as "20.10.24"."""
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
