"""`explain` with a real engine: the current rule and the counters of the kernel."""

from __future__ import annotations

import json
from ipaddress import IPv6Address
from typing import Any

import pytest

from tests.harness import Failure, Regime, tcp, until
from tests.harness.sandbox import CLIENT, HOST
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


def traced(regime: Regime, port: str, source: IPv6Address) -> tuple[str, str, str]:
    """Fate, reason, and the owner of the last rule of a packet."""
    words = ("explain", port, "--from", str(source), "--json=short")
    (row,) = json.loads(regime.daemon.ctl(*words, check=False))
    return row["Fate"], row["Reason"], row["Steps"][-1]["By"]


@pytest.mark.ours
@pytest.mark.each_variant
def test_packet_is_followed_through_the_rules_in_force(regime: Regime) -> None:
    assert traced(regime, "8080/tcp", CLIENT)[0] == "forwarded"
    assert traced(regime, "8080/tcp", HOST)[0] == "forwarded"
    # Nobody publishes it.
    assert traced(regime, "9999", CLIENT)[0] == "delivered to the host"
    rule = ("-s", str(CLIENT), "-j", "DROP")
    tables = f"ip6tables-{regime.sandbox.variant}"
    regime.host.run(tables, "-I", "DOCKER-USER", *rule)
    try:
        assert tcp(regime.client, HOST, 8080, timeout=0.3) is Failure.TIMEOUT
        fate, reason, by = traced(regime, "8080/tcp", CLIENT)
        assert (fate, by) == ("dropped", "DOCKER-USER")
        assert f"-A DOCKER-USER -s {CLIENT}/128 -j DROP" in reason
    finally:
        regime.host.run(tables, "-D", "DOCKER-USER", *rule)
    limit = ("-m", "limit", "--limit", "1/hour", "-j", "DROP")
    regime.host.run(tables, "-I", "DOCKER-USER", *limit)
    try:
        fate, reason, _ = traced(regime, "8080/tcp", CLIENT)
        assert fate == "unknown"
        assert "-m limit" in reason
    finally:
        regime.host.run(tables, "-D", "DOCKER-USER", *limit)
    assert traced(regime, "8080/tcp", CLIENT)[0] == "forwarded"


@pytest.mark.ours
@pytest.mark.each_variant
def test_rules_of_others_that_the_port_meets_are_listed(regime: Regime) -> None:
    """A rule that is listed decides about packets, and one that is not does not."""

    def listed() -> set[str]:
        (row,) = json.loads(regime.daemon.ctl("explain", "x1", "--json=short"))
        assert row["OtherRuleCount"] == len(row["OtherRules"])
        return {f"{step['Chain']} {step['Rule']}" for step in row["OtherRules"]}

    tables, before = f"ip6tables-{regime.sandbox.variant}", listed()
    ban = ("f2b-test", "-s", f"{CLIENT}/128", "-j", "DROP")
    other = ("DOCKER-USER", "-o", "br-other", "-j", "DROP")
    regime.host.run(tables, "-N", "f2b-test")
    regime.host.run(tables, "-A", *ban)
    regime.host.run(tables, "-I", "FORWARD", "-p", "tcp", "-j", "f2b-test")
    regime.host.run(tables, "-I", *other)
    try:
        assert tcp(regime.client, HOST, 8080, timeout=0.3) is Failure.TIMEOUT
        assert listed() - before == {" ".join(ban)}
        text = regime.daemon.ctl("explain", "8080/tcp")
        assert f"f2b-test DROP    -s {CLIENT}/128 -j DROP" in text
    finally:
        regime.host.run(tables, "-D", *other)
        regime.host.run(tables, "-D", "FORWARD", "-p", "tcp", "-j", "f2b-test")
        regime.host.run(tables, "-F", "f2b-test")
        regime.host.run(tables, "-X", "f2b-test")
    assert listed() == before
    opened(regime.client, 8080)
    if regime.sandbox.variant != "nft":
        return
    regime.host.run("nft", "add table inet mine")
    try:
        regime.host.run(
            "nft", "add chain inet mine fw { type filter hook forward priority 10; policy accept; }"
        )
        regime.host.run("nft", "add rule inet mine fw tcp dport 80 drop")
        assert tcp(regime.client, HOST, 8080, timeout=0.3) is Failure.TIMEOUT
        assert listed() - before == {"fw "}
    finally:
        regime.host.run("nft", "delete table inet mine")


@pytest.mark.depends_on
@pytest.mark.ours
def test_explain_says_that_no_program_in_the_container_listens_on_ipv6(regime: Regime) -> None:
    number = regime.port()
    with regime.container(publish=[f"{number}:81"], tcp=(80,)):
        text = until(lambda: regime.daemon.ctl("explain", str(number)), lambda it: "refused" in it)
    assert "no program in the container listens on its IPv6 address" in text
