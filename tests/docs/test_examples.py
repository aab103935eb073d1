"""The files in examples/ load, and every metric in them exists."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from ipv6natd import __version__
from ipv6natd.host.findings import Severity, Topic
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
    "about": {*Topic},
    "severity": {*Severity},
}


def loaded(name: str) -> Any:
    """The content of an example in YAML."""
    try:
        import yaml
    except ImportError:
        lack("python3-yaml")
    return yaml.safe_load((EXAMPLES / name).read_text())


def alerts() -> list[dict[str, Any]]:
    (group,) = loaded("prometheus-alerts.yml")["groups"]
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


def test_compose_file_has_the_options_of_the_tested_command_line() -> None:
    """tests/system/packets/test_image.py runs them with an engine."""
    compose = loaded("compose.yaml")
    service = compose["services"]["ipv6nat"]
    assert service["image"] == f"ipv6natd:{__version__}"
    assert service["network_mode"] == "host"
    assert (service["cap_drop"], service["cap_add"]) == (["ALL"], ["NET_ADMIN", "NET_RAW"])
    socket, state = service["volumes"]
    assert socket == "/var/run/docker.sock:/var/run/docker.sock:ro"
    assert state.partition(":")[0] in compose["volumes"]
