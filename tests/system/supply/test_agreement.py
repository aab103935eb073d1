"""The declared dependencies are the tested ones, and the tests' dependencies are pinned."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

from tests import ROOT
from tests.harness import tree
from tests.harness.needs import lack
from tests.harness.supply import (
    COMBINATIONS,
    ENDS,
    LIBRARIES,
    LOCK,
    NEWEST,
    Combination,
    Ran,
    lines,
    locked,
    which,
    write,
)

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PAGE = ROOT / "docs" / "supply.md"
FLOORS = {
    name: (floor, ceiling)
    for name, floor, ceiling in (
        re.fullmatch(r"([a-z-]+)>=([\d.]+),<([\d.]+)", each).groups()  # type: ignore[union-attr]
        for each in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["legacy"])
    )
}
DEBIAN = {
    "docker": "python3-docker",
    "requests": "python3-requests",
    "dbus-next": "python3-dbus-next",
    "sdnotify": "python3-sdnotify",
    "python-iptables": "python3-iptables",
}
ARCH = {each: "python-" + each.removeprefix("python-") for each in LIBRARIES}
OPTIONAL = {"python-iptables"}
LICENCES = {
    "BSD 2-Clause License": "BSD-2-Clause",
    "MIT License": "MIT",
    "Apache Software License": "Apache-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""Name of a licence on PyPI -> SPDX identifier."""


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(each) for each in re.findall(r"\d+", version))


def page() -> list[dict[str, str]]:
    head = ("Python", "libraries", *LIBRARIES, "tests", "in CI", *ENDS)
    found = [dict(zip(head, line, strict=False)) for line in lines(PAGE.read_text())]
    assert found
    return found


def test_every_python_from_requires_python_on_is_tested() -> None:
    tested = list(dict.fromkeys(each.python for each in COMBINATIONS))
    first = numbers(tested[0])
    assert tested == [f"3.{first[1] + step}" for step in range(len(tested))]
    assert PROJECT["requires-python"] == f">={tested[0]}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == tested[0]


def test_no_classifier_is_unknown_to_the_oldest_build_tool() -> None:
    # Debian 12's hatchling rejects unknown classifiers, such as Python 3.13.
    assert not [each for each in PROJECT["classifiers"] if re.search(r"Python :: 3\.", each)]


def test_each_library_has_a_lower_and_an_upper_bound() -> None:
    assert tuple(FLOORS) == LIBRARIES


def test_newest_tested_versions_are_in_the_last_major_version_below_the_bound() -> None:
    newest = locked("newest")
    for name, (floor, ceiling) in FLOORS.items():
        parts = numbers(newest[name])
        # Below 1.0 the second number changes with incompatible versions.
        next_one = (parts[0] + 1,) if parts[0] else (0, parts[1] + 1)
        assert numbers(floor) <= parts, name
        assert numbers(ceiling) == next_one, name


def test_lower_bounds_are_the_versions_of_debian_12() -> None:
    listing = tree.folder() / "bookworm" / "root.versions"
    if not tree.ready("bookworm"):
        lack(f"a tree of Debian bookworm; {tree.hint('bookworm')}")
    there = dict(line.split() for line in listing.read_text().splitlines())
    for name, (floor, _) in FLOORS.items():
        assert re.split(r"[-+]", there[DEBIAN[name]])[0] == floor


def test_tests_on_debian_12_run_with_the_lower_bounds() -> None:
    system = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )
    if (system["ID"], system.get("VERSION_ID")) != ("debian", '"12"'):
        pytest.skip("the floors are Debian 12's")
    assert sys.version_info[:2] == (3, 11)
    assert {each: importlib.metadata.version(each) for each in LIBRARIES} == {
        name: floor for name, (floor, _) in FLOORS.items()
    }


def test_packages_depend_on_each_library() -> None:
    recipe = (ROOT / "packaging" / "arch" / "PKGBUILD").read_text()
    depends = set(re.search(r"^depends=\((.*?)\)", recipe, re.M | re.S)[1].split())  # type: ignore[index]
    required = {package for each, package in ARCH.items() if each not in OPTIONAL}
    assert {f"'{each}'" for each in required} <= depends
    assert not {f"'{each}'" for each in OPTIONAL} & depends
    assert all(f"\n    '{each}: " in recipe for each in OPTIONAL)
    srcinfo = (ROOT / "packaging" / "arch" / ".SRCINFO").read_text()
    assert required <= set(re.findall(r"^\tdepends = (\S+)$", srcinfo, re.M))
    assert set(re.findall(r"^\toptdepends = (\S+):", srcinfo, re.M)) >= OPTIONAL
    control = (ROOT / "packaging" / "deb" / "debian" / "control").read_text()
    source, package, _page = control.split("\n\n")
    # dh_python3 derives them from pyproject.toml, without versions; Debian 12 has the oldest.
    assert " ${python3:Depends}," in package
    needed = set(re.findall(r"^ (python3-\S+?),?(?: |$)", source, re.M))
    assert {DEBIAN[each] for each in DEBIAN if each not in OPTIONAL} <= needed
    recommends = package.partition("Recommends:")[2].partition("Description:")[0].split(",")
    assert {DEBIAN[each] for each in OPTIONAL} <= {each.strip() for each in recommends}
    for name, floor in re.findall(r"(python3-\S+) \(>= (\S+)\)", control):
        assert floor == FLOORS[next(each for each in DEBIAN if DEBIAN[each] == name)][0]


