"""The interface of a firewall backend. Each backend is a module of this package."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from ipv6natd.netfilter.diff import Observed, TableChange
from ipv6natd.netfilter.rules import Backend, Table


class FirewallError(Exception):
    """A tool failed or is missing. The text has the operation, the object and the tool's words."""


class MissingTable(FirewallError):
    """The kernel does not have this table of legacy ip6tables, and cannot load its module."""

    def __init__(self, text: str, table: Table) -> None:
        super().__init__(text)
        self.table = table


class Firewall(Protocol):
    """Reads and writes the tables of one variant. All calls but `watch` block and may wait for the
    lock."""

    @property
    def backend(self) -> Backend:
        """The variant of ip6tables."""

    @property
    def read_interval(self) -> float:
        """Seconds between two full reads, which find what `watch` misses."""

    def read(self) -> Observed:
        """The observed state of the tables.

        A table that the kernel does not have is empty, and reading does not create it. Raises
        FirewallError.
        """

    def digests(self, table: Table, chains: Iterable[str]) -> dict[str, str]:
        """The digests of these chains, as in ObservedTable.chains, without reading other chains.

        Raises FirewallError, also if a chain does not exist.
        """

    def write(self, change: TableChange) -> None:
        """Apply a change in one transaction, completely or (FirewallError) not at all."""

    def write_all(self, changes: Iterable[TableChange]) -> None:
        """Apply changes in this order, each in one transaction. None follows one that fails."""

    async def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` if another program may have written. Runs until it is cancelled."""
