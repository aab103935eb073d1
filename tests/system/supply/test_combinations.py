"""The own tests with each Python and each set of libraries: the rows of docs/supply.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.harness import need, supply, tree
from tests.harness.needs import lack
from tests.harness.supply import CI_USERS, COMBINATIONS, LIBRARIES, Combination, Ran, locked

NEVER_SKIPPED = (
    "tests.integration.bus.",
    "tests.integration.net.",
    "tests.unit.engine.test_watcher",
    "tests.unit.sync.test_whole",
)

PLAIN_USER_TEST = (
    "tests.integration.bus.test_ctl test_check_by_a_plain_user_shows_the_findings_of_the_daemon"
)
"""A test with commands of a plain user."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "combination" in metafunc.fixturenames:
        every = metafunc.config.getoption("--engines") == "all"
        ci = tuple(replace(row, tests=CI_USERS) for row in COMBINATIONS if row.ci)
        those = COMBINATIONS if every else ci
        metafunc.parametrize("combination", those, ids=[each.id for each in those])


@pytest.fixture
def ran(
    combination: Combination, tmp_path: Path, record_property: Callable[[str, object], None]
) -> Ran:
    need("unshare", "git", "dbus-daemon", "busctl", "ip")
    found = supply.run(combination, tmp_path)
    record_property(supply.TOLD, asdict(found))
    return found


def test_own_tests_pass_with_each_combination(
    combination: Combination, ran: Ran, tmp_path: Path
) -> None:
    """No test that uses a library is skipped, and each library has the intended version."""
    python, *_ = ran.versions["python"].rpartition(".")
    if combination.home == "here" and python != combination.python:
        lack(f"Python {combination.python}, and this is {python}")
    assert python == combination.python
    if combination.libraries == "newest":
        wanted = {each: locked("newest")[each] for each in LIBRARIES}
        assert {each: ran.versions[each] for each in LIBRARIES} == wanted
    elif combination.home in tree.SUITES:
        for each in ("docker", "sdnotify"):
            packaged = tree.versions(combination.home)[f"python3-{each}"]
            assert packaged.startswith(ran.versions[each])
    log = (tmp_path / "log").read_text(errors="replace")
    assert ran.failed == (), log[-6000:]
    # A plain user cannot run a Python in root's home.
    bound = {PLAIN_USER_TEST} if combination.home == "pyenv" else set()
    assert [each for each in ran.skipped if each.startswith(NEVER_SKIPPED)] == sorted(bound)
    for each in ("tests.integration.bus.", "tests.integration.net.test_firewall_contract"):
        assert each in (tmp_path / "junit.xml").read_text()
    assert ran.passed > (150 if combination.tests == CI_USERS else 300)
