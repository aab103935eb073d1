"""One pass: computes the rules, compares them with those in force, and writes the difference.

Runs in a worker thread, one call at a time; `reconciler` calls it. Each call may raise
FirewallError. The rules in force are then unknown, and the next pass writes whole tables.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Mapping as Map
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ipv6natd.conntrack.stale import Exposure, affects_flows
from ipv6natd.firewall.backend import Firewall, FirewallError, MissingTable
from ipv6natd.model import Desired, ManagedBy, Network, Policy, Snapshot
from ipv6natd.netfilter.diff import (
    Observed,
    diff,
    has_drifted,
    jumps_differ,
    matches,
    predict,
    unverified_chains,
    with_digests,
)
from ipv6natd.netfilter.render import changed_rules, format_ruleset
from ipv6natd.netfilter.rules import EMPTY, GUARD_TABLES, Backend, Ruleset, Table
from ipv6natd.policy.desired import DesiredCache, desired, with_old_networks
from ipv6natd.policy.ruleset import RulesetCache, guard_rules, ruleset
from ipv6natd.sync.host import Host
from ipv6natd.sync.saved_rules import past_exposure
from ipv6natd.system.messages import MessageId, log_fields

log = logging.getLogger(__name__)

MAX_WRITE_ATTEMPTS = 3
"""Attempts in one pass to write tables that another program changes at the same time."""

LOCK_TIMEOUT = 15.0
"""Seconds to wait for an earlier pass. It is below TimeoutStopSec=20 of the unit."""
MAX_SINGLE_READS = 4
"""Chains that are read one by one; for more, whole tables are read."""

MAX_POSITION_LOSSES = 5
"""Losses of the first position in FORWARD within POSITION_LOSS_PERIOD until it is conceded.

Two programs that both require this position would otherwise write for ever.
"""
POSITION_LOSS_PERIOD = 60.0
"""Seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedState:
    """What is in force: the decisions, their rules, and the tables as the kernel lists them."""

    desired: Desired
    ruleset: Ruleset
    observed: Observed


@dataclass(frozen=True, slots=True, kw_only=True)
class PassResult:
    """The result of one pass; `drift` names the tables that another program had changed."""

    desired: Desired
    drift: tuple[Table, ...] = ()
    added: int = 0
    removed: int = 0
    flows_flushed: bool = True
    """False if conntrack entries may contradict the rules; the next pass tries again."""
    forwarding_enabled: bool = False
    """True if this pass switched forwarding on."""


