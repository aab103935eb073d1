"""The loop that runs a pass after each change.

The first trigger starts a pass at once. All triggers during a pass cause one more. After a failed
pass, the next writes whole tables. Nothing is written before the engine's first list.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from ipv6natd.conntrack.flush import SCAN_PAUSE
from ipv6natd.firewall.backend import FirewallError
from ipv6natd.host.findings import Finding, Topic, kernel_fault
from ipv6natd.model import Policy, Snapshot
from ipv6natd.report.status import Status, SyncResult
from ipv6natd.sync.applier import Applier, PassResult
from ipv6natd.sync.departures import Departures
from ipv6natd.sync.host_monitor import HostMonitor
from ipv6natd.sync.interfaces import EngineFacts, Observer
from ipv6natd.sync.publisher import Publisher
from ipv6natd.system.messages import MessageId, log_fields
from ipv6natd.system.threads import in_thread

log = logging.getLogger(__name__)
T = TypeVar("T")

MIN_RETRY_PAUSE, MAX_RETRY_PAUSE = 1.0, 30.0
MAX_PASS_TIME = 180.0
"""Seconds. Six calls of tools that each wait as long as they may; a usual pass takes 0.05 s."""


@dataclass(slots=True)
class Requests:
    """What the next pass has to do besides writing what has changed."""

    verify: bool = False
    """Read the tables: another program may have changed them."""
    recheck_flows: bool = False
    """Check all flows: those to a new address may have begun without NAT."""
    resyncs: list[asyncio.Future[SyncResult | FirewallError]] = field(default_factory=list)
    """Who waits for its result."""


class Retry:
    """When a failed pass runs again: after a pause that grows with each failure."""

    def __init__(self) -> None:
        self.due: float | None = None
        """The time of the loop; None if no pass has failed."""
        self.reason = ""
        """The last error; "" after a success."""
        self._pause = MIN_RETRY_PAUSE

    def schedule(self) -> None:
        """Run again after the pause."""
        self.due = asyncio.get_running_loop().time() + self._pause
        self._pause = min(self._pause * 2, MAX_RETRY_PAUSE)

    def reset(self) -> None:
        """Nothing has failed."""
        self.due, self._pause = None, MIN_RETRY_PAUSE


class Reconciler:
    """Keeps one firewall in sync with one engine."""

    def __init__(
        self, *, engine: EngineFacts, applier: Applier, observer: Observer, policy: Policy
    ) -> None:
        self._engine = engine
        self.applier = applier
        self.policy = policy
        self.monitor = HostMonitor(engine, applier, self.trigger)
        self.publisher = Publisher(engine, applier, self.monitor, observer)
        self.departures = Departures(engine, applier.host, self.trigger)
        self._woken = asyncio.Event()
        self._requests = Requests()
        self._removals: list[asyncio.Future[FirewallError | None]] = []
        self._retry = Retry()
        self._call_began: float | None = None
        self._firewall_opened = asyncio.Event()

    @property
    def status(self) -> Status:
        """The current status."""
        return self.publisher.status

    def use_engine(self, engine: EngineFacts) -> None:
        """Take the facts of this engine from now on."""
        self._engine = engine
        for part in (self.publisher, self.monitor, self.departures):
            part.engine = engine

    def trigger(self) -> None:
        """Run a pass: the facts of the engine may have changed."""
        self._woken.set()

    def verify(self) -> None:
        """Run a pass that reads the tables: another program may have changed them."""
        self._requests.verify = True
        self.trigger()

    def addresses_changed(self) -> None:
        """Run a pass that checks all flows."""
        self._requests.recheck_flows = True
        self.trigger()

    async def open_firewall(self) -> None:
        """Open the firewall before the first pass. An error is logged."""
        try:
            await self._in_thread(self.applier.opened)
        except FirewallError as error:
            log.error("%s", error)

    async def watch_firewall(self) -> None:
        """Verify when another program writes, and regularly, because some edits are not reported.

        Runs from the time when the firewall is open until it is cancelled.
        """
        await self._firewall_opened.wait()
        firewall = self.applier.opened()
        await asyncio.gather(
            firewall.watch(self.verify), self.verify_regularly(firewall.read_interval)
        )

    async def verify_regularly(self, interval: float) -> None:
        """Verify every `interval` seconds until cancelled."""
        while True:
            await asyncio.sleep(interval)
            self.verify()

    @property
    def hangs(self) -> bool:
        """True if a pass takes so long that only a new process can help."""
        began = self._call_began
        return began is not None and time.monotonic() - began > MAX_PASS_TIME

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """Run a call of the applier. Only one runs at a time."""
        self._call_began = time.monotonic()
        try:
            return await in_thread(call)
        finally:
            self._call_began = None
            if self.applier.firewall is not None:
                self._firewall_opened.set()

    async def resync(self) -> SyncResult:
        """Read the engine and the tables again, and write the differences.

        Raises EngineUnavailable or FirewallError.
        """
        await self._reread()
        self.monitor.rules_removed = False
        return await self._next_pass()

    async def refresh(self) -> None:
        """Like `resync`, but after `cleanup` no rules are written."""
        self.trigger()
        await self._reread()
        if not self.monitor.rules_removed:
            await self._next_pass()

    async def _reread(self) -> None:
        await self._engine.relist()
        self.applier.position.reset()
        await self.monitor.check()

    async def _next_pass(self) -> SyncResult:
        self._requests.verify = True
        return await self._request(self._requests.resyncs)

    async def cleanup(self) -> None:
        """Remove all our rules, and write none until `resync`. Raises FirewallError."""
        self.monitor.rules_removed = True
        await self._request(self._removals)

    async def _request(self, waiters: list[asyncio.Future[T | FirewallError]]) -> T:
        """Trigger a pass, and wait for its answer to `waiters`."""
        waiter: asyncio.Future[T | FirewallError] = asyncio.get_running_loop().create_future()
        waiters.append(waiter)
        self.trigger()
        if isinstance(result := await waiter, FirewallError):
            raise result
        return result

    async def run(self) -> None:
        """Run passes until cancelled."""
        self.departures.begin()
        while True:
            await self._scan_flows()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._retry.due):
                    await self._woken.wait()
            # Cleared before any read, so that a change during the pass causes another pass.
            self._woken.clear()
            await self._run_pass()

    async def _scan_flows(self) -> None:
        """Delete conntrack entries that come back after a pass, until the next trigger. The flush
        of the next pass continues it."""
        while self.applier.host.needs_scan:
            with suppress(TimeoutError):
                async with asyncio.timeout(SCAN_PAUSE):
                    await self._woken.wait()
                    return
            if not await self._in_thread(self.applier.scan_flows_again):
                self._retry.schedule()
                return

    async def _run_pass(self) -> None:
        await self._remove_on_request()
        if self.monitor.rules_removed or not self._engine.state.has_facts:
            # Waiters keep waiting for a pass with the facts of the engine.
            self._retry.due = None
            await self._close_uncertain_ports()
            self.publisher.refresh()
            return
        requests, self._requests = self._requests, Requests()
        began = time.monotonic()
        try:
            result = await self._in_thread(
                partial(
                    self.applier.sync,
                    self.snapshot(),
                    self.policy,
                    verify=requests.verify,
                    recheck_flows=requests.recheck_flows,
                )
            )
        except FirewallError as error:
            self._record_failure(error)
            settle(requests.resyncs, error)
        else:
            self._record_success(result)
            sync_result = SyncResult(
                generation=self.status.generation,
                rules_added=result.added,
                rules_removed=result.removed,
                duration_ms=round((time.monotonic() - began) * 1000),
            )
            settle(requests.resyncs, sync_result)
        unread = self.applier.has_unverified_chains and not self._woken.is_set()
        if unread and not await self._in_thread(self.applier.read_back):
            self.verify()

    async def _close_uncertain_ports(self) -> None:
        """Close the ports once, if they may lead to other containers now."""
        if self.departures.ports_closed or self.monitor.rules_removed:
            return
        ours = self.applier.applied.observed is not None
        due = await self.departures.closing_time(rules_are_ours=ours)
        if due is None or due > asyncio.get_running_loop().time():
            self._retry.due = due
            return
        try:
            await self._in_thread(self.applier.close_ports)
            self.departures.ports_closed = True
        except FirewallError as error:
            log.error("cannot close the ports of the last run: %s", error)
            self._retry.schedule()

    async def _remove_on_request(self) -> None:
        removals, self._removals = self._removals, []
        if not removals:
            return
        try:
            await self.remove()
        except FirewallError as error:
            # Some rules may be removed: the next pass writes all of them again.
            self.monitor.rules_removed = False
            settle(removals, error)
            return
        if self.monitor.rules_removed:
            self.monitor.removed()
            self.publisher.refresh()
            resyncs, self._requests.resyncs = self._requests.resyncs, []
            settle(resyncs, FirewallError("all rules were removed during the resync"))
        settle(removals, None)

    async def remove(self) -> None:
        """Remove all our rules. Raises FirewallError."""
        await self._in_thread(self.applier.remove)

    def snapshot(self) -> Snapshot:
        """The facts of the engine now."""
        return Snapshot(
            engine=self._engine.engine,
            networks=tuple(self._engine.networks.values()),
            containers=tuple(self._engine.containers.values()),
            vacated_bridges=self.departures.vacated_bridges,
        )

    def _record_failure(self, error: FirewallError) -> None:
        known = kernel_fault(str(error))
        advice = [known.text] if known else []
        first = str(error).splitlines()[0]
        fault = Finding(
            topic=Topic.SERVICE,
            problem=f"{first}; {known.problem}" if known else first,
            command=known.command if known else "",
        )
        reason = fault.text
        # Logged once, not for each retry.
        log.log(
            logging.DEBUG if reason == self._retry.reason else logging.ERROR,
            "cannot update the rules: %s",
            FirewallError("\n".join((str(error), *advice))),
            extra=log_fields(MessageId.WRITE_FAILED, reason=reason),
        )
        self._retry.reason = reason
        self._requests.verify = True
        self._retry.schedule()
        self.publisher.failed(fault)

    def _record_success(self, result: PassResult) -> None:
        if result.flows_flushed:
            self._retry.reset()
        else:
            self._retry.schedule()
        self._retry.reason = ""
        self.monitor.decided(result.desired)
        if result.forwarding_enabled:
            self.monitor.request()
        self.publisher.succeeded(result)


def settle(waiters: Iterable[asyncio.Future[T]], result: T) -> None:
    """Give the result to all that still wait. It may be an error, which the waiter raises."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(result)
