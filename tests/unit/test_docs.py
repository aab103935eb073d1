"""The pages of docs/ that are written from what the tests know.

`UPDATE_DOCS=1 .venv/bin/pytest tests/unit/test_docs.py` writes them anew.
"""

from __future__ import annotations

import os

import pytest

from tests.unit.docs import KINDS, RULES_MD, SHAPES, reasons, rules_md
from tests.unit.test_ruleset import GOLDEN, SITUATIONS

COMMAND = "UPDATE_DOCS=1 .venv/bin/pytest tests/unit/test_docs.py"
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


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_there_for_one_reason(rule: str) -> None:
    assert len(reasons(rule)) == 1


def test_every_reason_is_that_of_a_rule() -> None:
    assert {shape for rule in RULES for shape in reasons(rule)} == set(SHAPES)
