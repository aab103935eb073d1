"""Makes the kernel forget flows that a change of mappings has made wrong, and all that came for a
network before it was closed, or from its addresses before it was there; and where on its link a
container's address was before.

`conntrack` of conntrack-tools lists them; which are to be forgotten is decided in flows. A host
without the tool forwards all the same, and nothing that fails here stops a sync.
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
"""Seconds that one call of `ip` may take."""
FLUSH_TIMEOUT = 10.0
"""Seconds that all may take that is asked about flows after one change."""
MAX_SCANS, SCAN_PAUSE = 4, 0.025
"""How often, and after how many seconds each, answers that were under way are looked after: see
flows."""
INSTALL_HINT = "install the package conntrack (on Arch: conntrack-tools)"
_MISSING = (
    f"there is no conntrack in {':'.join(TOOL_DIRECTORIES)}: UDP flows that began before a mapping "
    f"changed go on as before; {INSTALL_HINT}"
)
_FAMILY = ("-f", "ipv6", "-w", "0")
_MAX_SEPARATE_LISTS = 4
"""Parts of the table that are listed by themselves: each list reads it whole."""


class _FlushError(Exception):
    """What was asked was not done; the text has the tool's or the kernel's own words."""


class Conntrack:
    """The host's table of flows. `host_addresses` is asked anew for each change."""

    def __init__(self, host_addresses: Callable[[], frozenset[IPv6Address]]) -> None:
        self._host_addresses = host_addresses
        self._last_warning = ""

    def flush_stale_flows(
        self, old: Desired | None, new: Desired, exposure: Exposure = Exposure.NONE
    ) -> bool:
        """Forget what is wrong now that the rules for `new` have taken the place of those for
        `old`, which is None where nobody knows what held before. Whether that is done.

        Blocks. What fails is logged, not raised.
        """
        _flush_neighbours(old, new, exposure)
        scope = queries(old, new, exposure=exposure)
        if not scope:
            return True
        tool = which("conntrack", TOOL_DIRECTORIES)
        if tool is None:
            self._warn_once(_MISSING)
            return True  # whoever installs it meets flows that end sooner or later
        deleted_replies: set[Tuple] = set()
        deadline = time.monotonic() + FLUSH_TIMEOUT
        try:
            for scan in range(MAX_SCANS):
                if scan:
                    time.sleep(SCAN_PAUSE)
                flows = parse_entries(_list_entries(tool, scope, deadline))
                known_replies = deleted_replies or None  # the first scan knows of none
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
                f"flows that began before the rules changed may go on as before: {error}"
            )
            return False
        self._last_warning = ""
        return True

    def _warn_once(self, text: str) -> None:
        """Once for each text, not once for each try."""
        log.log(logging.DEBUG if text == self._last_warning else logging.WARNING, "%s", text)
        self._last_warning = text


def _flush_neighbours(old: Desired | None, new: Desired, exposure: Exposure) -> None:
    # What waits for a neighbour is dropped with him. Most have none, and that stops no batch.
    protected = newly_protected(old, new, exposure=exposure)
    lines = [f"neigh flush dev {network.bridge}\n" for network in protected]
    lines += [
        f"neigh del {address} dev {bridge}\n" for bridge, address in added_endpoints(old, new)
    ]
    if lines:
        output_of("ip", "-6", "-force", "-batch", "-", stdin="".join(lines), timeout=IP_TIMEOUT)


def _list_entries(tool: str, scope: Sequence[Query], deadline: float) -> str:
    """The entries of these parts, and others where they are many."""
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
        raise _FlushError(f"the kernel did not forget them within {FLUSH_TIMEOUT:g} s") from None
    except OSError as error:
        raise _FlushError(f"the kernel does not forget them: {error.strerror}") from error
    log.debug("%d of %d flows forgotten", deleted, len(entries))
