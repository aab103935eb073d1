"""`explain` with a real engine: the current rule and the counters of the kernel."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.harness import Regime, tcp, until
from tests.harness.sandbox import HOST
from tests.system.packets.asking import opened

pytestmark = pytest.mark.depends_on("variant")


def port(regime: Regime, asked: str) -> dict[str, Any]:
    """The row of port 8080 in the output of `explain`."""
    (container,) = json.loads(regime.daemon.ctl("explain", asked, "--json=short"))
    (found,) = [each for each in container["Ports"] if "[::]:8080 " in each["Binding"]]
    assert isinstance(found, dict)
    return found


@pytest.mark.depends_on
@pytest.mark.ours
@pytest.mark.each_variant
def test_explain_shows_the_current_rule_and_its_connection_count(
    regime: Regime,
) -> None:
    opened(regime.client, 8080)
    before = port(regime, "8080/tcp")
    assert before["Outcome"] == "forwarded"
    assert before["Rule"] in regime.daemon.ctl("rules")
    for _ in range(3):
        tcp(regime.client, HOST, 8080)
    assert port(regime, "x1")["Connections"] == before["Connections"] + 3
    assert before["Server"] == "accepted"


@pytest.mark.depends_on
@pytest.mark.ours
def test_explain_says_that_no_program_in_the_container_listens_on_ipv6(regime: Regime) -> None:
    number = regime.port()
    with regime.container(publish=[f"{number}:81"], tcp=(80,)):
        text = until(lambda: regime.daemon.ctl("explain", str(number)), lambda it: "refused" in it)
    assert "no program in the container listens on its IPv6 address" in text