def test_supply_page_has_a_row_without_failure_for_each_combination() -> None:
    assert [which(line) for line in lines(PAGE.read_text())] == [
        (each.python, each.libraries) for each in COMBINATIONS
    ]
    for each, row in zip(COMBINATIONS, page(), strict=True):
        if row["passed"] == "not run":
            assert not each.ci
        else:
            assert (int(row["passed"]) > 300, row["failed"]) == (True, "0")
            assert row["in CI"] == ("yes" if each.ci else "no")


def test_supply_page_has_the_pinned_newest_versions() -> None:
    newest = {each: locked("newest")[each] for each in LIBRARIES}
    for row in page():
        if row["libraries"] == "newest" and row["passed"] != "not run":
            stands = {each: row[each] for each in LIBRARIES}
            assert stands == newest, "`make test-supply` writes docs/supply.md"


def test_partial_run_keeps_the_rows_of_other_combinations(tmp_path: Path) -> None:
    one, other = COMBINATIONS[1], COMBINATIONS[3]
    write([ran_result(one, "3.11.2")], tmp_path)
    write([ran_result(other, "3.13.5", failed=("tests.x test_y",))], tmp_path)
    rows = lines((tmp_path / "supply.md").read_text())
    assert [row[9:12] for row in rows if row[9] != "not run"] == [["7", "0", "0"], ["7", "1", "0"]]
    assert [which(row) for row in rows] == [(each.python, each.libraries) for each in COMBINATIONS]
    assert "| 0123456789ab |" in (tmp_path / "supply.md").read_text()


def ran_result(combination: Combination, python: str, failed: tuple[str, ...] = ()) -> Ran:
    return Ran(
        id=combination.id,
        versions={"python": python} | dict.fromkeys(LIBRARIES, "1"),
        passed=7,
        failed=failed,
        skipped=(),
        date="2026-11-23",
        commit="0123456789abcdef0123456789abcdef01234567",
    )


@pytest.mark.parametrize("name", ["build", "test", "tools", "newest"])
def test_every_pip_requirement_is_pinned_with_hashes(name: str) -> None:
    text = (LOCK / f"{name}.txt").read_text()
    logical = text.replace("\\\n", " ").splitlines()
    wanted = [line for line in logical if line and not line.lstrip().startswith("#")]
    assert wanted
    for line in wanted:
        assert re.match(r"[a-z0-9._-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line), line
    assert "://" not in text


@pytest.mark.parametrize("name", ["build", "test", "tools", "newest"])
def test_every_dependency_in_pyproject_is_pinned(name: str) -> None:
    groups = PYPROJECT["dependency-groups"]
    newest = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["legacy"]]
    named = newest if name == "newest" else groups[name]
    pinned = locked(name)
    assert {re.match(r"[a-z-]+", each)[0] for each in named} <= set(pinned)  # type: ignore[index]


@pytest.mark.parametrize("name", ["build", "test"])
def test_installed_versions_match_the_pinned_versions(name: str) -> None:
    pinned = locked(name)
    assert {each: importlib.metadata.version(each) for each in pinned} == pinned


def test_versions_pinned_in_two_files_are_equal() -> None:
    build, test = locked("build"), locked("test")
    assert {each: build[each] for each in build.keys() & test} == {
        each: test[each] for each in build.keys() & test
    }


def test_licence_of_each_dependency_is_listed() -> None:
    """From the metadata of each installed distribution."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("### Licences")[2]
    table = re.findall(r"^\| `([A-Za-z0-9. -]+)` \| (.+) \|$", text, re.M)
    listed = {name: licence for licence, names in table for name in names.split(", ")}
    if not NEWEST.exists():
        lack("the newest libraries; `make .venv/newest/.stamp` gets them")
    here = {
        each: importlib.metadata.distribution(each) for each in locked("build") | locked("test")
    }
    newest = {
        each: next(iter(importlib.metadata.distributions(name=each, path=[str(NEWEST)])))
        for each in locked("newest")
    }
    assert listed == {name: licence(dist) for name, dist in sorted((here | newest).items())}


def licence(distribution: importlib.metadata.Distribution) -> str:
    said = distribution.metadata
    # For a missing name some Pythons return None, and others warn.
    expression = next(
        (said[each] for each in ("License-Expression", "License") if each in said), ""
    )
    if re.fullmatch(r"[A-Z][A-Za-z0-9.-]+( OR [A-Z][A-Za-z0-9.-]+)*", expression):
        return expression
    classifiers = said.get_all("Classifier") or []
    (name,) = {each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License ::")}
    return LICENCES.get(expression) or LICENCES[name]


def test_own_licence_is_the_same_in_all_files() -> None:
    assert PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n")
    packaging = ROOT / "packaging"
    # Debian's name for the MIT licence.
    assert "License: Expat\n" in (packaging / "deb" / "debian" / "copyright").read_text()
    assert "license=('MIT')" in (packaging / "arch" / "PKGBUILD").read_text()
