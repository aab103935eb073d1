"""Checks the host beside the passes, so that no event waits for a check."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from ipv6natd.host.findings import Finding
from ipv6natd.model import Desired
from ipv6natd.report.changes import log_findings
from ipv6natd.sync.applier import Applier
from ipv6natd.sync.interfaces import EngineFacts

log = logging.getLogger(__name__)

CHECK_INTERVAL = 60.0
"""Seconds between two checks: a corrected fault is shown within a minute."""
MIN_CHECK_INTERVAL = 1.0
"""Seconds between two checks that users may cause, because a check starts programs."""


class HostMonitor:
    """Holds the newest findings about the host."""

    def __init__(self, engine: EngineFacts, applier: Applier, changed: Callable[[], None]) -> None:
        """`changed` is called after each change of the findings."""
        self.engine = engine
        self.findings: tuple[Finding, ...] = ()
        self.desired = Desired(engine_writes=True)
        """The decisions of the last pass. Until the first one the engine may write IPv6 rules."""
        self.rules_removed = False
        """True after a clean-up was requested, until a resync."""
        self._applier = applier
        self._changed = changed
        self._requested = asyncio.Event()
        self._last_check = -MIN_CHECK_INTERVAL
        """When the last check began, in the time of the event loop."""
        self._refresh = asyncio.Lock()

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

    async def check_on_request(self) -> None:
        """Wait for a check that begins later than this call, but not within MIN_CHECK_INTERVAL
        after another one. One check serves all calls before it."""
        loop = asyncio.get_running_loop()
        called = loop.time()
        async with self._refresh:
            if self._last_check <= called:
                await asyncio.sleep(self._last_check + MIN_CHECK_INTERVAL - loop.time())
                await self.check()

    async def check(self) -> None:
        """Check now."""
        old, self._last_check = self.findings, asyncio.get_running_loop().time()
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
            self.findings = new
            log_findings(old, new)
            self._changed()
