"""docs/troubleshooting.md: the table of all findings, generated from the findings themselves.

`UPDATE_DOCS=1 .venv/bin/pytest tests/docs/test_findings_page.py` writes the table again.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Any

import pytest

from ipv6natd.host import findings
from ipv6natd.host.findings import STATE_FOLDER, Finding, HostFacts, evaluate, kernel_fault
from ipv6natd.model import Network, Protocol
from tests import ROOT
from tests.harness.report import table
from tests.unit.host.test_findings import ADVERTISED, CUT, FORCED, MAILCOW, OURS, WELL, X, chain

PAGE = ROOT / "docs" / "troubleshooting.md"
HEADING = "## All findings\n"
INTRODUCTION = """
Each finding with its condition, and the test that holds both together. The texts are those of an
example: network `x` on bridge `br-x`, uplink `eth0`.

"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A condition, and facts for which it is true."""

    condition: str
    facts: HostFacts = WELL
    networks: Sequence[Network] = (X,)
    missing: Sequence[tuple[Protocol, int]] = ()
    error: str = ""
    """A message of ip6tables instead of facts."""
    test: str = "test_finding_has_the_fault_and_ends_with_the_command"

    def finding(self) -> Finding:
        if self.error:
            fault = kernel_fault(self.error)
            assert fault is not None
            return fault
        (found,) = evaluate(self.facts, self.networks, missing_engine_rules=self.missing)
        return found


ROWS = (
    Row(condition="the kernel has no IPv6", facts=replace(WELL, ipv6=False)),
    Row(
        condition="IPv6 is disabled on all interfaces",
        facts=replace(WELL, disabled=True, forwarding=False),
    ),
    Row(
        condition="forwarding is off, and a network needs it",
        facts=replace(WELL, forwarding=False),
    ),
    Row(condition="legacy ip6tables without the raw table", facts=replace(WELL, raw_table=False)),
    Row(
        condition="an nft chain on the forward hook drops what our rules accept, between a bridge "
        "and an interface from which clients come",
        facts=chain(),
        test="test_blocking_nft_chain_is_reported_with_the_missing_rules",
    ),
    Row(
        condition="a bridge without the address of its network",
        facts=replace(WELL, bridges_without_address=frozenset({"br-x"})),
        test="test_bridge_without_its_address_is_a_fault_of_its_network",
    ),
    Row(
        condition="the same, and the engine does not show which address the bridge had",
        facts=replace(WELL, bridges_without_address=frozenset({"br-x"})),
        networks=(replace(X, gateway=None),),
        test="test_bridge_gets_its_own_address_again_and_not_that_of_a_container",
    ),
    Row(
        condition="firewalld runs, and a bridge is in none of its zones",
        facts=replace(WELL, zones={"eth0": "public"}),
        test="test_bridge_in_no_zone_of_firewalld_is_reported",
    ),
    Row(
        condition="a network with `enable_icc=false`, and ip6tables does not see bridged packets",
        facts=replace(WELL, br_netfilter=False),
        networks=(CUT,),
        test="test_icc_that_is_not_enforced_is_reported",
    ),
    Row(
        condition="a default route from router advertisements, forwarding on, and `accept_ra=1`",
        facts=replace(WELL, ra_default_routes=(ADVERTISED,)),
    ),
    Row(
        condition="docker-ipv6nat runs",
        facts=replace(WELL, docker_ipv6nat="docker rm -f 0123456789ab"),
    ),
    Row(
        condition="rules of Docker or docker-ipv6nat, and the engine is known to write none",
        facts=replace(WELL, docker_ipv6_rules=frozenset({"ip6tables-nft"})),
    ),
    Row(
        condition="rules of ipv6natd in the variant that is not in use",
        facts=replace(WELL, stale_rules=True),
    ),
    Row(
        condition="Docker's IPv4 rules are in the other variant only",
        facts=replace(WELL, docker_ipv4_variants=frozenset({"legacy"})),
    ),
    Row(
        condition="forwarding is on, at least two interfaces that are no bridges of Docker are up, "
        "and neither FORWARD nor an nft chain drops other packets",
        facts=replace(WELL, interfaces=("br-x", "eth0", "wg0")),
    ),
    Row(
        condition="the same, and instead of forwarding, `force_forwarding` of an interface is on",
        facts=FORCED,
        test="test_open_router_by_force_forwarding_is_reported_while_forwarding_is_off",
    ),
    Row(
        condition="an engine that manages IPv6 itself lacks the rule of a published port",
        missing=((Protocol.TCP, 8080),),
        test="test_flushed_rules_of_the_engine_are_reported_with_the_restart",
    ),
    Row(
        condition="ip6tables reports a missing part of the kernel",
        error="Failed to initialize nft: Protocol not supported",
        test="test_kernel_fault_gives_the_command",
    ),
    Row(
        condition="the same as for an open router, and only one interface is up",
        facts=replace(WELL, interfaces=("br-x", "eth0")),
        test="test_open_router_with_one_interface_is_a_note",
    ),
    Row(
        condition="a reverse-path filter, in ip6tables or in an nft chain",
        facts=replace(WELL, rpfilter_tables=("the raw table of ip6tables",)),
        test="test_reverse_path_filter_is_a_note",
    ),
    Row(
        condition="a port of the bridge belongs to no container",
        facts=replace(WELL, guest_ports={"br-x": ("tap0",)}),
        test="test_q18_guests_on_a_bridge_are_named_with_the_rule_that_accepts_more",
    ),
    Row(
        condition="ipv6natd runs in a container, and a folder that should be on a volume is not",
        facts=replace(WELL, missing_volumes=frozenset({STATE_FOLDER})),
        test="test_missing_volume_of_the_container_is_a_note",
    ),
    Row(
        condition="a rule behind ours in FORWARD bans sources, and DOCKER-USER does not have it",
        facts=replace(WELL, forward_rules=(OURS, "-A FORWARD -j MAILCOW"), forward_chains=MAILCOW),
        test="test_ban_list_behind_our_rules_is_noted_with_docker_user",
    ),
    Row(
        condition="a rule before ours in FORWARD accepts packets",
        facts=replace(WELL, forward_rules=("-A FORWARD -i vmbr0 -j ACCEPT", OURS)),
        test="test_rule_that_accepts_before_ours_is_noted",
    ),
    Row(
        condition="a source NAT before ours in the nat table can match packets of clients",
        facts=replace(WELL, postrouting_rules=("-A POSTROUTING -j MASQUERADE",)),
        test="test_wider_source_nat_before_ours_is_noted",
    ),
    Row(
        condition="a source NAT before ours in the nat table, and a network has `host_ipv6`",
        facts=replace(WELL, postrouting_rules=("-A POSTROUTING -o eth0 -j MASQUERADE",)),
        networks=(replace(X, source_address=IPv6Address("2001:db8:1::10")),),
        test="test_source_nat_before_ours_is_noted_if_it_overrides_host_ipv6",
    ),
)


