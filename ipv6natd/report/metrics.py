"""The status as metrics, and their text in the Prometheus format.

Pure. The input has the form of the bus, so that the daemon and the tool print the same. No metric
has a label for a container or a port: the number of time series would have no bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ipv6natd.model import ManagedBy, Protocol
from ipv6natd.report.status import State

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its name, its type and its help."""

    name: str
    kind: str
    help_text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric."""

    metric: Metric
    labels: tuple[tuple[str, str], ...]
    value: float


UP = Metric("ipv6natd_up", "gauge", "1 while ipv6natd runs.")
INFO = Metric("ipv6natd_info", "gauge", "1, with versions and the variant of ip6tables as labels.")
STATE = Metric("ipv6natd_state", "gauge", "1 for the current state of ipv6natd, 0 for the others.")
CONNECTED = Metric(
    "ipv6natd_docker_connected",
    "gauge",
    "1 while ipv6natd receives the events of the Docker engine.",
)
MAPPINGS = Metric(
    "ipv6natd_mappings",
    "gauge",
    "Mappings, each a range of forwarded ports, by protocol and by the writer of their rules.",
)
PORTS = Metric("ipv6natd_ports", "gauge", "Forwarded host ports, by protocol.")
NETWORKS = Metric("ipv6natd_networks", "gauge", "Handled networks, by the writer of their rules.")
WARNINGS = Metric("ipv6natd_network_warnings", "gauge", "Number of warnings of all networks.")
SKIPPED = Metric("ipv6natd_skipped", "gauge", "Ports and networks that could not be handled.")
CHANGES = Metric(
    "ipv6natd_changes_total", "counter", "How often the lists of mappings and networks changed."
)
REPAIRS = Metric(
    "ipv6natd_drift_repairs_total",
    "counter",
    "How often rules that another program had changed were restored.",
)
LAST_SYNC = Metric(
    "ipv6natd_last_sync_timestamp_seconds",
    "gauge",
    "Time of the last comparison of rules and engine, in seconds since the epoch; 0 for never.",
)


def metrics(properties: Values, mappings: Iterable[Values], networks: Iterable[Values]) -> str:
    """All metrics as text."""
    return text(samples(properties, mappings, networks))


def samples(
    properties: Values, mappings: Iterable[Values], networks: Iterable[Values]
) -> list[Sample]:
    """All samples, with those of one metric together."""
    return [
        Sample(UP, (), 1),
        Sample(
            INFO,
            (
                ("version", properties["Version"]),
                ("backend", properties["Backend"]),
                ("engine_version", properties["EngineVersion"]),
            ),
            1,
        ),
        *(
            Sample(STATE, (("state", state.value),), int(properties["State"] == state.value))
            for state in State
        ),
        Sample(CONNECTED, (), int(properties["DockerConnected"])),
        *_mapping_samples(mappings),
        *_network_samples(networks),
        Sample(SKIPPED, (), properties["SkippedCount"]),
        Sample(CHANGES, (), properties["Generation"]),
        Sample(REPAIRS, (), properties["DriftRepairs"]),
        Sample(LAST_SYNC, (), properties["LastSync"] / 1_000_000),
    ]


def _mapping_samples(mappings: Iterable[Values]) -> Iterator[Sample]:
    ranges: Counter[tuple[str, str]] = Counter()
    ports: Counter[str] = Counter()
    for mapping in mappings:
        manager = ManagedBy.ENGINE if mapping["State"] == "native" else ManagedBy.IPV6NATD
        ranges[mapping["Protocol"], manager.value] += 1
        ports[mapping["Protocol"]] += mapping["HostPortEnd"] - mapping["HostPort"] + 1
    for protocol in Protocol:
        for manager in ManagedBy:
            labels = (("protocol", protocol.value), ("managed_by", manager.value))
            yield Sample(MAPPINGS, labels, ranges[protocol.value, manager.value])
    for protocol in Protocol:
        yield Sample(PORTS, (("protocol", protocol.value),), ports[protocol.value])


def _network_samples(networks: Iterable[Values]) -> Iterator[Sample]:
    rows = list(networks)
    count = Counter(row["ManagedBy"] for row in rows)
    for manager in ManagedBy:
        yield Sample(NETWORKS, (("managed_by", manager.value),), count[manager.value])
    yield Sample(WARNINGS, (), sum(len(row["Warnings"]) for row in rows))


def text(all_samples: Sequence[Sample]) -> str:
    """The samples in the Prometheus text format, with help and type once a metric."""
    lines: list[str] = []
    for metric in dict.fromkeys(sample.metric for sample in all_samples):
        lines.append(f"# HELP {metric.name} {metric.help_text}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        lines += [_line(sample) for sample in all_samples if sample.metric is metric]
    return "".join(f"{line}\n" for line in lines)


def _line(sample: Sample) -> str:
    labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels)
    value = f"{sample.value:.6f}".rstrip("0").rstrip(".")
    return f"{sample.metric.name}{'{' + labels + '}' if labels else ''} {value}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
