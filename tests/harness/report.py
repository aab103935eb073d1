"""docs/engines.md: what the packet suite said on each engine, and how old that is.

It is written by `make test-all`, which takes longer than CI has; CI only looks at its age.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from tests.harness.needs import PATH

Outcome = Literal["passed", "failed", "skipped"]
OUTCOMES: tuple[Outcome, ...] = ("passed", "failed", "skipped")

OWN = "a lab of its own"
"""Where tests run that share no regime; their variant and proxy are as they please."""

DECIDES = (
    *("ipv6natd/netfilter", "ipv6natd/policy", "ipv6natd/engine/parse.py"),
    # As they were called before the packages.
    *("ipv6natd/rule*.py", "ipv6natd/desired.py", "ipv6natd/docker_facts.py"),
    *("ipv6natd/claims.py", "ipv6natd/networks.py"),
)
"""What decides where packets go, and so what a report is about."""

LIMIT = 20
"""Commits to these files after which a report says too little."""

HEAD = """\
# The packet suite on each engine

Written by `make test-all`, not by hand: tests/system/packets, with real engines that make no IPv6
rules themselves, and a peer on the wire. What each scenario asks stands in the test that carries
its id.

| | |
|---|---|
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A test that ran once."""

    name: str
    scenarios: tuple[str, ...]
    engine: str
    """Its version; it heads the columns."""
    where: str
    """The regime's name, or OWN."""
    native: bool = False
    """Whether it asked an engine that does IPv6 NAT by itself, without ipv6natd."""
    outcome: Outcome


@dataclass(slots=True)
class Report:
    """What has run so far."""

    root: Path
    ran: list[Ran] = field(default_factory=list)

    @property
    def date(self) -> str:
        return datetime.now(UTC).date().isoformat()

    @property
    def beside(self) -> list[Ran]:
        """With packets, and an engine that leaves IPv6 to ipv6natd."""
        here = (each for each in self.ran if each.name.startswith("tests/system/packets/"))
        return [each for each in here if not each.native]

    def text(self) -> str:
        facts = {
            "commit": commit(self.root),
            "date": self.date,
            "engines": ", ".join(f"Docker {engine}" for engine in self.engines),
            "kernel": os.uname().release,
            "ip6tables": said("ip6tables", "--version").removeprefix("ip6tables "),
        }
        head = HEAD + "".join(f"| {key} | {value} |\n" for key, value in facts.items())
        failed = [f"- Docker {each.engine}: {each.name}" for each in self.beside if is_failed(each)]
        parts = [
            head,
            "## Tests\n\n" + table(("engine", "where", *OUTCOMES), self.runs()),
            "## Scenarios\n\n"
            + table(("id", *(f"Docker {each}" for each in self.engines)), self.scenarios()),
            "## Failed\n\n" + ("\n".join(sorted(failed)) or "Nothing.") + "\n",
        ]
        return "\n".join(parts)

    @property
    def engines(self) -> list[str]:
        return sorted({each.engine for each in self.beside}, key=numbers)

    def runs(self) -> Iterator[Sequence[str]]:
        for engine in self.engines:
            # In the order in which they ran.
            for where in dict.fromkeys(each.where for each in self.beside if each.engine == engine):
                here = [e.outcome for e in self.beside if (e.engine, e.where) == (engine, where)]
                yield f"Docker {engine}", where, *(str(here.count(each)) for each in OUTCOMES)

    def scenarios(self) -> Iterator[Sequence[str]]:
        ids = {scenario for each in self.beside for scenario in each.scenarios}
        for scenario in sorted(ids, key=lambda each: (each[0], int(each[1:]))):
            yield scenario, *(self.result(scenario, engine) for engine in self.engines)

    def result(self, scenario: str, engine: str) -> str:
        """Such as "4 passed", over all tests and regimes."""
        here = [e for e in self.beside if e.engine == engine and scenario in e.scenarios]
        count = Counter(each.outcome for each in here)
        return ", ".join(f"{count[each]} {each}" for each in OUTCOMES if count[each]) or "not run"


def is_failed(ran: Ran) -> bool:
    return ran.outcome == "failed"


def scenarios(name: str, doc: str | None = None) -> tuple[str, ...]:
    """The ids that a test begins its name with, or is documented with alone.

    >>> scenarios("test_h4_h5_an_own_port")
    ('H4', 'H5')
    """
    named = re.match(r"test_((?:[a-z]\d+_)+)", name)
    found = re.findall(r"[a-z]\d+", named[1]) if named else []
    if doc is not None and re.fullmatch(r"[A-Z]\d+(, [A-Z]\d+)*", doc.strip()):
        found += doc.strip().split(", ")
    return tuple(each.upper() for each in found)


def numbers(version: str) -> list[int]:
    return [int(each) for each in re.findall(r"\d+", version)]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def commit(root: Path) -> str:
    """The commit that was tested."""
    # What a run writes into docs/ is no change to what it tests.
    changed = git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")
    return git(root, "rev-parse", "HEAD") + " (and changes to it)" * bool(changed)


def stale(root: Path, text: str) -> str | None:
    """Why a report is too old to be believed, or cannot be dated; None if it is good."""
    found = re.findall(r"(?:^\| commit \| |\bat )([0-9a-f]{12,40})\b", text, re.MULTILINE)
    if not found:
        return "it names no commit"
    return next(filter(None, (outdated(root, each) for each in dict.fromkeys(found))), None)


def outdated(root: Path, commit: str) -> str | None:
    """Why what was measured at a commit says too little now."""
    try:
        git(root, "cat-file", "-e", f"{commit}^{{commit}}")
    except GitError as error:
        if git_says(root, "rev-parse", "--is-shallow-repository") == "true":
            return f"this clone is shallow and lacks commit {commit}: `git fetch --unshallow`"
        return f"its commit {commit} is not in this repository ({error})"
    count = int(git(root, "rev-list", "--count", f"{commit}..HEAD", "--", *DECIDES))
    if count > LIMIT:
        return f"{count} commits to what decides about packets came after it, more than {LIMIT}"
    return None


class GitError(Exception):
    """git's own words, or that there is none."""


def git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ("git", "-C", str(root), *words), check=False, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise GitError("there is no git") from None
    if done.returncode != 0:
        raise GitError(done.stderr.strip() or f"git {words[0]}: exit {done.returncode}")
    return done.stdout.strip()


def git_says(root: Path, *words: str) -> str:
    """What git says, or nothing."""
    try:
        return git(root, *words)
    except GitError:
        return ""


def said(*argv: str) -> str:
    """What a program says, or that it is not there."""
    try:
        done = subprocess.run(argv, check=False, capture_output=True, text=True, env={"PATH": PATH})
    except FileNotFoundError:
        return "none"
    return done.stdout.strip()
