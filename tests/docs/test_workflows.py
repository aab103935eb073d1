"""The workflows of the forge: valid, and only targets of the Makefile that exist."""

from __future__ import annotations

import re

import pytest

from tests import ROOT
from tests.harness.needs import lack
from tests.harness.process import run

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TOOL = ROOT / ".venv/tools/bin/check-jsonschema"


def test_workflows_call_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [path.read_text() for path in WORKFLOWS]
    called = {name for text in texts for name in re.findall(r"- run: make ([a-z-]+)", text)}
    assert {"check", "test", "release"} <= called <= targets


@pytest.mark.slow
def test_workflows_have_the_schema_of_the_forge() -> None:
    if not TOOL.exists():
        lack("check-jsonschema; `make .venv/tools/.stamp` gets it")
    schema = "vendor.github-workflows"
    assert "ok" in run(str(TOOL), "--builtin-schema", schema, *map(str, WORKFLOWS))
