"""docs/engines.md and the age of reports, as `make test-all` writes them."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from tests.harness.report import LIMIT, OWN, Outcome, Ran, Report, commit, scenarios, stale


@pytest.mark.parametrize(
    ("name", "doc", "ids"),
    [
        ("test_p1_u1_container_sees_the_client", None, ("P1", "U1")),
        ("test_h14_a_link_local_client", "Why.", ("H14",)),
        ("test_tcp_and_udp_are_independent", "U6", ("U6",)),
        ("test_the_host_stays_reachable", None, ()),
    ],
)
def test_ids_of_scenarios_come_from_names(name: str, doc: str | None, ids: tuple[str]) -> None:
    assert scenarios(name, doc) == ids


def ran(ids: str, engine: str, where: str, outcome: Outcome) -> Ran:
    return Ran(
        name=f"tests/system/packets/test_{ids}[{where}]",
        scenarios=tuple(ids.split()),
        engine=engine,
        where=where,
        outcome=outcome,
    )


def test_the_report_counts_by_engine_and_by_scenario(repository: Path) -> None:
    report = Report(repository)
    report.ran += [
        ran("P1 P10", "28.5.2", "sid-nft-proxy", "failed"),
        ran("P1", "20.10.24", "nft-proxy", "passed"),
        ran("P1 P2", "20.10.24", "nft-noproxy", "passed"),
        ran("T1", "20.10.24", OWN, "skipped"),
        dataclasses.replace(ran("P1", "28.5.2", "native", "failed"), native=True),
        dataclasses.replace(ran("P1", "of no engine", OWN, "failed"), name="tests/unit/test_p1"),
    ]
    text = report.text()
    assert f"| commit | {commit(repository)} |\n" in text
    assert text[text.index("## Tests") :] == (
        "## Tests\n\n"
        "| engine | where | passed | failed | skipped |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| Docker 20.10.24 | nft-proxy | 1 | 0 | 0 |\n"
        "| Docker 20.10.24 | nft-noproxy | 1 | 0 | 0 |\n"
        "| Docker 20.10.24 | a lab of its own | 0 | 0 | 1 |\n"
        "| Docker 28.5.2 | sid-nft-proxy | 0 | 1 | 0 |\n"
        "\n"
        "## Scenarios\n\n"
        "| id | Docker 20.10.24 | Docker 28.5.2 |\n"
        "| --- | --- | --- |\n"
        "| P1 | 2 passed | 1 failed |\n"
        "| P2 | 1 passed | not run |\n"
        "| P10 | not run | 1 failed |\n"
        "| T1 | 1 skipped | not run |\n"
        "\n"
        "## Failed\n\n"
        "- Docker 28.5.2: tests/system/packets/test_P1 P10[sid-nft-proxy]\n"
    )
    assert stale(repository, text) is None


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    change(tmp_path, "ipv6natd/desired.py", 1)
    return tmp_path


def git(root: Path, *words: str) -> None:
    settings = ("user.name=test", "user.email=test@example.com", "commit.gpgsign=false")
    options = [word for setting in settings for word in ("-c", setting)]
    subprocess.run(("git", "-C", str(root), *options, *words), check=True, capture_output=True)


def change(root: Path, file: str, times: int) -> None:
    path = root / file
    path.parent.mkdir(exist_ok=True)
    for _ in range(times):
        with path.open("a") as lines:
            lines.write("one more\n")
        git(root, "add", file)
        git(root, "commit", "--quiet", "--message", f"change {file}")


def test_only_commits_to_what_decides_make_a_report_old(repository: Path) -> None:
    text = f"| commit | {commit(repository)} |\n"
    change(repository, "README.md", 2)
    change(repository, "ipv6natd/ruleset_more.py", LIMIT)
    assert stale(repository, text) is None
    change(repository, "ipv6natd/docker_facts.py", 1)
    assert "21 commits" in (stale(repository, text) or "")


def test_a_tree_with_changes_says_so_and_still_names_its_commit(repository: Path) -> None:
    (repository / "ipv6natd/desired.py").write_text("changed\n")
    assert commit(repository).endswith(" (and changes to it)")
    assert stale(repository, f"| commit | {commit(repository)} |\n") is None


def test_a_report_that_cannot_be_dated_says_why(repository: Path, tmp_path: Path) -> None:
    text = f"| commit | {commit(repository)} |\n"
    change(repository, "ipv6natd/desired.py", 2)
    shallow = tmp_path / "shallow"
    git(repository, "clone", "--quiet", "--depth=1", f"file://{repository}", str(shallow))
    assert "git fetch --unshallow" in (stale(shallow, text) or "")
    assert "is not in this repository" in (stale(repository, f"| commit | {'0' * 40} |") or "")
    bare = tmp_path / "bare"
    bare.mkdir()
    assert "names no commit" in (stale(bare, "") or "")
