"""Whose rule comes first in FORWARD: where our jumps go among the rules of other programs.

A rule that drops some packets and accepts none, such as a ban list, stays before ours and keeps its
effect. A rule that no packet passes may not stand before ours: it would cut off published ports.
Rules of the engine accept packets of its networks into ours, so they come after ours too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ipv6natd.netfilter.docker_rules import is_engine_jump
from ipv6natd.netfilter.parse import COMMENT_MATCH, STRING
from ipv6natd.netfilter.rules import DOCKER_USER, PREFIX

_RULE = re.compile(r"(?:(?P<matches>.*) )?-(?P<verb>[jg]) (?P<target>\S+)(?: --.*)?")
_BY_SOURCE = re.compile(r" (?:-s |--match-set \S+ src)")
_OF_SOME = re.compile(r"(?<! !) (?:-s|--match-set) \S+ ")
_STATES = re.compile(r"-m (?:conntrack|state) (?P<not>! )?--(?:ctstate|state) (?P<states>\S+)")
_PASSING = frozenset(
    {"AUDIT", "CLASSIFY", "CONNMARK", "CONNSECMARK", "CT", "DSCP", "HL", "LOG", "MARK", "NFLOG"}
    | {"RATEEST", "SECMARK", "SET", "TCPMSS", "TOS", "TRACE"}
)
"""Targets after which a packet goes on to the next rule."""
BUILT_IN_TARGETS = _PASSING | {"ACCEPT", "DROP", "REJECT", "RETURN"}
"""Targets of rules in FORWARD that are not chains."""

Chains = Mapping[str, Sequence[str]]
"""Name of a chain -> the texts of its rules, without the name."""


class Effect(NamedTuple):
    """What a rule, or a chain of rules, may do with a packet."""

    accepts: bool = False
    """Some packets are accepted, or it is unknown."""
    drops: bool = False
    ends: bool = False
    """No packet goes on to the next rule."""
    returns: bool = False
    """Some packets go on after the rule that jumped to this chain: by RETURN, or after a goto."""

    @property
    def only_drops(self) -> bool:
        """True for a ban list: it drops some packets, and the others go on."""
        return self.drops and not self.accepts and not self.ends


def effect(rule: str, chains: Chains, known: dict[str, Effect] | None = None) -> Effect:
    """The effect of a rule as ip6tables-save writes it. `known` has the effects of chains so far:
    without it, the time could be exponential."""
    found = _parts(rule)
    if found is None:
        # Without a target, a rule only counts; a native rule of nft is unknown.
        is_native = "-m native" in _without_comments(rule)
        return Effect(accepts=True, drops=True) if is_native else Effect()
    target, always = found["target"], not found["matches"]
    match target:
        case "ACCEPT":
            return Effect(accepts=True, ends=always)
        case "DROP" | "REJECT":
            return Effect(drops=True, ends=always)
        case "RETURN":
            return Effect(ends=always, returns=True)
        case _ if target in _PASSING:
            return Effect()
        case _ if target not in chains:
            return Effect(accepts=True, drops=True)
    known = {} if known is None else known
    if target not in known:
        known[target] = Effect()  # ends a loop, which the kernel rejects anyway
        known[target] = _chain_effect(target, chains, known)
    inner = known[target]
    if found["verb"] == "g":
        return Effect(inner.accepts, inner.drops, ends=always, returns=not inner.ends)
    return inner._replace(ends=always and inner.ends)


def effect_in_forward(rule: str, chains: Chains) -> Effect:
    """The effect of a rule of FORWARD itself: its policy, which may be ACCEPT, gets the packets
    that return."""
    one = effect(rule, chains)
    return one._replace(accepts=one.accepts or one.returns)


def drops_only_by_source(rule: str, chains: Chains) -> bool:
    """True for a ban list of which each rule that drops names a source or a set: it cannot cut off
    others, wherever it stands."""
    return effect_in_forward(rule, chains).only_drops and _is_narrow(rule, chains, {})


def _is_narrow(rule: str, chains: Chains, known: dict[str, bool]) -> bool:
    found = _parts(rule)
    if found is None or _OF_SOME.search(f" {found['matches'] or ''} "):
        return True
    target = found["target"]
    if target not in known:
        known[target] = target not in ("DROP", "REJECT")
        inner = chains.get(target, ())
        known[target] &= all(_is_narrow(it, chains, known) for it in inner)
    return known[target]


def target_chain(rule: str, chains: Chains) -> str:
    """The chain that the rule leads to; "" if there is none."""
    found = _parts(rule)
    return found["target"] if found is not None and found["target"] in chains else ""


def interfaces(rule: str) -> tuple[str, str]:
    """The interfaces that packets of the rule come in by and go out by; "" for any."""
    found = _parts(rule)
    matches = f" {found['matches'] or ''} " if found is not None else ""
    incoming, outgoing = (re.search(rf"(?<! !) -{way} (\S+)", matches) for way in "io")
    return incoming[1] if incoming else "", outgoing[1] if outgoing else ""


def _parts(rule: str) -> re.Match[str] | None:
    """The matches, verb and target of a rule, without comments; None without a target."""
    return _RULE.fullmatch(_without_comments(rule))


def _without_comments(rule: str) -> str:
    return COMMENT_MATCH.sub("", STRING.sub(" string", f"{rule} ")).strip()


def verdict_on_new(name: str, chains: Chains, known: dict[str, str] | None = None) -> str:
    """ "ACCEPT" or "DROP" if the chain does so with every new packet that no rule names; "" if it
    goes on. `known` has the verdicts of chains so far."""
    known = {} if known is None else known
    known[name] = ""  # ends a loop, which the kernel rejects anyway
    for rule in chains.get(name, ()):
        found = _parts(rule)
        if found is None or not _matches_all_new(found["matches"] or ""):
            continue
        target = found["target"]
        if target in ("ACCEPT", "DROP", "REJECT", "RETURN"):
            known[name] = {"REJECT": "DROP", "RETURN": ""}.get(target, target)
            break
        if target not in known:
            verdict_on_new(target, chains, known)
        known[name] = known[target]
        if known[name] or found["verb"] == "g":
            break
    return known[name]


def _matches_all_new(matches: str) -> bool:
    states = _STATES.fullmatch(matches)
    if states is None:
        return not matches
    return ("NEW" in states["states"].split(",")) != bool(states["not"])


def bans_sources(rule: str, chains: Chains, seen: set[str] | None = None) -> bool:
    """True if the rule, or a rule of a chain that it leads to, drops packets by their source.
    `seen` has the chains so far, which ban none."""
    seen = set() if seen is None else seen
    found = _parts(rule)
    if found is None:
        return False
    target = found["target"]
    if target in ("DROP", "REJECT"):
        return _BY_SOURCE.search(f" {found['matches'] or ''} ") is not None
    if target in seen:
        return False
    seen.add(target)
    return any(bans_sources(inner, chains, seen) for inner in chains.get(target, ()))


def _chain_effect(name: str, chains: Chains, known: dict[str, Effect]) -> Effect:
    accepts = drops = returns = False
    for rule in chains[name]:
        one = effect(rule, chains, known)
        accepts, drops = accepts or one.accepts, drops or one.drops
        returns = returns or one.returns
        if one.ends:
            return Effect(accepts, drops, not returns)
    return Effect(accepts, drops)


def place_in_forward(chains: Chains) -> int:
    """The number of rules at the head of FORWARD that stay before our jumps.

    Jumps that no rule displaces stay where they are: what others put before them keeps its effect.
    """
    rules = chains.get("FORWARD", ())
    stays = any(_is_jump_to(PREFIX, rule) for rule in rules) and not displacing_rule(chains)
    for count, rule in enumerate(rules):
        if _is_jump_to(DOCKER_USER, rule) or _is_jump_to(PREFIX, rule):
            return count
        one = effect_in_forward(rule, chains)
        if not stays and (one.accepts or one.ends or is_engine_jump(rule)):
            return count
    return len(rules)


def displacing_rule(chains: Chains) -> str:
    """The first rule that may not stand before our jump in FORWARD, but does; "" if there is none
    and if there is no jump of ours."""
    rules = chains.get("FORWARD", ())
    ours = next((i for i, rule in enumerate(rules) if _is_jump_to(PREFIX, rule)), 0)
    return next(
        (
            rule
            for rule in rules[:ours]
            if not _is_jump_to(DOCKER_USER, rule)
            and (is_engine_jump(rule) or effect_in_forward(rule, chains).ends)
        ),
        "",
    )


def _is_jump_to(target: str, rule: str) -> bool:
    """`target` is a chain, or the prefix of our chains."""
    name = re.escape(target) + ("" if target == PREFIX else r"(?= |$)")
    return re.search(rf"(?:^| )-j {name}", STRING.sub("", rule)) is not None
