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
    """Opens the firewall at the first call that succeeds, and calls `on_opened` in that thread."""

    def __init__(
        self,
        open_: Callable[[], Firewall],
        on_opened: Callable[[Firewall], None],
        *,
        expected: Backend = Backend.NFT,
    ) -> None:
        """`expected` is what to call it until it is known."""
        self._open = open_
        self._on_opened = on_opened
        self._expected = expected
        self._firewall: Firewall | None = None
        self._open_lock = threading.Lock()

    @property
    def backend(self) -> Backend:
        """Which variant this is, or is taken for."""
        return self._firewall.backend if self._firewall else self._expected

    def read(self) -> Observed:
        """See Firewall."""
        return self._opened_firewall().read()

    def digests(self, table: Table, chains: Iterable[str]) -> dict[str, str]:
        """See Firewall."""
        return self._opened_firewall().digests(table, chains)

    def write(self, change: TableChange) -> None:
        """See Firewall."""
        self._opened_firewall().write(change)

    def _opened_firewall(self) -> Firewall:
        with self._open_lock:
            if self._firewall is None:
                self._firewall = self._open()
                self._on_opened(self._firewall)
            return self._firewall
