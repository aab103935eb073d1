"""A firewall that says before each thing that it does that it is about to, for the watchdog."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ipv6natd.firewall.backend import Firewall
from ipv6natd.netfilter.diff import Observed, TableChange
from ipv6natd.netfilter.rules import Backend, Table


class Stepping:
    """Calls `step`, then does what `firewall` does; each is one call of a tool, and bounded."""

    def __init__(self, firewall: Firewall, step: Callable[[], None]) -> None:
        self._firewall = firewall
        self._step = step

    @property
    def backend(self) -> Backend:
        """See Firewall."""
        return self._firewall.backend

    def read(self) -> Observed:
        """See Firewall."""
        self._step()
        return self._firewall.read()

    def digests(self, table: Table, chains: Iterable[str]) -> dict[str, str]:
        """See Firewall."""
        self._step()
        return self._firewall.digests(table, chains)

    def write(self, change: TableChange) -> None:
        """See Firewall."""
        self._step()
        self._firewall.write(change)
