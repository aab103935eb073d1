"""TableChange -> restore text, save text -> Observed: the language that both variants speak.

Text only: nothing here runs a tool or knows which variant it is.
"""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice

from ipv6natd.netfilter.diff import Observed, ObservedJump, ObservedTable, TableChange
from ipv6natd.netfilter.rules import COMMENT, DOCKER_USER, PREFIX, Table, words

_PIECE = 500
"""Lines; about as much as a pipe holds."""


def render(change: TableChange) -> str:
    """The change as `ip6tables-restore --noflush` reads it; empty steps leave no line."""
    return "".join(pieces(change))


def pieces(change: TableChange) -> Iterator[str]:
    """The same bit by bit, for a tool that reads one while the next is worded."""
    lines = _lines(change)
    while some := list(islice(lines, _PIECE)):
        yield "\n".join(some) + "\n"


def _lines(change: TableChange) -> Iterator[str]:
    yield f"*{change.table}"
    for jump in change.remove:
        yield f"-D {jump.base} {jump.text}"
    for name in change.create:
        yield f"-N {name}"
    # All chains before any rule: a rule may jump to a chain further down.
    for chain in change.chains:
        yield f":{chain.name} - [0:0]"
    for chain in change.chains:
        for rule in chain.rules:
            yield f"-A {chain.name} {words(rule)}"
    for insert in reversed([jump for jump in change.insert if jump.first]):
        yield f"-I {insert.base} 1 {words(insert.rule)}"
    for insert in change.insert:
        if not insert.first:
            yield f"-A {insert.base} {words(insert.rule)}"
    # Emptied first, all of them: a chain goes only when no rule jumps to it. DOCKER-USER is never
    # emptied, so that what a person put there makes the transaction fail instead of vanishing.
    for name in change.delete:
        if name != DOCKER_USER:
            yield f":{name} - [0:0]"
    for name in change.delete:
        yield f"-X {name}"
    yield "COMMIT"


@dataclass(slots=True)
class _Reading:
    """One table while its lines go by; of rules only hashes and counts are kept."""

    own: dict[str, blake2b] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    jumps: list[ObservedJump] = field(default_factory=list)

    def chain(self, name: str) -> None:
        self.counts.setdefault(name, 0)
        if name.startswith(PREFIX):
            self.own.setdefault(name, blake2b(digest_size=16))

    def rule(self, chain: str, text: str) -> None:
        self.chain(chain)
        position = self.counts[chain]
        self.counts[chain] = position + 1
        if chain.startswith(PREFIX):
            self.own[chain].update(text.encode("utf-8", "surrogateescape") + b"\n")
        elif PREFIX in text or DOCKER_USER in text or COMMENT in text:
            jump = _jump(chain, position, text, self.counts)
            if jump is not None:
                self.jumps.append(jump)

    def table(self) -> ObservedTable:
        return ObservedTable(
            own={n: f"{self.counts[n]}:{digest.hexdigest()}" for n, digest in self.own.items()},
            jumps=tuple(self.jumps),
            docker_user=self.counts.get(DOCKER_USER),
        )


_STRING = re.compile(r' "(?:[^"\\]|\\.)*"', re.DOTALL)
_LONGEST = 4096
"""Characters of a line that a string may make of several: a comment has 255 at most."""


def save_lines(text: str) -> Iterator[str]:
    """The lines of `ip6tables-save`; one in whose string a line break stands is one.

    Else the words of somebody's comment would count as rules.
    """
    # An iterator, not a list: the output of a large host is megabytes.
    lines = io.StringIO(text, newline="\n")
    for line in lines:
        parts, whole = [line], line
        while _goes_on(whole) and len(whole) < _LONGEST and (more := next(lines, "")):
            parts.append(more)
            whole += more
        # A string that never ends is none, and must not hide what stands below it.
        for each in parts if _goes_on(whole) else (whole,):
            yield each.removesuffix("\n")


def _goes_on(line: str) -> bool:
    # Strings stand in rules alone, behind a blank; no rule of ours has one.
    return line[:1] in ("-", "[") and ' "' in line and ' "' in _STRING.sub("", line)


def parse_save(text: str) -> Observed:
    """What concerns us in the output of `ip6tables-save`; a table that is not in it is empty."""
    observed: Observed = {table: ObservedTable() for table in Table}
    reading, table = _Reading(), ""
    for line in save_lines(text):
        match line[:1]:
            case "*":
                reading, table = _Reading(), line[1:]
            case ":":
                reading.chain(line[1:].split(" ", 1)[0])
            case "-" if line.count(" ") > 1:
                _, chain, rule = line.split(" ", 2)
                reading.rule(chain, rule)
            case "C" if line == "COMMIT" and table in list(Table):
                observed[Table(table)] = reading.table()
    return observed


def _jump(base: str, position: int, text: str, chains: Container[str]) -> ObservedJump | None:
    """The rule as one of ObservedTable.jumps; None if it only looks like one."""
    try:
        tokens = iter(shlex.split(text))
    except ValueError:
        # A string that never ends: not the words of any rule.
        return None
    comment = target = ""
    plain = True
    for token in tokens:
        match token:
            case "-m":
                plain = plain and next(tokens, "") == "comment"
            case "--comment":
                comment = next(tokens, "")
            case "-j" | "-g":
                target = next(tokens, "")
                plain = plain and token == "-j"
            case _:
                plain = False
    ours = comment == COMMENT
    if target != DOCKER_USER and not target.startswith(PREFIX) and not (ours and target in chains):
        return None
    return ObservedJump(
        base=base,
        position=position,
        target=target,
        ours=ours,
        plain=plain,
        text=text,
    )
