"""docs/booted.md: the result of each check on each suite's booted host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.harness import tree
from tests.harness.report import Outcome, commit, table

FACTS = ("systemd", "docker.io", "iptables", "python3", "python3-docker", "python3-dbus-next")

HEAD = """\
# The package on hosts that boot

Written by `make test-all`: tests/system/boot builds the package in each Debian suite, boots a
fresh host of this suite with systemd as PID 1 and Docker as a service, installs the package with
apt, and connects from a client on the link. On separate hosts the commands of README run
unchanged, in a clone. The checks are listed in the order of the run.

The checks for Arch ran on Debian 13, with Debian's makepkg and pacman. pacman got a list of
Debian's packages as installed. Two things are not tested: Arch itself, with its archive, its
versions and the hooks of its packages; and an upgrade from an earlier release, because there is
none. The newer package in the checks is the same source with another version number.

"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A test that ran on a booted host."""

    suite: tree.Suite
    name: str
    """The name of the test function."""
    outcome: Outcome


def write(checks: list[Check], root: Path, folder: Path) -> None:
    """Write booted.md if any check ran."""
    if checks:
        (folder / "booted.md").write_text(text(checks, root))


def text(checks: list[Check], root: Path) -> str:
    suites = [suite for suite in tree.SUITES if any(each.suite == suite for each in checks)]
    facts = {"commit": commit(root), "date": datetime.now(UTC).date().isoformat()}
    said = {(each.suite, each.name): each.outcome for each in checks}

    def rows() -> Iterator[Sequence[str]]:
        for name in dict.fromkeys(each.name for each in checks):
            sentence = name.removeprefix("test_").replace("_", " ")
            yield sentence, *(said.get((suite, name), "not run") for suite in suites)

    versions = ((fact, *(tree.versions(suite).get(fact, "") for suite in suites)) for fact in FACTS)
    return "\n".join(
        [
            HEAD + table(("", ""), facts.items()),
            "## Hosts\n\n" + table(("", *suites), versions),
            "## Checks\n\n" + table(("check", *suites), rows()),
        ]
    )
