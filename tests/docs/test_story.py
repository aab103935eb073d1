"""The text of docs/booted.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness import story
from tests.harness.story import Check


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees of two suites with different facts, and a commit."""
    monkeypatch.setenv("IPV6NATD_TREES", str(tmp_path))
    monkeypatch.setattr(story, "commit", lambda root: f"that of {root}")
    for suite, versions in (
        ("bookworm", {"systemd": "252", "docker.io": "20.10", "lintian": "2"}),
        ("sid", {"systemd": "262"}),
    ):
        (tmp_path / suite).mkdir()
        (tmp_path / suite / "stamp.json").write_text(json.dumps(versions))


def test_the_story_has_a_row_for_each_check_and_a_column_for_each_suite(tmp_path: Path) -> None:
    checks = [
        Check(suite="sid", name="test_it_comes_back", outcome="failed"),
        Check(suite="bookworm", name="test_it_is_reached", outcome="passed"),
        Check(suite="bookworm", name="test_it_comes_back", outcome="passed"),
    ]
    story.write(checks, Path("/there"), tmp_path)
    text = (tmp_path / "booted.md").read_text()
    assert "| commit | that of /there |\n" in text
    assert "|  | bookworm | sid |\n" in text
    assert "| systemd | 252 | 262 |\n" in text
    assert "| docker.io | 20.10 |  |\n" in text
    assert "lintian" not in text
    assert text[text.index("## Checks") :] == (
        "## Checks\n\n"
        "| check | bookworm | sid |\n"
        "| --- | --- | --- |\n"
        "| it comes back | passed | failed |\n"
        "| it is reached | passed | not run |\n"
    )


def test_where_nothing_booted_the_last_story_stays(tmp_path: Path) -> None:
    (tmp_path / "booted.md").write_text("of last time\n")
    story.write([], tmp_path, tmp_path)
    assert (tmp_path / "booted.md").read_text() == "of last time\n"
