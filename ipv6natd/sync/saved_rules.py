"""The last filter table, saved on disk. It closes the networks until the engine lists them.

After a boot, or a stop with `cleanup = true`, containers may run before the engine is reachable.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from ipv6natd.conntrack.stale import Exposure
from ipv6natd.netfilter.diff import ObservedTable, matches
from ipv6natd.netfilter.parse import parse_saved_filter
from ipv6natd.netfilter.render import format_ruleset
from ipv6natd.netfilter.rules import Ruleset, TableRules
from ipv6natd.policy.ruleset import checks_sources
from ipv6natd.system import files

log = logging.getLogger(__name__)

FOLDER = "/var/lib/ipv6natd"
FILE_NAME = "filter.rules"


class SavedFilter:
    """One file. Nothing here raises: without the file the networks are closed a little later."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """The file is in systemd's $STATE_DIRECTORY, else in /var/lib/ipv6natd."""
        folder = environ.get("STATE_DIRECTORY", "").partition(":")[0] or FOLDER
        self.path = Path(folder, FILE_NAME)

    def read(self) -> TableRules | None:
        """The saved table, None if it is missing, empty or not written by us."""
        try:
            rules = parse_saved_filter(files.read(self.path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s cannot be used: %s", self.path, error)
            return None
        return rules if rules.chains else None

    def write(self, rules: TableRules) -> None:
        """Replace the file atomically; without chains, remove it."""
        if not rules.chains:
            self.remove()
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.replace(self.path, format_ruleset(Ruleset(filter=rules)), mode=0o600, sync=True)
        except OSError as error:
            log.warning("cannot save the rules in %s: %s", self.path, error.strerror)

    def remove(self) -> None:
        """Remove the file."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot remove %s: %s", self.path, error.strerror)


def filter_exposure(wanted: TableRules, observed: ObservedTable) -> Exposure:
    """What the filter table `observed` let pass that `wanted` does not."""
    if matches(wanted, observed, keep_order=False):
        return Exposure.NONE
    return Exposure.OPEN if checks_sources(observed.chains) else Exposure.UNGUARDED
