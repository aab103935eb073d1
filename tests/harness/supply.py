"""The supported Pythons and libraries, and the runs of our tests with each combination.

docs/supply.md shows the results. A tree of Debian contains the packages of its suite. The newest
libraries are in one folder for every Python (`make .venv/newest/.stamp`).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from tests import ROOT
from tests.harness import tree, workshop
from tests.harness.needs import lack
from tests.harness.process import LabError, environment
from tests.harness.report import commit, table

LOCK = ROOT / "tests" / "lock"
VENV = ROOT / ".venv"
NEWEST = VENV / "newest"
MODULES = {
    "docker": "docker",
    "requests": "requests",
    "dbus-next": "dbus_next",
    "sdnotify": "sdnotify",
    "python-iptables": "iptc",
}
LIBRARIES = tuple(MODULES)

ABOUT_THE_REPOSITORY = (
    *("tests/docs/test_behaviour.py", "tests/docs/test_docs.py", "tests/docs/test_report.py"),
    *("tests/docs/test_manual.py", "tests/docs/test_examples.py", "tests/docs/test_pages.py"),
    *("tests/integration/bus/test_completions.py", "tests/integration/bus/test_polkit.py"),
)
"""The results of these tests depend on git, shells and other tools, not on Python or a library."""

USERS = (
    *(
        "tests/unit/engine/test_watcher.py",
        "tests/unit/sync/test_whole.py",
        "tests/unit/system/test_sd_notify.py",
    ),
    *("tests/integration/bus", "tests/integration/net/test_firewall_contract.py"),
)
"""The tests that use the libraries: engine sockets, a bus, systemd's socket, the tables."""
CI_USERS = (
    tuple(
        f"tests/integration/{name}.py"
        for name in (
            *("bus/test_service", "bus/test_objects", "bus/test_signals", "bus/test_transport"),
            *("bus/test_session", "bus/test_log_control", "net/test_firewall_contract"),
        )
    )
    + USERS[:3]
)
"""Those of them that use each call of a library once, without floods and large tables."""
ALL = ("tests/unit", "tests/integration/bus", "tests/integration/net/test_firewall_contract.py")

ENDS = ("passed", "failed", "skipped")

PATIENCE = 900.0
"""Seconds. All tests in a tree need 90 seconds of one processor."""

TOLD = "supplied"
"""The key under which a pytest worker reports the result of a combination."""

SAY = """\
import importlib.metadata, importlib.util, json, pathlib, platform, sys
versions = {"python": platform.python_version()}
for each in sys.argv[1:]:
    name, module = each.split(":")
    found = importlib.metadata.distribution(name)
    # Assert that the imported module belongs to this distribution.
    origin = pathlib.Path(importlib.util.find_spec(module).origin)
    assert origin.is_relative_to(pathlib.Path(found.locate_file("")).resolve()), (origin, found)
    versions[name] = found.version
print(json.dumps(versions))
"""

IN_A_TREE = """
export DEBIAN_FRONTEND=noninteractive PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={path}
apt-get -q -y --no-download --no-install-recommends install {packages} >/out/apt.log 2>&1 || \
    {{ tail -n 5 /out/apt.log; exit 1; }}
mkdir -p /run/dbus
{python} /out/say.py {libraries} >/out/versions.json
{python} -m pytest -q {words} --junitxml=/out/junit.xml
"""
PACKAGES = ("python3-hypothesis", "conntrack", "nftables")

