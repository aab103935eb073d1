"""The generated pages docs/rules.md, docs/behaviour.md and docs/engines.md.

`UPDATE_DOCS=1 .venv/bin/pytest tests/docs/test_docs.py` writes the first two again.
"""

from __future__ import annotations

import ast
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests import ROOT
from tests.docs.pages_of_rules import KINDS, RULES_MD, SHAPES, reasons, rules_md
from tests.harness import behaviour
from tests.harness.every import every
from tests.harness.needs import lack
from tests.harness.report import Report, scenarios, stale
from tests.unit.policy.test_ruleset import GOLDEN, SITUATIONS

ENGINES_MD, BEHAVIOUR_MD = ROOT / "docs" / "engines.md", ROOT / "docs" / "behaviour.md"
COMMAND = "UPDATE_DOCS=1 .venv/bin/pytest tests/docs/test_docs.py"
RULES = sorted(
    {
        line
        for path in GOLDEN.glob("*.txt")
        for line in path.read_text().splitlines()
        if line.startswith("-A")
    }
)


def test_the_page_of_rules_is_up_to_date() -> None:
    text = rules_md()
    if os.environ.get("UPDATE_DOCS"):
        RULES_MD.parent.mkdir(exist_ok=True)
        RULES_MD.write_text(text)
    stands = RULES_MD.read_text() if RULES_MD.exists() else ""
    assert stands == text, f"docs/rules.md is stale; this writes it: {COMMAND}"


def test_every_kind_of_network_is_described() -> None:
    assert list(KINDS) == list(SITUATIONS)


@every("rule", RULES)
def test_every_rule_is_there_for_one_reason(rule: str) -> None:
    assert len(reasons(rule)) == 1


def test_every_reason_is_that_of_a_rule() -> None:
    assert {shape for rule in RULES for shape in reasons(rule)} == set(SHAPES)


@pytest.mark.parametrize("page", [ENGINES_MD, BEHAVIOUR_MD], ids=lambda page: page.name)
def test_what_was_measured_is_about_the_rules_that_are_made_now(page: Path) -> None:
    why = stale(ROOT, page.read_text()) if page.exists() else "there is none"
    if why is not None:
        lack(f"a new docs/{page.name}: {why}; `make test-all` writes it")


def test_the_page_of_behaviour_says_what_its_words_are_now() -> None:
    """The update of the words keeps the measured results."""
    stands = BEHAVIOUR_MD.read_text()
    text = behaviour.text(behaviour.rows(), Report(ROOT), stands)
    if os.environ.get("UPDATE_DOCS"):
        BEHAVIOUR_MD.write_text(text)
        stands = text
    assert stands == text, f"docs/behaviour.md is stale; this writes it: {COMMAND}"


def test_no_cell_of_behaviour_is_without_its_basis() -> None:
    page = BEHAVIOUR_MD.read_text()
    for line in page.splitlines():
        if re.match(r"\| [A-Z]\d", line):
            *_, ours, alone, rival = line.strip("| ").split(" | ")
            for cell in (ours, alone, rival):
                assert re.fullmatch(r"[^·?]+ · (measured|read) \(.+\)", cell), line
    assert page.endswith("## Not explained\n\nNothing.\n")


COUNTS = [16, 16, 8, 8, 2, 10, 16, 15, 8, 8, 6, 15, 12, 9, 7]


def test_every_scenario_is_there_and_in_a_test_or_with_the_reason_why_not() -> None:
    rows = behaviour.rows()
    count = Counter(row.id[0] for row in rows)
    assert [count[letter] for letter in "PBRUSOHIVMWTFCK"] == COUNTS
    tested = with_a_test("tests/**/test_*.py")
    assert {row.id for row in rows if not row.untested} <= tested
    assert tested <= {row.id for row in rows}


def test_no_scenario_that_has_a_test_is_said_to_have_none() -> None:
    # The tests in test_native.py measure Docker alone.
    ours = with_a_test("tests/**/test_*.py", besides="test_native.py")
    assert behaviour.contradicted(behaviour.rows(), ours, BEHAVIOUR_MD.read_text()) == []


def test_words_that_tests_have_overtaken_are_found() -> None:
    row, *rest = behaviour.rows()
    page = BEHAVIOUR_MD.read_text()
    overtaken = replace(row, untested="holds", untested_source="by eye")
    assert behaviour.contradicted([overtaken, *rest], {row.id}, page) == [row.id]
    measured = dict(behaviour.cells(page))[row.id][0]
    by_eye = page.replace(measured, "holds · read (by eye)", 1)
    assert behaviour.contradicted([row, *rest], {row.id}, by_eye) == [row.id]
    assert behaviour.contradicted([overtaken, *rest], set(), page) == []


def with_a_test(pattern: str, besides: str = "") -> set[str]:
    """The scenarios of all tests in these files."""
    return {
        scenario
        for path in ROOT.glob(pattern)
        if path.name != besides
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        for scenario in scenarios(node.name, ast.get_docstring(node))
    }
