"""The loop that runs a pass after each change.

The first trigger starts a pass at once. All triggers during a pass cause one more. After a failed
pass, the next writes whole tables. Nothing is written before the engine's first list.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

from ipv6natd import __version__
from ipv6natd.conntrack.stale import Exposure
from ipv6natd.firewall.backend import Firewall, FirewallError
from ipv6natd.host.findings import HostReport, missing_module_hint
from ipv6natd.model import Container, Engine, Mapping, Network, Policy, Snapshot, mapping_changes
from ipv6natd.netfilter.rules import Backend
from ipv6natd.report.changes import log_changes, log_findings
from ipv6natd.report.explain import Explanation, explanations
from ipv6natd.report.status import Row, State, Status, SyncResult, mapping_id
from ipv6natd.sync.applier import Applier, PassResult, position_reason
from ipv6natd.sync.host import Host
from ipv6natd.system.messages import MessageId, log_fields
from ipv6natd.system.threads import in_thread

log = logging.getLogger(__name__)
T = TypeVar("T")

MIN_RETRY_PAUSE, MAX_RETRY_PAUSE = 1.0, 30.0
REMOVED_REASON = "all rules were removed on request; to write them again: ipv6natctl resync"
MAX_PASS_TIME = 180.0
"""Seconds. Six calls of tools that each wait as long as they may; a usual pass takes 0.05 s."""
HOST_CHECK_INTERVAL = 60.0
"""Seconds between two checks of the host: a corrected fault is shown within a minute."""


class EngineFacts(Protocol):
    """What the loop needs from the engine."""

    tried: bool
    """True once the engine answered, or the reason why it does not is known."""
    connected: bool
    waiting_for: str
    engine: Engine | None
    listed: bool
    networks: dict[str, Network]
    containers: dict[str, Container]

    async def relist(self) -> None:
        """Read all networks and containers again."""


class Observer(Protocol):
    """Who is told of each change of the status."""

    def changed(self, old: Status, new: Status, drift: Row | None) -> None:
        """`drift` has the details of a repair of rules that another program had changed."""


class Reconciler:
    """Keeps one firewall in sync with one engine."""

    def __init__(
        self,
        *,
        engine: EngineFacts,
        open_firewall: Callable[[], Firewall],
        host: Host,
        observer: Observer,
        policy: Policy,
        exposure: Exposure = Exposure.NONE,
        expected_backend: Backend = Backend.NFT,
        verify_interval: float | None = None,
    ) -> None:
        """`open_firewall` runs in a worker thread and may raise FirewallError: then each pass tries
        again, and `expected_backend` is reported. `exposure` is what may have been unprotected
        before the start. Every `verify_interval` seconds the tables are read and compared."""
        self.engine = engine
        self.policy = policy
        self.config_error = ""
        self.status = Status(version=__version__, backend=expected_backend.value)
        self._woken = asyncio.Event()
        self._applier = Applier(
            open_firewall, host, expected_backend=expected_backend, exposure=exposure
        )
        self._host = host
        self._observer = observer
        self._host_check_requested = asyncio.Event()
        self._host_report = HostReport()
        self._networks: tuple[Network, ...] = ()
        self.engine_writes = True
        """True if the engine may write IPv6 rules itself; assumed until the first pass."""
        self._last_failure = ""
        self._firewall_opened = asyncio.Event()
        self._call_began: float | None = None
        """When the current call in a worker thread began; None between calls."""
        self.verify_interval = verify_interval
        self._first_pass = asyncio.Event()
        self._verify = False
        self._retry_at: float | None = None
        self._retry_pause = MIN_RETRY_PAUSE
        self._waiters: list[asyncio.Future[SyncResult]] = []
        self._removals: list[asyncio.Future[None]] = []
        self._stopped = False
        self._writing = asyncio.Lock()

    def trigger(self) -> None:
        """Run a pass: the facts of the engine may have changed."""
        self._woken.set()

    def verify(self) -> None:
        """Run a pass that reads the tables: another program may have changed them."""
        self._verify = True
        self._woken.set()

    def addresses_changed(self) -> None:
        """Run a pass that checks all flows: those to a new address may have started without NAT."""
        self._applier.recheck_all_flows = True
        self._woken.set()

    async def open_firewall(self) -> None:
        """Open the firewall before the first pass. An error is logged."""
        try:
            await self._in_thread(self._applier.opened)
        except FirewallError as error:
            log.error("%s", error)
        self.status = replace(self.status, backend=self._applier.backend.value)

    async def opened_firewall(self) -> Firewall:
        """Wait until the firewall is open."""
        await self._firewall_opened.wait()
        assert self._applier.firewall is not None
        return self._applier.firewall

    @property
    def hangs(self) -> bool:
        """True if a pass takes so long that only a new process can help."""
        began = self._call_began
        return began is not None and time.monotonic() - began > MAX_PASS_TIME

    async def _in_thread(self, function: Callable[[], T]) -> T:
        """Run a call of the applier, one at a time."""
        async with self._writing:
            self._call_began = time.monotonic()
            try:
                return await in_thread(function)
            finally:
                self._call_began = None
                if self._applier.firewall is not None:
                    self._firewall_opened.set()

    async def wait_first_pass(self) -> None:
        """Wait until the first pass has ended, or the reason why it cannot start is known."""
        await self._first_pass.wait()

    async def resync(self) -> SyncResult:
        """Read the engine and the tables again, and write the differences.

        Raises EngineUnavailable or FirewallError.
        """
        await self._reread()
        self._stopped = False
        return await self._next_pass()

    async def refresh(self) -> None:
        """Like `resync`, but after `cleanup` no rules are written."""
        self.trigger()
        await self._reread()
        if not self._stopped:
            await self._next_pass()

    async def _reread(self) -> None:
        await self.engine.relist()
        self._applier.position.reset()
        await self.update_host_report()

    async def _next_pass(self) -> SyncResult:
        waiter: asyncio.Future[SyncResult] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self.verify()
        return await waiter

    async def cleanup(self) -> None:
        """Remove all our rules, and write none until `resync`. Raises FirewallError."""
        removal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._removals.append(removal)
        self._stopped = True
        self.trigger()
        await removal

    async def explain(self, query: str) -> list[Explanation]:
        """Explanations of the containers that `query` selects."""
        applied = self._applier.applied
        if applied is None:
            return []
        facts = (self._snapshot(), self.policy, applied.desired, applied.ruleset)
        return await in_thread(partial(explanations, query, *facts))

    def ruleset_text(self) -> str:
        """The rules in force, as ip6tables-restore reads them."""
        return self._applier.ruleset_text()

    async def run(self) -> None:
        """Run passes until cancelled."""
        last_verify = time.monotonic()
        while True:
            await self._wait_for_work()
            if self.verify_interval and time.monotonic() - last_verify >= self.verify_interval:
                last_verify = time.monotonic()
                self._verify = True
                self._woken.set()
            if self._woken.is_set() or self._retry_due():
                # Cleared before any read, so that a change during the pass causes another pass.
                self._woken.clear()
                await self._run_pass()

    async def watch_host(self) -> None:
        """Check the host now, after changes of the networks and every minute, until cancelled.

        It runs beside the passes, so that no event waits for a check.
        """
        while True:
            self._host_check_requested.clear()
            await self.update_host_report()
            try:
                async with asyncio.timeout(HOST_CHECK_INTERVAL):
                    await self._host_check_requested.wait()
            except TimeoutError:
                continue

    def request_host_check(self) -> None:
        """Check the host soon: it may have changed."""
        self._host_check_requested.set()

    async def update_host_report(self) -> None:
        """Check the host; a change of the report triggers a pass, which publishes it."""
        old = self._host_report
        try:
            new = await self._host.check(
                self._networks,
                bridges=frozenset(network.bridge for network in self.engine.networks.values()),
                backend=self._applier.backend,
                engine_writes=self.engine_writes,
                rules_removed=self._stopped,
            )
        except Exception:
            # The rules must stay in sync whatever the tools of the host print.
            log.exception("the host check failed")
            return
        if new != old:
            self._host_report = new
            log_findings(old, new)
            self.trigger()

    async def _wait_for_work(self) -> None:
        timeouts = [self.verify_interval] if self.verify_interval else []
        if self._retry_at is not None:
            timeouts.append(max(self._retry_at - time.monotonic(), 0))
        try:
            async with asyncio.timeout(min(timeouts, default=None)):
                await self._woken.wait()
        except TimeoutError:
            return

    def _retry_due(self) -> bool:
        return self._retry_at is not None and time.monotonic() >= self._retry_at

    async def _run_pass(self) -> None:
        await self._remove_on_request()
        if self._stopped or not self.engine.listed:
            # Waiters keep waiting for a pass with the facts of the engine.
            self._retry_at = None
            self._set_status(self._current_status())
            if self.engine.tried:
                self._first_pass.set()
            return
        verify, self._verify = self._verify, False
        waiters, self._waiters = self._waiters, []
        began = time.monotonic()
        try:
            sync = partial(self._applier.sync, self._snapshot(), self.policy, verify=verify)
            result = await self._in_thread(sync)
        except FirewallError as error:
            self._record_failure(error, waiters)
        else:
            self._record_success(result, waiters, round((time.monotonic() - began) * 1000))
        self._first_pass.set()
        if self._applier.has_unverified_chains and not self._woken.is_set():
            await self._read_back()

    async def _read_back(self) -> None:
        try:
            as_written = await self._in_thread(self._applier.read_back)
        except FirewallError as error:
            log.debug("cannot read back the written chains: %s", error)
            as_written = False
        if not as_written:
            self.verify()

    async def _remove_on_request(self) -> None:
        removals, self._removals = self._removals, []
        if not removals:
            return
        try:
            await self.remove()
        except FirewallError as error:
            # Some rules may be removed: the next pass writes all of them again.
            self._stopped = False
            _fail_waiters(removals, error)
            return
        if self._stopped:
            # Faults of the host that affect networks do not matter without rules.
            self._networks = ()
            self._set_status(self._current_status())
            _fail_waiters(self._waiters, FirewallError("all rules were removed during the resync"))
            self._waiters = []
        for removal in removals:
            if not removal.done():
                removal.set_result(None)

    def _snapshot(self) -> Snapshot:
        networks = tuple(self.engine.networks.values())
        return Snapshot(
            engine=self.engine.engine,
            networks=networks,
            containers=tuple(self.engine.containers.values()),
        )

    def _record_failure(
        self, error: FirewallError, waiters: list[asyncio.Future[SyncResult]]
    ) -> None:
        advice = missing_module_hint(str(error))
        reason = "; ".join(filter(None, (str(error).splitlines()[0], advice)))
        # Logged once, not for each retry.
        log.log(
            logging.DEBUG if reason == self._last_failure else logging.ERROR,
            "cannot update the rules: %s",
            FirewallError(f"{error}\n{advice}") if advice else error,
            extra=log_fields(MessageId.WRITE_FAILED, reason=reason),
        )
        self._last_failure = reason
        self._verify = True
        self._schedule_retry()
        self._set_status(replace(self.status, state=State.DEGRADED, state_reason=reason))
        _fail_waiters(waiters, error)

    def _schedule_retry(self) -> None:
        self._retry_at = time.monotonic() + self._retry_pause
        self._retry_pause = min(self._retry_pause * 2, MAX_RETRY_PAUSE)

    def _record_success(
        self, result: PassResult, waiters: list[asyncio.Future[SyncResult]], duration_ms: int
    ) -> None:
        if result.flows_flushed:
            self._retry_at, self._retry_pause = None, MIN_RETRY_PAUSE
        else:
            self._schedule_retry()
        self._last_failure = ""
        wanted = result.desired
        if (wanted.networks, wanted.engine_writes) != (self._networks, self.engine_writes):
            self._networks, self.engine_writes = wanted.networks, wanted.engine_writes
            self._host_check_requested.set()
        if result.forwarding_enabled or (
            self._applier.position.conceded and not self._host_report.first_in_forward
        ):
            self._host_check_requested.set()
        networks = self._with_host_warnings(wanted.networks)
        old = self.status
        now = time.time_ns() // 1000
        listed = (wanted.mappings, networks, wanted.skipped)
        changed = listed != (old.mappings, old.networks, old.skipped) or not old.last_sync
        drift: Row | None = None
        if result.drift:
            drift = {"Tables": ("as", [table.value for table in result.drift])}
        self._set_status(
            replace(
                self._current_status(),
                generation=old.generation + changed,
                last_sync=now,
                drift_repairs=old.drift_repairs + bool(result.drift),
                mappings=wanted.mappings,
                networks=networks,
                skipped=wanted.skipped,
                since=_start_times(old, wanted.mappings, now) if changed else old.since,
            ),
            drift,
        )
        sync_result = SyncResult(
            generation=self.status.generation,
            rules_added=result.added,
            rules_removed=result.removed,
            duration_ms=duration_ms,
        )
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(sync_result)

    def _with_host_warnings(self, networks: tuple[Network, ...]) -> tuple[Network, ...]:
        """The networks with the findings of the host that concern them as warnings."""
        findings = [finding for finding in self._host_report.findings if finding.bridge]
        if not findings:
            return networks
        return tuple(
            replace(
                network,
                warnings=(
                    *network.warnings,
                    *(finding.text for finding in findings if finding.bridge == network.bridge),
                ),
            )
            for network in networks
        )

    def _current_status(self) -> Status:
        """The status with its state, reason and connection as they are now."""
        engine = self.engine.engine
        problems = [finding.text for finding in self._host_report.findings]
        if self._applier.position.conceded:
            problems.append(position_reason(self._host_report.first_in_forward))
        state, reasons = State.SYNCED, [self.config_error, *problems]
        if problems:
            state = State.DEGRADED
        if not self.engine.connected:
            state = State.WAITING_FOR_DOCKER
            reasons.insert(1, self.engine.waiting_for)
        status = self.status
        if self._stopped:
            state = State.STOPPED
            reasons.insert(0, REMOVED_REASON)
            status = _without_lists(status)
        return replace(
            status,
            state=state,
            state_reason=_reason_summary([reason for reason in reasons if reason]),
            backend=self._applier.backend.value,
            docker_connected=self.engine.connected,
            engine_version=engine.version if engine else "",
        )

    def _set_status(self, new: Status, drift: Row | None = None) -> None:
        old, self.status = self.status, new
        log_changes(old, new)
        self._observer.changed(old, new, drift)

    async def remove(self) -> None:
        """Remove all our rules. Raises FirewallError."""
        await self._in_thread(self._applier.remove)


def _start_times(old: Status, mappings: tuple[Mapping, ...], now: int) -> dict[str, int]:
    """Mapping id -> when it came into force. A changed mapping with the same id keeps its time."""
    removed, added = mapping_changes(old.mappings, mappings)
    since = dict(old.since)
    start_times = {key: since.pop(key) for key in map(mapping_id, removed)}
    return since | {key: start_times.get(key, now) for key in map(mapping_id, added)}


def _without_lists(status: Status) -> Status:
    if not (status.mappings or status.networks or status.skipped):
        return status
    return replace(
        status, generation=status.generation + 1, mappings=(), networks=(), skipped=(), since={}
    )


def _fail_waiters(waiters: Iterable[asyncio.Future[T]], error: FirewallError) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(error)


def _reason_summary(reasons: list[str]) -> str:
    """The first reason, and the number of the others."""
    more = f" (and {len(reasons) - 1} more: journalctl -u ipv6natd)" if reasons[1:] else ""
    return "".join((*reasons[:1], more))
