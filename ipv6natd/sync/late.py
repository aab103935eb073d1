"""Stands in for a firewall that cannot be opened yet: no tools, or no IPv6 in the kernel.

The service is up meanwhile and says what is missing; each pass that fails tries again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from ipv6natd.firewall.backend import Firewall
from ipv6natd.netfilter.diff import Observed, TableChange
from ipv6natd.netfilter.rules import Backend, Table


class LateFirewall:
    """A firewall as soon as there is one. `opened` is called, in the thread that did it, then."""

    def __init__(
        self,
        open_: Callable[[], Firewall],
        opened: Callable[[Firewall], None],
        *,
        guess: Backend = Backend.NFT,
    ) -> None:
        """`guess` is what to call it until it is known."""
        self._open = open_
        self._opened = opened
        self._guess = guess
        self._firewall: Firewall | None = None
        self._opening = threading.Lock()

    @property
    def backend(self) -> Backend:
        """Which variant this is, or is taken for."""
        return self._firewall.backend if self._firewall else self._guess

    def read(self) -> Observed:
        """See Firewall."""
        return self._there().read()

    def digests(self, table: Table, chains: Iterable[str]) -> dict[str, str]:
        """See Firewall."""
        return self._there().digests(table, chains)

    def write(self, change: TableChange) -> None:
        """See Firewall."""
        self._there().write(change)

    def _there(self) -> Firewall:
        with self._opening:
            if self._firewall is None:
                self._firewall = self._open()
                self._opened(self._firewall)
            return self._firewall
