"""Deletes conntrack entries that a change of mappings made stale, and outdated neighbour entries;
ends connections that began before the rule of their port, and that nobody reads.

`stale` decides which entries are stale. No error here stops a pass of the reconciler: packets are
forwarded also with stale entries.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address

from ipv6natd.conntrack.entries import Entry, Tuple, delete_entries, list_entries
from ipv6natd.conntrack.sockets import destroy, find_unaccepted
from ipv6natd.conntrack.stale import (
    Change,
    Exposure,
    added_endpoints,
    affects_entries,
    is_stale,
    may_be_served,
    may_wait_for_accept,
    newly_protected,
)
from ipv6natd.model import Desired
from ipv6natd.system.process import output_of

log = logging.getLogger(__name__)

IP_TIMEOUT = 10.0
"""Seconds for one call of `ip`."""
SCAN_TIMEOUT = 10.0
"""Seconds for all requests about conntrack entries in one scan."""
MAX_SCANS, SCAN_PAUSE = 4, 0.025
"""Number of scans for one change, and seconds between them. is_stale explains the later
scans."""


@dataclass(slots=True, eq=False)
class _Check:
    """A change of the rules, until a scan finds nothing stale. A later change does not end it."""

    old: Desired | None
    exposure: Exposure
    scans: int = 0
    deleted_replies: set[bytes] | None = None
    """See is_stale."""
    begun: set[Tuple] = field(default_factory=set)
    """The connections that may wait for accept(), of all scans: one can be established after its
    entry was listed or deleted."""


class _ScanError(Exception):
    """A request about conntrack entries failed; the text has the kernel's message."""


class Conntrack:
    """The host's conntrack table. `host_addresses` is called for each scan."""

    def __init__(self, host_addresses: Callable[[], frozenset[IPv6Address]]) -> None:
        self._host_addresses = host_addresses
        self._checks: list[_Check] = []
        self._rules_for = Desired()
        """What the rules in force are for."""
        self._last_failure = ""
        self._can_end_connections = True
        """False after the kernel could not: INET_DIAG_DESTROY is missing."""

    @property
    def needs_scan(self) -> bool:
        """True if deleted entries may come back: call `scan_again` after SCAN_PAUSE."""
        return bool(self._checks)

    def flush_stale_flows(self, old: Desired | None, new: Desired, exposure: Exposure) -> bool:
        """Delete the entries that the change from `old` to `new` made stale. False on an error:
        call it again.

        `old` is None if the previous mappings are unknown. Blocks. Errors are logged, not raised.
        """
        _flush_neighbours(old, new, exposure)
        self._rules_for = new
        if not affects_entries(old, new, exposure):
            return True
        check = _Check(old, exposure)
        self._checks.append(check)
        if self.scan_again():
            return True
        self._checks.remove(check)
        return False

    def scan_again(self) -> bool:
        """Delete the entries that are stale by now, after all changes that may still have some.

        False on an error. Blocks. Errors are logged, not raised.
        """
        failure = ""
        try:
            self._scan()
        except _ScanError as error:
            failure = str(error)
            # A warning at the first of equal consecutive failures.
            log.log(
                logging.DEBUG if failure == self._last_failure else logging.WARNING,
                "open flows may keep their old destination after the change of rules: %s",
                failure,
            )
        self._last_failure = failure
        return not failure

    def _scan(self) -> None:
        own, deadline = self._host_addresses(), time.monotonic() + SCAN_TIMEOUT
        checks = [
            (check, Change(check.old, self._rules_for, own, check.exposure))
            for check in self._checks
        ]
        found: list[list[Entry]] = [[] for _ in checks]
        with _errors("list"):
            for entry in list_entries(deadline=deadline):
                for (check, change), stale in zip(checks, found, strict=True):
                    if is_stale(entry, change, check.deleted_replies):
                        stale.append(entry)
        for (check, change), stale in zip(checks, found, strict=True):
            self._delete(check, change, stale, deadline)

    def _delete(self, check: _Check, change: Change, stale: list[Entry], deadline: float) -> None:
        with _errors("list"):
            stale = self._end_unserved(stale, check.begun, change, deadline)
        if stale:
            replies = {entry.original.packed: entry.reply.packed for entry in stale}
            with _errors("delete"):
                deleted = delete_entries(replies, deadline=deadline)
            log.debug("%d of %d conntrack entries deleted", deleted, len(replies))
            check.deleted_replies = (check.deleted_replies or set()).union(replies.values())
        check.scans += 1
        if not stale or check.scans == MAX_SCANS:
            self._checks.remove(check)

    def _end_unserved(
        self, stale: list[Entry], begun: set[Tuple], change: Change, deadline: float
    ) -> list[Entry]:
        """End the connections that no process has accepted: their clients may wait for the first
        byte, and would not notice that the conntrack entry is gone. Returns the entries to delete.

        Adds to `begun`. Raises OSError if the sockets cannot be listed.
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


@contextmanager
def _errors(verb: str) -> Iterator[None]:
    """Raise each OSError of the block as _ScanError."""
    try:
        yield
    except TimeoutError:
        reason = f"the kernel did not {verb} the conntrack entries within {SCAN_TIMEOUT:g} s"
        raise _ScanError(reason) from None
    except OSError as error:
        reason = f"the kernel did not {verb} the conntrack entries: {error.strerror}"
        raise _ScanError(reason) from None


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
