"""The status that the bus and the metrics show: computed after each pass, and given to an observer.

The state, its reason and the networks' warnings combine what the engine, the host and the last pass
report.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from ipv6natd import __version__
from ipv6natd.model import EngineState, Mapping, Network, mapping_changes
from ipv6natd.report.changes import log_changes
from ipv6natd.report.status import State, Status, mapping_id, reason_summary
from ipv6natd.sync.applier import Applier, PassResult
from ipv6natd.sync.host_monitor import HostMonitor
from ipv6natd.sync.interfaces import EngineFacts, Observer

REMOVED_REASON = "all rules were removed on request; to write them again: ipv6natctl resync"


class Publisher:
    """Holds the status, and publishes each new one."""

    def __init__(
        self, engine: EngineFacts, applier: Applier, monitor: HostMonitor, observer: Observer
    ) -> None:
        self.engine = engine
        self.config_error = ""
        """Why the last reload was refused."""
        self._applier = applier
        self._monitor = monitor
        self._observer = observer
        self.first_pass = asyncio.Event()
        """Set when the first pass has ended, or the reason why it cannot start is known."""
        self.status = Status(version=__version__, backend=applier.backend.value)

    def refresh(self) -> None:
        """Publish what has changed without a pass: the engine, the host, the removal of rules."""
        self._publish(self._current())

    def failed(self, reason: str) -> None:
        """Publish that the rules could not be written."""
        self._publish(replace(self.status, state=State.DEGRADED, state_reason=reason))

    def succeeded(self, result: PassResult) -> None:
        """Publish the result of a pass."""
        wanted, old = result.desired, self.status
        networks = self._with_host_warnings(wanted.networks)
        now = time.time_ns() // 1000
        listed = (wanted.mappings, networks, wanted.skipped)
        changed = listed != (old.mappings, old.networks, old.skipped) or not old.last_sync
        new = replace(
            self._current(passed=True),
            generation=old.generation + changed,
            last_sync=now,
            drift_repairs=old.drift_repairs + bool(result.drift),
            mappings=wanted.mappings,
            networks=networks,
            skipped=wanted.skipped,
            since=_start_times(old, wanted.mappings, now) if changed else old.since,
        )
        self._publish(new, result.drift)

    def _current(self, *, passed: bool = False) -> Status:
        """The status with its state, reason and connection as they are now. Before the first pass
        the rules are not in sync, also if the engine is connected."""
        engine, report, status = self.engine.engine, self._monitor.report, self.status
        problems = [finding.text for finding in report.findings]
        if self._applier.position.conceded:
            problems.append(self._applier.position.reason)
        state = State.SYNCED if passed or status.last_sync else State.STARTING
        reasons = [self.config_error, *problems]
        if problems:
            state = State.DEGRADED
        if self.engine.state is not EngineState.CONNECTED:
            state = State.WAITING_FOR_DOCKER
            reasons.insert(1, self.engine.waiting_for)
        if self._monitor.rules_removed:
            state = State.STOPPED
            reasons.insert(0, REMOVED_REASON)
            status = _without_lists(status)
        return replace(
            status,
            state=state,
            state_reason=reason_summary([reason for reason in reasons if reason]),
            backend=self._applier.backend.value,
            docker_connected=self.engine.state is EngineState.CONNECTED,
            engine_version=engine.version if engine else "",
        )

    def _with_host_warnings(self, networks: tuple[Network, ...]) -> tuple[Network, ...]:
        """The networks with the findings of the host that concern them as warnings."""
        warnings: dict[str, tuple[str, ...]] = {}
        for finding in self._monitor.report.findings:
            warnings[finding.bridge] = (*warnings.get(finding.bridge, ()), finding.text)
        return tuple(
            replace(network, warnings=(*network.warnings, *warnings[network.bridge]))
            if network.bridge and network.bridge in warnings
            else network
            for network in networks
        )

    def _publish(self, new: Status, drift: tuple[str, ...] = ()) -> None:
        old, self.status = self.status, new
        log_changes(old, new)
        self._observer.changed(old, new, drift)
        if self.engine.state is not EngineState.STARTING:
            self.first_pass.set()


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
