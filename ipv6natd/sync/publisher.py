"""The status that the bus and the metrics show: computed after each pass, and given to an observer.

The findings combine what the engine, the host and the last pass report. The state and its reason
follow from them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from ipv6natd import __version__
from ipv6natd.host.findings import Finding, Severity, Topic
from ipv6natd.model import EngineState, Mapping, Network, mapping_changes
from ipv6natd.report.changes import log_changes
from ipv6natd.report.status import State, Status, mapping_id, reason_summary
from ipv6natd.sync.applier import Applier, PassResult
from ipv6natd.sync.host_monitor import HostMonitor
from ipv6natd.sync.interfaces import EngineFacts, Observer

RULES_REMOVED = Finding(
    topic=Topic.SERVICE,
    problem="all rules were removed on request; to write them again",
    command="ipv6natctl resync",
)


class Publisher:
    """Holds the status, and publishes each new one."""

    def __init__(
        self, engine: EngineFacts, applier: Applier, monitor: HostMonitor, observer: Observer
    ) -> None:
        self.engine = engine
        self.config_error = ""
        """Why the last reload was refused."""
        self._write_fault: Finding | None = None
        """Why the last pass failed; None if it did not."""
        self._network_warnings: tuple[Finding, ...] = ()
        """What the last pass found about networks."""
        self._applier = applier
        self._monitor = monitor
        self._observer = observer
        self.first_pass = asyncio.Event()
        """Set when the first pass has ended, or the reason why it cannot start is known."""
        self.status = Status(version=__version__, backend=applier.backend.value)

    def refresh(self) -> None:
        """Publish what has changed without a pass: the engine, the host, the removal of rules."""
        self._publish(self._current())

    def newest_findings(self) -> tuple[Finding, ...]:
        """The findings as they are now; published before, so that state and count agree with them.

        Before the end of the first pass nothing is published, because READY=1 waits for it.
        """
        new = self._current()
        if new.findings != self.status.findings and self.first_pass.is_set():
            self._publish(new)
        return new.findings

    def failed(self, fault: Finding) -> None:
        """Publish that the rules could not be written."""
        self._write_fault = fault
        self.refresh()

    def succeeded(self, result: PassResult) -> None:
        """Publish the result of a pass."""
        wanted, old = result.desired, self.status
        self._write_fault = None
        self._network_warnings = tuple(_network_warnings(wanted.networks))
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
        """The status with its findings, state and connection as they are now. Before the first pass
        the rules are not in sync, also if the engine is connected."""
        engine, status = self.engine.engine, self.status
        connected = self.engine.state is EngineState.CONNECTED
        faults = [*self._own_faults(), *self._monitor.findings]
        if self._applier.position.conceded:
            faults.append(self._applier.position.finding)
        warnings = () if self._monitor.rules_removed else self._network_warnings
        # A stable sort: errors of the service come before those of the host.
        findings = sorted((*faults, *warnings), key=_order)
        state = State.SYNCED if passed or status.last_sync else State.STARTING
        if any(finding.severity is Severity.ERROR for finding in faults):
            state = State.DEGRADED
        if not connected:
            state = State.WAITING_FOR_DOCKER
        if self._monitor.rules_removed:
            state = State.STOPPED
            status = _without_lists(status)
        return replace(
            status,
            state=state,
            state_reason=reason_summary([it.text for it in findings if _is_reason(it)]),
            findings=tuple(findings),
            backend=self._applier.backend.value,
            docker_connected=connected,
            engine_version=engine.version if engine else "",
        )

    def _own_faults(self) -> Iterator[Finding]:
        """Those that the daemon finds in itself and in the engine, the most important one first."""
        if self._monitor.rules_removed:
            yield RULES_REMOVED
        if self.config_error:
            yield Finding(
                topic=Topic.SERVICE,
                severity=Severity.WARNING,
                problem=f"reload refused: {self.config_error}; the old settings stay in force; "
                "correct this, then",
                command="ipv6natctl reload",
            )
        if self.engine.state is not EngineState.CONNECTED:
            yield Finding(topic=Topic.SERVICE, problem=self.engine.waiting_for)
        if self._write_fault is not None and not self._monitor.rules_removed:
            yield self._write_fault

    def _with_host_warnings(self, networks: tuple[Network, ...]) -> tuple[Network, ...]:
        """The networks with the findings of the host that concern them as warnings."""
        warnings: dict[str, tuple[str, ...]] = {}
        for finding in self._monitor.findings:
            if finding.severity is Severity.ERROR:
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


def _order(finding: Finding) -> int:
    """The reasons for the state first, and the notes last."""
    return 0 if _is_reason(finding) else 1 + (finding.severity is Severity.NOTE)


def _is_reason(finding: Finding) -> bool:
    return finding.severity is Severity.ERROR or finding.topic is Topic.SERVICE


def _network_warnings(networks: Iterable[Network]) -> Iterator[Finding]:
    """The warnings that the decisions of a pass gave the networks."""
    for network in networks:
        for warning in network.warnings:
            yield Finding(
                topic=Topic.NETWORK,
                severity=Severity.WARNING,
                problem=warning,
                network=network.name,
                bridge=network.bridge,
            )


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
