"""The text of rules -> rules: the way back from `words` and `full_text`, and from nothing else.

Only what our own wording can say is read; anything else is a ValueError. So a file that somebody
changed can at most hold other rules of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv6Address, IPv6Network

from ipv6natd.model import Protocol, is_plain_interface
from ipv6natd.netfilter.rules import (
    COMMENT,
    DOCKER_USER,
    PREFIX,
    SYN,
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
_STATES = frozenset({"NEW", "RELATED", "ESTABLISHED", "DNAT", "INVALID"})
_KEPT_FIRST = frozenset({"FORWARD", "INPUT"})
"""Base chains of the filter table; our jumps stand at the head of them."""


def rule(text: str) -> Rule:
    """The rule that `words` worded so. Raises ValueError."""
    # Behind a "%" the library of addresses takes any text at all.
    if "%" in text or not text.isascii():
        raise ValueError(f"not a rule of ours: {text[:80]!a}")
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
            case [name, "-", "[0:0]"] if name.startswith(f":{PREFIX}") and _CHAIN.fullmatch(
                name[1:]
            ):
                chains[name[1:]] = []
            case ["-A", name, words_] if name in chains:
                chains[name].append(rule(words_))
            case ["-A", name, words_] if name in _KEPT_FIRST:
                jumps.append(BaseJump(base=name, first=True, rule=_jump(words_)))
            case _:
                raise ValueError(f"not a line of ours: {line[:80]}")
    known = {DOCKER_USER, *chains}
    every = (*(each.rule for each in jumps), *(each for rules in chains.values() for each in rules))
    for each in every:
        if isinstance(each.target, Jump) and each.target.chain not in known:
            raise ValueError(f"a jump to a chain that is not there: {each.target.chain}")
    return TableRules(
        chains=tuple(Chain(name=name, rules=tuple(rules)) for name, rules in chains.items()),
        jumps=tuple(jumps),
    )


def _jump(text: str) -> Rule:
    found = rule(text)
    if not isinstance(found.target, Jump) or found.comment != COMMENT:
        raise ValueError(f"not a jump of ours: {text[:80]}")
    return found


def _option(option: str, inverted: bool, tokens: Iterator[str], fields: dict[str, object]) -> None:
    value = next(tokens, "")
    match option, inverted:
        case "-s", _:
            fields["not_source" if inverted else "source"] = IPv6Network(value)
        case "-d", _:
            fields["not_destination" if inverted else "destination"] = IPv6Network(value)
        case "-i", _:
            fields["not_in_interface" if inverted else "in_interface"] = _interface(value)
        case "-o", _:
            fields["not_out_interface" if inverted else "out_interface"] = _interface(value)
        case "-p", False if value == "ipv6-icmp":
            fields["icmp"] = True
        case "-p", False if value == "ah":
            fields["authentication"] = True
        case "-p", False:
            fields["protocol"] = Protocol(value)
        case "-m", False:
            pass  # the option behind it says more
        case "--dport", False:
            fields["ports"] = _span(value)
        case "--ctproto", False:
            fields["flow"] = Protocol(value), 0, 0
        case "--ctorigdstport", False:
            match fields.get("flow"):
                case (Protocol() as protocol, _, _):
                    fields["flow"] = protocol, *_span(value)
        case "--mark", False:
            mark, _, mask = value.partition("/")
            fields["mark"] = _mark(mark), _mark(mask)
        case "--src-type", _ if value == "LOCAL":
            fields["source_not_local" if inverted else "source_local"] = True
        case "--dst-type", _ if value == "LOCAL":
            fields["destination_not_local" if inverted else "destination_local"] = True
        case "--ctstate", False:
            fields["states"] = _states(value)
        case "--tcp-flags", False if (value, next(tokens, "")) == SYN:
            fields["syn"] = True
        case "--ctdir", False if value == "REPLY":
            fields["reply"] = True
        case "--comment", False if value == COMMENT:
            fields["comment"] = value
        case "-j", False:
            fields["target"] = _target(value, tokens)
        case _:
            raise ValueError(f"not an option of ours: {option[:40]}")


def _interface(value: str) -> str:
    if not is_plain_interface(value.removesuffix("+")):
        raise ValueError(f"not an interface of ours: {value[:40]!a}")
    return value


def _states(text: str) -> tuple[str, ...]:
    states = tuple(text.split(","))
    if not _STATES.issuperset(states):
        raise ValueError(f"not states of ours: {text[:40]!a}")
    return states


def _span(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    return _port(first), _port(last or first)


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError(f"not a port: {text[:40]!a}")
    return port


def _mark(text: str) -> int:
    mark = int(text, 16)
    if not 0 <= mark <= 0xFFFFFFFF:
        raise ValueError(f"not a mark: {text[:40]!a}")
    return mark


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
            return Dnat(IPv6Address(address), _port(port))
        case "DNAT":
            return Dnat(IPv6Address(value))
        case "SNAT":
            return Snat(IPv6Address(value))
        case "REJECT":
            return Reject(RejectWith(value))
    raise ValueError(f"not a target of ours: {name[:40]}")
