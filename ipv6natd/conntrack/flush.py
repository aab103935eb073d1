"""Deletes conntrack entries that a change of mappings made stale, and outdated neighbour entries;
ends connections that began before the rule of their port, and that nobody reads.

`stale` decides which entries are stale. No error here stops a pass of the reconciler: packets are
forwarded also with stale entries.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address

from ipv6natd.conntrack.entries import Entry, Tuple, delete_entries, list_entries
from ipv6natd.conntrack.sockets import destroy, find_unaccepted
from ipv6natd.conntrack.stale import (
    Change,
    Exposure,
    added_endpoints,
    affects_entries,
    may_be_served,
    may_wait_for_accept,
    newly_protected,
    stale_entries,
)
from ipv6natd.model import Desired
from ipv6natd.system.process import output_of

log = logging.getLogger(__name__)

IP_TIMEOUT = 10.0
"""Seconds for one call of `ip`."""
FLUSH_TIMEOUT = 10.0
"""Seconds for all requests about conntrack entries after one change."""
MAX_SCANS, SCAN_PAUSE = 4, 0.025
"""Number of scans, and seconds between them. stale_entries explains the later scans."""


class Conntrack:
    """The host's conntrack table. `host_addresses` is called for each change."""

    def __init__(self, host_addresses: Callable[[], frozenset[IPv6Address]]) -> None:
        self._host_addresses = host_addresses
        self._last_failure = ""
        self._can_end_connections = True
        """False after the kernel could not: INET_DIAG_DESTROY is missing."""

    def flush_stale_flows(self, old: Desired | None, new: Desired, exposure: Exposure) -> bool:
        """Delete the entries that the change from `old` to `new` made stale. False on an error.

        `old` is None if the previous mappings are unknown. Blocks. Errors are logged, not raised.
        """
        _flush_neighbours(old, new, exposure)
        if not affects_entries(old, new, exposure):
            return True
        failure = self._delete_stale_entries(Change(old, new, self._host_addresses(), exposure))
        if failure:
            # A warning at the first of equal consecutive failures.
            log.log(
                logging.DEBUG if failure == self._last_failure else logging.WARNING,
                "open flows may keep their old destination after the change of rules: %s",
                failure,
            )
        self._last_failure = failure
        return not failure

    def _delete_stale_entries(self, change: Change) -> str:
        """Returns the error with the kernel's message; "" if there is none."""
        deadline = time.monotonic() + FLUSH_TIMEOUT
        deleted_replies: set[bytes] | None = None
        begun: set[Tuple] = set()
        verb = "list"
        try:
            for scan in range(MAX_SCANS):
                if scan:
                    time.sleep(SCAN_PAUSE)
                verb = "list"
                listed = list_entries(deadline=deadline)
                stale = list(stale_entries(listed, change, deleted_replies))
                stale = self._end_unserved(stale, begun, change, deadline)
                if not stale:
                    break
                verb = "delete"
                replies = {entry.original.packed: entry.reply.packed for entry in stale}
                deleted = delete_entries(replies, deadline=deadline)
                log.debug("%d of %d conntrack entries deleted", deleted, len(replies))
                deleted_replies = (deleted_replies or set()).union(replies.values())
        except TimeoutError:
            return f"the kernel did not {verb} the conntrack entries within {FLUSH_TIMEOUT:g} s"
        except OSError as error:
            return f"the kernel did not {verb} the conntrack entries: {error.strerror}"
        return ""

    def _end_unserved(
        self, stale: list[Entry], begun: set[Tuple], change: Change, deadline: float
    ) -> list[Entry]:
        """End the connections that no process has accepted: their clients may wait for the first
        byte, and would not notice that the conntrack entry is gone. Returns the entries to delete.

        `begun` collects them over the scans: a connection can be established after its entry was
        listed or deleted. Raises OSError if the sockets cannot be listed.
        """
        begun.update(entry.original for entry in stale if may_wait_for_accept(entry, change))
        if not begun:
            return stale
        unaccepted = find_unaccepted(begun, deadline=deadline)
        if unaccepted:
            self._destroy(unaccepted.values(), deadline)
        return [
            entry
            for entry in stale
            if entry.original in unaccepted or not may_be_served(entry, change)
        ]

    def _destroy(self, sockets: Iterable[bytes], deadline: float) -> None:
        if not self._can_end_connections:
            return
        try:
            ended = destroy(sockets, deadline=deadline)
            log.debug("%d connections ended that began before the rule of their port", ended)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._can_end_connections = False
            log.warning(
                "the kernel cannot end connections that began before the rule of their port "
                "(INET_DIAG_DESTROY is missing), so their clients may wait"
            )


def _flush_neighbours(old: Desired | None, new: Desired, exposure: Exposure) -> None:
    # The kernel drops packets that wait for a deleted neighbour. With -force the batch continues if
    # an address has no neighbour entry, as most have none.
    protected = newly_protected(old, new, exposure)
    lines = [f"neigh flush dev {network.bridge}\n" for network in protected]
    lines += [
        f"neigh del {address} dev {bridge}\n" for bridge, address in added_endpoints(old, new)
    ]
    if lines:
        output_of("ip", "-6", "-force", "-batch", "-", stdin="".join(lines), timeout=IP_TIMEOUT)
