"""What nft rules of other people do with packets of ours: JSON of `nft -j list` -> a fate.

Every base chain on a hook has a veto: what one accepts, the next may still drop. Only as much of
the language is read as such chains are made of; what is not understood blocks nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Map
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any


class MatchKey(StrEnum):
    """What a match looks at, as far as it matters here."""

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
    """Whether it asks by which way the source would be answered: a reverse-path filter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseChain:
    """A chain on a hook, with the chains that it may go on to."""

    family: str
    table: str
    name: str
    hook: str
    policy: str = "accept"
    rules: tuple[NftRule, ...] = ()
    other_chains: Map[str, tuple[NftRule, ...]] = field(default_factory=dict)

    @property
    def full_name(self) -> str:
        """As nft wants it: "inet filter forward"."""
        return f"{self.family} {self.table} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardedPacket:
    """A packet that is forwarded: by which interfaces, and what conntrack says about it."""

    bridge: str
    """Of the containers that it is for or from; "" for a packet that is nobody's here."""
    incoming: str
    outgoing: str
    state: str = "new"
    dnat: bool = False


def listed_objects(documents: Iterable[Any]) -> list[dict[str, Any]]:
    """Chains and rules in documents of nft's; what has another shape than they have is left out."""
    lists = (each.get("nftables") for each in documents if isinstance(each, dict))
    every = (entry for each in lists if isinstance(each, list) for entry in each)
    return [each for each in every if isinstance(each, dict) and _is_well_formed(each)]


def _is_well_formed(entry: Map[str, Any]) -> bool:
    match entry:
        case {"chain": {"family": str(), "table": str(), "name": str(), **more}}:
            return all(isinstance(more.get(key, ""), str) for key in ("hook", "policy"))
        case {"rule": {"family": str(), "table": str(), "chain": str(), **more}}:
            return isinstance(more.get("expr", []), list)
    return False


def base_chains(listed: Iterable[dict[str, Any]]) -> tuple[BaseChain, ...]:
    """The base chains in what nft listed, with as many rules as it listed."""
    chains: list[dict[str, Any]] = []
    rules: dict[tuple[str, str, str], list[NftRule]] = {}
    for each in listed:
        if chain := each.get("chain"):
            chains.append(chain)
        elif rule := each.get("rule"):
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
                name: tuple(each)
                for (family, table, name), each in rules.items()
                if (family, table) == (chain["family"], chain["table"])
            },
        )
        for chain in chains
        if "hook" in chain
    )


def blocks(chain: BaseChain, flow: ForwardedPacket) -> bool:
    """Whether the chain surely ends the flow, and nobody has thought of it before that."""
    fate = _verdict(chain, chain.rules, flow, {}) or chain.policy
    return fate in ("drop", "reject")


def has_rpfilter(chain: BaseChain) -> bool:
    """Whether it drops packets whose source would be answered by another way."""
    return any(
        rule.is_rpfilter and rule.verdict in ("drop", "reject")
        for rules in (chain.rules, *chain.other_chains.values())
        for rule in rules
    )


def _verdict(
    chain: BaseChain, rules: Iterable[NftRule], flow: ForwardedPacket, known: dict[str, str]
) -> str:
    """`known` has the fate in each chain that was gone through: many rules may jump to one, and
    each of them again, so that the ways double with each step."""
    for rule in rules:
        answers = [_matches(each, flow) for each in rule.matches]
        if False in answers:
            continue
        sure = None not in answers
        match rule.verdict:
            case "accept" if sure or _names_containers(rule, flow):
                return "accept"
            case "drop" | "reject" if sure:
                return rule.verdict
            case "return" if sure:
                return ""
            case "jump" | "goto":
                if rule.target not in known:
                    known[rule.target] = ""  # a loop, which the kernel does not take, ends here
                    others = chain.other_chains.get(rule.target, ())
                    known[rule.target] = _verdict(chain, others, flow, known)
                fate = known[rule.target]
                if (fate == "accept" and flow.bridge) or (fate and sure):
                    return fate
                if rule.verdict == "goto" and sure:
                    return ""
    return ""


def _names_containers(rule: NftRule, flow: ForwardedPacket) -> bool:
    """Whether whoever wrote it had containers in mind, if not all that they do."""
    for each in rule.matches if flow.bridge else ():
        if each.key is MatchKey.ADDRESS and not each.negated:
            return True
        if each.key is MatchKey.STATUS and flow.dnat:
            return True
        if each.key in (MatchKey.IN, MatchKey.OUT) and not each.negated:
            mine = flow.incoming if each.key is MatchKey.IN else flow.outgoing
            if mine == flow.bridge:
                return True
    return False


def _matches(match: Match, flow: ForwardedPacket) -> bool | None:
    """Whether the flow has what is asked for; None where that is not known."""
    match match.key:
        case MatchKey.IN:
            held = any(fnmatchcase(flow.incoming, each) for each in match.values)
        case MatchKey.OUT:
            held = any(fnmatchcase(flow.outgoing, each) for each in match.values)
        case MatchKey.STATE:
            held = flow.state in match.values
        case MatchKey.STATUS:
            held = flow.dnat and "dnat" in match.values
        case MatchKey.NEVER | MatchKey.ALWAYS:
            return match.key is MatchKey.ALWAYS
        case _:
            return None
    return held is not match.negated


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
                    # A limit, a map of verdicts, a match of xtables: it may hold or not.
                    matches.append(Match(key=MatchKey.OTHER))
    return NftRule(matches=tuple(matches), verdict=verdict, target=target, is_rpfilter=source)


def _match(value: dict[str, Any]) -> Match:
    left, right, operator = value.get("left"), value.get("right"), value.get("op")
    negated = operator == "!="
    match left:
        case {"&": [masked, mask]}:
            left = masked
            if right == 0:  # ct status & dnat != 0, where others write: ct status dnat
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
            for each in right:
                yield from _values(each)
        case {"set": each}:
            yield from _values(each)


def _fib_flags(left: Any) -> tuple[str, ...]:
    match left:
        case {"fib": {"flags": list(flags)}}:
            return tuple(map(str, flags))
        case {"fib": {"flags": str(flag)}}:
            return (flag,)
    return ()
