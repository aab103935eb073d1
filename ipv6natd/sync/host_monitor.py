"""Checks the host beside the passes, so that no event waits for a check."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from ipv6natd.host.findings import HostReport
from ipv6natd.model import Desired
from ipv6natd.report.changes import log_findings
from ipv6natd.sync.applier import Applier
from ipv6natd.sync.interfaces import EngineFacts

log = logging.getLogger(__name__)

CHECK_INTERVAL = 60.0
"""Seconds between two checks: a corrected fault is shown within a minute."""


class HostMonitor:
    """Holds the newest report about the host."""

    def __init__(self, engine: EngineFacts, applier: Applier, changed: Callable[[], None]) -> None:
        """`changed` is called after each change of the report."""
        self.engine = engine
        self.report = HostReport()
        self.desired = Desired(engine_writes=True)
        """The decisions of the last pass. Until the first one the engine may write IPv6 rules."""
        self.rules_removed = False
        """True after a clean-up was requested, until a resync."""
        self._applier = applier
        self._changed = changed
        self._requested = asyncio.Event()

    def request(self) -> None:
        """Check the host soon: it may have changed."""
        self._requested.set()

    def decided(self, desired: Desired) -> None:
        """Note the decisions of a pass."""
        old, self.desired = self.desired, desired
        if (old.networks, old.engine_writes) != (desired.networks, desired.engine_writes):
            self.request()

    def removed(self) -> None:
        """Note that all rules were removed: faults that affect networks do not matter now."""
        self.desired = Desired(engine_writes=self.desired.engine_writes)

    async def run(self) -> None:
        """Check now, on request, after changes of the networks and every minute, until
        cancelled."""
        while True:
            self._requested.clear()
            await self.check()
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECK_INTERVAL):
                    await self._requested.wait()

    async def check(self) -> None:
        """Check now."""
        old = self.report
        try:
            new = await self._applier.host.check(
                self.desired,
                bridges=frozenset(network.bridge for network in self.engine.networks.values()),
                backend=self._applier.backend,
                rules_removed=self.rules_removed,
            )
        except Exception:
            # The rules must stay in sync whatever the tools of the host print.
            log.exception("the host check failed")
            return
        if new != old:
            self.report = new
            log_findings(old, new)
            self._changed()
