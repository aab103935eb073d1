"""A firewall that reports each call before it runs, for the watchdog."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ipv6natd.firewall.backend import Firewall
from ipv6natd.netfilter.diff import Observed, TableChange
from ipv6natd.netfilter.rules import Backend, Table


class Stepping:
    """Calls `step` before each call of `firewall`. Such a call runs one tool and has a bound."""

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
