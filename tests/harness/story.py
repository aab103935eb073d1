"""docs/booted.md: what each check said on each suite's booted host. Written by `make test-all`."""

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

Written by `make test-all`, not by hand: tests/system/boot builds the package in each Debian suite,
boots a fresh host of it with systemd as PID 1 and Docker as a service, installs the package with
apt, and asks from a client on the wire. On hosts of their own the lines of README run as they
stand, in a clone. The checks stand in the order in which they ran.

Those for Arch ran on Debian 13, with its makepkg and pacman and what pacman was told of Debian's
packages. Not seen: Arch itself, with its archive, its versions and the hooks of its packages. Nor
an upgrade from an earlier release, of which there is none: the newer package is the same source
with another number.

"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A test that ran on a booted host."""

    suite: tree.Suite
    name: str
    """Of the test's function."""
    outcome: Outcome


def write(checks: list[Check], root: Path, folder: Path) -> None:
    """Write booted.md, if anything booted."""
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
