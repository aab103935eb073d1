"""Evaluates nft rules of other programs: JSON of `nft -j list` -> does a chain block a packet.

A packet passes all base chains of a hook, and each of them can drop it. Only common expressions
are evaluated. A rule with another expression is assumed not to block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Map
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

_DROPS = ("drop", "reject")
_VERDICTS = ("accept", *_DROPS, "return")
_FIB_SOURCE = "fib saddr"
"""The key of a reverse-path filter: it looks up the route to the source address."""
_OTHER_PROTOCOL = "other protocol"
"""The key of a condition that is false for TCP, UDP and SCTP over IPv6."""


class Condition(NamedTuple):
    """One condition of a rule."""

    key: str
    """What is compared, as in nft commands; "" for an expression that is not evaluated."""
    values: frozenset[str] = frozenset()
    negated: bool = False


class NftRule(NamedTuple):
    """Conditions and a verdict: accept, drop, reject, return, jump, goto, or "" for none."""

    conditions: tuple[Condition, ...]
    verdict: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseChain:
    """A chain on a hook; `chains` has the rules of all chains of its table, and of this one."""

    family: str
    table: str
    name: str
    hook: str
    policy: str = "accept"
    chains: Map[str, list[NftRule]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardedPacket:
    """A forwarded packet: its interfaces, and its state in conntrack."""

    bridge: str
    """The bridge of the container that sends or gets it; "" without a container."""
    incoming: str | None
    """None if it may be any."""
    outgoing: str
    state: str = "new"
    dnat: bool = False

    def value(self, key: str) -> str | None:
        """The value that a condition compares; None if it is unknown."""
        values: dict[str, str | None] = {
            "iifname": self.incoming,
            "oifname": self.outgoing,
            "ct state": self.state,
            "ct status": "dnat" if self.dnat else "",
            "meta nfproto": "ipv6",
            "meta l4proto": "tcp",
        }
        if self.state == "new":
            values["ct direction"] = "original"
        return values.get(key)


def listed_objects(documents: Iterable[Any]) -> list[dict[str, Any]]:
    """The well-formed chains and rules in documents of `nft -j`."""
    lists = (document.get("nftables") for document in documents if isinstance(document, dict))
    items = (item for list_ in lists if isinstance(list_, list) for item in list_)
    return [item for item in items if isinstance(item, dict) and _is_well_formed(item)]


def _is_well_formed(entry: Map[str, Any]) -> bool:
    match entry:
        case {"chain": {"family": str(), "table": str(), "name": str(), **more}}:
            return all(isinstance(more.get(key, ""), str) for key in ("hook", "policy"))
        case {"rule": {"family": str(), "table": str(), "chain": str(), **more}}:
            return isinstance(more.get("expr", []), list)
    return False


def base_chains(listed: Iterable[dict[str, Any]]) -> tuple[BaseChain, ...]:
    """The base chains among listed objects, with all listed rules of their tables."""
    chains: list[dict[str, Any]] = []
    tables: dict[tuple[str, str], dict[str, list[NftRule]]] = {}
    for item in listed:
        if chain := item.get("chain"):
            chains.append(chain)
        elif rule := item.get("rule"):
            table = tables.setdefault((rule["family"], rule["table"]), {})
            table.setdefault(rule["chain"], []).extend(_rules(rule.get("expr", ())))
    return tuple(
        BaseChain(
            family=chain["family"],
            table=chain["table"],
            name=chain["name"],
            hook=chain["hook"],
            policy=chain.get("policy", "accept"),
            chains=tables.get((chain["family"], chain["table"]), {}),
        )
        for chain in chains
        if "hook" in chain
    )


def blocks(chain: BaseChain, packet: ForwardedPacket) -> bool:
    """True if the chain certainly drops the packet, and no earlier rule is about containers."""
    return (_verdict(chain, chain.name, packet, {}) or chain.policy) in _DROPS


def may_block(chain: BaseChain, packet: ForwardedPacket) -> bool:
    """True if the chain drops the packet, or may: that depends on a condition that is not
    evaluated."""
    ends = _ends(chain, chain.name, packet, {})
    return not ends.isdisjoint(_DROPS) or ("" in ends and chain.policy in _DROPS)


def _ends(
    chain: BaseChain, name: str, packet: ForwardedPacket, known: dict[str, set[str]]
) -> set[str]:
    """The possible verdicts of the chain `name` for a packet; "" for its end without one. `known`:
    see `_verdict`."""
    if name in known:
        return known[name]
    known[name] = {""}  # ends a loop, which the kernel rejects anyway
    ends: set[str] = set()
    for rule in chain.chains.get(name, ()):
        results = [_matches(condition, packet) for condition in rule.conditions]
        if False in results or not rule.verdict:
            continue
        inner = {"" if rule.verdict == "return" else rule.verdict}
        if rule.verdict in ("jump", "goto"):
            inner = _ends(chain, rule.target, packet, known)
        leaves = rule.verdict in ("return", "goto")
        ends |= inner if leaves else inner - {""}
        if None not in results and (leaves or "" not in inner):
            break
    else:
        ends.add("")
    known[name] = ends
    return ends


def has_rpfilter(chain: BaseChain) -> bool:
    """True if the chain drops packets by a reverse-path filter."""
    return any(
        rule.verdict in _DROPS
        and any(condition.key == _FIB_SOURCE for condition in rule.conditions)
        for rules in chain.chains.values()
        for rule in rules
    )


def _verdict(chain: BaseChain, name: str, packet: ForwardedPacket, known: dict[str, str]) -> str:
    """The verdict of the chain `name` for a packet; "" if it has none.

    `known` has the verdicts of the chains evaluated so far. Without it, the time could be
    exponential: many rules can jump to one chain, on several levels.
    """
    if name not in known:
        known[name] = ""  # ends a loop, which the kernel rejects anyway
        known[name] = _verdict_of_rules(chain, name, packet, known)
    return known[name]


def _verdict_of_rules(
    chain: BaseChain, name: str, packet: ForwardedPacket, known: dict[str, str]
) -> str:
    for rule in chain.chains.get(name, ()):
        results = [_matches(condition, packet) for condition in rule.conditions]
        if False in results:
            continue
        certain = None not in results
        match rule.verdict:
            case "accept" if certain or _names_containers(rule, packet):
                return "accept"
            case "drop" | "reject" if certain:
                return rule.verdict
            case "return" if certain:
                return ""
            case "jump" | "goto":
                verdict = _verdict(chain, rule.target, packet, known)
                if (verdict == "accept" and packet.bridge) or (verdict and certain):
                    return verdict
                if rule.verdict == "goto" and certain:
                    return ""
    return ""


def _names_containers(rule: NftRule, packet: ForwardedPacket) -> bool:
    """True if the rule has the bridge, a set of interfaces, an IPv6 address or DNAT: it is probably
    for containers."""
    return packet.bridge != "" and any(
        (key == "ct status" and packet.dnat)
        or (key in ("ip6 saddr", "ip6 daddr") and not negated)
        or (
            key in ("iifname", "oifname")
            and not negated
            and (packet.value(key) == packet.bridge or _has_named_set(values))
        )
        for key, values, negated in rule.conditions
    )


def _has_named_set(values: Iterable[str]) -> bool:
    """True if a value is the name of a set, whose elements are not read."""
    return any(value.startswith("@") for value in values)


def _matches(condition: Condition, packet: ForwardedPacket) -> bool | None:
    """The result of a condition for a packet; None if it is unknown."""
    if condition.key == _OTHER_PROTOCOL:
        return False
    value = packet.value(condition.key)
    if value is None or _has_named_set(condition.values):
        return None
    equal = any(fnmatchcase(value, pattern) for pattern in condition.values)
    return equal is not condition.negated


def _rules(expressions: Iterable[Any]) -> Iterator[NftRule]:
    """A rule of nft as simple rules: a verdict map is one for each of its elements."""
    conditions: list[Condition] = []
    alternatives: list[tuple[Condition, ...]] = [()]
    verdict = target = ""
    for expression in expressions:
        for name, value in expression.items() if isinstance(expression, dict) else ():
            match name, value:
                case "match", {"op": "==", "left": {"concat": list(lefts)}, "right": right}:
                    alternatives = list(_concatenated(lefts, right))
                case "match", dict():
                    conditions.append(_condition(value))
                case "vmap", {"key": key, "data": {"set": list(elements)}}:
                    yield from _mapped(conditions, key, elements)
                case "accept" | "drop" | "reject" | "return" | "jump" | "goto", _:
                    verdict, target = _verdict_of(expression)
                case "counter" | "log" | "comment" | "mangle" | "notrack", _:
                    pass
                case _:
                    # A limit, a named verdict map or a match of xtables: the result is unknown.
                    conditions.append(Condition(""))
    for alternative in alternatives:
        yield NftRule((*conditions, *alternative), verdict, target)


def _mapped(conditions: Iterable[Condition], key: Any, elements: list[Any]) -> Iterator[NftRule]:
    for element in elements:
        match element:
            case [value, dict(verdict)]:
                condition = _condition({"left": key, "right": value})
                yield NftRule((*conditions, condition), *_verdict_of(verdict))


def _concatenated(lefts: list[Any], right: Any) -> Iterator[tuple[Condition, ...]]:
    """The conditions of each element of a set of concatenations."""
    match right:
        case {"set": list(elements)}:
            for element in elements:
                yield from _concatenated(lefts, element)
        case {"concat": list(values)} if len(values) == len(lefts):
            yield tuple(
                _condition({"left": left, "right": value})
                for left, value in zip(lefts, values, strict=True)
            )
        case _:
            yield (Condition(""),)


def _verdict_of(expression: Map[str, Any]) -> tuple[str, str]:
    """(verdict, target) of a statement; ("", "") for one that is not evaluated."""
    match expression:
        case {"jump": {"target": str(target)}}:
            return "jump", target
        case {"goto": {"target": str(target)}}:
            return "goto", target
    return next(((word, "") for word in _VERDICTS if word in expression), ("", ""))


def _condition(value: dict[str, Any]) -> Condition:
    left, right, operator = value.get("left"), value.get("right"), value.get("op")
    negated = operator == "!="
    match left:
        case {"&": [masked, mask]}:
            left = masked
            if right == 0:  # "ct status & dnat != 0" is equivalent to "ct status dnat"
                right, negated = mask, not negated
    values = frozenset(_values(right))
    return Condition(_key(left, values), values, negated)


def _key(left: Any, values: frozenset[str]) -> str:
    match left:
        case {"meta": {"key": "iifname" | "iif"}}:
            return "iifname"
        case {"meta": {"key": "oifname" | "oif"}}:
            return "oifname"
        case {"ct": {"key": "state" | "status" | "direction" as key}}:
            return f"ct {key}"
        case {"payload": {"protocol": "ip6", "field": "saddr" | "daddr" as key}}:
            return f"ip6 {key}"
        case {"fib": {"flags": list() | str() as flags}} if "saddr" in flags:
            return _FIB_SOURCE
        case {"meta": {"key": "nfproto"}}:
            return "meta nfproto"
        case {"meta": {"key": "l4proto"}}:
            return "meta l4proto" if values & {"tcp", "udp", "sctp"} else _OTHER_PROTOCOL
        case {"payload": {"protocol": "ip" | "icmp" | "icmpv6" | "arp"}}:
            return _OTHER_PROTOCOL
    return ""


def _values(right: Any) -> Iterator[str]:
    match right:
        case str():
            yield right
        case list():
            for value in right:
                yield from _values(value)
        case {"set": values}:
            yield from _values(values)
