"""docs/behaviour.md: who reaches what, with ipv6natd, with Docker alone and with docker-ipv6nat.

One row a scenario. What is asked, and what was read and where, stands in tests/data/behaviour.toml;
what was measured comes from the tests that carry the scenario's id. A cell that a run did not
measure keeps what was measured last, with its version and date.
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
# Who reaches what

What each scenario asks, and what happens: with ipv6natd in front of an engine that makes no IPv6
rules; with Docker 28.5 that makes its own, without ipv6natd; and with {RIVAL} in front of an
engine that makes none. Written by `make test-all` from the tests that carry a scenario's id and
from what was read (tests/data/behaviour.toml), not by hand.

"Holds" is what the scenario asks. **Measured** cells name the version and the day; packets, if not
said otherwise, on the engines of [engines.md](engines.md), with the userland proxy and without.
**Read** cells name the source. In the words of the scenarios the *client* is a neighbour of the
host, the *rogue* another one that sends what is for containers to the host; the host has two public
addresses.
"""

GROUPS = {
    "P": "Published ports",
    "B": "Bindings to addresses",
    "R": "Ranges, and ports that Docker chooses",
    "U": "UDP",
    "S": "SCTP",
    "O": "Outgoing",
    "H": "From the host and from containers to a published port",
    "I": "Isolation",
    "V": "Options of networks",
    "M": "Several networks",
    "W": "Swarm",
    "T": "Starts, stops and races",
    "F": "Others who write to the tables",
    "C": "An engine that does it itself",
    "K": "The host",
}

Verdict = Literal["holds", "differs"]
STAMP = re.compile(r"(holds|differs).* · (measured \(.+\))")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A scenario; words begin with "holds", "differs: " or "does not arise: "."""

    id: str
    asked: str
    expected: str
    where: str = ""
    """A pattern in the names of its tests, where several scenarios share them."""
    untested: str = ""
    """Why no test measures it with ipv6natd."""
    untested_source: str = ""
    native: str = ""
    native_source: str = ""
    """Where those words were read; without it they explain what is measured."""
    rival: str
    rival_source: str


def rows(data: Path = DATA) -> list[Row]:
    """All scenarios, in order."""
    found = tomllib.loads(data.read_text())
    order = list(GROUPS)
    made = [Row(id=key, **words) for key, words in found.items()]
    return sorted(made, key=lambda row: (order.index(row.id[0]), int(row.id[1:])))


def write(report: Report, folder: Path) -> None:
    """Both pages, of what has run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "engines.md").write_text(report.text())
    page = folder / "behaviour.md"
    before = page.read_text() if page.exists() else ""
    page.write_text(text(rows(), report, before))


def text(rows: Sequence[Row], report: Report, before: str = "") -> str:
    """The page; `before` is the one that stood there."""
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
    head = ("id", "asked → expected", "ipv6natd", "Docker 28.5 alone", RIVAL)
    parts = [HEAD]
    for letter, group in groupby(lines, key=lambda each: each[0]):
        parts.append(f"## {GROUPS[letter]}\n\n" + table(head, (lines[each] for each in group)))
    parts.append("## Not explained\n\n" + ("\n".join(odd) or "Nothing.") + "\n")
    return "\n".join(parts)


def stamped(row: Row, report: Report, tested: str = "") -> str:
    """What its tests measured, such as "holds · measured (28.5.2, 2026-11-23)"; or nothing.

    With a version it is about ipv6natd, else about Docker alone.
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
    """Which ipv6natd was measured."""
    found, _, changes = commit(root).partition(" ")
    return f"{__version__} at {found[:12]}" + " and changes" * bool(changes)


def newer(old: str, new: str) -> str:
    """What is measured now, or else what was."""
    return new or (old if STAMP.fullmatch(old) else "")


def said(words: str, measured: str) -> str:
    """What is measured, in these words if they say the same."""
    found = STAMP.fullmatch(measured)
    assert found is not None
    return f"{words if words.startswith(found[1]) else found[1]} · {found[2]}"


def read(words: str, source: str) -> str:
    return f"{words} · read ({source})" if words and source else "?"


def unexplained(row: Row, beside: str, alone: str) -> Iterator[str]:
    """What somebody has to look at."""
    if beside.startswith("differs"):
        yield "ipv6natd does not hold it"
    if not beside and not row.untested:
        yield "no test has measured ipv6natd, and nothing says why"
    if alone.startswith("differs") and not row.native.startswith("differs: "):
        yield "Docker alone does not hold it, and nothing says how"
    if alone.startswith("holds") and row.native.startswith("differs"):
        yield "Docker alone holds it, and the words say otherwise"
    if not alone and not (row.native and row.native_source):
        yield "nothing was measured or read of Docker alone"


def contradicted(rows: Sequence[Row], tested: Collection[str], page: str) -> list[str]:
    """Scenarios that a test holds ipv6natd to while the words or the page say that none does."""
    stands = dict(cells(page))
    return [
        row.id
        for row in rows
        if row.id in tested and (row.untested or " · measured (" not in stands[row.id][0])
    ]


def cells(page: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """By id, the two columns that are measured."""
    for line in page.splitlines():
        found = line.strip("| ").split(" | ")
        if len(found) == 5 and re.fullmatch(r"[A-Z]\d+", found[0]):
            yield found[0], (found[2], found[3])
