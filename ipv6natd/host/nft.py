"""Evaluates nft rules of other programs: JSON of `nft -j list` -> does a chain block a packet.

A packet passes all base chains of a hook, and each of them can drop it. Only common expressions
are evaluated. A rule with another expression is assumed not to block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Map
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any


class MatchKey(StrEnum):
    """What a match compares, as far as it is evaluated."""

    IN = "iifname"
    OUT = "oifname"
    STATE = "ct state"
    STATUS = "ct status"
    ADDRESS = "ip6 address"
    NEVER = "other protocols"
    ALWAYS = "ipv6"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One condition of a rule."""

    key: MatchKey
    values: frozenset[str] = frozenset()
    negated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NftRule:
    """Conditions and a verdict: accept, drop, reject, return, jump, goto, or "" for none."""

    matches: tuple[Match, ...] = ()
    verdict: str = ""
    target: str = ""
    is_rpfilter: bool = False
    """True for a reverse-path filter: the rule looks up the route to the source address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseChain:
    """A chain on a hook, with the rules of all chains of its table."""

    family: str
    table: str
    name: str
    hook: str
    policy: str = "accept"
    rules: tuple[NftRule, ...] = ()
    other_chains: Map[str, tuple[NftRule, ...]] = field(default_factory=dict)

    @property
    def full_name(self) -> str:
        """Family, table and chain as in nft commands: "inet filter forward"."""
        return f"{self.family} {self.table} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardedPacket:
    """A forwarded packet: its interfaces, and its state in conntrack."""

    bridge: str
    """The bridge of the container that sends or gets it; "" without a container."""
    incoming: str
    outgoing: str
    state: str = "new"
    dnat: bool = False


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
    rules: dict[tuple[str, str, str], list[NftRule]] = {}
    for item in listed:
        if chain := item.get("chain"):
            chains.append(chain)
        elif rule := item.get("rule"):
            key = (rule["family"], rule["table"], rule["chain"])
            rules.setdefault(key, []).append(_rule(rule.get("expr", ())))
    return tuple(
        BaseChain(
            family=chain["family"],
            table=chain["table"],
            name=chain["name"],
            hook=chain["hook"],
            policy=chain.get("policy", "accept"),
            rules=tuple(rules.get((chain["family"], chain["table"], chain["name"]), ())),
            other_chains={
                name: tuple(chain_rules)
                for (family, table, name), chain_rules in rules.items()
                if (family, table) == (chain["family"], chain["table"])
            },
        )
        for chain in chains
        if "hook" in chain
    )


def blocks(chain: BaseChain, packet: ForwardedPacket) -> bool:
    """True if the chain certainly drops the packet, and no earlier rule is about containers."""
    verdict = _verdict(chain, chain.rules, packet, {}) or chain.policy
    return verdict in ("drop", "reject")


def has_rpfilter(chain: BaseChain) -> bool:
    """True if the chain drops packets by a reverse-path filter."""
    return any(
        rule.is_rpfilter and rule.verdict in ("drop", "reject")
        for rules in (chain.rules, *chain.other_chains.values())
        for rule in rules
    )


def _verdict(
    chain: BaseChain, rules: Iterable[NftRule], packet: ForwardedPacket, known: dict[str, str]
) -> str:
    """The verdict of `rules` for a packet; "" if they have none.

    `known` has the verdicts of the chains evaluated so far. Without it, the time could be
    exponential: many rules can jump to one chain, on several levels.
    """
    for rule in rules:
        results = [_matches(match, packet) for match in rule.matches]
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
                if rule.target not in known:
                    known[rule.target] = ""  # ends a loop, which the kernel rejects anyway
                    target_rules = chain.other_chains.get(rule.target, ())
                    known[rule.target] = _verdict(chain, target_rules, packet, known)
                verdict = known[rule.target]
                if (verdict == "accept" and packet.bridge) or (verdict and certain):
                    return verdict
                if rule.verdict == "goto" and certain:
                    return ""
    return ""


def _names_containers(rule: NftRule, packet: ForwardedPacket) -> bool:
    """True if the rule has the bridge, an IPv6 address or DNAT: it is probably for containers."""
    for match in rule.matches if packet.bridge else ():
        if match.key is MatchKey.ADDRESS and not match.negated:
            return True
        if match.key is MatchKey.STATUS and packet.dnat:
            return True
        if match.key in (MatchKey.IN, MatchKey.OUT) and not match.negated:
            interface = packet.incoming if match.key is MatchKey.IN else packet.outgoing
            if interface == packet.bridge:
                return True
    return False


def _matches(match: Match, packet: ForwardedPacket) -> bool | None:
    """The result of a match for a packet; None if it is unknown."""
    match match.key:
        case MatchKey.IN:
            equal = any(fnmatchcase(packet.incoming, pattern) for pattern in match.values)
        case MatchKey.OUT:
            equal = any(fnmatchcase(packet.outgoing, pattern) for pattern in match.values)
        case MatchKey.STATE:
            equal = packet.state in match.values
        case MatchKey.STATUS:
            equal = packet.dnat and "dnat" in match.values
        case MatchKey.NEVER | MatchKey.ALWAYS:
            return match.key is MatchKey.ALWAYS
        case _:
            return None
    return equal is not match.negated


def _rule(expressions: Iterable[dict[str, Any]]) -> NftRule:
    matches: list[Match] = []
    verdict = target = ""
    source = False
    for expression in expressions:
        for name, value in expression.items() if isinstance(expression, dict) else ():
            match name, value:
                case "match", dict():
                    matches.append(_match(value))
                    source = source or "saddr" in _fib_flags(value.get("left"))
                case "accept" | "drop" | "reject" | "return", _:
                    verdict = name
                case "jump" | "goto", {"target": str(target)}:
                    verdict = name
                case "counter" | "log" | "comment" | "mangle" | "notrack", _:
                    pass
                case _:
                    # A limit, a verdict map or a match of xtables: the result is unknown.
                    matches.append(Match(key=MatchKey.OTHER))
    return NftRule(matches=tuple(matches), verdict=verdict, target=target, is_rpfilter=source)


def _match(value: dict[str, Any]) -> Match:
    left, right, operator = value.get("left"), value.get("right"), value.get("op")
    negated = operator == "!="
    match left:
        case {"&": [masked, mask]}:
            left = masked
            if right == 0:  # "ct status & dnat != 0" is equivalent to "ct status dnat"
                right, negated = mask, not negated
    values = frozenset(_values(right))
    return Match(key=_match_key(left, values), values=values, negated=negated)


def _match_key(left: Any, values: frozenset[str]) -> MatchKey:
    match left:
        case {"meta": {"key": "iifname" | "iif"}}:
            return MatchKey.IN
        case {"meta": {"key": "oifname" | "oif"}}:
            return MatchKey.OUT
        case {"ct": {"key": "state"}}:
            return MatchKey.STATE
        case {"ct": {"key": "status"}}:
            return MatchKey.STATUS
        case {"meta": {"key": "nfproto"}}:
            return MatchKey.ALWAYS if "ipv6" in values else MatchKey.NEVER
        case {"meta": {"key": "l4proto"}} if not values & {"tcp", "udp", "sctp"}:
            return MatchKey.NEVER
        case {"payload": {"protocol": "ip" | "icmp" | "icmpv6" | "arp"}}:
            return MatchKey.NEVER
        case {"payload": {"protocol": "ip6", "field": "saddr" | "daddr"}}:
            return MatchKey.ADDRESS
    return MatchKey.OTHER


def _values(right: Any) -> Iterator[str]:
    match right:
        case str():
            yield right
        case list():
            for value in right:
                yield from _values(value)
        case {"set": values}:
            yield from _values(values)


def _fib_flags(left: Any) -> tuple[str, ...]:
    match left:
        case {"fib": {"flags": list(flags)}}:
            return tuple(map(str, flags))
        case {"fib": {"flags": str(flag)}}:
            return (flag,)
    return ()
