"""The interface of the host, as passes and the loop use it; `local_host` implements it."""

from __future__ import annotations

from typing import Protocol

from ipv6natd.conntrack.stale import Exposure
from ipv6natd.host.findings import HostReport
from ipv6natd.model import Desired, Network, Snapshot
from ipv6natd.netfilter.rules import Backend, Ruleset


class Host(Protocol):
    """What the reconciler needs from the host. All methods but `check` run in a worker thread."""

    def add_facts(self, snapshot: Snapshot, refresh: bool) -> Snapshot:
        """`snapshot` with the facts of the host. With `refresh` all of them are read again, because
        others may have written rules."""

    def flush_stale_flows(self, old: Desired | None, new: Desired, exposure: Exposure) -> bool:
        """Delete the conntrack entries that contradict the rules in force for `new`.

        `old` is the last state that it was called for, None if unknown; `exposure` is what was
        unprotected meanwhile. False means: call it again after a pause.
        """

    def save_rules(self, rules: Ruleset) -> None:
        """Save the raw and filter tables that came into force."""

    def update_forwarding(self, wanted: bool) -> bool:
        """With True, after each pass with a network of ours that needs forwarding; returns whether
        it changed anything. With False, before the rules are removed; may raise FirewallError."""

    async def check(
        self,
        networks: tuple[Network, ...],
        *,
        bridges: frozenset[str],
        backend: Backend,
        engine_writes: bool,
        rules_removed: bool,
    ) -> HostReport:
        """The faults of the host that affect these networks.

        `bridges` are those of all networks of the engine. `engine_writes`: the engine may write
        IPv6 rules itself.
        """
