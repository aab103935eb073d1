"""The text of rules -> rules: the way back from `words` and `full_text`, and from nothing else.

Only what our own wording can say is read; anything else is a ValueError. So a file that somebody
changed can at most hold other rules of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network

from ipv6natd.model import Protocol
from ipv6natd.rules import (
    DOCKER_USER,
    PREFIX,
    BaseJump,
    Chain,
    Dnat,
    Jump,
    Reject,
    RejectWith,
    Rule,
    Snat,
    TableRules,
    Target,
    Verdict,
    words,
)

_CHAIN = re.compile(rf"{PREFIX}[A-Za-z0-9_.@-]{{1,20}}|{DOCKER_USER}", re.ASCII)
_KEPT_FIRST = frozenset({"FORWARD", "INPUT"})
"""Base chains of the filter table; our jumps stand at the head of them."""


def rule(text: str) -> Rule:
    """The rule that `words` worded so. Raises ValueError."""
    fields: dict[str, object] = {}
    tokens = iter(text.split())
    for token in tokens:
        inverted = token == "!"
        _option(next(tokens, "") if inverted else token, inverted, tokens, fields)
    found = Rule(**fields)  # type: ignore[arg-type]
    if words(found) != text:
        raise ValueError(f"not a rule of ours: {text[:80]}")
    return found


def table_rules(text: str) -> TableRules:
    """The filter table that `full_text` worded so. Raises ValueError."""
    chains: dict[str, list[Rule]] = {}
    jumps: list[BaseJump] = []
    for line in text.splitlines():
        match line.split(" ", 2):
            case ["*filter"] | ["COMMIT"]:
                continue
            case [name, "-", "[0:0]"] if name.startswith(f":{PREFIX}"):
                chains[name[1:]] = []
            case ["-A", name, words_] if name in chains:
                chains[name].append(rule(words_))
            case ["-A", name, words_] if name in _KEPT_FIRST:
                jumps.append(BaseJump(base=name, first=True, rule=rule(words_)))
            case _:
                raise ValueError(f"not a line of ours: {line[:80]}")
    return TableRules(
        chains=tuple(Chain(name=name, rules=tuple(rules)) for name, rules in chains.items()),
        jumps=tuple(jumps),
    )


def _option(option: str, inverted: bool, tokens: Iterator[str], fields: dict[str, object]) -> None:
    value = next(tokens, "")
    match option, inverted:
        case "-s", False:
            fields["source"] = IPv6Network(value)
        case "-d", _:
            fields["not_destination" if inverted else "destination"] = IPv6Network(value)
        case "-i", _:
            fields["not_in_interface" if inverted else "in_interface"] = value
        case "-o", _:
            fields["not_out_interface" if inverted else "out_interface"] = value
        case "-p", False if value == "ipv6-icmp":
            fields["icmp"] = True
        case "-p", False:
            fields["protocol"] = Protocol(value)
        case "-m", False:
            pass  # the option behind it says more
        case "--dport", False:
            first, _, last = value.partition(":")
            fields["ports"] = int(first), int(last or first)
        case "--mark", False:
            mark, _, mask = value.partition("/")
            fields["mark"] = int(mark, 16), int(mask, 16)
        case "--src-type", True:
            fields["source_not_local"] = True
        case "--dst-type", False:
            fields["destination_local"] = True
        case "--ctstate", False:
            fields["states"] = tuple(value.split(","))
        case "--comment", False:
            fields["comment"] = value
        case "-j", False:
            fields["target"] = _target(value, tokens)
        case _:
            raise ValueError(f"not an option of ours: {option[:40]}")


def _target(name: str, tokens: Iterator[str]) -> Target:
    if name in tuple(Verdict):
        return Verdict(name)
    if _CHAIN.fullmatch(name):
        return Jump(name)
    next(tokens, "")
    value = next(tokens, "")
    match name:
        case "DNAT" if value.startswith("["):
            address, _, port = value[1:].partition("]:")
            return Dnat(IPv6Address(address), int(port))
        case "DNAT":
            return Dnat(IPv6Address(value))
        case "SNAT":
            return Snat(IPv6Address(value))
        case "REJECT":
            return Reject(RejectWith(value))
    raise ValueError(f"not a target of ours: {name[:40]}")
