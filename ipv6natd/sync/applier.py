"""One pass: computes the rules, compares them with those in force, and writes the difference.

Runs in a worker thread, one call at a time; `reconciler` calls it. Each call may raise
FirewallError. Two frozen values are all that one pass knows of the last:

AppliedState, the tables, which are known or unknown:

| state   | event                                   | written               | next state |
|---------|-----------------------------------------|-----------------------|------------|
| unknown | a pass                                  | whole tables          | known      |
| known   | a pass that wants the same rules        | nothing               | known      |
| known   | a pass that wants other rules           | their chains [1]      | known      |
| known   | a pass finds an edit of another program | whole tables          | known      |
| any     | a write fails                           | perhaps some tables   | unknown    |
| any     | removal                                 | the empty ruleset     | unknown    |

[1] Whole tables if a jump from a built-in chain differs.

ConntrackState, the flows:

| event                                   | `flushed_for` | `recheck_all` | `exposure`           |
|-----------------------------------------|---------------|---------------|----------------------|
| start                                   | None          | False         | as given             |
| the host has another address            | same          | True          | same                 |
| an edit of another program              | same          | True if nat   | OPEN if raw, filter  |
| whole tables are written from unknown   | same          | same          | as the tables tell   |
| a pass flushes the stale flows          | its decisions | False         | NONE                 |
| a flush, or a scan after it, fails      | same          | True          | same                 |
| removal                                 | None          | same          | same                 |
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Mapping as Map
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ipv6natd.conntrack.stale import Exposure
from ipv6natd.firewall.backend import Firewall, FirewallError, MissingTable
from ipv6natd.host.findings import Finding, Topic
from ipv6natd.model import Desired, ManagedBy, Policy, Snapshot
from ipv6natd.netfilter.diff import (
    Observed,
    TableChange,
    diff_chains,
    has_drifted,
    jumps_differ,
    matches,
    predict,
    rewrite_tables,
    unverified_chains,
    with_digests,
)
from ipv6natd.netfilter.jumps import DNAT
from ipv6natd.netfilter.render import changed_rules, format_ruleset
from ipv6natd.netfilter.rules import EMPTY, GUARD_TABLES, Backend, Ruleset, Table
from ipv6natd.policy.cache import IdentityCache
from ipv6natd.policy.desired import desired, during_change
from ipv6natd.policy.ruleset import guard_rules, ruleset
from ipv6natd.sync.interfaces import Host
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
"""How often within POSITION_LOSS_PERIOD our jumps are put before a rule that displaces them.

