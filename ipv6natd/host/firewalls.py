"""Reads the rules of other programs in nft and ip6tables, with the tools of the host.

Only reads whose cost does not depend on the number of our rules: names of chains, single chains,
and tables of other programs. A legacy table is read only if it exists: a read would create it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ipv6natd.host.findings import SOURCE_NAT, HostFacts
from ipv6natd.host.nft import BaseChain, base_chains, listed_objects
from ipv6natd.netfilter.docker_nft import NFT_TABLE
from ipv6natd.netfilter.docker_rules import is_docker_chain, jumps_to_docker_chain
from ipv6natd.netfilter.order import BUILT_IN_TARGETS
from ipv6natd.netfilter.rules import DOCKER_USER, PREFIX, Table
from ipv6natd.system import process

_TOOL_TIMEOUT = 10.0
_MAX_OUTPUT = 4 << 20
"""Maximum length of the output of nft that is evaluated; longer output is ignored."""
_MAX_CHAINS = 32
_JUMP = re.compile(r" -[jg] (\S+)")
_PROC_NET = Path("/proc/thread-self/net")
_HOOKS = frozenset({"forward", "prerouting"})


def tool_output(tool: str, *words: str, stdin: str = "") -> str:
    """process.output_of; invalid UTF-8 is replaced, because journal and bus accept only text."""
    text = process.output_of(tool, *words, stdin=stdin, timeout=_TOOL_TIMEOUT)
    return text.encode("utf-8", "replace").decode()


def add_firewall_facts(facts: HostFacts) -> HostFacts:
    """Return the facts with the facts about rules. Blocks."""
    chains = _nft_chains()
    legacy4, legacy6 = _legacy_tables("ip_tables_names"), _legacy_tables("ip6_tables_names")
    nft6 = {(chain["table"], chain["name"]) for chain in chains if chain["family"] == "ip6"}
    uses_nft = facts.backend == "nft"
    tables = {table for table, _ in nft6} if uses_nft else legacy6
    forward = _rules(facts.backend, "filter", "FORWARD") if "filter" in tables else []
    postrouting = _rules(facts.backend, "nat", "POSTROUTING") if "nat" in tables else []
    return replace(
        facts,
        forward_policy=next(
            (rule.split()[-1] for rule in forward if rule.startswith("-P ")),
            # A table that exists and cannot be read is unknown.
            "" if "filter" in tables else "ACCEPT",
        ),
        forward_rules=tuple(rule for rule in forward if rule.startswith("-A ")),
        forward_chains=_foreign_chains(facts.backend, "filter", forward),
        docker_user_rules=_docker_user_rules(facts.backend, forward),
        postrouting_rules=tuple(rule for rule in postrouting if rule.startswith("-A ")),
        postrouting_chains=_foreign_chains(facts.backend, "nat", postrouting),
        nft_chains=base_chains(_hooked_tables(chains, uses_nft)),
        rpfilter_tables=tuple(
            f"the {table} table of ip6tables"
            for table in ("raw", "mangle")
            if table in tables
            and any("-m rpfilter" in rule for rule in _rules(facts.backend, table, "PREROUTING"))
        ),
        raw_table=uses_nft
        or "raw" in legacy6
        or not any(rule.endswith(f"-j {PREFIX}FORWARD") for rule in forward),
        docker_ipv4_variants=frozenset(_docker_ipv4_variants(chains, legacy4)),
        stale_rules=_has_stale_rules(nft6, legacy6, uses_nft),
        docker_ipv6_rules=frozenset(_docker_ipv6_rules(nft6, legacy6)),
    )


def docker_ipv4_variants() -> frozenset[str]:
    """The variants of ip6tables that contain Docker's IPv4 chains. Blocks."""
    return frozenset(_docker_ipv4_variants(_nft_chains(), _legacy_tables("ip_tables_names")))


def other_base_chains(backend: str) -> tuple[BaseChain, ...]:
    """The base chains of nft that forwarded packets pass, without those of this variant. Blocks."""
    return base_chains(_hooked_tables(_nft_chains(), backend == "nft"))


def _nft_chains() -> list[dict[str, Any]]:
    return [item["chain"] for item in _nft_list({"list": {"chains": None}}) if "chain" in item]


