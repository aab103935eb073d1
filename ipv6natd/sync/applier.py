"""One firewall and what we know to stand in it: everything that a pass computes or blocks on.

Runs in a worker thread, one call at a time; the loop that calls it is in reconcile. Each call may
raise FirewallError; what stands is then unknown, and the next pass writes everything.
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
from ipv6natd.firewall.backend import Firewall, FirewallError
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
from ipv6natd.netfilter.rules import EMPTY, Ruleset, Table, TableRules
from ipv6natd.policy.desired import DesiredCache, desired, with_old_networks
from ipv6natd.policy.ruleset import RulesetCache, filter_rules, ruleset
from ipv6natd.sync.saved_rules import exposure
from ipv6natd.system.messages import MessageId, log_fields

log = logging.getLogger(__name__)

SETTLE = 3
"""Writes in one pass before somebody else's edits in between are left to the next pass."""

PATIENCE = 15.0
"""Seconds that a pass which nobody waits for any more may hold up the next; systemd gives us 20."""
FEW = 4
"""Chains that are read one by one; of more, all are read at once."""

ORDER_LOSSES = 5
ORDER_PERIOD = 60.0
"""Seconds. Two programs that both insist would otherwise write for ever."""

FollowFlows = Callable[[Desired | None, Desired, Exposure], bool]
"""What held before, what holds now, and what may have passed until now; whether it is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What we know to stand: what was wanted, its rules, and what the kernel made of them."""

    desired: Desired
    ruleset: Ruleset
    observed: Observed


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one pass came to; `drift` names the tables that somebody else had changed."""

    desired: Desired
    drift: tuple[Table, ...] = ()
    added: int = 0
    removed: int = 0
    followed: bool = True
    """Whether open flows go where the rules lead, as far as anybody knows."""
    switched: bool = False
    """Whether forwarding was off until now."""


class Kernel:
    """The tables of one variant, kept as they should be."""

    def __init__(
        self,
        firewall: Firewall,
        *,
        complete: Callable[[Snapshot, bool], Snapshot],
        follow_flows: FollowFlows,
        keep: Callable[[TableRules], None],
        found: Exposure,
        forward: Callable[[bool], bool],
    ) -> None:
        """See Reconciler for what the four functions are for; `found`: what may have passed before
        rules of ours were written at all."""
        self.firewall = firewall
        self.applied: Applied | None = None
        self._last = EMPTY
        self.order = Contest()
        self._complete = complete
        self._follow_flows = follow_flows
        self._keep = keep
        self._forward = forward
        self._wishes = DesiredCache()
        self._rules = RulesetCache()
        self._followed: Desired | None = None
        self.doubtful = False
        """Whether open flows may go where no rule leads, whatever followed before; may be set from
        any thread, and the next pass looks."""
        self._exposure = found
        """What may have passed until the rules stood that stand now."""
        self._drift: tuple[Table, ...] = ()
        self._busy = threading.Lock()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One thread at a time: a pass goes on when the loop that began it is told to stop."""
        if not self._busy.acquire(timeout=PATIENCE):
            raise FirewallError(f"an earlier change of the rules did not end within {PATIENCE:g} s")
        try:
            yield
        finally:
            self._busy.release()

    def text(self) -> str:
        """The rules that were last brought into force, as ip6tables-restore reads them.

        From any thread, also in the middle of a pass.
        """
        return format_ruleset(self._last)

    def remove(self) -> None:
        """Take all our rules out."""
        with self._alone():
            self._forward(False)
            self.applied = self._followed = None
            remove_all(self.firewall)
            _log_rules(*changed_rules(self._last, EMPTY))
            self._last = EMPTY
            self._keep(EMPTY.filter)

    def sync(self, snapshot: Snapshot, policy: Policy, *, verify: bool) -> Outcome:
        """One pass: everything that computes or blocks."""
        with self._alone():
            outcome = self._sync(snapshot, policy, verify=verify)
            if any(_forwards(each) for each in outcome.desired.networks):
                outcome = replace(outcome, switched=self._forward(True))
            return outcome

    def _sync(self, snapshot: Snapshot, policy: Policy, *, verify: bool) -> Outcome:
        want = desired(self._complete(snapshot, verify), policy, self._wishes)
        rules = ruleset(want, self._rules)
        applied = self.applied
        if applied is not None and verify:
            now = self.firewall.read()
            drift = self._drifted(applied, now)
            if drift:
                # Kept until it is mended: the first try may fail on the very edit that it mends.
                self._drift = drift
                log.warning(
                    "somebody else changed our rules in %s; putting them back",
                    _tables(drift),
                    extra=log_fields(MessageId.DRIFT, tables=" ".join(drift)),
                )
            else:
                self.applied = applied = _with_own(applied, {t: now[t].chains for t in Table})
        if applied is not None and applied.ruleset == rules and not self._drift:
            self.applied = replace(applied, desired=want)
            followed = not self.doubtful or self._follow(want)
            return Outcome(desired=want, followed=followed)
        outcome = self._write(applied, want, rules)
        followed = self._follow(want)
        self._drift = ()
        return replace(outcome, followed=followed)

    def _drifted(self, applied: Applied, now: Observed) -> tuple[Table, ...]:
        """The tables that somebody else changed, so that we have to."""
        if self.order.given_up and self._settled(applied.ruleset, now, keep_order=True):
            self.order.over()
            log.info("our rules come first in FORWARD again")
        keep = not self.order.given_up
        before = applied.observed
        drift = tuple(t for t in Table if has_drifted(before[t], now[t], keep_order=keep))
        if (
            drift
            and keep
            and not any(has_drifted(before[t], now[t], keep_order=False) for t in drift)
        ):
            return () if self._lost_order() else drift
        return drift

    def _settled(self, rules: Ruleset, now: Observed, *, keep_order: bool) -> bool:
        return all(matches(rules.table(t), now[t], keep_order=keep_order) for t in Table)

    def _lost_order(self) -> bool:
        """Somebody else took the first place in FORWARD; whether it is left to him now."""
        self.order.lost(time.monotonic())
        if self.order.given_up:
            log.warning("another program insists on the first place in FORWARD; leaving it there")
        return self.order.given_up

    def _write(self, applied: Applied | None, want: Desired, rules: Ruleset) -> Outcome:
        interim = rules.filter
        if applied is not None and (both := with_old_networks(applied.desired, want)) is not want:
            interim = filter_rules(both, self._rules)
        before = applied.ruleset if applied else EMPTY
        # From here on until it is known what stands, nothing is known.
        self.applied = None
        if applied is None or self._drift or jumps_differ(before, rules):
            observed = self._write_whole(applied, interim, rules)
        else:
            observed = dict(applied.observed)
            for change in diff(applied=before, interim=interim, wanted=rules, observed=None):
                self.firewall.write(change)
                observed[change.table] = predict(observed[change.table], change)
        if applied is None or before.filter != rules.filter:
            self._keep(rules.filter)
        added, removed = changed_rules(before, rules)
        _log_rules(added, removed)
        self.applied = Applied(desired=want, ruleset=rules, observed=observed)
        self._last = rules
        return Outcome(
            desired=want,
            drift=self._drift,
            added=len(added),
            removed=len(removed),
        )

    def _write_whole(
        self, applied: Applied | None, interim: TableRules, rules: Ruleset
    ) -> Observed:
        """Each table as it should be, whatever stands there; returns what then stands."""
        before = applied.ruleset if applied else None
        for attempt in range(SETTLE):
            keep = not self.order.given_up
            found = self.firewall.read()
            if applied is None:
                self._exposure = max(self._exposure, exposure(rules.filter, found[Table.FILTER]))
            for change in diff(
                applied=before,
                interim=interim,
                wanted=rules,
                observed=found,
                keep_order=keep,
            ):
                self.firewall.write(change)
            observed = self.firewall.read()
            if self._settled(rules, observed, keep_order=keep):
                return observed
            if self._settled(rules, observed, keep_order=False) and self._lost_order():
                return observed
            log.debug("somebody else writes to the tables too (attempt %d)", attempt + 1)
            before, interim = None, rules.filter
        raise FirewallError("somebody else keeps changing our rules while they are written")

    @property
    def unread(self) -> bool:
        """Whether chains were written since that nobody has read back."""
        return self.applied is not None and any(
            map(unverified_chains, self.applied.observed.values())
        )

    def learn(self) -> bool:
        """Read back what was written, to know it again; whether it is as it was written.

        Apart from `sync`, since no event should wait for it.
        """
        applied = self.applied
        if applied is None:
            return True
        names = {table: unverified_chains(seen) for table, seen in applied.observed.items()}
        if sum(map(len, names.values())) > FEW:
            own = {table: seen.chains for table, seen in self.firewall.read().items()}
        else:
            own = {t: self.firewall.digests(t, each) for t, each in names.items() if each}
        self.applied = _with_own(applied, own)
        return not self.unread

    def _follow(self, want: Desired) -> bool:
        """Let open flows go where the rules now in force lead, and none where they lead nowhere;
        whether they do."""
        # What began while somebody had taken out our rules began without them.
        doubtful = self.doubtful or Table.NAT in self._drift
        flushed = Exposure.OPEN if Table.FILTER in self._drift else Exposure.NONE
        was_open = max(self._exposure, flushed)
        self.doubtful, self._exposure = False, Exposure.NONE
        calls = [(self._followed, was_open)]
        if doubtful and self._followed is not None:
            calls.append((None, Exposure.NONE))
        # What makes one fail does the same to the next: it is for the next pass.
        if all(
            self._follow_flows(old, want, exposed)
            for old, exposed in calls
            if exposed or affects_flows(old, want)
        ):
            self._followed = want
            return True
        self.doubtful, self._exposure = True, was_open
        return False


