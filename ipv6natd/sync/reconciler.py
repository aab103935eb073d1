"""The loop that keeps the kernel in step: trigger, run, sync.

Many triggers make one pass: the first runs at once, what comes meanwhile makes one more. A pass
that failed is tried again as a whole one. Nothing is written before the engine's first list.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

from ipv6natd import __version__
from ipv6natd.conntrack.stale import Exposure
from ipv6natd.firewall.backend import Firewall, FirewallError
from ipv6natd.host.findings import HostReport, missing_module_hint
from ipv6natd.model import Container, Engine, Mapping, Network, Policy, Snapshot, mapping_changes
from ipv6natd.netfilter.rules import TableRules
from ipv6natd.report.changes import tell, tell_found
from ipv6natd.report.explain import Explanation, explanations
from ipv6natd.report.status import Row, State, Status, SyncResult, mapping_id
from ipv6natd.sync.applier import FollowFlows, Kernel, Outcome, order_lost
from ipv6natd.sync.steps import Stepping
from ipv6natd.system.messages import MessageId, log_fields
from ipv6natd.system.threads import in_thread

log = logging.getLogger(__name__)
T = TypeVar("T")

FIRST_RETRY, LONGEST_RETRY = 1.0, 30.0
REMOVED = "all rules were removed, as asked; to have them again: ipv6natctl resync"
LOOK_EVERY = 60.0
"""Seconds between two looks at the host: what was put right shows within a minute."""


class Facts(Protocol):
    """The engine, as far as the loop needs it."""

    tried: bool
    """Whether it is known by now that the engine answers, or why it does not."""
    connected: bool
    waiting_for: str
    engine: Engine | None
    listed: bool
    networks: dict[str, Network]
    containers: dict[str, Container]

    async def relist(self) -> None:
        """Read everything again."""


Publish = Callable[[Status, Status, Row | None], None]
Look = Callable[[tuple[Network, ...], bool], Awaitable[HostReport]]


async def _nothing_found(_networks: tuple[Network, ...], _engine_writes: bool) -> HostReport:
    return HostReport()


class Reconciler:
    """One firewall kept in step with one engine."""

    def __init__(
        self,
        *,
        firewall: Firewall,
        facts: Facts,
        policy: Policy,
        complete: Callable[[Snapshot, bool], Snapshot],
        publish: Publish,
        follow_flows: FollowFlows = lambda *_: True,
        look: Look = _nothing_found,
        keep: Callable[[TableRules], None] = lambda _: None,
        found: Exposure = Exposure.NONE,
        forward: Callable[[bool], bool] = lambda _: False,
        beat: Callable[[], None] = lambda: None,
        beat_interval: float | None = None,
        verify_interval: float | None = None,
    ) -> None:
        """`complete` adds to the engine's facts what the host itself says, all of it anew if told
        that somebody else may have written; in the worker thread.
        `follow_flows` is called in the worker thread when rules are in force that open flows
        may contradict: with what held before, None where nobody knows, what holds now, and what may
        have passed until now, of which `found` is what may have before the start; it tells whether
        flows are right, and is asked again after a pause where they may not be.
        `look` says what is wrong with the host, given the networks and whether the engine may
        keep IPv6 rules itself; see `watch_host`.
        `keep` is called in the worker thread with each filter table that came into force.
        `forward` is called there with True after each pass that left a network of ours to forward
        for, and its filter table in force; it tells whether it switched something. With False it
        is called before the rules are taken out, and may raise FirewallError.
        `beat` is called after each turn of the loop, at least every `beat_interval` seconds;
        every `verify_interval` seconds the kernel is read and compared."""
        self.facts = facts
        self.policy = policy
        self.config_error = ""
        self.status = Status(version=__version__, backend=firewall.backend.value)
        self._woken = asyncio.Event()
        self._kernel = Kernel(
            Stepping(firewall, self._step),
            complete=complete,
            follow_flows=follow_flows,
            keep=keep,
            found=found,
            forward=forward,
        )
        self._publish = publish
        self._look = look
        self._look_wanted = asyncio.Event()
        self._found = HostReport()
        self._networks: tuple[Network, ...] = ()
        self.engine_writes = True
        """Whether the engine may keep IPv6 rules itself; so it is until a pass tells."""
        self._failure = ""
        self._beat = beat
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beat_interval = beat_interval
        self.verify_interval = verify_interval
        self._first_pass = asyncio.Event()
        self._verify = False
        self._retry_at: float | None = None
        self._retry_pause = FIRST_RETRY
        self._waiters: list[asyncio.Future[SyncResult]] = []
        self._removals: list[asyncio.Future[None]] = []
        self._stopped = False
        self._writing = asyncio.Lock()

    def trigger(self) -> None:
        """Something may have changed in the engine's facts."""
        self._woken.set()

    def verify(self) -> None:
        """Somebody else may have written to the tables."""
        self._verify = True
        self._woken.set()

    def moved(self) -> None:
        """The host may have other addresses: flows may have begun where no rule saw them."""
        self._kernel.doubtful = True
        self._woken.set()

    async def settled(self) -> None:
        """Wait until the first pass is over, or until it is clear what it waits for."""
        await self._first_pass.wait()

    async def resync(self) -> SyncResult:
        """Read the engine and the kernel again and write what differs; returns when done.

        Raises what the pass raised: EngineUnavailable or FirewallError.
        """
        await self._read_again()
        self._stopped = False
        return await self._next_pass()

    async def refresh(self) -> None:
        """The same, but what `cleanup` took out stays out."""
        self.trigger()
        await self._read_again()
        if not self._stopped:
            await self._next_pass()

    async def _read_again(self) -> None:
        await self.facts.relist()
        self._kernel.order.over()
        await self.look_at_host()

    async def _next_pass(self) -> SyncResult:
        waiter: asyncio.Future[SyncResult] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self.verify()
        return await waiter

    async def cleanup(self) -> None:
        """Take all our rules out, and write none until `resync`. Raises FirewallError."""
        removal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._removals.append(removal)
        self._stopped = True
        self.trigger()
        await removal

    async def explain(self, asked: str) -> list[Explanation]:
        """Why the containers that `asked` names are reached as they are."""
        applied = self._kernel.applied
        if applied is None:
            return []
        facts = (self._snapshot(), self.policy, applied.desired, applied.ruleset)
        return await in_thread(partial(explanations, asked, *facts))

    def ruleset_text(self) -> str:
        """The rules in force, as ip6tables-restore reads them."""
        return self._kernel.text()

    async def run(self) -> None:
        """Keep in step until cancelled."""
        last_verify = time.monotonic()
        self._loop = asyncio.get_running_loop()
        while True:
            await self._wait()
            if self.verify_interval and time.monotonic() - last_verify >= self.verify_interval:
                last_verify = time.monotonic()
                self._verify = True
                self._woken.set()
            if self._woken.is_set() or self._due():
                # Cleared before anything is read: what happens from here on makes a new pass.
                self._woken.clear()
                await self._pass()
            self._beat()

    async def watch_host(self) -> None:
        """Look at the host now, when the networks change and every minute, until cancelled.

        Beside the passes: no event waits for a look.
        """
        while True:
            self._look_wanted.clear()
            await self.look_at_host()
            try:
                async with asyncio.timeout(LOOK_EVERY):
                    await self._look_wanted.wait()
            except TimeoutError:
                continue

    def want_look(self) -> None:
        """Something may have changed on the host."""
        self._look_wanted.set()

    async def look_at_host(self) -> None:
        """See what is wrong with the host; a pass then shows it."""
        old = self._found
        try:
            new = await self._look(self._networks, self.engine_writes)
        except Exception:
            # Whatever others have put there that cannot be read: the rules are kept all the same.
            log.exception("the host could not be looked at")
            return
        if new != old:
            self._found = new
            tell_found(old, new)
            self.trigger()

    def _step(self) -> None:
        """A pass goes on, in its thread: each step of it is bounded, and several may take longer
        than systemd waits for a beat. Through the loop, which has to be alive for it."""
        with suppress(RuntimeError):  # the loop is closed
            if self._loop is not None and self._beat_interval is not None:
                self._loop.call_soon_threadsafe(self._beat)

    async def _wait(self) -> None:
        timeouts = [t for t in (self._beat_interval, self.verify_interval) if t]
        if self._retry_at is not None:
            timeouts.append(max(self._retry_at - time.monotonic(), 0))
        try:
            async with asyncio.timeout(min(timeouts, default=None)):
                await self._woken.wait()
        except TimeoutError:
            return

    def _due(self) -> bool:
        return self._retry_at is not None and time.monotonic() >= self._retry_at

    async def _pass(self) -> None:
        await self._remove_when_told()
        if self._stopped or not self.facts.listed:
            # Whoever waits for a pass waits for one that has something to go by.
            self._retry_at = None
            self._show(self._current())
            if self.facts.tried:
                self._first_pass.set()
            return
        verify, self._verify = self._verify, False
        waiters, self._waiters = self._waiters, []
        began = time.monotonic()
        try:
            async with self._writing:
                sync = partial(self._kernel.sync, self._snapshot(), self.policy, verify=verify)
                outcome = await in_thread(sync)
        except FirewallError as error:
            self._failed(error, waiters)
        else:
            self._succeeded(outcome, waiters, round((time.monotonic() - began) * 1000))
        self._first_pass.set()
        if self._kernel.unread and not self._woken.is_set():
            await self._learn()

    async def _learn(self) -> None:
        try:
            async with self._writing:
                as_written = await in_thread(self._kernel.learn)
        except FirewallError as error:
            log.debug("cannot read back what was written: %s", error)
            as_written = False
        if not as_written:
            self.verify()

    async def _remove_when_told(self) -> None:
        removals, self._removals = self._removals, []
        if not removals:
            return
        try:
            await self.remove()
        except FirewallError as error:
            # Half of the rules may be worse than none or all: back to all.
            self._stopped = False
            _fail(removals, error)
            return
        if self._stopped:
            # What keeps them from working is no fault until they are to work again.
            self._networks = ()
            self._show(self._current())
            _fail(self._waiters, FirewallError("all rules were removed in between"))
            self._waiters = []
        for removal in removals:
            if not removal.done():
                removal.set_result(None)

    def _snapshot(self) -> Snapshot:
        networks = tuple(self.facts.networks.values())
        return Snapshot(
            engine=self.facts.engine,
            networks=networks,
            containers=tuple(self.facts.containers.values()),
        )

    def _failed(self, error: FirewallError, waiters: list[asyncio.Future[SyncResult]]) -> None:
        advice = missing_module_hint(str(error))
        reason = "; ".join(filter(None, (str(error).splitlines()[0], advice)))
        # Once for each trouble, not once for each try.
        log.log(
            logging.DEBUG if reason == self._failure else logging.ERROR,
            "cannot bring the rules into step: %s",
            FirewallError(f"{error}\n{advice}") if advice else error,
            extra=log_fields(MessageId.WRITE_FAILED, reason=reason),
        )
        self._failure = reason
        self._verify = True
        self._try_again()
        self._show(replace(self.status, state=State.DEGRADED, state_reason=reason))
        _fail(waiters, error)

    def _try_again(self) -> None:
        self._retry_at = time.monotonic() + self._retry_pause
        self._retry_pause = min(self._retry_pause * 2, LONGEST_RETRY)

    def _succeeded(
        self, outcome: Outcome, waiters: list[asyncio.Future[SyncResult]], duration_ms: int
    ) -> None:
        if outcome.followed:
            self._retry_at, self._retry_pause = None, FIRST_RETRY
        else:
            self._try_again()
        self._failure = ""
        want = outcome.desired
        if (want.networks, want.engine_writes) != (self._networks, self.engine_writes):
            self._networks, self.engine_writes = want.networks, want.engine_writes
            self._look_wanted.set()
        if outcome.switched or (self._kernel.order.given_up and not self._found.first_in_forward):
            self._look_wanted.set()
        networks = self._warned(want.networks)
        old = self.status
        now = time.time_ns() // 1000
        listed = (want.mappings, networks, want.skipped)
        changed = listed != (old.mappings, old.networks, old.skipped) or not old.last_sync
        drift: Row | None = None
        if outcome.drift:
            drift = {"Tables": ("as", [table.value for table in outcome.drift])}
        self._show(
            replace(
                self._current(),
                generation=old.generation + changed,
                last_sync=now,
                drift_repairs=old.drift_repairs + bool(outcome.drift),
                mappings=want.mappings,
                networks=networks,
                skipped=want.skipped,
                since=_since(old, want.mappings, now) if changed else old.since,
            ),
            drift,
        )
        result = SyncResult(
            generation=self.status.generation,
            rules_added=outcome.added,
            rules_removed=outcome.removed,
            duration_ms=duration_ms,
        )
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(result)

    def _warned(self, networks: tuple[Network, ...]) -> tuple[Network, ...]:
        """The networks with what the host keeps from them among their warnings."""
        found = [each for each in self._found.findings if each.bridge]
        if not found:
            return networks
        return tuple(
            replace(
                network,
                warnings=(
                    *network.warnings,
                    *(each.text for each in found if each.bridge == network.bridge),
                ),
            )
            for network in networks
        )

    def _current(self) -> Status:
        """The status with the fields that tell how things are."""
        engine = self.facts.engine
        wrong = [each.text for each in self._found.findings]
        if self._kernel.order.given_up:
            wrong.append(order_lost(self._found.first_in_forward))
        state, reasons = State.SYNCED, [self.config_error, *wrong]
        if wrong:
            state = State.DEGRADED
        if not self.facts.connected:
            state = State.WAITING_FOR_DOCKER
            reasons.insert(1, self.facts.waiting_for)
        status = self.status
        if self._stopped:
            state = State.STOPPED
            reasons.insert(0, REMOVED)
            status = _without_lists(status)
        return replace(
            status,
            state=state,
            state_reason=_summary([each for each in reasons if each]),
            backend=self._kernel.firewall.backend.value,
            docker_connected=self.facts.connected,
            engine_version=engine.version if engine else "",
        )

    def _show(self, new: Status, drift: Row | None = None) -> None:
        old, self.status = self.status, new
        tell(old, new)
        self._publish(old, new, drift)

    async def remove(self) -> None:
        """Take all our rules out. Raises FirewallError."""
        async with self._writing:
            await in_thread(self._kernel.remove)


def _since(old: Status, mappings: tuple[Mapping, ...], now: int) -> dict[str, int]:
    """When each came into force. One that changed, by its id, came when it first did."""
    gone, come = mapping_changes(old.mappings, mappings)
    since = dict(old.since)
    left = {key: since.pop(key) for key in map(mapping_id, gone)}
    return since | {key: left.get(key, now) for key in map(mapping_id, come)}


def _without_lists(status: Status) -> Status:
    if not (status.mappings or status.networks or status.skipped):
        return status
    return replace(
        status, generation=status.generation + 1, mappings=(), networks=(), skipped=(), since={}
    )


def _fail(waiters: Iterable[asyncio.Future[T]], error: FirewallError) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(error)


def _summary(reasons: list[str]) -> str:
    """The first, and how many more there are."""
    more = f" (and {len(reasons) - 1} more: journalctl -u ipv6natd)" if reasons[1:] else ""
    return "".join((*reasons[:1], more))
