"""The report of a real host: its facts give the same rules again, and a tracer the same verdict."""

from __future__ import annotations

import json

import pytest

from tests.harness import Regime
from tests.harness.replay import replay
from tests.harness.sandbox import CLIENT, HOST
from tests.harness.trace import Fate, Packet, trace

pytestmark = [pytest.mark.ours, pytest.mark.depends_on]


@pytest.mark.parametrize("unchanged", [True, False])
def test_report_gives_rules_and_verdict_again(regime: Regime, unchanged: bool) -> None:
    text = regime.daemon.ctl("report", *["--unchanged"] * unchanged)
    report, _ = json.JSONDecoder().raw_decode(text)  # and a note for the error output
    again = replay(report)
    # Networks are in the order of their names.
    assert sorted(again.rules.splitlines()) == sorted(report["Rules"].splitlines())
    assert [mapping.host_port for mapping in again.decisions.mappings] == [
        row["HostPort"] for row in report["Mappings"]
    ]
    packet = Packet(source=CLIENT, destination=HOST, in_interface="ext0", port=8080)
    verdict = trace(again.rules, packet, again.host("ext0", HOST))
    (container,) = (c for c in again.snapshot.containers if c.id == regime.x1.id)
    assert verdict.fate is Fate.FORWARDED
    assert verdict.address == container.endpoints[0].address
    assert (container.name == "x1") == unchanged
    assert ("x1" in [row["ContainerName"] for row in report["Mappings"]]) == unchanged
    assert any("IPV6NAT-FORWARD" in table for table in report["Tables"].values())
    assert report["Versions"]["Kernel"]
