"""The status as Prometheus reads it."""

from __future__ import annotations

import re

from ipv6natd.report import metrics
from ipv6natd.report.metrics import Sample
from ipv6natd.report.status import Status, mapping_rows, network_rows, plain, properties
from tests.integration.bus.conftest import mapping, status

HELP = re.compile(r"# HELP (?P<name>ipv6natd_[a-z_]+) [^\n]*\.")
TYPE = re.compile(r"# TYPE (?P<name>ipv6natd_[a-z_]+) (gauge|counter)")
LABEL = r'[a-z_]+="(?:[^"\\]|\\.)*"'
SAMPLE = re.compile(rf"(?P<name>ipv6natd_[a-z_]+)(\{{{LABEL}(,{LABEL})*\}})? [0-9.]+")


def text(now: Status) -> str:
    rows = ([plain(row) for row in rows(now)] for rows in (mapping_rows, network_rows))
    return metrics.metrics(plain(properties(now)), *rows)


def test_every_line_is_prometheus_text_and_each_metric_stands_together() -> None:
    described: list[str] = []
    for line in text(status(mapping(), mapping(1))).splitlines():
        if found := HELP.fullmatch(line):
            described.append(found["name"])
        elif found := TYPE.fullmatch(line) or SAMPLE.fullmatch(line):
            assert found["name"] == described[-1], "a metric's lines are apart"
        else:
            raise AssertionError(f"not a line of the format: {line!r}")
    assert len(described) == len(set(described))
    for line in text(status()).splitlines():
        if line.startswith("# TYPE"):
            assert line.split()[2].endswith("_total") == line.endswith("counter")


def test_runs_and_ports_are_counted_apart() -> None:
    lines = text(status(mapping(), mapping(1))).splitlines()
    assert 'ipv6natd_mappings{protocol="tcp",managed_by="ipv6natd"} 2' in lines
    assert 'ipv6natd_mappings{protocol="udp",managed_by="engine"} 0' in lines
    assert 'ipv6natd_ports{protocol="tcp"} 2' in lines
    assert 'ipv6natd_networks{managed_by="ipv6natd"} 1' in lines
    assert "ipv6natd_network_warnings 2" in lines


def test_exactly_one_state_is_1() -> None:
    states = [line for line in text(status()).splitlines() if line.startswith("ipv6natd_state")]
    assert [line for line in states if line.endswith(" 1")] == ['ipv6natd_state{state="synced"} 1']


def test_names_of_others_cannot_break_a_line() -> None:
    bad = Sample(metrics.INFO, (("version", 'a"b\\c\nd'),), 1)
    assert metrics.text([bad]).splitlines()[-1] == r'ipv6natd_info{version="a\"b\\c\nd"} 1'
