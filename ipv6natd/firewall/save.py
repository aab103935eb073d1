"""Reads tables as text of ip6tables-save, also those with native rules of nft.

ip6tables-save of the nft variant refuses a whole table if one rule is not of ip6tables. Other
programs write such rules into its chains. A chain without such a rule can be listed alone. Of a
rule with a set or a map, ip6tables 1.8 shows all but this condition.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.firewall.tools import run_tool, variant_tool
from ipv6natd.netfilter.jumps import JUMPS
from ipv6natd.netfilter.render import format_rule
from ipv6natd.netfilter.rules import COMMENT, DOCKER_USER, HANDLE, PREFIX, Backend, Table
from ipv6natd.system.process import which

_NATIVE = "-m native"
"""Stands for what ip6tables cannot show of a rule. No rule of ip6tables has this text."""
_TABLES = "|".join(Table)
_INCOMPATIBLE = re.compile(rf"^# Table `({_TABLES})' is incompatible", re.MULTILINE)
_INCOMPATIBLE_CHAIN = re.compile("is incompatible, use 'nft' tool")
_UNCONDITIONAL = re.compile(rf"-A \S+(?: -[jg] (?!{PREFIX})\S+(?: --reject-with \S+)?)?")
"""A rule of another program that has no condition, or one that ip6tables does not show."""
_OURS = f"-A {PREFIX}"
_SET = re.compile(r'"(?:set|map|vmap)":|"@')
"""A set or a map in the JSON of a rule."""
_MAX_CHAINS = 32
"""Maximum number of chains in which conditions are looked for."""


def save_text(tool: str) -> str:
    """The output of an ip6tables-save, with all chains of each table. Raises FirewallError, also if
    a table cannot be read completely: as an empty table it would get our jumps at each pass."""
    text = run_tool([tool])
    if "nft" in Path(tool).resolve().name and which("nft"):
        text = _with_sets(text)
    lines = (line for table in _INCOMPATIBLE.findall(text) for line in _table_lines(table))
    return text + "".join(f"{line}\n" for line in lines)


def _with_sets(text: str) -> str:
    """The text, with rules that have a set or a map as native ones."""
    lines, table = text.split("\n"), ""  # not splitlines: a comment may have other separators
    places: dict[tuple[str, str], list[int]] = {}
    suspect: set[tuple[str, str]] = set()
    for number, line in enumerate(lines):
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A ") and not line.startswith(_OURS) and table in tuple(Table):
            place = table, line.split(maxsplit=2)[1]
            places.setdefault(place, []).append(number)
            if _UNCONDITIONAL.fullmatch(line):
                suspect.add(place)
    for place in sorted(suspect)[:_MAX_CHAINS]:
        # The chain may be gone, or have other rules by now.
        with suppress(FirewallError, ValueError):
            for number, rule in [*zip(places[place], _chain_rules(*place), strict=True)]:
                if _SET.search(json.dumps(rule.get("expr"))):
                    lines[number] = f"-A {place[1]} {_native_rule_text(*place, rule)}"
    return "\n".join(lines)


def _chain_rules(table: str, chain: str) -> list[dict[str, Any]]:
    listed = _nft_list("chain", {"family": "ip6", "table": table, "name": chain})
    return [item["rule"] for item in listed if "rule" in item]


def _table_lines(table: str) -> Iterator[str]:
    """The lines of ip6tables-save for a table that it refuses."""
    chains = [item["chain"] for item in _nft_list("chains", {"family": "ip6"}) if "chain" in item]
    yield f"*{table}"
    for chain in chains:
        if chain["table"] == table:
            name = chain["name"]
            yield f":{name} - [0:0]"
            yield from _rule_lines(table, name)
    yield "COMMIT"


def _rule_lines(table: str, chain: str) -> Iterator[str]:
    try:
        listing = run_tool([variant_tool(Backend.NFT), "-w", "-t", table, "-S", chain])
    except FirewallError as error:
        if not _INCOMPATIBLE_CHAIN.search(str(error)):
            raise
        for rule in _chain_rules(table, chain):
            yield f"-A {chain} {_native_rule_text(table, chain, rule)}"
    else:
        # The first line is the policy, or "-N NAME".
        yield from listing.splitlines()[1:]


def _nft_list(kind: str, where: dict[str, str]) -> list[dict[str, Any]]:
    """Objects that nft lists, without elements of sets. Raises FirewallError.

    The command is JSON, because a chain can have the name of a keyword.
    """
    nft = which("nft")
    if nft is None:
        raise FirewallError(
            "a table of ip6tables has a rule that ip6tables cannot show, and this host has no nft: "
            "install the package nftables"
        )
    command = {"nftables": [{"list": {kind: where}}]}
    text = run_tool([nft, "-j", "-t", "-f", "-"], stdin=json.dumps(command))
    try:
        return list(json.loads(text)["nftables"])
    except (ValueError, RecursionError, KeyError, TypeError):
        raise FirewallError(f"cannot read the output of nft -j list {kind}") from None


def _native_rule_text(table: str, chain: str, rule: dict[str, Any]) -> str:
    """The text of a jump to a chain of ours or to DOCKER-USER; the verdict of another rule.

    nft shows the name of a match of ip6tables, and not its parameters.
    """
    commented, conditional, target, verb = "comment" in rule, False, "", "-j"
    for expression in rule.get("expr", ()):
        match expression:
            case {"xt": {"type": "match", "name": "comment"}}:
                commented = True
            case {"jump": {"target": str(target)}}:
                pass
            case {"goto": {"target": str(target)}}:
                verb = "-g"
            case {"accept": _} | {"drop": _} | {"reject": _}:
                (verdict,) = expression
                target = verdict.upper()
            case {"counter": _}:
                pass
            case _:
                conditional = True
    matches = f"{_NATIVE} " if conditional else ""
    if target != DOCKER_USER and not target.startswith(PREFIX):
        return f"{matches}{verb} {target}" if target else _NATIVE
    text = f"-m comment --comment {COMMENT} -j {target}" if commented else f"-j {target}"
    if conditional:
        jumps = {(jump.base, jump.target): jump.rule for jump in JUMPS[Table(table)]}
        rule_of_ours = jumps.get((chain, target))
        text = format_rule(rule_of_ours) if rule_of_ours else f"{matches}{text}"
    return f"-m comment --comment {HANDLE}{rule.get('handle')} {text}"