class Applier:
    """Writes the tables of one variant.

    `applied` is None at the start, after `remove` and after a failed write. A pass then writes
    whole tables.
    """

    def __init__(
        self,
        open_firewall: Callable[[], Firewall],
        host: Host,
        *,
        expected_backend: Backend,
        exposure: Exposure,
    ) -> None:
        """`expected_backend` is the one to report until the firewall is open. `exposure` is what
        may have been unprotected before the start."""
        self._open_firewall = open_firewall
        self._expected_backend = expected_backend
        self.firewall: Firewall | None = None
        """None until it is open: ip6tables may be missing. Each pass tries to open it."""
        self.applied: AppliedState | None = None
        self._last_ruleset = EMPTY
        self.position = PositionGuard()
        self._host = host
        self._desired_cache = DesiredCache()
        self._ruleset_cache = RulesetCache()
        self._flushed_for: Desired | None = None
        self.recheck_all_flows = False
        """True if conntrack must be checked again although no mapping changed: a host address
        appeared, or the last flush failed. May be set from any thread."""
        self._exposure = exposure
        """What the tables let pass since the last successful flush of stale flows."""
        self._drift: tuple[Table, ...] = ()
        self._raw_table = True
        """False if the kernel turned out to have no raw table; until the service starts again."""
        self._busy = threading.Lock()

    @property
    def backend(self) -> Backend:
        """The variant of the firewall, or the expected one."""
        return self.firewall.backend if self.firewall else self._expected_backend

    def opened(self) -> Firewall:
        """The firewall, which is opened if it is not open. Raises FirewallError."""
        if self.firewall is None:
            self.firewall = self._open_firewall()
        return self.firewall

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Admit one thread: a pass continues in its thread when the loop that started it stops."""
        if not self._busy.acquire(timeout=LOCK_TIMEOUT):
            raise FirewallError(
                f"an earlier change of the rules did not finish within {LOCK_TIMEOUT:g} s"
            )
        try:
            yield
        finally:
            self._busy.release()

    def ruleset_text(self) -> str:
        """The rules that were written last, as ip6tables-restore reads them.

        May be called from any thread, also during a pass.
        """
        return format_ruleset(self._last_ruleset)

    def remove(self) -> None:
        """Remove all our rules."""
        with self._exclusive():
            self._host.update_forwarding(False)
            self.applied = self._flushed_for = None
            remove_all(self.opened())
            _log_rules(*changed_rules(self._last_ruleset, EMPTY))
            self._last_ruleset = EMPTY
            self._host.save_rules(EMPTY)

    def sync(self, snapshot: Snapshot, policy: Policy, *, verify: bool) -> PassResult:
        """Run one pass. `verify` compares the tables of the kernel with those of the last pass."""
        with self._exclusive():
            try:
                result = self._sync(snapshot, policy, verify=verify)
            except MissingTable as error:
                if error.table is not Table.RAW or not self._raw_table:
                    raise
                log.warning("%s; sources are checked in the filter table", error)
                self._raw_table = False
                result = self._sync(snapshot, policy, verify=verify)
            if any(_needs_forwarding(network) for network in result.desired.networks):
                result = replace(result, forwarding_enabled=self._host.update_forwarding(True))
            return result

    def _sync(self, snapshot: Snapshot, policy: Policy, *, verify: bool) -> PassResult:
        wanted = desired(self._host.add_facts(snapshot, verify), policy, self._desired_cache)
        rules = ruleset(wanted, self._ruleset_cache, raw_table=self._raw_table)
        applied = self.applied
        if applied is not None and verify:
            now = self.opened().read()
            drift = self._drifted_tables(applied, now)
            if drift:
                # Stored until a write succeeds, because this edit can make the first write fail.
                self._drift = drift
                log.warning(
                    "another program changed our rules in %s; restoring them",
                    _table_list(drift),
                    extra=log_fields(MessageId.DRIFT, tables=" ".join(drift)),
                )
            else:
                self.applied = applied = _with_digests(applied, {t: now[t].chains for t in Table})
        if applied is not None and applied.ruleset == rules and not self._drift:
            self.applied = replace(applied, desired=wanted)
            flows_flushed = not self.recheck_all_flows or self._flush_flows(wanted)
            return PassResult(desired=wanted, flows_flushed=flows_flushed)
        result = self._write(applied, wanted, rules)
        flows_flushed = self._flush_flows(wanted)
        self._drift = ()
        return replace(result, flows_flushed=flows_flushed)

    def _drifted_tables(self, applied: AppliedState, now: Observed) -> tuple[Table, ...]:
        """The tables that another program changed and that must be written again."""
        if self.position.conceded and self._all_match(applied.ruleset, now, keep_order=True):
            self.position.reset()
            log.info("our rules come first in FORWARD again")
        keep_order = not self.position.conceded
        before = applied.observed
        drift = tuple(t for t in Table if has_drifted(before[t], now[t], keep_order=keep_order))
        if (
            drift
            and keep_order
            and not any(has_drifted(before[t], now[t], keep_order=False) for t in drift)
        ):
            return () if self._record_position_loss() else drift
        return drift

    def _all_match(self, rules: Ruleset, now: Observed, *, keep_order: bool) -> bool:
        return all(matches(rules.table(t), now[t], keep_order=keep_order) for t in Table)

    def _record_position_loss(self) -> bool:
        """Record that another program is first in FORWARD; returns whether that is conceded now."""
        self.position.record_loss(time.monotonic())
        if self.position.conceded:
            log.warning(
                "another program keeps taking the first position in FORWARD; it is left there"
            )
        return self.position.conceded

    def _write(self, applied: AppliedState | None, wanted: Desired, rules: Ruleset) -> PassResult:
        interim = rules
        if (
            applied is not None
            and (both := with_old_networks(applied.desired, wanted)) is not wanted
        ):
            interim = guard_rules(both, self._ruleset_cache, raw_table=self._raw_table)
        before = applied.ruleset if applied else EMPTY
        # If a write fails, the tables are unknown.
        self.applied = None
        if applied is None or self._drift or jumps_differ(before, rules):
            observed = self._write_whole(applied, interim, rules)
        else:
            observed = dict(applied.observed)
            for change in diff(applied=before, interim=interim, wanted=rules, observed=None):
                self.opened().write(change)
                observed[change.table] = predict(observed[change.table], change)
        if applied is None or before.guard != rules.guard:
            self._host.save_rules(rules)
        added, removed = changed_rules(before, rules)
        _log_rules(added, removed)
        self.applied = AppliedState(desired=wanted, ruleset=rules, observed=observed)
        self._last_ruleset = rules
        return PassResult(
            desired=wanted,
            drift=self._drift,
            added=len(added),
            removed=len(removed),
        )

    def _write_whole(
        self, applied: AppliedState | None, interim: Ruleset, rules: Ruleset
    ) -> Observed:
        """Write whole tables, whatever they contain; returns the tables that the kernel lists."""
        before = applied.ruleset if applied else None
        firewall = self.opened()
        for attempt in range(MAX_WRITE_ATTEMPTS):
            keep_order = not self.position.conceded
            found = firewall.read()
            if applied is None:
                self._exposure = max(self._exposure, past_exposure(rules, found))
            for change in diff(
                applied=before,
                interim=interim,
                wanted=rules,
                observed=found,
                keep_order=keep_order,
            ):
                firewall.write(change)
            observed = firewall.read()
            if self._all_match(rules, observed, keep_order=keep_order):
                return observed
            if self._all_match(rules, observed, keep_order=False) and self._record_position_loss():
                return observed
            log.debug(
                "another program changed the tables during the write (attempt %d)", attempt + 1
            )
            before, interim = None, rules
        raise FirewallError("another program keeps changing our rules while they are written")

    @property
    def has_unverified_chains(self) -> bool:
        """True if chains were written that have not been read back."""
        return self.applied is not None and any(
            map(unverified_chains, self.applied.observed.values())
        )

    def read_back(self) -> bool:
        """Read the written chains, so that later edits are noticed; False if one has changed.

        Not part of `sync`, because no event must wait for it.
        """
        applied = self.applied
        if applied is None:
            return True
        firewall = self.opened()
        names = {table: unverified_chains(seen) for table, seen in applied.observed.items()}
        if sum(map(len, names.values())) > MAX_SINGLE_READS:
            digests = {table: seen.chains for table, seen in firewall.read().items()}
        else:
            digests = {t: firewall.digests(t, chains) for t, chains in names.items() if chains}
        self.applied = _with_digests(applied, digests)
        return not self.has_unverified_chains

    def _flush_flows(self, wanted: Desired) -> bool:
        """Delete the conntrack entries that contradict the rules in force; False if it failed."""
        # Flows that started while another program had removed our rules started without NAT.
        recheck_all_flows = self.recheck_all_flows or Table.NAT in self._drift
        drifted = any(table in self._drift for table in GUARD_TABLES)
        exposure = max(self._exposure, Exposure.OPEN if drifted else Exposure.NONE)
        self.recheck_all_flows, self._exposure = False, Exposure.NONE
        calls = [(self._flushed_for, exposure)]
        if recheck_all_flows and self._flushed_for is not None:
            calls.append((None, Exposure.NONE))
        # If one call fails, the next would fail too. The next pass tries again.
        if all(
            self._host.flush_stale_flows(old, wanted, old_exposure)
            for old, old_exposure in calls
            if old_exposure or affects_flows(old, wanted)
        ):
            self._flushed_for = wanted
            return True
        self.recheck_all_flows, self._exposure = True, exposure
        return False


def _needs_forwarding(network: Network) -> bool:
    return network.managed_by is ManagedBy.IPV6NATD and not network.internal


def _with_digests(applied: AppliedState, digests: Map[Table, Map[str, str]]) -> AppliedState:
    observed = {t: with_digests(seen, digests.get(t, {})) for t, seen in applied.observed.items()}
    return replace(applied, observed=observed)


def _log_rules(added: Iterable[str], removed: Iterable[str]) -> None:
    for sign, lines in (("added", added), ("removed", removed)):
        for line in lines:
            log.debug("rule %s: ip6tables %s", sign, line)


def remove_all(firewall: Firewall) -> int:
    """Write the empty ruleset; returns the number of removed chains and jumps.

    Blocks. Raises FirewallError.
    """
    observed = firewall.read()
    counts = {table: len(seen.chains) + len(seen.jumps) for table, seen in observed.items()}
    touched = {table: seen for table, seen in observed.items() if counts[table]}
    for change in diff(applied=None, interim=EMPTY, wanted=EMPTY, observed=touched):
        firewall.write(change)
    return sum(counts.values())


def _table_list(tables: Iterable[Table]) -> str:
    return " and ".join(f"the {table} table" for table in tables)


class PositionGuard:
    """Counts how often another program took the first position in FORWARD from our jumps."""

    def __init__(self) -> None:
        """Start without losses."""
        self._losses: deque[float] = deque(maxlen=MAX_POSITION_LOSSES)
        self.conceded = False
        """True if our jumps stay behind the rules of the other program."""

    def record_loss(self, now: float) -> None:
        """Record a loss, at `now` seconds."""
        self._losses.append(now)
        if (
            len(self._losses) == MAX_POSITION_LOSSES
            and now - self._losses[0] <= POSITION_LOSS_PERIOD
        ):
            self.conceded = True

    def reset(self) -> None:
        """Forget all losses: our jumps are first again, or an administrator requested a resync."""
        self._losses.clear()
        self.conceded = False


def position_reason(first: str) -> str:
    """The reason why our jumps are not first, with the first rule if it is known."""
    rule = f"`{first}` is first" if first else "see `ip6tables -S FORWARD`"
    return (
        f"another program keeps putting its rules before ours in FORWARD ({rule}); after "
        f"{MAX_POSITION_LOSSES} times in a minute ipv6natd no longer moves its own; when the other "
        "program has stopped: ipv6natctl resync"
    )
