"""Deletes conntrack entries that a change of mappings made stale, and outdated neighbour entries.

`stale` decides which entries are stale. The `conntrack` tool lists them, `ctnetlink` deletes them.
No error here stops a pass of the reconciler: without the tool packets are still forwarded.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv6Address

from ipv6natd.conntrack.ctnetlink import delete_entries
from ipv6natd.conntrack.stale import (
    Exposure,
    Query,
    Tuple,
    added_endpoints,
    newly_protected,
    parse_entries,
    queries,
    stale_entries,
)
from ipv6natd.model import Desired
from ipv6natd.system.process import TOOL_DIRECTORIES, output_of, run, which

log = logging.getLogger(__name__)

IP_TIMEOUT = 10.0
"""Seconds for one call of `ip`."""
FLUSH_TIMEOUT = 10.0
"""Seconds for all calls about conntrack entries after one change."""
MAX_SCANS, SCAN_PAUSE = 4, 0.025
"""Number of scans, and seconds between them. stale_entries explains the later scans."""
INSTALL_HINT = "install the package conntrack (on Arch: conntrack-tools)"
_MISSING = (
    f"there is no conntrack in {':'.join(TOOL_DIRECTORIES)}: open UDP flows keep their old "
    f"destination when a mapping changes; {INSTALL_HINT}"
)
_FAMILY = ("-f", "ipv6", "-w", "0")
_MAX_SEPARATE_LISTS = 4
"""Maximum number of queries with a list of their own: each list reads the whole table."""


class _FlushError(Exception):
    """Entries were not listed or deleted. The text has the tool's or the kernel's message."""


class Conntrack:
    """The host's conntrack table. `host_addresses` is called at each scan."""

    def __init__(self, host_addresses: Callable[[], frozenset[IPv6Address]]) -> None:
        self._host_addresses = host_addresses
        self._last_warning = ""

    def flush_stale_flows(
        self, old: Desired | None, new: Desired, exposure: Exposure = Exposure.NONE
    ) -> bool:
        """Delete the entries that are stale after the rules changed from `old` to `new`. False on
        an error.

        `old` is None if the previous mappings are unknown. Blocks. Errors are logged, not raised.
        """
        _flush_neighbours(old, new, exposure)
        scope = queries(old, new, exposure=exposure)
        if not scope:
            return True
        tool = which("conntrack", TOOL_DIRECTORIES)
        if tool is None:
            self._warn_once(_MISSING)
            return True  # a retry would not help
        deleted_replies: set[Tuple] = set()
        deadline = time.monotonic() + FLUSH_TIMEOUT
        try:
            for scan in range(MAX_SCANS):
                if scan:
                    time.sleep(SCAN_PAUSE)
                flows = parse_entries(_list_entries(tool, scope, deadline))
                known_replies = deleted_replies or None  # None: the first scan
                stale = stale_entries(
                    flows,
                    old,
                    new,
                    self._host_addresses(),
                    exposure=exposure,
                    deleted_replies=known_replies,
                )
                replies = {flow.original: flow.reply for flow in stale}
                if not replies:
                    break
                _delete(list(replies), deadline)
                deleted_replies.update(replies.values())
        except _FlushError as error:
            self._warn_once(
                f"open flows may keep their old destination after the change of rules: {error}"
            )
            return False
        self._last_warning = ""
        return True

    def _warn_once(self, text: str) -> None:
        """A warning at the first of equal consecutive failures, debug messages for the others."""
        log.log(logging.DEBUG if text == self._last_warning else logging.WARNING, "%s", text)
        self._last_warning = text


def _flush_neighbours(old: Desired | None, new: Desired, exposure: Exposure) -> None:
    # The kernel drops packets that wait for a deleted neighbour. With -force the batch continues if
    # an address has no neighbour entry, as most have none.
    protected = newly_protected(old, new, exposure=exposure)
    lines = [f"neigh flush dev {network.bridge}\n" for network in protected]
    lines += [
        f"neigh del {address} dev {bridge}\n" for bridge, address in added_endpoints(old, new)
    ]
    if lines:
        output_of("ip", "-6", "-force", "-batch", "-", stdin="".join(lines), timeout=IP_TIMEOUT)


def _list_entries(tool: str, scope: Sequence[Query], deadline: float) -> str:
    """The entries that match one of the queries, or all entries if there are many queries."""
    if len(scope) > _MAX_SEPARATE_LISTS:
        scope = [Query()]
    return "".join(
        _run(tool, "-L", *_FAMILY, *_list_options(query), deadline=deadline) for query in scope
    )


def _list_options(query: Query) -> Iterator[str]:
    for option, value in (
        ("-p", query.protocol),
        ("--orig-src", query.source),
        ("--orig-dst", query.destination),
        ("--reply-src", query.reply_source),
    ):
        if value is not None:
            yield from (option, str(value))


def _run(tool: str, *arguments: str, deadline: float) -> str:
    argv = [tool, *arguments]
    try:
        result = run(argv, timeout=max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        raise _FlushError(f"{' '.join(argv)} did not end within {FLUSH_TIMEOUT:g} s") from None
    except OSError as error:
        raise _FlushError(f"{tool} cannot be run: {error.strerror}") from error
    if result.returncode != 0:
        reason = result.stderr.strip() or f"exit status {result.returncode}, no message"
        raise _FlushError(f"{' '.join(argv)}: {reason.splitlines()[0]}")
    return result.stdout


def _delete(entries: Sequence[Tuple], deadline: float) -> None:
    try:
        deleted = delete_entries(entries, timeout=max(deadline - time.monotonic(), 0.001))
    except TimeoutError:
        raise _FlushError(
            f"the kernel did not delete the conntrack entries within {FLUSH_TIMEOUT:g} s"
        ) from None
    except OSError as error:
        raise _FlushError(
            f"the kernel did not delete the conntrack entries: {error.strerror}"
        ) from error
    log.debug("%d of %d conntrack entries deleted", deleted, len(entries))
