"""Makes the kernel forget UDP and SCTP flows that a change of mappings has made wrong, and all
that came for a network before it was closed, or from its addresses before it was there; and where
on its link a container's address was before.

Through `conntrack` of conntrack-tools; which flows those are is decided in flows. A host without
the tool forwards all the same, and nothing that fails here stops a sync.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv6Address, IPv6Network

from ipv6natd.flows import (
    Removal,
    appeared,
    came,
    gone,
    intruders,
    newly_closed,
    parse,
    protocols,
    removals,
    stale,
)
from ipv6natd.model import Desired, Protocol
from ipv6natd.tools import DIRECTORIES, call, find, said

log = logging.getLogger(__name__)

TIMEOUT = 10.0
"""Seconds that one call may take."""
PATIENCE = 5.0
"""Seconds that the removals of one look may take."""
HOLD = 0.25
"""Seconds after which a sync that waits is let go first; what is under way is done before."""
LOOKS, PAUSE = 4, 0.025
"""How often, and after how many seconds each, answers that were under way are looked after: see
`stale`."""
INSTALL = "install the package conntrack (on Arch: conntrack-tools)"
_FAMILY = ("-f", "ipv6", "-w", "0")
_NONE_LEFT = "0 flow entries have been deleted"
_JUST_ENDED = "such conntrack doesn't exist"
_ATTEMPTS = 5
_FEW = 8
_AT_ONCE = 32


class _Failed(Exception):
    """The tool did not do what it was asked; the text has its own words."""


class _Held(Exception):
    """A sync waits, and has waited long enough."""


class Conntrack:
    """The host's table of flows. `host_addresses` is asked anew for each change."""

    def __init__(self, host_addresses: Callable[[], frozenset[IPv6Address]]) -> None:
        self._host_addresses = host_addresses
        self._told = False

    def follow(
        self,
        old: Desired | None,
        new: Desired,
        exposed: bool = False,
        waiting: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Forget what is wrong now that the rules for `new` have taken the place of those for
        `old`, which is None where nobody knows what held before; `exposed`: networks were open
        until now. Whether that is done.

        Blocks. What fails is logged, not raised. Among ten thousand flows each removal takes some
        10 ms, and all that while the rules may be those of a container that is gone: so it ends
        before it is done when `waiting` says that there is something to write, though never
        without having removed anything.
        """
        begun = time.monotonic()

        def held() -> bool:
            return waiting() and time.monotonic() - begun > HOLD

        closed = newly_closed(old, new, exposed=exposed)
        for network in closed:
            # What waits for a neighbour is dropped with him.
            said("ip", "-6", "neigh", "flush", "dev", network.bridge, timeout=TIMEOUT)
        lines = (f"neigh del {address} dev {bridge}\n" for bridge, address in came(old, new))
        if text := "".join(lines):
            # Most have none, and the others are deleted all the same.
            said("ip", "-6", "-force", "-batch", "-", stdin=text, timeout=TIMEOUT)
        tool = find("conntrack", DIRECTORIES)
        if tool is None:
            self._tell_missing()
            return True  # whoever installs it meets flows that end sooner or later
        self._told = False
        try:
            if closed:
                entries = _listed(tool, [each for network in closed for each in network.subnets])
                came_in = intruders(entries, closed, self._host_addresses())
                ends = [("--orig-src", str(s), "--orig-dst", str(d)) for s, d in came_in]
                _forget(tool, ends, held)
            late = [each for network in appeared(old, new) for each in network.subnets]
            _forget(tool, [("--orig-src", str(subnet)) for subnet in late], held)
            for protocol in protocols(old, new):
                self._follow(tool, protocol, old, new, held)
        except _Failed as error:
            log.warning("flows that began before the rules changed may go on as before: %s", error)
            return False
        except _Held:
            log.debug("flows are gone on with after the rules that are to be written")
            return False
        return True

    def _follow(
        self,
        tool: str,
        protocol: Protocol,
        old: Desired | None,
        new: Desired,
        held: Callable[[], bool],
    ) -> None:
        for look in range(LOOKS):
            if look:
                time.sleep(PAUSE)
            # Read twice if need be, and never held as flows: a table has ten thousand soon.
            text = _run(tool, "-L", *_FAMILY, "-p", protocol)
            here = self._host_addresses()
            wrong = stale(parse(text), old, new, here)
            if not wrong:
                return
            calls = removals(wrong, parse(text), gone(old, new), here)
            _forget(tool, [tuple(_words(each)) for each in calls], held)
            log.debug("%d flows over %s forgotten", len(wrong), protocol)
            del text  # before the next

    def _tell_missing(self) -> None:
        if not self._told:
            log.warning(
                "there is no conntrack in %s: UDP flows that began before a mapping changed go on "
                "as before; %s",
                *(":".join(DIRECTORIES), INSTALL),
            )
        self._told = True


def _words(removal: Removal) -> Iterator[str]:
    yield from ("-p", removal.protocol)
    for option, value in (
        ("--orig-src", removal.source),
        ("--orig-port-src", removal.source_port),
        ("--orig-dst", removal.destination),
        ("--orig-port-dst", removal.destination_port),
        ("--reply-src", removal.reply_source),
        ("--reply-port-src", removal.reply_source_port),
    ):
        if value is not None:
            yield from (option, str(value))


def _listed(tool: str, subnets: Sequence[IPv6Network]) -> str:
    """The entries for these destinations, and others where the subnets are many."""
    if len(subnets) > _FEW:
        return _run(tool, "-L", *_FAMILY)
    return "".join(_run(tool, "-L", *_FAMILY, "--orig-dst", str(each)) for each in subnets)


def _forget(tool: str, entries: Sequence[Iterable[str]], held: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    for first in range(0, len(entries), _AT_ONCE):
        _remove(tool, entries[first : first + _AT_ONCE], deadline - time.monotonic())
        if held():
            raise _Held


def _remove(tool: str, entries: Sequence[Iterable[str]], timeout: float) -> None:
    """All of them in one process: each line that it reads is what a command line would be."""
    lines = "".join(" ".join(("-D", *_FAMILY, *words)) + "\n" for words in entries)
    for attempt in range(_ATTEMPTS):
        try:
            _run(tool, "-R", "-", stdin=lines, timeout=max(timeout, 0))
        except _Failed as error:
            # It looks entries up and then deletes each; one that ends in between makes it stop.
            if _JUST_ENDED not in str(error) or attempt == _ATTEMPTS - 1:
                raise
        else:
            return


def _run(tool: str, *words: str, stdin: str = "", timeout: float = TIMEOUT) -> str:
    argv = [tool, *words]
    try:
        done = call(argv, timeout=timeout, stdin=stdin)
    except subprocess.TimeoutExpired:
        raise _Failed(f"{' '.join(argv)} did not end within {timeout:.2g} s") from None
    except OSError as error:
        raise _Failed(f"{tool} cannot be run: {error.strerror}") from error
    # It ends with 1 where nothing was there to delete any more.
    if done.returncode != 0 and _NONE_LEFT not in done.stderr:
        said = done.stderr.strip() or f"exit status {done.returncode}, no message"
        raise _Failed(f"{' '.join(argv)}: {said.splitlines()[0]}")
    return done.stdout
