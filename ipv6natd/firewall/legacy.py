"""The legacy variant: the tools, and python-iptables for small changes if it is installed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.firewall.restore import RestoreFirewall
from ipv6natd.firewall.xtables import table_size, table_sizes, xtables_lock
from ipv6natd.netfilter.diff import Observed, TableChange
from ipv6natd.netfilter.rules import Backend, Table
from ipv6natd.system.threads import in_thread

log = logging.getLogger(__name__)

MAX_RULES_IN_PROCESS = 32
"""Rules in one change above which the restore tool is faster. A rule takes 0.1 to 0.2 ms here, in
Python code of iptc for each option. The restore tool takes 3 to 4 ms in a small table, and as long
as 50 rules in a large one."""
SIZE_CHECK_INTERVAL = 1.0


class LegacyFirewall:
    """The legacy variant: reads and large changes by the tools, small ones in this process.

    The kernel reports no writes of other programs, so the sizes of the tables are compared.
    """

    backend = Backend.LEGACY
    read_interval = 60.0
    """Finds the edits that keep the size of a table."""

    def __init__(self, write_in_process: Callable[[TableChange], None] | None) -> None:
        """Raises FirewallError without tools."""
        self._write_in_process = write_in_process
        self._tool = RestoreFirewall(Backend.LEGACY)
        self.digests = self._tool.digests
        self._sizes_at_read: dict[Table, tuple[int, int]] = {}

    def read(self) -> Observed:
        """See Firewall."""
        # Sizes first: an edit before the read of the rules then shows as a change.
        self._sizes_at_read = table_sizes()
        return self._tool.read()

    def write(self, change: TableChange) -> None:
        """See Firewall. A jump is removed by the tool, which finds a rule by its text."""
        write = self._write_in_process
        count = sum(map(len, change.chains.values()))
        if write is None or change.remove or count > MAX_RULES_IN_PROCESS:
            self._write(change, self._tool.write)  # the tool takes the lock itself
            return
        with xtables_lock():
            self._write(change, write)

    def write_all(self, changes: Iterable[TableChange]) -> None:
        """See Firewall."""
        for change in changes:
            self.write(change)

    def _write(self, change: TableChange, write: Callable[[TableChange], None]) -> None:
        unchanged = self._sizes_at_read.get(change.table) == table_size(change.table)
        write(change)
        if unchanged:
            self._sizes_at_read[change.table] = table_size(change.table)

    async def watch(self, changed: Callable[[], None]) -> None:
        """See Firewall."""
        while True:
            try:
                if await in_thread(table_sizes) != self._sizes_at_read:
                    changed()
            except FirewallError as error:
                log.debug("cannot read table sizes: %s", error)
            await asyncio.sleep(SIZE_CHECK_INTERVAL)
