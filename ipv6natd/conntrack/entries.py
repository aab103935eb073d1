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

from ipv6natd.conntrack.ctnetlink import forget
from ipv6natd.conntrack.stale import Exposure, Part, Tuple, came, newly_closed, parse, parts, wrong
from ipv6natd.model import Desired
from ipv6natd.system.process import TOOL_DIRECTORIES, output_of, run, which

log = logging.getLogger(__name__)

TIMEOUT = 10.0
"""Seconds that one call of `ip` may take."""
PATIENCE = 10.0
"""Seconds that all may take that is asked about flows after one change."""
LOOKS, PAUSE = 4, 0.025
"""How often, and after how many seconds each, answers that were under way are looked after: see
flows."""
INSTALL = "install the package conntrack (on Arch: conntrack-tools)"
_MISSING = (
    f"there is no conntrack in {':'.join(TOOL_DIRECTORIES)}: UDP flows that began before a mapping "
    f"changed go on as before; {INSTALL}"
)
_FAMILY = ("-f", "ipv6", "-w", "0")
_FEW = 4
"""Parts of the table that are listed by themselves: each list reads it whole."""


class _Failed(Exception):
    """What was asked was not done; the text has the tool's or the kernel's own words."""


class Conntrack:
    """The host's table of flows. `host_addresses` is asked anew for each change."""

    def __init__(self, host_addresses: Callable[[], frozenset[IPv6Address]]) -> None:
        self._host_addresses = host_addresses
        self._told = ""

    def follow(self, old: Desired | None, new: Desired, exposure: Exposure = Exposure.NONE) -> bool:
        """Forget what is wrong now that the rules for `new` have taken the place of those for
        `old`, which is None where nobody knows what held before. Whether that is done.

        Blocks. What fails is logged, not raised.
        """
        _forget_neighbours(old, new, exposure)
        where = parts(old, new, exposure=exposure)
        if not where:
            return True
        tool = which("conntrack", TOOL_DIRECTORIES)
        if tool is None:
            self._tell(_MISSING)
            return True  # whoever installs it meets flows that end sooner or later
        answers: set[Tuple] = set()
        deadline = time.monotonic() + PATIENCE
        try:
            for look in range(LOOKS):
                if look:
                    time.sleep(PAUSE)
                flows = parse(_listed(tool, where, deadline))
                here = self._host_addresses()
                again = answers or None  # the first look knows of none
                found = {
                    each.original: each.reply
                    for each in wrong(flows, old, new, here, exposure=exposure, answers=again)
                }
                if not found:
                    break
                _forget(list(found), deadline)
                answers.update(found.values())
        except _Failed as error:
            self._tell(f"flows that began before the rules changed may go on as before: {error}")
            return False
        self._told = ""
        return True

    def _tell(self, trouble: str) -> None:
        """Once for each trouble, not once for each try."""
        log.log(logging.DEBUG if trouble == self._told else logging.WARNING, "%s", trouble)
        self._told = trouble


def _forget_neighbours(old: Desired | None, new: Desired, exposure: Exposure) -> None:
    # What waits for a neighbour is dropped with him. Most have none, and that stops no batch.
    closed = newly_closed(old, new, exposure=exposure)
    lines = [f"neigh flush dev {network.bridge}\n" for network in closed]
    lines += [f"neigh del {address} dev {bridge}\n" for bridge, address in came(old, new)]
    if lines:
        output_of("ip", "-6", "-force", "-batch", "-", stdin="".join(lines), timeout=TIMEOUT)


def _listed(tool: str, where: Sequence[Part], deadline: float) -> str:
    """The entries of these parts, and others where they are many."""
    if len(where) > _FEW:
        where = [Part()]
    return "".join(_run(tool, "-L", *_FAMILY, *_words(each), deadline=deadline) for each in where)


def _words(part: Part) -> Iterator[str]:
    for option, value in (
        ("-p", part.protocol),
        ("--orig-src", part.source),
        ("--orig-dst", part.destination),
        ("--reply-src", part.answered_by),
    ):
        if value is not None:
            yield from (option, str(value))


def _run(tool: str, *words: str, deadline: float) -> str:
    argv = [tool, *words]
    try:
        done = run(argv, timeout=max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        raise _Failed(f"{' '.join(argv)} did not end within {PATIENCE:g} s") from None
    except OSError as error:
        raise _Failed(f"{tool} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        why = done.stderr.strip() or f"exit status {done.returncode}, no message"
        raise _Failed(f"{' '.join(argv)}: {why.splitlines()[0]}")
    return done.stdout


def _forget(entries: Sequence[Tuple], deadline: float) -> None:
    try:
        there = forget(entries, timeout=max(deadline - time.monotonic(), 0.001))
    except TimeoutError:
        raise _Failed(f"the kernel did not forget them within {PATIENCE:g} s") from None
    except OSError as error:
        raise _Failed(f"the kernel does not forget them: {error.strerror}") from error
    log.debug("%d of %d flows forgotten", there, len(entries))
