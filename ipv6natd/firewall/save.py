"""Reads tables as text of ip6tables-save, also those with native rules of nft.

ip6tables-save of the nft variant refuses a whole table if one rule is not of ip6tables. Other
programs write such rules into its chains. A chain without such a rule can be listed alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
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


def save_text(tool: str) -> str:
    """The output of an ip6tables-save, with all chains of each table. Raises FirewallError, also if
    a table cannot be read completely: as an empty table it would get our jumps at each pass."""
    text = run_tool([tool])
    lines = (line for table in _INCOMPATIBLE.findall(text) for line in _table_lines(table))
    return text + "".join(f"{line}\n" for line in lines)


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
        listed = _nft_list("chain", {"family": "ip6", "table": table, "name": chain})
        rules = [item["rule"] for item in listed if "rule" in item]
        yield from (f"-A {chain} {_native_rule_text(table, chain, rule)}" for rule in rules)
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
