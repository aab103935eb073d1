"""A host in memory, and an observer that keeps what it is shown, for tests of the reconciler."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace

from ipv6natd.conntrack.stale import Exposure
from ipv6natd.host.findings import Finding
from ipv6natd.model import Desired, Network, Snapshot
from ipv6natd.netfilter.rules import Backend, Ruleset
from ipv6natd.report.status import Status


@dataclass
class FakeHost:
    """See sync.interfaces.Host. Functions may be replaced by the test."""

    userland_proxy: Callable[[Iterable[str]], bool] = lambda _: True
    """Called in the worker thread, as all reads of the host."""
    flush: Callable[[Desired | None, Desired, Exposure], bool] = lambda *_: True
    needs_scan: bool = False
    scan: Callable[[], bool] = lambda: True
    forward: Callable[[bool], bool] = lambda _: False
    left: bool | None = False
    found: tuple[Finding, ...] = ()
    """The result of the next checks."""
    checks: list[tuple[Network, ...]] = field(default_factory=list)
    saved: list[Ruleset] = field(default_factory=list)

    def add_facts(self, snapshot: Snapshot, refresh: bool) -> Snapshot:
        """Only the userland proxy."""
        del refresh
        bridges = [n.bridge for n in snapshot.networks if n.driver == "bridge" and n.bridge]
        return replace(snapshot, userland_proxy=self.userland_proxy(bridges))

    def flush_stale_flows(self, old: Desired | None, new: Desired, exposure: Exposure) -> bool:
        """See Host."""
        return self.flush(old, new, exposure)

    def scan_again(self) -> bool:
        """See Host."""
        return self.scan()

    def save_rules(self, rules: Ruleset) -> None:
        """See Host."""
        self.saved.append(rules)

    def ports_have_left(self, bridges: Collection[str]) -> bool | None:
        """See Host."""
        return bool(bridges) or self.left

    def update_forwarding(self, wanted: bool) -> bool:
        """See Host."""
        return self.forward(wanted)

    async def check(
        self, desired: Desired, *, bridges: frozenset[str], backend: Backend, rules_removed: bool
    ) -> tuple[Finding, ...]:
        """See Host."""
        del bridges, backend, rules_removed
        self.checks.append(desired.networks)
        return self.found


@dataclass
class FakeObserver:
    """See sync.interfaces.Observer."""

    published: list[tuple[Status, Status, tuple[str, ...]]] = field(default_factory=list)

    def changed(self, old: Status, new: Status, drift: tuple[str, ...]) -> None:
        """See Observer."""
        self.published.append((old, new, drift))