def _forwards(network: Network) -> bool:
    return network.managed_by is ManagedBy.IPV6NATD and not network.internal


def _with_own(applied: Applied, own: Map[Table, Map[str, str]]) -> Applied:
    observed = {t: with_digests(seen, own.get(t, {})) for t, seen in applied.observed.items()}
    return replace(applied, observed=observed)


def _log_rules(added: Iterable[str], removed: Iterable[str]) -> None:
    for sign, lines in (("added", added), ("removed", removed)):
        for line in lines:
            log.debug("rule %s: ip6tables %s", sign, line)


def remove_all(firewall: Firewall) -> int:
    """Sync to the empty ruleset; returns the number of chains and jumps that went.

    Blocks. Raises FirewallError.
    """
    read = firewall.read()
    ours = {table: len(seen.chains) + len(seen.jumps) for table, seen in read.items()}
    touched = {table: seen for table, seen in read.items() if ours[table]}
    for change in diff(applied=None, interim=EMPTY.filter, wanted=EMPTY, observed=touched):
        firewall.write(change)
    return sum(ours.values())


def _tables(tables: Iterable[Table]) -> str:
    return " and ".join(f"the {table} table" for table in tables)


class Contest:
    """Counts how often our order was changed back, and says when to leave it."""

    def __init__(self) -> None:
        """Nobody else is there yet."""
        self._lost: deque[float] = deque(maxlen=ORDER_LOSSES)
        self.given_up = False
        """Whether the order is left as others make it."""

    def lost(self, now: float) -> None:
        """The order was changed back, at `now` seconds."""
        self._lost.append(now)
        if len(self._lost) == ORDER_LOSSES and now - self._lost[0] <= ORDER_PERIOD:
            self.given_up = True

    def over(self) -> None:
        """Begin anew: the order is right by itself, or a person asked for it."""
        self._lost.clear()
        self.given_up = False


def order_lost(first: str) -> str:
    """Why the order is not ours, with the rule that stands first where it is known."""
    who = f"`{first}` stands first" if first else "`ip6tables -S FORWARD` shows who"
    return (
        f"another program keeps putting its rules before ours in FORWARD ({who}), and after "
        f"{ORDER_LOSSES} times in a minute it was left at that; when it has stopped: "
        "ipv6natctl resync"
    )
