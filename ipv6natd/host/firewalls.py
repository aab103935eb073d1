"""What others have written into nft and ip6tables, read by the host's own tools.

Only what is cheap whatever the number of our own rules: names of chains, single chains, and the
tables of others. Asking legacy for a table that is not there would make the kernel create it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from ipv6natd.host.findings import HostFacts
from ipv6natd.host.nft import base_chains, listed_objects
from ipv6natd.netfilter.docker_rules import NFT_TABLE, is_docker_chain, jumps_to_docker_chain
from ipv6natd.netfilter.rules import PREFIX
from ipv6natd.system import process

_TOOL_TIMEOUT = 10.0
_MAX_OUTPUT = 4 << 20
"""Characters of rules that are looked through; who has more has tools of his own."""
_PROC_NET = Path("/proc/thread-self/net")
_HOOKS = frozenset({"forward", "prerouting"})


class Tool(StrEnum):
    """Programs that are run, found in the directories where root's programs are."""

    IP = "ip"
    NFT = "nft"
    IP6TABLES_NFT = "ip6tables-nft"
    IP6TABLES_LEGACY = "ip6tables-legacy"
    IPTABLES_LEGACY = "iptables-legacy"


def tool_output(tool: Tool, *words: str, stdin: str = "") -> str:
    """See process.said. Bytes that are no text are replaced: the journal and the bus take text."""
    text = process.output_of(tool, *words, stdin=stdin, timeout=_TOOL_TIMEOUT)
    return text.encode("utf-8", "replace").decode()


def add_firewall_facts(facts: HostFacts) -> HostFacts:
    """The facts with those about rules filled in. Blocks."""
    chains = _chains()
    legacy4, legacy6 = _legacy_tables("ip_tables_names"), _legacy_tables("ip6_tables_names")
    nft6 = {each["table"] for each in chains if each["family"] == "ip6"}
    mine = facts.backend == "nft"
    tables = nft6 if mine else legacy6
    rules = {
        table: _rules(facts.backend, table, chain)
        for table, chain in (
            ("filter", "FORWARD"),
            ("nat", "POSTROUTING"),
            ("raw", "PREROUTING"),
            ("mangle", "PREROUTING"),
        )
        if table in tables
    }
    forward = rules.get("filter", ())
    return replace(
        facts,
        forward_policy=next((r.split()[-1] for r in forward if r.startswith("-P ")), "ACCEPT"),
        forward_rules=tuple(rule for rule in forward if rule.startswith("-A ")),
        nft_chains=base_chains(_hooked_tables(chains, mine)),
        rpfilter_tables=tuple(
            f"the {table} table of ip6tables"
            for table in ("raw", "mangle")
            if any("-m rpfilter" in rule for rule in rules.get(table, ()))
        ),
        docker_ipv4_variants=frozenset(_docker_ipv4_variants(chains, legacy4)),
        stale_rules=_has_stale_legacy_rules(legacy6) if mine else _has_stale_nft_rules(chains),
        docker_ipv6_rules=frozenset(
            _docker_ipv6_rules(chains, forward if not mine else _legacy_forward(legacy6))
        ),
    )


def _legacy_tables(names: str) -> set[str]:
    try:
        return set((_PROC_NET / names).read_text().split())
    except OSError:
        return set()


def _rules(backend: str, table: str, chain: str) -> tuple[str, ...]:
    tool = Tool.IP6TABLES_NFT if backend == "nft" else Tool.IP6TABLES_LEGACY
    return tuple(tool_output(tool, "-w", "5", "-t", table, "-S", chain).splitlines())


def _chains() -> list[dict[str, Any]]:
    """All chains of nft, without their rules."""
    return [each["chain"] for each in _nft_list({"list": {"chains": None}}) if "chain" in each]


def _hooked_tables(chains: Iterable[dict[str, Any]], mine: bool) -> list[dict[str, Any]]:
    """The tables with a base chain that our packets pass, those of ip6tables left out."""
    tables = {
        (each["family"], each["table"])
        for each in chains
        if each.get("hook") in _HOOKS and each["family"] in ("inet", "ip6")
    }
    if mine:
        tables -= {("ip6", table) for table in ("filter", "nat", "raw", "mangle", "security")}
    commands = [{"list": {"table": {"family": f, "name": t}}} for f, t in sorted(tables)]
    return _nft_list(*commands) if commands else []


def _nft_list(*commands: dict[str, Any]) -> list[dict[str, Any]]:
    """What nft lists. Asked in JSON: a chain may be called as one of nft's own words."""
    text = tool_output(
        Tool.NFT, "-j", "-t", "-f", "-", stdin=json.dumps({"nftables": list(commands)})
    )
    if not text or len(text) > _MAX_OUTPUT:
        return []
    try:
        # One document for each command.
        return listed_objects([json.loads(line) for line in text.splitlines() if line.strip()])
    except (ValueError, RecursionError):
        return []


def _docker_ipv4_variants(chains: Iterable[dict[str, Any]], legacy4: set[str]) -> Iterable[str]:
    if any((c["family"], c["table"], c["name"]) == ("ip", "nat", "DOCKER") for c in chains):
        yield "nft"
    if "nat" in legacy4 and tool_output(
        Tool.IPTABLES_LEGACY, "-w", "5", "-t", "nat", "-S", "DOCKER"
    ):
        yield "legacy"


def _docker_ipv6_rules(chains: Iterable[dict[str, Any]], legacy: Iterable[str]) -> Iterator[str]:
    """Where rules of Docker or docker-ipv6nat stand; `legacy` is the FORWARD chain there."""
    ours = [each for each in chains if each["family"] == "ip6"]
    if any(each["table"] in ("filter", "nat") and is_docker_chain(each["name"]) for each in ours):
        yield "ip6tables-nft"
    if any(("ip6", each["table"]) == NFT_TABLE for each in ours):
        yield f"nft table {' '.join(NFT_TABLE)}"
    if any(jumps_to_docker_chain(rule) for rule in legacy):
        yield "ip6tables-legacy"


def _legacy_forward(legacy6: set[str]) -> tuple[str, ...]:
    return _rules("legacy", "filter", "FORWARD") if "filter" in legacy6 else ()


def _has_stale_nft_rules(chains: Iterable[dict[str, Any]]) -> bool:
    return any(each["family"] == "ip6" and each["name"].startswith(PREFIX) for each in chains)


def _has_stale_legacy_rules(legacy6: set[str]) -> bool:
    return any(
        f"-N {PREFIX}" in tool_output(Tool.IP6TABLES_LEGACY, "-w", "5", "-t", table, "-S")
        for table in ("filter", "nat")
        if table in legacy6
    )