HEAD = """\
# Pythons and libraries

Written by `make test-supply` and `make test-all`: the results of our tests with each Python and
each set of libraries. "Debian's" libraries are the packages of the suite, the "newest" are the
versions of tests/lock/newest.txt from PyPI. "All" tests are those of the core, of the service on a
bus and of the firewall in network namespaces. "Users" are the same without the core, which imports
no library.

CI runs a part of the row with "yes": each call of a library, without floods and large tables. CI
runs the packet tests with the Python and the libraries of Debian 12, which are the minimum versions
in pyproject.toml, and a booted host with those of Debian 13. Debian has no Python 3.12. Without
Python 3.12 in pyenv this row is skipped, in CI too. Old versions of one library with new versions
of another are not tested. For example, docker 5 does not work with requests 2.32 and newer, and pip
does not choose this combination.

"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """A Python with a set of libraries."""

    python: str
    """Such as "3.13"."""
    home: Literal["here", "pyenv"] | tree.Suite
    """The place of this Python; "here" is the Python of this test run."""
    libraries: Literal["Debian's", "newest"]
    tests: tuple[str, ...] = USERS
    ci: bool = False

    @property
    def id(self) -> str:
        libraries = self.libraries.removesuffix("'s").lower()
        return f"{self.home}-{self.python}-{libraries}"


COMBINATIONS = (
    Combination(python="3.11", home="here", libraries="Debian's"),
    Combination(python="3.11", home="here", libraries="newest", ci=True),
    Combination(python="3.12", home="pyenv", libraries="newest"),
    Combination(python="3.13", home="trixie", libraries="Debian's", tests=ALL),
    Combination(python="3.13", home="trixie", libraries="newest"),
    Combination(python="3.14", home="sid", libraries="Debian's"),
    Combination(python="3.14", home="sid", libraries="newest", tests=ALL),
    Combination(python="3.15", home="sid", libraries="Debian's", tests=ALL),
    Combination(python="3.15", home="sid", libraries="newest"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """The test results of one combination."""

    id: str
    versions: dict[str, str]
    """The versions of `python` and of each library, as they report them."""
    passed: int
    failed: tuple[str, ...]
    skipped: tuple[str, ...]
    """Names of tests, such as "tests.integration.net.test_firewall_contract test_x"."""
    date: str
    commit: str


def need_newest() -> None:
    """End the test if the newest libraries are not there."""
    if not (NEWEST / ".stamp").exists():
        lack("the newest libraries; `make .venv/newest/.stamp` gets them")


def run(combination: Combination, folder: Path) -> Ran:
    """Run the tests of a combination, with output in `folder`. LabError if they did not run."""
    tested = commit(ROOT)
    (folder / "say.py").write_text(SAY)
    newest = combination.libraries == "newest"
    if newest:
        need_newest()
    match combination.home:
        case "here":
            beside(sys.executable, newest, combination.tests, folder)
        case "pyenv":
            python = VENV / "3.12" / "bin" / "python3.12"
            if not python.exists():
                # CI cannot install it: Debian has no package.
                import pytest

                pytest.skip("no Python 3.12: neither in Debian nor in this machine's pyenv")
            beside(str(python), newest, combination.tests, folder)
        case suite:
            in_a_tree(suite, combination, folder)
    return ran(combination.id, folder, tested)


def beside(python: str, newest: bool, tests: Sequence[str], folder: Path) -> None:
    """Run the tests on this machine."""
    env = environment({"PYTHONPATH": str(NEWEST)} if newest else None)
    say = (python, str(folder / "say.py"), *asked())
    said = subprocess.run(say, check=True, env=env, cwd=ROOT, capture_output=True, text=True)
    (folder / "versions.json").write_text(said.stdout)
    results = f"--junitxml={folder / 'junit.xml'}"
    call = (python, "-m", "pytest", "-q", "-pno:xdist", *words(tests), results)
    with (folder / "log").open("wb") as log:
        subprocess.run(
            call, check=False, env=env, cwd=ROOT, stdout=log, stderr=log, timeout=PATIENCE
        )


def in_a_tree(suite: tree.Suite, combination: Combination, folder: Path) -> None:
    tree.need(suite)
    path = ""
    if combination.libraries == "newest":
        path = "/out/newest"
        shutil.copytree(NEWEST, folder / "newest", symlinks=True)
    script = IN_A_TREE.format(
        path=path,
        packages=" ".join(PACKAGES),
        python=f"python{combination.python}",
        libraries=" ".join(asked()),
        words=" ".join(words(combination.tests)),
    )
    # The report has the failed tests, so the exit status of the script is not needed.
    workshop.finish(
        workshop.begin(suite, folder, f"{script.strip()} || true"), folder, timeout=PATIENCE
    )


def asked() -> list[str]:
    return [f"{name}:{module}" for name, module in MODULES.items()]


def words(tests: Sequence[str]) -> list[str]:
    return [*tests, *(f"--ignore={each}" for each in ABOUT_THE_REPOSITORY)]


def ran(name: str, folder: Path, tested: str) -> Ran:
    """The results in the report of pytest."""
    try:
        cases = list(ElementTree.parse(folder / "junit.xml").iter("testcase"))
        versions = json.loads((folder / "versions.json").read_text())
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise LabError(f"{name} left no report ({error}): see {folder / 'log'}") from None

    def those(*kinds: str) -> tuple[str, ...]:
        return tuple(
            f"{case.get('classname')} {case.get('name')}"
            for case in cases
            if any(case.find(kind) is not None for kind in kinds)
        )

    failed, skipped = those("failure", "error"), those("skipped")
    return Ran(
        id=name,
        versions=versions,
        # A test with a failed teardown occurs twice.
        passed=len({(each.get("classname"), each.get("name")) for each in cases})
        - len(set(failed) | set(skipped)),
        failed=failed,
        skipped=skipped,
        date=datetime.now(UTC).date().isoformat(),
        commit=tested,
    )


def locked(name: str) -> dict[str, str]:
    """Packages and their versions in a file of tests/lock, for Linux."""
    lines = re.findall(
        r"^([A-Za-z0-9._-]+)==(\S+)(.*)$", (LOCK / f"{name}.txt").read_text(), re.MULTILINE
    )
    return {package: version for package, version, more in lines if "win32" not in more}


def write(all_ran: list[Ran], folder: Path) -> None:
    """Write supply.md if any combination ran. Rows of other combinations stay unchanged."""
    if all_ran:
        page = folder / "supply.md"
        page.write_text(text(all_ran, page.read_text() if page.exists() else ""))


def text(all_ran: Sequence[Ran], before: str = "") -> str:
    """The new page; `before` is the old page."""
    by_id = {each.id: each for each in all_ran}
    stood = {which(line): line for line in lines(before)}
    head = ("Python", "libraries", *LIBRARIES, "tests", "in CI", *ENDS, "date", "commit")
    rows = (
        row(each, by_id[each.id])
        if each.id in by_id
        else stood.get((each.python, each.libraries)) or unknown(each)
        for each in COMBINATIONS
    )
    return HEAD + table(head, rows)


def row(combination: Combination, found: Ran) -> Sequence[str]:
    tests = "all" if combination.tests == ALL else "users"
    return (
        *(found.versions["python"], combination.libraries),
        *(found.versions[library] for library in LIBRARIES),
        *(tests, "yes" if combination.ci else "no"),
        *(str(found.passed), str(len(found.failed)), str(len(found.skipped))),
        *(found.date, re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28}\b", r"\1", found.commit)),
    )


def unknown(combination: Combination) -> Sequence[str]:
    dashes = ["-"] * (len(LIBRARIES) + 2)
    return (combination.python, combination.libraries, *dashes, "not run", "-", "-", "-", "-")


def lines(page: str) -> list[list[str]]:
    """The table rows of a page."""
    found = [line.strip("| ").split(" | ") for line in page.splitlines()]
    return [each for each in found if re.match(r"3\.\d+", each[0])]


def which(row: Sequence[str]) -> tuple[str, str]:
    """The Python of a row, such as "3.13", and its set of libraries."""
    return ".".join(row[0].split(".")[:2]), row[1]
