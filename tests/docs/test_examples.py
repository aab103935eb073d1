"""The files in examples/ load, and every metric in them exists."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from ipv6natd.model import ManagedBy, Protocol
from ipv6natd.report.metrics import METRICS
from ipv6natd.report.status import State
from tests import ROOT
from tests.harness.needs import lack

EXAMPLES = ROOT / "examples"
LABELS: dict[str, set[str]] = {
    "state": {*State},
    "protocol": {*Protocol},
    "managed_by": {*ManagedBy},
}


def alerts() -> list[dict[str, Any]]:
    try:
        import yaml
    except ImportError:
        lack("python3-yaml")
    (group,) = yaml.safe_load((EXAMPLES / "prometheus-alerts.yml").read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def dashboard() -> dict[str, Any]:
    value: dict[str, Any] = json.loads((EXAMPLES / "grafana-dashboard.json").read_text())
    return value


def panels() -> list[tuple[str, str]]:
    return [(each["title"], it["expr"]) for each in dashboard()["panels"] for it in each["targets"]]


def assert_real(expression: str) -> None:
    """Check that an expression uses only existing metrics, labels and values."""
    named = set(re.findall(r"\bipv6natd_\w+", expression))
    assert named, expression
    assert named <= METRICS.keys()
    for label, value in re.findall(r'(\w+)="([^"]*)"', expression):
        assert value in LABELS.get(label, set()), f"{label}={value}"
    for inside in re.findall(r"(?:increase|rate)\((\w+)", expression):
        assert inside.endswith("_total")
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)


def test_every_alert_names_metrics_that_exist_and_says_what_to_do() -> None:
    names = [each["alert"] for each in alerts()]
    assert len(names) == len(set(names)) >= 5
    for each in alerts():
        if "node_textfile_mtime_seconds" not in each["expr"]:
            assert_real(each["expr"])
        assert set(each["annotations"]) == {"summary", "description"}
        assert each["labels"]["severity"] in ("critical", "warning", "info")


@pytest.mark.parametrize(("title", "expression"), panels())
def test_every_panel_names_metrics_that_exist(title: str, expression: str) -> None:
    assert title
    assert_real(expression)


def test_the_dashboard_shows_every_metric_and_asks_for_the_host() -> None:
    shown = {name for _, it in panels() for name in re.findall(r"\bipv6natd_\w+", it)}
    assert shown == METRICS.keys()
    assert all('instance=~"$instance"' in expression for _, expression in panels())
    numbers = [each["id"] for each in dashboard()["panels"]]
    assert len(numbers) == len(set(numbers))