def _legacy_tables(names: str) -> set[str]:
    try:
        return set((_PROC_NET / names).read_text().split())
    except OSError:
        return set()


def _rules(backend: str, table: str, chain: str) -> list[str]:
    listed = tool_output(f"ip6tables-{backend}", "-w", "5", "-t", table, "-S", chain)
    return [line for line in listed.split("\n") if line]


def _foreign_chains(backend: str, table: str, rules: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The chains of other programs that these rules lead to. Those of the engine are left out."""
    found: dict[str, tuple[str, ...]] = {}
    waiting = list(rules)
    while waiting and len(found) < _MAX_CHAINS:
        target = _JUMP.search(waiting.pop())
        if target is None or target[1] in {*found, *BUILT_IN_TARGETS, *SOURCE_NAT, DOCKER_USER}:
            continue
        if is_docker_chain(target[1]) or target[1].startswith(PREFIX):
            continue
        listed = _rules(backend, table, target[1])
        if listed[:1] == [f"-N {target[1]}"]:
            found[target[1]] = tuple(r.removeprefix(f"-A {target[1]} ") for r in listed[1:])
            waiting += listed[1:]
    return found


def _docker_user_rules(backend: str, forward: Iterable[str]) -> tuple[str, ...]:
    if not any(rule.endswith(f"-j {DOCKER_USER}") for rule in forward):
        return ()
    rules, prefix = _rules(backend, "filter", DOCKER_USER), f"-A {DOCKER_USER} "
    return tuple(rule.removeprefix(prefix) for rule in rules if rule.startswith(prefix))


def _hooked_tables(chains: Iterable[dict[str, Any]], uses_nft: bool) -> list[dict[str, Any]]:
    """The tables with a base chain that forwarded packets pass, without those of ip6tables."""
    tables = {
        (chain["family"], chain["table"])
        for chain in chains
        if chain.get("hook") in _HOOKS and chain["family"] in ("inet", "ip6")
    }
    if uses_nft:
        tables -= {("ip6", table) for table in ("filter", "nat", "raw", "mangle", "security")}
    commands = [{"list": {"table": {"family": f, "name": t}}} for f, t in sorted(tables)]
    return _nft_list(*commands) if commands else []


def _nft_list(*commands: dict[str, Any]) -> list[dict[str, Any]]:
    """The output of nft. The commands are JSON, because a chain can have the name of a keyword."""
    text = tool_output("nft", "-j", "-t", "-f", "-", stdin=json.dumps({"nftables": commands}))
    try:
        # nft writes one document for each command.
        lines = text.splitlines() if len(text) <= _MAX_OUTPUT else []
        return listed_objects([json.loads(line) for line in lines if line.strip()])
    except (ValueError, RecursionError):
        return []


def _docker_ipv4_variants(chains: Iterable[dict[str, Any]], legacy4: set[str]) -> Iterable[str]:
    if any((c["family"], c["table"], c["name"]) == ("ip", "nat", "DOCKER") for c in chains):
        yield "nft"
    if "nat" in legacy4 and tool_output("iptables-legacy", "-w", "5", "-t", "nat", "-S", "DOCKER"):
        yield "legacy"


def _docker_ipv6_rules(nft6: set[tuple[str, str]], legacy6: set[str]) -> Iterator[str]:
    """The places with IPv6 rules of Docker or docker-ipv6nat; `nft6` has (table, chain)."""
    if any(table in ("filter", "nat") and is_docker_chain(name) for table, name in nft6):
        yield "ip6tables-nft"
    if any(("ip6", table) == NFT_TABLE for table, _ in nft6):
        yield f"nft table {' '.join(NFT_TABLE)}"
    legacy = _rules("legacy", "filter", "FORWARD") if "filter" in legacy6 else []
    if any(map(jumps_to_docker_chain, legacy)):
        yield "ip6tables-legacy"


def _has_stale_rules(nft6: set[tuple[str, str]], legacy6: set[str], uses_nft: bool) -> bool:
    """True if the other variant has chains of ipv6natd."""
    if not uses_nft:
        return any(name.startswith(PREFIX) for _, name in nft6)
    return any(
        f"-N {PREFIX}" in tool_output("ip6tables-legacy", "-w", "5", "-t", table, "-S")
        for table in Table
        if table in legacy6
    )
