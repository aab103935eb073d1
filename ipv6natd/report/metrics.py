"""The status as metrics, and their text in the Prometheus format.

Pure. The input has the form of the bus, so that the daemon and the tool print the same. No metric
has a label for a container or a port: the number of time series would have no bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ipv6natd.host.findings import Severity, Topic
from ipv6natd.model import ManagedBy, Protocol
from ipv6natd.report.status import State

Values = Mapping[str, Any]

METRICS = {
    "ipv6natd_up": "1 while ipv6natd runs.",
    "ipv6natd_info": "1, with versions and the variant of ip6tables as labels.",
    "ipv6natd_state": "1 for the current state of ipv6natd, 0 for the others.",
    "ipv6natd_docker_connected": "1 while ipv6natd receives the events of the Docker engine.",
    "ipv6natd_mappings": "Mappings, each a range of forwarded ports, by protocol and by the writer "
    "of their rules.",
    "ipv6natd_ports": "Forwarded host ports, by protocol.",
    "ipv6natd_networks": "Handled networks, by the writer of their rules.",
    "ipv6natd_network_warnings": "Number of warnings of all networks.",
    "ipv6natd_findings": "What is wrong with the host or a network, by its part and severity.",
    "ipv6natd_skipped": "Ports and networks that could not be handled.",
    "ipv6natd_changes_total": "How often the lists of mappings and networks changed.",
    "ipv6natd_drift_repairs_total": "How often rules that another program had changed were "
    "restored.",
    "ipv6natd_last_sync_timestamp_seconds": "Time of the last comparison of rules and engine, in "
    "seconds since the epoch; 0 for never.",
}
"""Name -> help. The names of counters end in "_total"; the other metrics are gauges."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric."""

    name: str
    labels: Mapping[str, str]
    value: float


STOPPED = [Sample("ipv6natd_up", {}, 0)]
"""The samples while ipv6natd does not run."""


def samples(
    properties: Values,
    mappings: Iterable[Values],
    networks: Iterable[Values],
    findings: Iterable[Values],
) -> list[Sample]:
    """All samples, with those of one metric together."""
    info = {
        "version": properties["Version"],
        "backend": properties["Backend"],
        "engine_version": properties["EngineVersion"],
    }
    return [
        Sample("ipv6natd_up", {}, 1),
        Sample("ipv6natd_info", info, 1),
        *(
            Sample("ipv6natd_state", {"state": state.value}, int(properties["State"] == state))
            for state in State
        ),
        Sample("ipv6natd_docker_connected", {}, int(properties["DockerConnected"])),
        *_mapping_samples(mappings),
        *_network_samples(networks),
        *_finding_samples(findings),
        Sample("ipv6natd_skipped", {}, properties["SkippedCount"]),
        Sample("ipv6natd_changes_total", {}, properties["Generation"]),
        Sample("ipv6natd_drift_repairs_total", {}, properties["DriftRepairs"]),
        Sample("ipv6natd_last_sync_timestamp_seconds", {}, properties["LastSync"] / 1_000_000),
    ]


def _mapping_samples(mappings: Iterable[Values]) -> Iterator[Sample]:
    ranges: Counter[tuple[str, str]] = Counter()
    ports: Counter[str] = Counter()
    for mapping in mappings:
        manager = ManagedBy.ENGINE if mapping["State"] == "native" else ManagedBy.IPV6NATD
        ranges[mapping["Protocol"], manager] += 1
        ports[mapping["Protocol"]] += mapping["HostPortEnd"] - mapping["HostPort"] + 1
    for protocol in Protocol:
        for manager in ManagedBy:
            labels = {"protocol": protocol.value, "managed_by": manager.value}
            yield Sample("ipv6natd_mappings", labels, ranges[protocol, manager])
    for protocol in Protocol:
        yield Sample("ipv6natd_ports", {"protocol": protocol.value}, ports[protocol])


def _network_samples(networks: Iterable[Values]) -> Iterator[Sample]:
    rows = list(networks)
    count = Counter(row["ManagedBy"] for row in rows)
    for manager in ManagedBy:
        yield Sample("ipv6natd_networks", {"managed_by": manager.value}, count[manager])
    yield Sample("ipv6natd_network_warnings", {}, sum(len(row["Warnings"]) for row in rows))


def _finding_samples(findings: Iterable[Values]) -> Iterator[Sample]:
    count = Counter((row["About"], row["Severity"]) for row in findings)
    for topic in Topic:
        for severity in Severity:
            # Errors with 0 too, so that an alert sees them end.
            if (number := count[topic, severity]) or severity is Severity.ERROR:
                labels = {"about": topic.value, "severity": severity.value}
                yield Sample("ipv6natd_findings", labels, number)


def text(all_samples: Iterable[Sample]) -> str:
    """The samples in the Prometheus text format, with help and type once a metric."""
    lines: list[str] = []
    for name, group in groupby(all_samples, lambda sample: sample.name):
        lines.append(f"# HELP {name} {METRICS[name]}")
        lines.append(f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}")
        lines += map(_line, group)
    return "".join(f"{line}\n" for line in lines)


def _line(sample: Sample) -> str:
    labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels.items())
    value = f"{sample.value:.6f}".rstrip("0").rstrip(".")
    return f"{sample.name}{'{' + labels + '}' if labels else ''} {value}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
