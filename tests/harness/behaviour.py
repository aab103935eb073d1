"""docs/behaviour.md: scenarios with ipv6natd, with Docker alone and with docker-ipv6nat.

One row per scenario. tests/data/behaviour.toml has the scenario and what was read, with the source.
The tests whose names contain a scenario's id give the measured result. A cell that a run did not
measure keeps the last measured result, with its version and date.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from ipv6natd import __version__
from tests import ROOT
from tests.harness.report import Ran, Report, commit, table

DATA = ROOT / "tests" / "data" / "behaviour.toml"

RIVAL = "docker-ipv6nat 0.4.4"
HEAD = f"""\
# Behaviour in each scenario

The result of each scenario in three configurations: ipv6natd with an engine that writes no IPv6
rules; Docker 28.5 alone, with its own IPv6 rules; and {RIVAL} with an engine that writes no
IPv6 rules. `make test-all` writes this page from the tests whose names contain a scenario's id, and
from tests/data/behaviour.toml.

"Holds" means that the result is as expected. **Measured** cells name the version and the date.
Unless the cell says otherwise, packets were sent, on the engines of [engines.md](engines.md), with
the userland proxy and without. **Read** cells name the source in the code. The *client* is a
machine on the host's link. The *rogue* is a second machine there, which sends packets for
container addresses to the host. The host has two public addresses.
"""

GROUPS = {
    "P": "Published ports",
    "B": "Bindings to addresses",
    "R": "Ranges, and ports that Docker chooses",
    "U": "UDP",
    "S": "SCTP",
    "O": "Outgoing connections",
    "H": "From the host and from containers to a published port",
    "I": "Isolation",
    "V": "Options of networks",
    "M": "Several networks",
    "W": "Swarm",
    "T": "Starts, stops and races",
    "F": "Other programs that write to the tables",
    "C": "An engine that writes IPv6 rules itself",
    "K": "The host",
    "Q": "In the field",
}

Verdict = Literal["holds", "differs"]
STAMP = re.compile(r"(holds|differs).* · (measured \(.+\))")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A scenario. `native` and `rival` begin with "holds", "differs: " or "does not arise: "."""

    id: str
    asked: str
    expected: str
    where: str = ""
    """A pattern for the names of its tests, if a test covers several scenarios."""
    untested: str = ""
    """The reason why no test measures this scenario with ipv6natd."""
    untested_source: str = ""
    native: str = ""
    native_source: str = ""
    """The source of `native`. Without a source `native` explains the measured result."""
    rival: str
    rival_source: str


def rows(data: Path = DATA) -> list[Row]:
    """All scenarios in the order of the page."""
    found = tomllib.loads(data.read_text())
    order = list(GROUPS)
    made = [Row(id=key, **words) for key, words in found.items()]
    return sorted(made, key=lambda row: (order.index(row.id[0]), int(row.id[1:])))


def write(report: Report, folder: Path) -> None:
    """Write docs/engines.md and docs/behaviour.md from the results of this run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "engines.md").write_text(report.text())
    page = folder / "behaviour.md"
    before = page.read_text() if page.exists() else ""
    page.write_text(text(rows(), report, before))


def text(rows: Sequence[Row], report: Report, before: str = "") -> str:
    """The new page; `before` is the old page."""
    stood, tested = dict(cells(before)), ours(report.root)
    lines, odd = {}, []
    for row in rows:
        old = stood.get(row.id, ("", ""))
        beside = newer(old[0], stamped(row, report, tested))
        alone = newer(old[1], stamped(row, report))
        lines[row.id] = (
            row.id,
            f"{row.asked} → {row.expected}",
            beside or read(row.untested, row.untested_source),
            said(row.native, alone) if alone else read(row.native, row.native_source),
            read(row.rival, row.rival_source),
        )
        odd += [f"- {row.id}: {why}" for why in unexplained(row, beside, alone)]
    head = ("id", "scenario → expected", "ipv6natd", "Docker 28.5 alone", RIVAL)
    parts = [HEAD]
    for letter, group in groupby(lines, key=lambda each: each[0]):
        parts.append(f"## {GROUPS[letter]}\n\n" + table(head, (lines[each] for each in group)))
    parts.append("## Not explained\n\n" + ("\n".join(odd) or "Nothing.") + "\n")
    return "\n".join(parts)


def stamped(row: Row, report: Report, tested: str = "") -> str:
    """The measured result, such as "holds · measured (28.5.2, 2026-11-23)"; "" if no test ran.

    With `tested`, a version of ipv6natd, the result of ipv6natd; else that of Docker alone.
    """
    ran = [each for each in report.ran if each.native != bool(tested) and belongs(each, row)]
    if not ran:
        return ""
    verdict: Verdict = "differs" if any(each.outcome == "failed" for each in ran) else "holds"
    packets = any(each.name.startswith("tests/system/packets/") for each in ran)
    version = tested or ", ".join(sorted({each.engine for each in ran}))
    how = verdict if packets else f"{verdict}, without packets"
    return f"{how} · measured ({version}, {report.date})"


def belongs(ran: Ran, row: Row) -> bool:
    return bool(
        row.id in ran.scenarios and ran.outcome != "skipped" and re.search(row.where, ran.name)
    )


def ours(root: Path) -> str:
    """The measured version and commit of ipv6natd."""
    found, _, changes = commit(root).partition(" ")
    return f"{__version__} at {found[:12]}" + " and changes" * bool(changes)


def newer(old: str, new: str) -> str:
    """The new result, or else the old one if it was measured."""
    return new or (old if STAMP.fullmatch(old) else "")


def said(words: str, measured: str) -> str:
    """The measured result, with the description if the verdict is the same."""
    found = STAMP.fullmatch(measured)
    assert found is not None
    return f"{words if words.startswith(found[1]) else found[1]} · {found[2]}"


def read(words: str, source: str) -> str:
    return f"{words} · read ({source})" if words and source else "?"


def unexplained(row: Row, beside: str, alone: str) -> Iterator[str]:
    """The contradictions of a row that a developer must resolve."""
    if beside.startswith("differs"):
        yield "ipv6natd fails this scenario"
    if not beside and not row.untested:
        yield "no test has measured ipv6natd, and no reason is given"
    if alone.startswith("differs") and not row.native.startswith("differs: "):
        yield "Docker alone fails this scenario, and no description is given"
    if alone.startswith("holds") and row.native.startswith("differs"):
        yield "Docker alone passes this scenario, and the description says otherwise"
    if not alone and not (row.native and row.native_source):
        yield "Docker alone was neither measured nor read"


def contradicted(rows: Sequence[Row], tested: Collection[str], page: str) -> list[str]:
    """Scenarios that have a test, although the data or the page say that no test exists."""
    stands = dict(cells(page))
    return [
        row.id
        for row in rows
        if row.id in tested and (row.untested or " · measured (" not in stands[row.id][0])
    ]


def cells(page: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """For each id, the two measured columns."""
    for line in page.splitlines():
        found = line.strip("| ").split(" | ")
        if len(found) == 5 and re.fullmatch(r"[A-Z]\d+", found[0]):
            yield found[0], (found[2], found[3])
