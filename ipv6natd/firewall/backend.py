"""The firewall seam: what the loop asks of a backend. Each backend is a module beside this one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ipv6natd.netfilter.diff import Observed, TableChange
from ipv6natd.netfilter.rules import Backend, Table


class FirewallError(Exception):
    """A tool refused or is missing; the text says what failed, on what, in the tool's own words."""


class Firewall(Protocol):
    """Reads and writes the tables of one variant. Both calls block and may wait for a lock."""

    @property
    def backend(self) -> Backend:
        """Which variant this is."""

    def read(self) -> Observed:
        """What stands in the filter and nat tables and concerns us.

        A table that the kernel does not have yet reads as empty and is not made by reading.
        Raises FirewallError.
        """

    def digests(self, table: Table, chains: Iterable[str]) -> dict[str, str]:
        """What read() says in `own` of these chains, without reading the others.

        Raises FirewallError, also where one of them is not there.
        """

    def write(self, change: TableChange) -> None:
        """Apply one change in one transaction: all of it or, with FirewallError, nothing of it."""
