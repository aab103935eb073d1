"""The rules of other programs, as the tools of the host list them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ipv6natd.host import firewalls
from ipv6natd.host.findings import HostFacts

BAN = "-s 2001:db8:1::3/128 -j DROP"
LISTED = {
    "FORWARD": ["-P FORWARD ACCEPT", "-A FORWARD -j DOCKER-BLOCKLIST", "-A FORWARD -j DOCKER"],
    "DOCKER-BLOCKLIST": ["-N DOCKER-BLOCKLIST", f"-A DOCKER-BLOCKLIST {BAN}"],
    "DOCKER": ["-N DOCKER", f"-A DOCKER {BAN}"],
}


def facts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: str, *chains: str) -> HostFacts:
    """The facts of a host with these chains in the filter table of one variant."""

    def said(tool: str, *words: str, **_: object) -> str:
        if tool == f"ip6tables-{backend}" and words[3] == "filter" and words[-1] in chains:
            return "\n".join(LISTED[words[-1]])
        if tool != "nft" or backend != "nft":
            return ""
        listed = [{"family": "ip6", "table": "filter", "name": name} for name in chains]
        return json.dumps({"nftables": [{"chain": chain} for chain in listed]})

    monkeypatch.setattr(firewalls, "tool_output", said)
    monkeypatch.setattr(firewalls, "_PROC_NET", tmp_path)
    (tmp_path / "ip6_tables_names").write_text("filter" if backend == "legacy" else "")
    return firewalls.add_firewall_facts(HostFacts(backend=backend))


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_chain_of_a_user_that_is_named_like_the_engines_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: str
) -> None:
    """Q2: a ban list behind our rules is named only if its chain is known."""
    found = facts(monkeypatch, tmp_path, backend, "FORWARD", "DOCKER-BLOCKLIST", "DOCKER")
    assert found.forward_chains == {"DOCKER-BLOCKLIST": (BAN,)}


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_rules_of_the_engine_are_those_in_its_own_chains(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: str
) -> None:
    with_docker = facts(monkeypatch, tmp_path, backend, "FORWARD", "DOCKER-BLOCKLIST", "DOCKER")
    assert with_docker.docker_ipv6_rules == {f"ip6tables-{backend}"}
    monkeypatch.setitem(LISTED, "FORWARD", LISTED["FORWARD"][:2])
    without = facts(monkeypatch, tmp_path, backend, "FORWARD", "DOCKER-BLOCKLIST")
    assert without.docker_ipv6_rules == frozenset()
