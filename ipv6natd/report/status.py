"""The status that the bus, the control tool and systemd's STATUS= show.

A row maps the name of a field to its D-Bus signature and value. So the bus can put it into a
variant, and the control tool does not depend on the model.
"""

from __future__ import annotations

from collections.abc import Mapping as Map
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ipv6natd.model import GatewayMode, ManagedBy, Mapping, Network, Skipped
from ipv6natd.netfilter.docker_rules import Leftover

Field = tuple[str, "str | int | bool | list[str] | list[Row]"]
Row = dict[str, Field]


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
    """The complete status at one moment. It is replaced as a whole, never changed."""

    version: str
    state: State = State.STARTING
    state_reason: str = ""
    backend: str = ""
    engine_version: str = ""
    docker_connected: bool = False
    generation: int = 0
    """Counts the changes of the lists; equal numbers mean equal lists."""
    last_sync: int = 0
    """Microseconds since the epoch; 0 before the first pass."""
    drift_repairs: int = 0
    mappings: tuple[Mapping, ...] = ()
    networks: tuple[Network, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    since: Map[str, int] = field(default_factory=dict)
    """Mapping id -> microseconds since the epoch when it came into force."""


def properties(status: Status) -> Row:
    """The properties of org.ipv6natd1.Manager."""
    return {
        "Version": ("s", status.version),
        "State": ("s", status.state.value),
        "StateReason": ("s", status.state_reason),
        "Backend": ("s", status.backend),
        "EngineVersion": ("s", status.engine_version),
        "DockerConnected": ("b", status.docker_connected),
        "MappingCount": ("u", len(status.mappings)),
        "NetworkCount": ("u", len(status.networks)),
        "SkippedCount": ("u", len(status.skipped)),
        "Generation": ("t", status.generation),
        "LastSync": ("t", status.last_sync),
        "DriftRepairs": ("t", status.drift_repairs),
    }


def plain(row: Row) -> dict[str, Any]:
    """The values without their signatures."""
    return {name: value for name, (_, value) in row.items()}


def mapping_id(mapping: Mapping) -> str:
    """The id of the mapping as long as it exists: "6f1c0d…/tcp/[::]:8080"."""
    host = f"[{mapping.host_address}]:{mapping.host_port}"
    return f"{mapping.container_id}/{mapping.protocol}/{host}"


def mapping_state(mapping: Mapping) -> str:
    """ "native" if rules of the engine forward it, "active" if ours do."""
    return "native" if mapping.managed_by is ManagedBy.ENGINE else "active"


def mapping_row(mapping: Mapping, since: int) -> Row:
    """One row of ListMappings."""
    return {
        "Id": ("s", mapping_id(mapping)),
        "ContainerId": ("s", mapping.container_id),
        "ContainerName": ("s", mapping.container_name),
        "Network": ("s", mapping.network_name),
        "NetworkId": ("s", mapping.network_id),
        "Bridge": ("s", mapping.bridge),
        "Protocol": ("s", mapping.protocol.value),
        "HostAddress": ("s", str(mapping.host_address)),
        "HostPort": ("q", mapping.host_port),
        "HostPortEnd": ("q", mapping.host_port_end),
        "ContainerAddress": ("s", str(mapping.container_address)),
        "ContainerPort": ("q", mapping.container_port),
        "ContainerPortEnd": ("q", mapping.container_port_end),
        "State": ("s", mapping_state(mapping)),
        "Since": ("t", since),
    }


def network_row(network: Network) -> Row:
    """One row of ListNetworks."""
    mode = "internal" if network.internal else network.gateway_mode.value
    if network.gateway_mode is GatewayMode.ISOLATED:
        mode = GatewayMode.ISOLATED.value
    source = "" if network.source_address is None else str(network.source_address)
    return {
        "Id": ("s", network.id),
        "Name": ("s", network.name),
        "Bridge": ("s", network.bridge),
        "Subnets": ("as", [str(subnet) for subnet in network.subnets]),
        "Mode": ("s", mode),
        "Internal": ("b", network.internal),
        "Icc": ("b", network.icc),
        "Masquerade": ("b", network.masquerade),
        "SourceAddress": ("s", source),
        "ManagedBy": ("s", network.managed_by.value),
        "Warnings": ("as", list(network.warnings)),
    }


def skipped_row(skipped: Skipped) -> Row:
    """One row of ListSkipped."""
    return {
        "ContainerName": ("s", skipped.container_name),
        "Network": ("s", skipped.network),
        "Port": ("s", skipped.port),
        "Reason": ("s", skipped.reason),
    }


def leftover_row(leftover: Leftover) -> Row:
    """A row of ListLeftovers."""
    return {
        "Variant": ("s", leftover.variant),
        "Table": ("s", leftover.table),
        "Chain": ("s", leftover.chain),
        "Rule": ("s", leftover.rule),
    }


def mapping_rows(status: Status) -> list[Row]:
    """ListMappings."""
    return [
        mapping_row(mapping, status.since.get(mapping_id(mapping), 0))
        for mapping in status.mappings
    ]


def network_rows(status: Status) -> list[Row]:
    """ListNetworks."""
    return [network_row(network) for network in status.networks]


def skipped_rows(status: Status) -> list[Row]:
    """ListSkipped."""
    return [skipped_row(entry) for entry in status.skipped]


def counted(number: int, noun: str) -> str:
    """ "1 mapping", "2 mappings"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def one_line(status: Status) -> str:
    """The status in one line, for STATUS= and the journal."""
    counts = f"{counted(len(status.mappings), 'mapping')}, "
    counts += counted(len(status.networks), "network")
    if status.skipped:
        counts += f", {len(status.skipped)} skipped"
    text = f"{status.state}: {counts}, {status.backend}"
    return f"{text}; {status.state_reason}" if status.state_reason else text
