"""The lines of ip6tables-save, and our own rule text -> rules.

`save_rules` reads all output of ip6tables-save. `parse_rule` and `parse_saved_rules` read only
text that `render` writes, and raise ValueError for other text. A manipulated file of saved rules
can therefore contain only rules that ipv6natd could write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address, IPv6Network
from typing import Any

from ipv6natd.model import Protocol, is_plain_interface
from ipv6natd.netfilter.jumps import JUMPS
from ipv6natd.netfilter.render import format_ruleset
from ipv6natd.netfilter.rules import (
    DOCKER_USER,
    GUARD_TABLES,
    PREFIX,
    BaseJump,
    Dnat,
    Jump,
    Match,
    Rule,
    Ruleset,
    Snat,
    Table,
    TableRules,
    Target,
    Verdict,
)

_OUR_CHAIN = re.compile(rf"{PREFIX}[A-Za-z0-9_.@-]{{1,20}}", re.ASCII)


def parse_saved_rules(text: str) -> Ruleset:
    """The inverse of format_ruleset for the raw and filter tables. Raises ValueError or TypeError.

    All that the parsers of single values let pass has another text when it is formatted again.
    """
    chains: dict[Table, dict[str, list[Rule]]] = {table: {} for table in Table}
    jumps: dict[Table, list[BaseJump]] = {table: [] for table in Table}
    for name, chain, rule in save_rules(text):
        table = Table(name)
        if not rule:
            chains[table][chain] = []
        elif chain in chains[table]:
            chains[table][chain].append(parse_rule(rule))
        else:
            jumps[table].append(BaseJump(base=chain, first=True, rule=parse_rule(rule)))
    raw, filter_ = (
        TableRules(
            chains={name: tuple(rules) for name, rules in chains[table].items()},
            jumps=tuple(jumps[table]),
        )
        for table in GUARD_TABLES
    )
    ruleset = Ruleset(raw=raw, filter=filter_)
    if format_ruleset(ruleset) != text or not all(_is_ours(ruleset, t) for t in GUARD_TABLES):
        raise ValueError("not rules of ours")
    return ruleset


def _is_ours(ruleset: Ruleset, table: Table) -> bool:
    """True if all chains and jumps of the table are ours, and no jump is to a missing chain."""
    chains, jumps = ruleset.table(table).chains, ruleset.table(table).jumps
    targets = {*chains, DOCKER_USER} if table is Table.FILTER else {*chains}
    rules = (*(jump.rule for jump in jumps), *(rule for rules in chains.values() for rule in rules))
    return (
        all(map(_OUR_CHAIN.fullmatch, chains))
        and all(jump.base in {jump.base for jump in JUMPS[table]} for jump in jumps)
        and all(Match.OURS in jump.rule.matches for jump in jumps)
        and all(isinstance(jump.rule.target, Jump) for jump in jumps)
        and all(rule.target.chain in targets for rule in rules if isinstance(rule.target, Jump))
    )


def parse_rule(text: str) -> Rule:
    """The inverse of format_rule. Raises ValueError or TypeError if the text is not ours."""
    found = _RULE.fullmatch(text)
    if found is None:
        raise ValueError(f"not a rule of ours: {text[:80]!a}")
    values = {
        field: parse(value)
        for (field, (_, parse)), value in zip(_OPTIONS.items(), found.groups(), strict=True)
        if value
    }
    return Rule(**values)


def _parse_interface(value: str) -> str:
    if not is_plain_interface(value.removesuffix("+")):
        raise ValueError(f"not an interface of ours: {value[:40]!a}")
    return value


def _parse_matches(text: str) -> tuple[Match, ...]:
    return tuple(Match(match) for match in re.findall(rf"({_MATCH})(?: |$)", text))


def _parse_ports(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    return _parse_port(first), _parse_port(last or first)


def _parse_port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError(f"not a port: {text[:40]!a}")
    return port


def _parse_flow(text: str) -> tuple[Protocol, int, int]:
    protocol, *_, ports = text.split()
    return Protocol(protocol), *_parse_ports(ports)


def _parse_mark(text: str) -> tuple[int, int]:
    mark, mask = (int(number, 16) for number in text.split("/"))
    return mark, mask


def _parse_target(text: str) -> Target:
    if text in tuple(Verdict):
        return Verdict(text)
    if text == DOCKER_USER or _OUR_CHAIN.fullmatch(text):
        return Jump(text)
    match text.split():
        case ["DNAT", _, value] if value.startswith("["):
            address, _, port = value[1:].partition("]:")
            return Dnat(IPv6Address(address), _parse_port(port))
        case ["DNAT", _, value]:
            return Dnat(IPv6Address(value))
        case ["SNAT", _, value]:
            return Snat(IPv6Address(value))
    raise ValueError(f"not a target of ours: {text[:40]}")


_PROTOCOL = "|".join(Protocol)
# The longest first: one may be the beginning of another.
_MATCH = "|".join(map(re.escape, sorted(Match, key=len, reverse=True)))
_MARK = "0x[0-9a-f]{1,8}"
_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "source": (r"-s (\S+)", IPv6Network),
    "not_source": (r"! -s (\S+)", IPv6Network),
    "destination": (r"-d (\S+)", IPv6Network),
    "not_destination": (r"! -d (\S+)", IPv6Network),
    "in_interface": (r"-i (\S+)", _parse_interface),
    "not_in_interface": (r"! -i (\S+)", _parse_interface),
    "out_interface": (r"-o (\S+)", _parse_interface),
    "not_out_interface": (r"! -o (\S+)", _parse_interface),
    "protocol": (f"-p ({_PROTOCOL})", Protocol),
    "ports": (rf"-m (?:{_PROTOCOL}) --dport (\S+)", _parse_ports),
    "matches": (rf"((?:{_MATCH})(?: (?:{_MATCH}))*)", _parse_matches),
    "mark": (f"-m mark --mark ({_MARK}/{_MARK})", _parse_mark),
    "flow": (r"-m conntrack --ctproto (\S+ -m conntrack --ctorigdstport \S+)", _parse_flow),
    "target": ("-j (.+)", _parse_target),
}
"""Field of Rule -> its option, with the value as a group, and the parser; in textual order."""
_RULE = re.compile("".join(f"(?:{option}(?: |$))?" for option, _ in _OPTIONS.values()))


STRING = re.compile(r' "(?:[^"\\]|\\.){0,4096}"', re.DOTALL)
"""A comment, the only string with quotes, has at most 255 characters. Our rules have no string. A
string without an end is no string and must not hide the following lines."""
_STRING_OR_LINE_END = re.compile(rf"{STRING.pattern}|\n", re.DOTALL)
COMMENT_MATCH = re.compile(r"-m comment --comment \S+ ")


def save_lines(text: str) -> Iterator[str]:
    """The lines of `ip6tables-save`. A line break in a quoted string does not end a line.

    Otherwise text of a foreign comment would be read as rules.
    """
    start = 0
    for found in _STRING_OR_LINE_END.finditer(text):
        if found[0] == "\n":
            yield text[start : found.start()]
            start = found.end()
    yield text[start:]


def save_rules(text: str) -> Iterator[tuple[str, str, str]]:
    """(table, chain, rule) for each rule and (table, chain, "") for each chain in the output of
    `ip6tables-save`. A table without COMMIT is incomplete and left out."""
    table = ""
    found: list[tuple[str, str, str]] = []
    for line in save_lines(text):
        match line[:1]:
            case "*":
                table, found = line[1:], []
            case ":":
                found.append((table, line[1:].split(" ", 1)[0], ""))
            case "-" if line.count(" ") > 1:
                _, chain, rule = line.split(" ", 2)
                found.append((table, chain, rule))
            case "C" if line == "COMMIT":
                yield from found
                found = []