Two programs that both require the first position would otherwise write for ever.
"""
POSITION_LOSS_PERIOD = 60.0
"""Seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedState:
    """The decisions and the rules that were written last."""

    desired: Desired = field(default_factory=Desired)
    ruleset: Ruleset = EMPTY
    observed: Observed | None = None
    """The tables as the kernel lists them; None if they may contain anything of ours."""
    drift: tuple[Table, ...] = ()
    """The tables that another program changed, until they are written again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConntrackState:
    """Which conntrack entries the next pass checks."""

    flushed_for: Desired | None = None
    """The decisions at the last flush; None if unknown."""
    recheck_all: bool = False
    """True if all entries must be checked although no mapping changed."""
    exposure: Exposure = Exposure.NONE
    """What the tables let pass since the last flush."""


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
    """Writes the tables of one variant."""

    def __init__(
        self,
        open_firewall: Callable[[], Firewall],
        host: Host,
        *,
        expected_backend: Backend = Backend.NFT,
        exposure: Exposure = Exposure.NONE,
        saved: Ruleset | None = None,
    ) -> None:
        """`expected_backend` is the one to report until the firewall is open. `exposure` is what
        may have been unprotected before the start, `saved` what an earlier process wrote last."""
        self._open_firewall = open_firewall
        self.backend = expected_backend
        self.firewall: Firewall | None = None
        """None until it is open: ip6tables may be missing. Each pass tries to open it."""
        self.host = host
        self.applied = AppliedState()
        self.last_facts: tuple[Snapshot, Policy] = Snapshot(), Policy()
        """Those of the last pass."""
        self._flows = ConntrackState(exposure=exposure)
        self._saved = saved
        """The raw and filter tables that were saved last, also by an earlier process; None if they
        are unknown."""
        self.position = PositionGuard()
        self._cache = IdentityCache()
        self._raw_table = True
        """False if the kernel turned out to have no raw table; until the service starts again."""
        self._busy = threading.Lock()

    def opened(self) -> Firewall:
        """The firewall, which is opened if it is not open. Raises FirewallError."""
        if self.firewall is None:
            self.firewall = self._open_firewall()
            self.backend = self.firewall.backend
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
        return format_ruleset(self.applied.ruleset)

    def remove(self) -> None:
        """Remove all our rules."""
        with self._exclusive():
            self.host.update_forwarding(False)
            self.applied = AppliedState(ruleset=self.applied.ruleset)
            self._flows = replace(self._flows, flushed_for=None)
            remove_all(self.opened())
            _log_rules(*changed_rules(self.applied.ruleset, EMPTY))
            self.applied = AppliedState()
            self.host.save_rules(EMPTY)
            self._saved = None

    def close_ports(self) -> None:
        """Delete the DNAT rules; the next pass writes whole tables."""
        with self._exclusive():
            self.applied = replace(self.applied, observed=None)
            # "0:" begins the digest of an empty chain.
            if not self.opened().read()[Table.NAT].chains.get(DNAT, "0:").startswith("0:"):
                log.warning(
                    "the Docker engine does not answer, and the addresses behind the ports may be "
                    "those of other containers by now: the ports are closed until it answers"
                )
                self.opened().write(TableChange(table=Table.NAT, chains={DNAT: ()}))

    def sync(
        self, snapshot: Snapshot, policy: Policy, *, verify: bool, recheck_flows: bool = False
    ) -> PassResult:
        """Run one pass. `verify` compares the tables of the kernel with those of the last pass.
        `recheck_flows` checks all flows: the host has another address."""
        with self._exclusive():
            if recheck_flows:
                self._flows = replace(self._flows, recheck_all=True)
            try:
                result = self._sync(snapshot, policy, verify=verify)
            except MissingTable as error:
                if error.table is not Table.RAW or not self._raw_table:
                    raise
                log.warning("%s; sources are checked in the filter table", error)
                self._raw_table = False
                result = self._sync(snapshot, policy, verify=verify)
            if any(
                network.managed_by is ManagedBy.IPV6NATD and not network.internal
                for network in result.desired.networks
            ):
                result = replace(result, forwarding_enabled=self.host.update_forwarding(True))
            return result

    def _sync(self, snapshot: Snapshot, policy: Policy, *, verify: bool) -> PassResult:
        facts = self.host.add_facts(snapshot, verify)
        self.last_facts = facts, policy
        wanted = desired(facts, policy, self._cache)
        rules = ruleset(wanted, self._cache, raw_table=self._raw_table)
        if verify and self.applied.observed is not None:
            self._verify(self.applied.observed)
        applied = self.applied
        if applied.observed is not None and not applied.drift and applied.ruleset == rules:
            self.applied = replace(applied, desired=wanted)
            result = PassResult(desired=wanted)
            if not self._flows.recheck_all:
                return result
        else:
            result = self._write(applied, wanted, rules)
        return replace(result, flows_flushed=self._flush_flows(wanted))

    def _verify(self, before: Observed) -> None:
        """Compare the tables with the kernel's."""
        now = self.opened().read()
        drift = self._drifted_tables(before, now)
        if not drift:
            self._add_digests(before, {t: now[t].chains for t in Table})
            return
        log.warning(
            "another program changed our rules in %s; restoring them",
            " and ".join(f"the {table} table" for table in drift),
            extra=log_fields(MessageId.DRIFT, tables=" ".join(drift)),
        )
        # Flows without NAT, or past the guard, may have started while the rules were changed.
        guard_open = any(table in drift for table in GUARD_TABLES)
        self._flows = replace(
            self._flows,
            recheck_all=self._flows.recheck_all or Table.NAT in drift,
            exposure=max(self._flows.exposure, Exposure.OPEN if guard_open else Exposure.NONE),
        )
        self.applied = replace(self.applied, drift=drift)

    def _drifted_tables(self, before: Observed, now: Observed) -> tuple[Table, ...]:
        """The tables that another program changed and that must be written again."""
        if self.position.conceded and _all_match(self.applied.ruleset, now, keep_order=True):
            self.position.reset()
            log.info("no rule displaces our jumps in FORWARD any more")

        def drifted(*, keep_order: bool) -> tuple[Table, ...]:
            return tuple(t for t in Table if has_drifted(before[t], now[t], keep_order=keep_order))

        keep_order = not self.position.conceded
        drift = drifted(keep_order=keep_order)
        position_lost = drift and keep_order and not drifted(keep_order=False)
        displacing = now[Table.FILTER].displacing
        if position_lost and self.position.record_loss(time.monotonic(), displacing):
            return ()
        return drift

    def _write(self, applied: AppliedState, wanted: Desired, rules: Ruleset) -> PassResult:
        # Until the write succeeds. The edit of another program can make it fail.
        self.applied = replace(applied, observed=None)
        known = applied.observed is not None
        before, interim = applied.ruleset if known else EMPTY, rules
        if known and (both := during_change(applied.desired, wanted)) is not wanted:
            interim = guard_rules(both, self._cache, raw_table=self._raw_table)
        if applied.observed is None or applied.drift or jumps_differ(before, rules):
            observed = self._write_whole(interim, rules, known=known)
        else:
            observed = dict(applied.observed)
            changes = diff_chains(before, rules, interim=interim)
            self.opened().write_all(changes)
            for change in changes:
                observed[change.table] = predict(observed[change.table], change)
        if not known or before.guard != rules.guard:
            self.host.save_rules(rules)
            self._saved = rules.guard
        added, removed = changed_rules(before, rules)
        _log_rules(added, removed)
        self.applied = AppliedState(desired=wanted, ruleset=rules, observed=observed)
        return PassResult(
            desired=wanted, drift=applied.drift, added=len(added), removed=len(removed)
        )

    def _write_whole(self, interim: Ruleset, rules: Ruleset, *, known: bool) -> Observed:
        """Write whole tables, whatever they contain; returns the tables that the kernel lists."""
        firewall = self.opened()
        for attempt in range(MAX_WRITE_ATTEMPTS):
            keep_order = not self.position.conceded
            found = firewall.read()
            if not known:
                exposure = max(self._flows.exposure, past_exposure(rules, found, self._saved))
                self._flows = replace(self._flows, exposure=exposure)
            firewall.write_all(rewrite_tables(found, rules, interim=interim, keep_order=keep_order))
            observed = firewall.read()
            if _all_match(rules, observed, keep_order=keep_order):
                return observed
            displacing = observed[Table.FILTER].displacing
            position_lost = _all_match(rules, observed, keep_order=False)
            if position_lost and self.position.record_loss(time.monotonic(), displacing):
                return observed
            log.debug(
                "another program changed the tables during the write (attempt %d)", attempt + 1
            )
            interim = rules
        raise FirewallError("another program keeps changing our rules while they are written")

    @property
    def has_unverified_chains(self) -> bool:
        """True if chains were written that have not been read back."""
        return any(map(unverified_chains, (self.applied.observed or {}).values()))

    def read_back(self) -> bool:
        """Read the written chains, so that later edits are noticed; False if one has changed.

        Not part of `sync`, because no event must wait for it.
        """
        firewall, written = self.opened(), self.applied.observed or {}
        names = {table: unverified_chains(seen) for table, seen in written.items()}
        try:
            if sum(map(len, names.values())) > MAX_SINGLE_READS:
                digests = {table: seen.chains for table, seen in firewall.read().items()}
            else:
                digests = {t: firewall.digests(t, chains) for t, chains in names.items() if chains}
        except FirewallError as error:
            log.debug("cannot read back the written chains: %s", error)
            return False
        self._add_digests(written, digests)
        return not self.has_unverified_chains

    def _add_digests(self, written: Observed, digests: Map[Table, Map[str, str]]) -> None:
        observed = {t: with_digests(seen, digests.get(t, {})) for t, seen in written.items()}
        self.applied = replace(self.applied, observed=observed)

    def _flush_flows(self, wanted: Desired) -> bool:
        """Delete the conntrack entries that contradict the rules in force; False if it failed."""
        flows = self._flows
        calls = [(flows.flushed_for, flows.exposure)]
        if flows.recheck_all and flows.flushed_for is not None:
            calls.append((None, Exposure.NONE))
        # If one call fails, the next would fail too. The next pass tries again.
        flushed = all(self.host.flush_stale_flows(old, wanted, exposure) for old, exposure in calls)
        self._flows = (
            ConntrackState(flushed_for=wanted) if flushed else replace(flows, recheck_all=True)
        )
        return flushed

    def scan_flows_again(self) -> bool:
        """Delete conntrack entries that have come back; False if it failed.

        Not part of `sync`, because no event must wait for it.
        """
        scanned = self.host.scan_again()
        if not scanned:
            self._flows = replace(self._flows, recheck_all=True)
        return scanned


