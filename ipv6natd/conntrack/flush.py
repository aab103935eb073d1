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
from itertools import islice

from ipv6natd.conntrack.entries import Entry, delete_entries, list_entries
from ipv6natd.conntrack.sockets import destroy, ends, find_unaccepted
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
DELETE_TIME = 1.0
"""Seconds of SCAN_TIMEOUT in which nothing is listed any more, only deleted."""
BATCH_SIZE = 8192
"""Stale entries that are deleted together: a flood can make a million entries, with 700 bytes of
memory for each."""
MAX_REMEMBERED = 200_000
"""Deleted entries whose reversed entries are looked for, each with 150 bytes, and connections that
may wait for accept(). Others end by their time-outs."""
MAX_SCANS, SCAN_PAUSE = 4, 0.025
"""Number of scans for one change, and seconds between them. is_stale explains the later
scans."""


@dataclass(slots=True, eq=False)
class _Check:
    """A change of the rules, until a scan finds nothing stale. A later change does not end it."""

    old: Desired | None
    exposure: Exposure
    scans: int = 0
    """The number of complete scans."""
    begun: set[bytes] = field(default_factory=set)
    """The sockets of connections that may wait for accept(), as of `sockets.ends`, of all scans:
    one can be established after its entry was listed or deleted."""


@dataclass(slots=True, eq=False)
class _Search:
    """One scan for one check."""

    check: _Check
    change: Change
    stale: list[Entry] = field(default_factory=list)
    """Entries to delete next, at most BATCH_SIZE."""
    found: int = 0
    """The number of all entries that had to be deleted."""

    def finds(self, entry: Entry, replies: set[bytes]) -> bool:
        if self.check.scans:
            return is_stale(entry, self.change, replies)
        return entry.original.packed in replies or is_stale(entry, self.change)


class _ScanError(Exception):
    """A request about conntrack entries failed; the text has the kernel's message."""


class _ScanTimeout(_ScanError):
    """The entries were not all listed and deleted within SCAN_TIMEOUT."""


class Conntrack:
    """The host's conntrack table. `host_addresses` is called for each scan."""

    def __init__(self, host_addresses: Callable[[], frozenset[IPv6Address]]) -> None:
        self._host_addresses = host_addresses
        self._checks: list[_Check] = []
        self._rules_for = Desired()
        """What the rules in force are for."""
        self._deleted_replies: set[bytes] = set()
        """See is_stale; of all checks, until none is left."""
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
        # Only those that packets wait for: a client in between would get an ICMPv6 error.
        bridges = [
            f"neigh flush dev {network.bridge} nud incomplete"
            for network in newly_protected(old, new, exposure)
        ]
        _flush_neighbours(
            *bridges,
            *(f"neigh del {address} dev {bridge}" for bridge, address in added_endpoints(old, new)),
        )
        self._rules_for = new
        if not affects_entries(old, new, exposure):
            return True
        check = _Check(old, exposure)
        self._checks.append(check)
        done = self.scan_again()
        # Until then, packets of the deleted entries went on to wait for a neighbour.
        _flush_neighbours(*bridges)
        if not done:
            self._checks.remove(check)
        return done

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
        searches = [
            _Search(check, Change(check.old, self._rules_for, own, check.exposure))
            for check in self._checks
        ]
        try:
            self._delete_stale(searches, deadline)
        except _ScanTimeout:
            # After a flood one scan is not enough. The next one lists what is left.
            if all(search.found < BATCH_SIZE for search in searches):
                raise
            log.debug("the conntrack entries are too many for one scan")
            return
        for search in searches:
            search.check.scans += 1
            if not search.found or search.check.scans == MAX_SCANS:
                self._checks.remove(search.check)
        if not self._checks:
            self._deleted_replies.clear()

    def _delete_stale(self, searches: list[_Search], deadline: float) -> None:
        """Delete in batches while the entries are listed: the kernel continues a list also if its
        last entry is gone. What was found before an error is deleted too."""
        try:
            with _errors("list"):
                for entry in list_entries(deadline=deadline - DELETE_TIME):
                    for search in searches:
                        if search.finds(entry, self._deleted_replies):
                            search.stale.append(entry)
                            if len(search.stale) == BATCH_SIZE:
                                self._delete_batch(search, deadline)
        finally:
            for search in searches:
                self._delete_batch(search, deadline)

    def _delete_batch(self, search: _Search, deadline: float) -> None:
        """Delete the entries that were found since the last batch."""
        stale, search.stale = search.stale, []
        with _errors("list"):
            stale = self._end_unserved(stale, search.check.begun, search.change, deadline)
        if not stale:
            return
        replies = {entry.original.packed: entry.reply.packed for entry in stale}
        _remember(self._deleted_replies, replies.values())
        with _errors("delete"):
            deleted = delete_entries(replies, deadline=deadline)
        search.found += len(stale)
        log.debug("%d of %d conntrack entries deleted", deleted, len(replies))

    def _end_unserved(
        self, stale: list[Entry], begun: set[bytes], change: Change, deadline: float
    ) -> list[Entry]:
        """End the connections that no process has accepted: their clients may wait for the first
        byte, and would not notice that the conntrack entry is gone. Returns the entries to delete.

        Adds to `begun`. Raises OSError if the sockets cannot be listed.
        """
        waiting = {ends(entry.original) for entry in stale if may_wait_for_accept(entry, change)}
        _remember(begun, waiting)
        if not begun:
            return stale
        unaccepted = find_unaccepted(begun | waiting, deadline=deadline)
        if unaccepted:
            self._destroy(unaccepted.values(), deadline)
        return [
            entry
            for entry in stale
            if not may_be_served(entry, change) or ends(entry.original) in unaccepted
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
        raise _ScanTimeout(reason) from None
    except OSError as error:
        reason = f"the kernel did not {verb} the conntrack entries: {error.strerror}"
        raise _ScanError(reason) from None


def _remember(known: set[bytes], added: Iterable[bytes]) -> None:
    """Add to the set, up to MAX_REMEMBERED."""
    known.update(islice(added, max(0, MAX_REMEMBERED - len(known))))


def _flush_neighbours(*commands: str) -> None:
    """Run these commands of ip. The kernel drops packets that wait for a deleted neighbour."""
    # With -force the batch continues if an address has no neighbour entry, as most have none.
    if commands:
        lines = "".join(f"{command}\n" for command in commands)
        output_of("ip", "-6", "-force", "-batch", "-", stdin=lines, timeout=IP_TIMEOUT)
