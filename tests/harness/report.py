"""docs/engines.md: the results of the packet suite on each engine, and their age.

`make test-all` writes this page and takes too long for CI. CI only checks the page's age.
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
"""The place of tests that share no regime and choose variant and proxy themselves."""

DECIDES = (
    *("ipv6natd/netfilter", "ipv6natd/policy", "ipv6natd/engine/parse.py"),
    # The names before the packages.
    *("ipv6natd/rule*.py", "ipv6natd/desired.py", "ipv6natd/docker_facts.py"),
    *("ipv6natd/claims.py", "ipv6natd/networks.py"),
)
"""The files that decide where packets go. A report is about these files."""

LIMIT = 20
"""A report is outdated after so many commits to these files."""

HEAD = """\
# The packet suite on each engine

Written by `make test-all`: tests/system/packets, with real engines that write no IPv6 rules, and a
peer on the link. The test whose name contains the id describes the scenario, and so does
[behaviour.md](behaviour.md).

| | |
|---|---|
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """The result of one test."""

    name: str
    scenarios: tuple[str, ...]
    engine: str
    """The version of the engine."""
    where: str
    """The name of the regime, or OWN."""
    native: bool = False
    """True if the engine did IPv6 NAT itself, without ipv6natd."""
    outcome: Outcome


@dataclass(slots=True)
class Report:
    """The results so far."""

    root: Path
    ran: list[Ran] = field(default_factory=list)

    @property
    def date(self) -> str:
        return datetime.now(UTC).date().isoformat()

    @property
    def beside(self) -> list[Ran]:
        """The results of packet tests with ipv6natd, without those of engines that do IPv6 NAT."""
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
            # In the order of the run.
            for where in dict.fromkeys(each.where for each in self.beside if each.engine == engine):
                here = [e.outcome for e in self.beside if (e.engine, e.where) == (engine, where)]
                yield f"Docker {engine}", where, *(str(here.count(each)) for each in OUTCOMES)

    def scenarios(self) -> Iterator[Sequence[str]]:
        ids = {scenario for each in self.beside for scenario in each.scenarios}
        for scenario in sorted(ids, key=lambda each: (each[0], int(each[1:]))):
            yield scenario, *(self.result(scenario, engine) for engine in self.engines)

    def result(self, scenario: str, engine: str) -> str:
        """The sum over all tests and regimes, such as "4 passed"."""
        here = [e for e in self.beside if e.engine == engine and scenario in e.scenarios]
        count = Counter(each.outcome for each in here)
        return ", ".join(f"{count[each]} {each}" for each in OUTCOMES if count[each]) or "not run"


def is_failed(ran: Ran) -> bool:
    return ran.outcome == "failed"


def scenarios(name: str, doc: str | None = None) -> tuple[str, ...]:
    """The ids at the beginning of a test's name, and those at the beginning of its docstring.

    >>> scenarios("test_h4_h5_an_own_port")
    ('H4', 'H5')
    """
    named = re.match(r"test_((?:[a-z]\d+_)+)", name)
    found = re.findall(r"[a-z]\d+", named[1]) if named else []
    if described := re.match(r"\s*([A-Z]\d+(?:, [A-Z]\d+)*)(?=[\s.:,]|$)", doc or ""):
        found += described[1].split(", ")
    return tuple(dict.fromkeys(each.upper() for each in found))


def numbers(version: str) -> list[int]:
    return [int(each) for each in re.findall(r"\d+", version)]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def commit(root: Path) -> str:
    """The tested commit."""
    # A run writes into docs/. This does not change the tested code.
    changed = git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")
    return git(root, "rev-parse", "HEAD") + " (and changes to it)" * bool(changed)


def stale(root: Path, text: str) -> str | None:
    """The reason why a report is outdated or has no date; None if it is good."""
    found = re.findall(r"(?:^\| commit \| |\bat )([0-9a-f]{12,40})\b", text, re.MULTILINE)
    if not found:
        return "it names no commit"
    return next(filter(None, (outdated(root, each) for each in dict.fromkeys(found))), None)


def outdated(root: Path, commit: str) -> str | None:
    """The reason why results of a commit are outdated; None if they are not."""
    try:
        git(root, "cat-file", "-e", f"{commit}^{{commit}}")
    except GitError as error:
        if git_says(root, "rev-parse", "--is-shallow-repository") == "true":
            return f"this clone is shallow and lacks commit {commit}: `git fetch --unshallow`"
        return f"its commit {commit} is not in this repository ({error})"
    count = int(git(root, "rev-list", "--count", f"{commit}..HEAD", "--", *DECIDES))
    if count > LIMIT:
        return f"{count} commits since then change where packets go, more than {LIMIT}"
    return None


class GitError(Exception):
    """git failed or is not installed."""


def git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ("git", "-C", str(root), *words), check=False, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise GitError("git is not installed") from None
    if done.returncode != 0:
        raise GitError(done.stderr.strip() or f"git {words[0]}: exit {done.returncode}")
    return done.stdout.strip()


def git_says(root: Path, *words: str) -> str:
    """The output of git; "" if git fails."""
    try:
        return git(root, *words)
    except GitError:
        return ""


def said(*argv: str) -> str:
    """The output of a program; "none" if it is not installed."""
    try:
        done = subprocess.run(argv, check=False, capture_output=True, text=True, env={"PATH": PATH})
    except FileNotFoundError:
        return "none"
    return done.stdout.strip()
