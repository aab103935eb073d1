"""A firewall that cannot be opened yet: ip6tables is missing, or the kernel has no IPv6.

The service runs meanwhile and reports what is missing. Each pass tries to open it again.
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
        """`expected` is the backend to report until the firewall is open."""
        self._open = open_
        self._on_opened = on_opened
        self._expected = expected
        self._firewall: Firewall | None = None
        self._open_lock = threading.Lock()

    @property
    def backend(self) -> Backend:
        """The backend of the firewall, or the expected one."""
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
