"""The filter table as it last was, kept on disk: it closes the networks before the engine answers.

After a boot, or a stop with clean-up, containers may run before their networks are known again.
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
    """One file. Nothing here raises: without it the networks are closed a little later."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """In systemd's $STATE_DIRECTORY, else in /var/lib/ipv6natd."""
        folder = environ.get("STATE_DIRECTORY", "").partition(":")[0] or FOLDER
        self.path = Path(folder, FILE_NAME)

    def read(self) -> TableRules | None:
        """What was kept, None where nothing is, or nothing that we wrote."""
        try:
            rules = parse_saved_filter(files.read(self.path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s cannot be used: %s", self.path, error)
            return None
        return rules if rules.chains else None

    def write(self, rules: TableRules) -> None:
        """Keep these; whole or not at all. Without any, nothing is kept."""
        if not rules.chains:
            self.remove()
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.replace(self.path, format_ruleset(Ruleset(filter=rules)), mode=0o600, sync=True)
        except OSError as error:
            log.warning("cannot keep the rules in %s: %s", self.path, error.strerror)

    def remove(self) -> None:
        """Forget: the rules were removed on purpose."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot remove %s: %s", self.path, error.strerror)


def filter_exposure(wanted: TableRules, observed: ObservedTable) -> Exposure:
    """What the filter table that was found let pass, where `wanted` should have stood."""
    if matches(wanted, observed, keep_order=False):
        return Exposure.NONE
    return Exposure.OPEN if checks_sources(observed.chains) else Exposure.UNGUARDED
