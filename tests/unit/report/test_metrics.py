"""The metrics in the Prometheus text format."""

from __future__ import annotations

import re

from ipv6natd.report import metrics
from ipv6natd.report.metrics import Sample
from ipv6natd.report.status import (
    Status,
    bus_fields,
    finding_row,
    mapping_rows,
    network_row,
    properties,
)
from tests.integration.bus.conftest import mapping, status

HELP = re.compile(r"# HELP (?P<name>ipv6natd_[a-z_]+) [^\n]*\.")
TYPE = re.compile(r"# TYPE (?P<name>ipv6natd_[a-z_]+) (gauge|counter)")
LABEL = r'[a-z_]+="(?:[^"\\]|\\.)*"'
SAMPLE = re.compile(rf"(?P<name>ipv6natd_[a-z_]+)(\{{{LABEL}(,{LABEL})*\}})? [0-9.]+")


def text(now: Status) -> str:
    networks = (bus_fields(network_row(network)) for network in now.networks)
    rows = map(bus_fields, mapping_rows(now))
    findings = (bus_fields(finding_row(finding)) for finding in now.findings)
    return metrics.text(metrics.samples(properties(now), rows, networks, findings))


def test_text_is_prometheus_format_with_the_lines_of_a_metric_together() -> None:
    metric_names: list[str] = []
    for line in text(status(mapping(), mapping(1))).splitlines():
        if found := HELP.fullmatch(line):
            metric_names.append(found["name"])
        elif found := TYPE.fullmatch(line) or SAMPLE.fullmatch(line):
            assert found["name"] == metric_names[-1], "a metric's lines are apart"
        else:
            raise AssertionError(f"not a line of the format: {line!r}")
    assert len(metric_names) == len(set(metric_names))
    for line in text(status()).splitlines():
        if line.startswith("# TYPE"):
            assert line.split()[2].endswith("_total") == line.endswith("counter")


def test_mappings_and_ports_are_counted_separately() -> None:
    lines = text(status(mapping(), mapping(1))).splitlines()
    assert 'ipv6natd_mappings{protocol="tcp",managed_by="ipv6natd"} 2' in lines
    assert 'ipv6natd_mappings{protocol="udp",managed_by="engine"} 0' in lines
    assert 'ipv6natd_ports{protocol="tcp"} 2' in lines
    assert 'ipv6natd_networks{managed_by="ipv6natd"} 1' in lines
    assert "ipv6natd_network_warnings 2" in lines
    assert 'ipv6natd_findings{about="network",severity="warning"} 2' in lines
    assert 'ipv6natd_findings{about="forwarding",severity="error"} 0' in lines


def test_exactly_one_state_sample_is_1() -> None:
    states = [line for line in text(status()).splitlines() if line.startswith("ipv6natd_state")]
    assert [line for line in states if line.endswith(" 1")] == ['ipv6natd_state{state="synced"} 1']


def test_label_values_are_escaped() -> None:
    bad = Sample("ipv6natd_info", {"version": 'a"b\\c\nd'}, 1)
    assert metrics.text([bad]).splitlines()[-1] == r'ipv6natd_info{version="a\"b\\c\nd"} 1'
