"""The status that the bus, the control tool and systemd's STATUS= show, and its rows on the bus.

`dbus.values` has the D-Bus signature of each field.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Mapping as Map
from dataclasses import Field, dataclass, field, fields
from enum import StrEnum
from functools import cache
from typing import Any, ClassVar, Protocol

from ipv6natd.host.findings import Finding
from ipv6natd.model import GatewayMode, ManagedBy, Mapping, Network, Skipped


class State(StrEnum):
    """The state of the daemon."""

    STARTING = "starting"
    WAITING_FOR_DOCKER = "waiting-for-docker"
    SYNCED = "synced"
    DEGRADED = "degraded"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncResult:
    """The result of a resync: the number of added and removed rules, and the duration."""

    generation: int
    rules_added: int
    rules_removed: int
    duration_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The complete status at one moment. It is replaced as a whole, never changed.

    One attribute for each property on the bus, the four lists, and the times of mappings.
    """

    version: str
    state: State = State.STARTING
    state_reason: str = ""
    backend: str = ""
    engine_version: str = ""
    docker_connected: bool = False
    generation: int = 0
    """Counts the changes of the lists of mappings, networks and skipped ports; equal numbers mean
    equal lists."""
    last_sync: int = 0
    """Microseconds since the epoch; 0 before the first pass."""
    drift_repairs: int = 0
    mappings: tuple[Mapping, ...] = ()
    networks: tuple[Network, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    findings: tuple[Finding, ...] = ()
    """Those that the state's reason names come first."""
    since: Map[str, int] = field(default_factory=dict)
    """Mapping id -> microseconds since the epoch when it came into force."""


def properties(status: Status) -> dict[str, Any]:
    """The properties of org.ipv6natd1.Manager, by their names on the bus."""
    return {
        "Version": status.version,
        "State": status.state,
        "StateReason": status.state_reason,
        "Backend": status.backend,
        "EngineVersion": status.engine_version,
        "DockerConnected": status.docker_connected,
        "MappingCount": len(status.mappings),
        "NetworkCount": len(status.networks),
        "SkippedCount": len(status.skipped),
        "FindingCount": len(status.findings),
        "Generation": status.generation,
        "LastSync": status.last_sync,
        "DriftRepairs": status.drift_repairs,
    }


class Row(Protocol):
    """A dataclass whose fields are those of a row on the bus."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


def bus_fields(row: Row) -> dict[str, Any]:
    """The fields of a row by their names on the bus: `ContainerName` for `container_name`.

    A field that is None is left out.
    """
    fields_ = ((name, getattr(row, attribute)) for attribute, name in _bus_names(type(row)))
    return {name: value for name, value in fields_ if value is not None}


@cache
def _bus_names(row_type: type[Row]) -> list[tuple[str, str]]:
    return [(item.name, item.name.title().replace("_", "")) for item in fields(row_type)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingRow:
    """One row of ListMappings: one attribute for each of its fields in org.ipv6natd1(5)."""

    id: str
    container_id: str
    container_name: str
    network: str
    network_id: str
    bridge: str
    protocol: str
    host_address: str
    host_port: int
    host_port_end: int
    container_address: str
    container_port: int
    container_port_end: int
    state: str
    """"native" if rules of the engine forward it, "active" if ours do."""
    since: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRow:
    """One row of ListNetworks."""

    id: str
    name: str
    bridge: str
    subnets: tuple[str, ...]
    gateway: str
    mode: str
    internal: bool
    icc: bool
    masquerade: bool
    source_address: str
    managed_by: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingRow:
    """One row of ListFindings."""

    about: str
    severity: str
    text: str
    command: str
    network: str


def mapping_id(mapping: Mapping) -> str:
    """The id of the mapping as long as it exists: "6f1c0d…/tcp/[::]:8080"."""
    host = f"[{mapping.host_address}]:{mapping.host_port}"
    return f"{mapping.container_id}/{mapping.protocol}/{host}"


def mapping_row(mapping: Mapping, since: Map[str, int]) -> MappingRow:
    """The row of a mapping; see Status for `since`."""
    id_ = mapping_id(mapping)
    return MappingRow(
        id=id_,
        container_id=mapping.container_id,
        container_name=mapping.container_name,
        network=mapping.network_name,
        network_id=mapping.network_id,
        bridge=mapping.bridge,
        protocol=mapping.protocol,
        host_address=str(mapping.host_address),
        host_port=mapping.host_port,
        host_port_end=mapping.host_port_end,
        container_address=str(mapping.container_address),
        container_port=mapping.container_port,
        container_port_end=mapping.container_port_end,
        state="native" if mapping.managed_by is ManagedBy.ENGINE else "active",
        since=since.get(id_, 0),
    )


def mapping_rows(status: Status) -> Iterator[MappingRow]:
    """The rows of ListMappings, one at a time: 10,000 need much memory."""
    return (mapping_row(mapping, status.since) for mapping in status.mappings)


def network_row(network: Network) -> NetworkRow:
    """The row of a network."""
    mode = "internal" if network.internal else network.gateway_mode.value
    if network.gateway_mode is GatewayMode.ISOLATED:
        mode = GatewayMode.ISOLATED.value
    return NetworkRow(
        id=network.id,
        name=network.name,
        bridge=network.bridge,
        subnets=tuple(map(str, network.subnets)),
        gateway="" if network.gateway is None else str(network.gateway),
        mode=mode,
        internal=network.internal,
        icc=network.icc,
        masquerade=network.masquerade,
        source_address="" if network.source_address is None else str(network.source_address),
        managed_by=network.managed_by,
        warnings=network.warnings,
    )


def finding_row(finding: Finding) -> FindingRow:
    """The row of a finding."""
    return FindingRow(
        about=finding.topic,
        severity=finding.severity,
        text=finding.problem,
        command=finding.command,
        network=finding.network,
    )


def reason_summary(reasons: Sequence[str]) -> str:
    """The first reason, and the number of the others."""
    more = f" (and {len(reasons) - 1} more: ipv6natctl findings)" if reasons[1:] else ""
    return "".join((*reasons[:1], more))


def counted(number: int, noun: str) -> str:
    """ "1 mapping", "2 mappings"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def port_range(first: int, last: int) -> str:
    """ "443", "8000-8010"."""
    return f"{first}" if first == last else f"{first}-{last}"


def one_line(status: Status) -> str:
    """The status in one line, for STATUS= and the journal."""
    counts = f"{counted(len(status.mappings), 'mapping')}, "
    counts += counted(len(status.networks), "network")
    if status.skipped:
        counts += f", {len(status.skipped)} skipped"
    text = f"{status.state}: {counts}, {status.backend}"
    return f"{text}; {status.state_reason}" if status.state_reason else text