def _all_match(rules: Ruleset, now: Observed, *, keep_order: bool) -> bool:
    return all(matches(rules.table(t), now[t], keep_order=keep_order) for t in Table)


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
    firewall.write_all(rewrite_tables(touched, EMPTY))
    return sum(counts.values())


class PositionGuard:
    """Counts how often another program put a rule that no packet passes before our jumps."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=MAX_POSITION_LOSSES)
        self.conceded = False
        """True if our jumps stay behind the rule of the other program."""
        self.displacing = ""
        """The rule of the last loss, as ip6tables-save writes it."""

    def record_loss(self, now: float, displacing: str) -> bool:
        """Record a loss, at `now` seconds; returns whether the position is conceded now."""
        self._losses.append(now)
        self.displacing = displacing
        full = len(self._losses) == MAX_POSITION_LOSSES
        if full and now - self._losses[0] <= POSITION_LOSS_PERIOD:
            self.conceded = True
            log.warning("another program keeps putting `-A FORWARD %s` before ours", displacing)
        return self.conceded

    def reset(self) -> None:
        """Forget all losses: no rule displaces our jumps, or a resync was requested."""
        self._losses.clear()
        self.conceded = False

    @property
    def finding(self) -> Finding:
        """What is wrong while the position is conceded."""
        return Finding(
            topic=Topic.FIREWALL,
            problem=f"another program keeps putting `-A FORWARD {self.displacing}` before the "
            f"rules of ipv6natd, which no packet passes; after {MAX_POSITION_LOSSES} times in a "
            "minute ipv6natd no longer moves its own; when the other program has stopped",
            command="ipv6natctl resync",
        )
