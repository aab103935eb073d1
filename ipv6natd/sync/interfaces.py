"""The interfaces of what the loop uses: the engine, the host, and an observer of the status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Protocol

from ipv6natd.conntrack.stale import Exposure
from ipv6natd.host.findings import Finding
from ipv6natd.model import Container, Desired, Engine, EngineState, Network, Snapshot
from ipv6natd.netfilter.rules import Backend, Ruleset
from ipv6natd.report.status import Status


class EngineFacts(Protocol):
    """What the engine reports; `engine.watcher` implements it."""

    state: EngineState
    current: bool
    """True while the engine reports each change. Otherwise a container may have been removed, and
    its address given to another one."""
    waiting_for: str
    engine: Engine | None

    @property
    def networks(self) -> dict[str, Network]:
        """By id."""

    @property
    def containers(self) -> dict[str, Container]:
        """The running ones, by id."""

    @property
    def ended(self) -> Counter[str]:
        """Bridge -> the number of containers whose end or disconnect an event has reported. The
        reader subtracts the containers whose ports have left the bridge."""

    async def relist(self) -> None:
        """Read all networks and containers again."""


class Observer(Protocol):
    """Who is told of each change of the status."""

    def changed(self, old: Status, new: Status, drift: tuple[str, ...]) -> None:
        """`drift` names the tables whose rules another program had changed; they are repaired."""


class Host(Protocol):
    """What `local_host` implements. All methods but `check` run in a worker thread."""

    @property
    def needs_scan(self) -> bool:
        """True if entries may come back that `flush_stale_flows` deleted: call `scan_again`."""

    def add_facts(self, snapshot: Snapshot, refresh: bool) -> Snapshot:
        """`snapshot` with the facts of the host. With `refresh` all of them are read again, because
        others may have written rules."""

    def flush_stale_flows(self, old: Desired | None, new: Desired, exposure: Exposure) -> bool:
        """Delete the conntrack entries that contradict the rules in force for `new`.

        `old` is the last state that it was called for, None if unknown; `exposure` is what was
        unprotected meanwhile. False means: call it again after a pause.
        """

    def scan_again(self) -> bool:
        """Delete entries that have come back; False if it failed."""

    def save_rules(self, rules: Ruleset) -> None:
        """Save the raw and filter tables that came into force."""

    def ports_have_left(self, bridges: Collection[str]) -> bool | None:
        """Whether a container left a bridge since an earlier process followed the engine, or now
        one of `bridges` ("": any); None if unknown."""

    def update_forwarding(self, wanted: bool) -> bool:
        """With True, after each pass with a network of ours that needs forwarding; returns whether
        it changed anything. With False, before the rules are removed; may raise FirewallError."""

    async def check(
        self, desired: Desired, *, bridges: frozenset[str], backend: Backend, rules_removed: bool
    ) -> tuple[Finding, ...]:
        """The findings about the host, and those that affect the decided networks.

        `bridges` are those of all networks of the engine.
        """
