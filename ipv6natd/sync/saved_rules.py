"""The last raw and filter tables, saved on disk. They close the networks until the engine lists
them.

After a boot, or a stop with `cleanup = true`, containers may run before the engine is reachable.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ipv6natd.conntrack.stale import Exposure
from ipv6natd.netfilter.diff import Observed, matches
from ipv6natd.netfilter.parse import parse_saved_rules
from ipv6natd.netfilter.render import format_ruleset
from ipv6natd.netfilter.rules import GUARD_TABLES, Ruleset, Table
from ipv6natd.policy.ruleset import checked_sources, checks_sources
from ipv6natd.system import files

log = logging.getLogger(__name__)
T = TypeVar("T")

FOLDER = "/var/lib/ipv6natd"
FILE_NAME = "filter.rules"


class SavedRules:
    """One file. Nothing here raises: without the file the networks are closed a little later."""

    def __init__(self) -> None:
        """The file is in systemd's $STATE_DIRECTORY, else in /var/lib/ipv6natd."""
        self.path = unit_folder("STATE_DIRECTORY", FOLDER) / FILE_NAME

    def read(self) -> Ruleset | None:
        """The saved tables, None if they are missing, empty or not written by us."""
        rules = read_saved(self.path, parse_saved_rules)
        return rules if rules and rules.filter.chains else None

    def write(self, rules: Ruleset) -> None:
        """Replace the file atomically; without chains, remove it."""
        if not rules.filter.chains:
            self.remove()
            return
        try:
            write_saved(self.path, format_ruleset(rules.guard))
        except OSError as error:
            log.warning("cannot save the rules in %s: %s", self.path, error.strerror)

    def remove(self) -> None:
        """Remove the file."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot remove %s: %s", self.path, error.strerror)


def unit_folder(variable: str, default: str) -> Path:
    """A folder that systemd gives the service in this variable; the first one of several."""
    return Path(os.environ.get(variable, "").partition(":")[0] or default)


def read_saved(path: Path, parsed: Callable[[str], T]) -> T | None:
    """The parsed file, None if it is missing or not written by us."""
    try:
        return parsed(files.read(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s cannot be used: %s", path, error)
        return None


def write_saved(path: Path, text: str) -> None:
    """Replace the file atomically, also if the power fails. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.replace(path, text, mode=0o600, sync=True)


def past_exposure(wanted: Ruleset, observed: Observed, saved: Ruleset | None) -> Exposure:
    """What the tables raw and filter in `observed` let pass that those in `wanted` do not.

    `saved` has the last ones that were written; None if they are unknown. Equal numbers of rules do
    not show that a network has another subnet now.
    """
    known = saved is None or checked_sources(wanted) <= checked_sources(saved)
    if known and all(matches(wanted.table(t), observed[t], keep_order=False) for t in GUARD_TABLES):
        return Exposure.NONE
    guarded = checks_sources(observed[Table.RAW].chains, observed[Table.FILTER].chains)
    return Exposure.OPEN if guarded else Exposure.UNGUARDED
