"""The text of docs/behaviour.md from measured and read results."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ipv6natd import __version__
from tests.docs.test_report import repository as repository
from tests.harness.behaviour import Row, rows, text
from tests.harness.report import Outcome, Ran, Report, commit

P1 = Row(
    id="P1",
    asked="a client asks",
    expected="it is answered",
    rival="holds",
    rival_source="manager.go",
)


def ran(
    outcome: Outcome,
    *,
    native: bool = False,
    name: str = "tests/system/packets/test_p1",
    id: str = "P1",
) -> Ran:
    return Ran(
        name=name, scenarios=(id,), engine="28.5.2", where="sid", native=native, outcome=outcome
    )


def cells(page: str, id: str = "P1") -> list[str]:
    """The result cells of one row: ipv6natd, Docker alone, docker-ipv6nat."""
    (line,) = [each for each in page.splitlines() if each.startswith(f"| {id} |")]
    return line.strip("| ").split(" | ")[2:]


@pytest.fixture
def report(repository: Path) -> Report:
    return Report(repository)


def odd(page: str) -> list[str]:
    return page.partition("## Not explained\n\n")[2].splitlines()


def test_what_holds_is_measured_at_a_commit_and_on_a_day(report: Report) -> None:
    report.ran += [ran("passed"), ran("passed", native=True), ran("skipped")]
    page = text([P1], report)
    assert cells(page) == [
        f"holds · measured ({__version__} at {commit(report.root)[:12]}, {report.date})",
        f"holds · measured (28.5.2, {report.date})",
        "holds · read (manager.go)",
    ]
    assert odd(page) == ["Nothing."]


@pytest.mark.parametrize(
    ("words", "outcomes", "cell", "left"),
    [
        ("differs: it hangs", ["passed", "failed"], "differs: it hangs", 0),
        ("", ["failed"], "differs", 1),
        ("holds: as it likes", ["failed"], "differs", 1),
        ("holds: as it likes", ["passed"], "holds: as it likes", 0),
        ("differs: it hangs", ["passed"], "holds", 1),
    ],
)
def test_words_are_said_of_docker_only_if_they_are_what_was_measured(
    report: Report, words: str, outcomes: list[Outcome], cell: str, left: int
) -> None:
    report.ran += [ran("passed"), *(ran(each, native=True) for each in outcomes)]
    page = text([dataclasses.replace(P1, native=words)], report)
    assert cells(page)[1] == f"{cell} · measured (28.5.2, {report.date})"
    assert len([line for line in odd(page) if line != "Nothing."]) == left


def test_what_nobody_measured_is_read_or_to_be_explained(report: Report) -> None:
    native = {"native": "does not arise: x", "native_source": "moby"}
    row = dataclasses.replace(P1, untested="no such kernel", untested_source="y", **native)
    page = text([row], report)
    assert cells(page)[:2] == ["no such kernel · read (y)", "does not arise: x · read (moby)"]
    assert odd(page) == ["Nothing."]
    assert len(odd(text([P1], report))) == 2


def test_a_run_keeps_what_it_did_not_measure(report: Report) -> None:
    first = (
        f"| P1 | x | differs · measured (0 at {'a' * 12}, 2026-01-01) | holds · read (y) | z |\n"
    )
    report.ran += [ran("failed", native=True)]
    page = text([dataclasses.replace(P1, native="differs: it hangs")], report, first)
    assert cells(page)[0] == f"differs · measured (0 at {'a' * 12}, 2026-01-01)"
    assert cells(page)[1] == f"differs: it hangs · measured (28.5.2, {report.date})"
    assert odd(page) == ["- P1: ipv6natd fails this scenario"]
    again = dataclasses.replace(P1, native="differs: it waits")
    page = text([again], Report(report.root), page)
    assert cells(page)[1] == f"differs: it waits · measured (28.5.2, {report.date})"
    assert text([again], Report(report.root), page) == page


def test_a_row_takes_the_tests_of_its_own_scenario_alone(report: Report) -> None:
    shared = "tests/system/packets/test_hairpin.py::test_h2_h3[nft-{}]"
    report.ran += [
        ran("passed", name=shared.format("proxy"), id="H2"),
        ran("failed", name=shared.format("noproxy"), id="H2"),
    ]
    row = dataclasses.replace(P1, id="H2", where="-proxy")
    assert cells(text([row], report), "H2")[0].startswith("holds · measured")


def test_what_was_measured_without_packets_says_so(report: Report) -> None:
    report.ran += [ran("passed", name="tests/unit/test_p1")]
    assert cells(text([P1], report))[0].startswith("holds, without packets · measured")
    report.ran += [ran("passed")]
    assert cells(text([P1], report))[0].startswith("holds · measured")


def test_no_word_of_a_row_breaks_the_table_or_begins_wrongly() -> None:
    for row in rows():
        for words in (row.asked, row.expected, row.native, row.native_source, row.untested):
            assert "|" not in words + row.rival + row.rival_source, row.id
        for words in filter(None, (row.native, row.rival)):
            assert words.startswith(("holds", "differs: ", "does not arise: ")), row.id