def findings_table() -> str:
    """The section of the page, from its heading on."""
    found = [(row, row.finding()) for row in ROWS]
    rows = [
        (
            one.severity.value,
            row.condition,
            one.problem.replace("|", r"\|"),
            f"`{one.command}`" if one.command else "",
            f"`{row.test[5:]}`",
        )
        for row, one in found
    ]
    columns = ("severity", "condition", "text", "command", "test")
    return HEADING + INTRODUCTION + table(columns, rows)


def test_the_table_of_findings_is_up_to_date() -> None:
    page = PAGE.read_text()
    before, heading, rest = page.partition(HEADING)
    assert heading
    after = rest[rest.find("\n## ") :] if "\n## " in rest else ""
    text = before + findings_table() + after
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(text)
    assert PAGE.read_text() == text, f"docs/troubleshooting.md is stale: {__doc__}"


def test_the_table_has_each_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: set[int] = set()

    def noted(*values: Any, **fields: Any) -> Finding:
        lines.add(sys._getframe(1).f_lineno)
        return make(*values) if values else Finding(**fields)

    make = findings._note
    monkeypatch.setattr(findings, "Finding", noted)
    monkeypatch.setattr(findings, "_note", noted)
    for row in ROWS:
        row.finding()
    source = ast.parse((ROOT / "ipv6natd/host/findings.py").read_text())
    calls = {
        node.lineno
        for node in ast.walk(source)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Finding", "_note")
    }
    assert lines == calls


def test_the_named_tests_exist() -> None:
    text = (ROOT / "tests/unit/host/test_findings.py").read_text()
    assert {row.test for row in ROWS} <= set(re.findall(r"^def (test_\w+)", text, re.MULTILINE))
