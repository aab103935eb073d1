"""Output of ip6tables-save -> Observed: what the kernel has of ours, and where."""

from __future__ import annotations

import re
from collections.abc import Container
from hashlib import blake2b

from ipv6natd.netfilter.diff import Observed, ObservedJump, ObservedTable
from ipv6natd.netfilter.order import displacing_rule, place_in_forward
from ipv6natd.netfilter.parse import COMMENT_MATCH, STRING, save_rules
from ipv6natd.netfilter.rules import COMMENT, DOCKER_USER, HANDLE, PREFIX, Table

_HANDLE = re.compile(rf"-m comment --comment {HANDLE}(\d+) ")
_JUMP = re.compile(r"(?:^| )-[jg] (?P<target>\S+)")


def parse_save(text: str) -> Observed:
    """The observed tables in the output of `ip6tables-save`; a missing table is empty."""
    tables: dict[str, dict[str, list[str]]] = {}
    for table, name, rule in save_rules(text):
        rules = tables.setdefault(table, {}).setdefault(name, [])
        if rule:
            rules.append(rule)
    return {table: _observed_table(tables.get(str(table), {})) for table in Table}


def _observed_table(chains: dict[str, list[str]]) -> ObservedTable:
    jumps = (
        _observed_jump(chain, position, rule, chains)
        for chain, rules in chains.items()
        if not chain.startswith(PREFIX)
        for position, rule in enumerate(rules)
        if PREFIX in rule or DOCKER_USER in rule or COMMENT in rule
    )
    return ObservedTable(
        chains={
            chain: f"{len(rules)}:{_digest(rules)}"
            for chain, rules in chains.items()
            if chain.startswith(PREFIX)
        },
        jumps=tuple(filter(None, jumps)),
        docker_user=len(chains[DOCKER_USER]) if DOCKER_USER in chains else None,
        place=place_in_forward(chains),
        displacing=displacing_rule(chains),
    )


def _digest(rules: list[str]) -> str:
    text = "\n".join(rules).encode("utf-8", "surrogateescape")
    return blake2b(text, digest_size=16).hexdigest()


def _observed_jump(
    base: str, position: int, text: str, chains: Container[str]
) -> ObservedJump | None:
    """The rule as an ObservedJump; None if only its text mentions our names."""
    handle = _HANDLE.match(text)
    text = text[handle.end() :] if handle else text
    unquoted = STRING.sub(" string", text)
    found = _JUMP.search(unquoted)
    if found is None:
        return None
    target = found["target"]
    ours = f"--comment {COMMENT} " in unquoted
    if target != DOCKER_USER and not target.startswith(PREFIX) and not (ours and target in chains):
        return None
    return ObservedJump(
        base=base,
        position=position,
        target=target,
        ours=ours,
        unconditional=COMMENT_MATCH.sub("", unquoted) == f"-j {target}",
        text=text,
        handle=int(handle[1]) if handle else None,
    )
