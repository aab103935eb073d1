"""(old or observed, wanted) -> the transactions to write; and the detection of foreign edits.

The kernel's state enters the project here and nowhere else. Our rules are compared with our rules
(what to write), the kernel's text with the kernel's text (has another program written). Our text is
never compared with the kernel's: the kernel formats rules in its own way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from collections.abc import Mapping as Map
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ipv6natd.netfilter.rules import (
    DOCKER_USER,
    GUARD_TABLES,
    PREFIX,
    BaseJump,
    Chains,
    Jump,
    Rule,
    Ruleset,
    Table,
    TableRules,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedJump:
    """A rule in a foreign chain that jumps to one of our chains or to DOCKER-USER, or has our
    comment. The comment finds our jump to a chain that another program renamed.

    `text` is the backend's text of the rule. It is opaque here and identifies the rule for removal.
    """

    base: str
    position: int
    """Index within `base`, from 0."""
    target: str
    ours: bool
    """True if the rule has our comment."""
    unconditional: bool
    """True if the rule has no match except a comment, so that every packet takes it."""
    text: str
    handle: int | None = field(default=None, compare=False)
    """nft's number of the rule, if ip6tables cannot remove it: in its chain is a native rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedTable:
    """Our chains, the jumps to them, and DOCKER-USER, as one table of the kernel has them."""

    chains: dict[str, str] = field(default_factory=dict)
    """Name of a chain with our prefix -> "N:digest": the number of its rules, and a digest of the
    backend's text of them; "N:" until the chain has been read back."""
    jumps: tuple[ObservedJump, ...] = ()
    docker_user: int | None = None
    """Number of rules in DOCKER-USER; None if the chain does not exist."""
    place: int = field(default=0, compare=False)
    """The number of rules at the head of FORWARD that stay before our jumps."""
    displacing: str = field(default="", compare=False)
    """A rule before our jump in FORWARD that may not stand there; "" if there is none."""


Observed = dict[Table, ObservedTable]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableChange:
    """One transaction on one table. The order of the fields is the order of the steps.

    Removal comes first, so that one transaction can move a jump. The kernel applies a transaction
    atomically: no packet meets an intermediate state.
    """

    table: Table
    remove: tuple[ObservedJump, ...] = ()
    """Jumps to remove from foreign chains, identified by base and text."""
    create: tuple[str, ...] = ()
    """Chains to create. The transaction fails if one exists: another program was faster."""
    chains: Chains = field(default_factory=dict)
    """Our chains to create or flush, and to fill."""
    insert: tuple[BaseJump, ...] = ()
    """Jumps to insert: with `first` at the head of `base` in this order, else at the end."""
    place: int = 0
    """The number of rules at the head of FORWARD that stay before inserted jumps."""
    delete: tuple[str, ...] = ()
    """Chains to delete. Ours are flushed first; a DOCKER-USER with rules fails the transaction."""


def diff_chains(
    old: Ruleset, wanted: Ruleset, *, interim: Ruleset | None = None
) -> list[TableChange]:
    """The transactions, in order, that write the chains that differ between `old` and `wanted`.

    `old` must be the kernel's state, and its jumps must be those of `wanted`. For `interim` see
    rewrite_tables.
    """
    first = _first_ruleset(interim, wanted)
    changes = (_chain_changes(table, old.table(table), first.table(table)) for table in Table)
    return [*filter(None, changes), *_guard_changes(first, wanted)]


def rewrite_tables(
    observed: Observed, wanted: Ruleset, *, interim: Ruleset | None = None, keep_order: bool = True
) -> list[TableChange]:
    """The transactions, in order, that make the observed tables equal to `wanted`, whatever they
    contain of ours: on the first pass, after a foreign edit, and if jumps change.

    `Table` has the order of the writes; it is reversed if raw and nat have no rules any more.
    `interim` has the raw and filter tables while the nat table may hold the old or the new rules;
    None if the old rules are unknown. With `keep_order` false, jumps that exist in FORWARD stay at
    their positions.
    """
    removal = not wanted.raw.chains and not wanted.nat.chains
    first = wanted if removal else _first_ruleset(interim, wanted)
    changes = [
        _rewrite(table, first.table(table), observed[table], keep_order=keep_order)
        for table in (reversed(Table) if removal else Table)
        if table in observed
    ]
    return [*filter(None, changes), *_guard_changes(first, wanted)]


def _first_ruleset(interim: Ruleset | None, wanted: Ruleset) -> Ruleset:
    return replace(interim, nat=wanted.nat) if interim else wanted


def _guard_changes(first: Ruleset, wanted: Ruleset) -> Iterator[TableChange]:
    """The last transactions: they remove what the guard tables have only for the old nat rules."""
    for table in reversed(GUARD_TABLES):
        if change := _chain_changes(table, first.table(table), wanted.table(table)):
            yield change


def jumps_differ(old: Ruleset, wanted: Ruleset) -> bool:
    """True if jumps change, so that diff_chains() is not enough."""
    return any(old.table(table).jumps != wanted.table(table).jumps for table in Table)


def _chain_changes(table: Table, old: TableRules, new: TableRules) -> TableChange | None:
    changed = {name: rules for name, rules in new.chains.items() if old.chains.get(name) != rules}
    deleted = tuple(name for name in old.chains if name not in new.chains)
    if not changed and not deleted:
        return None
    return TableChange(table=table, chains=changed, delete=deleted)


def _rewrite(
    table: Table, wanted: TableRules, observed: ObservedTable, *, keep_order: bool
) -> TableChange | None:
    """The change that makes the table equal to `wanted`, whatever it holds of ours; None for none.

    All jumps to our chains are removed and inserted again, so that their author and text do not
    matter. A jump with our comment to a renamed chain is removed too: that chain may still accept
    what `wanted` does not.
    """
    docker_user = docker_user_steps(
        observed, wanted=any(jump.target == DOCKER_USER for jump in wanted.jumps)
    )
    remove = [
        jump
        for jump in observed.jumps
        if jump.target != DOCKER_USER and (jump.ours or jump.target.startswith(PREFIX))
    ]
    remove += docker_user.remove
    insert = list(wanted.jumps)
    if docker_user.foreign:
        without_comment = Rule(target=Jump(DOCKER_USER))
        insert = [
            replace(j, rule=without_comment) if j.target == DOCKER_USER else j for j in insert
        ]
    if not keep_order:
        in_forward = Counter(jump.target for jump in observed.jumps if jump.base == "FORWARD")
        unmoved = {jump.target for jump in insert if in_forward[jump.target] == 1}
        remove = [jump for jump in remove if jump.base != "FORWARD" or jump.target not in unmoved]
        insert = [jump for jump in insert if jump.base != "FORWARD" or jump.target not in unmoved]
    change = TableChange(
        table=table,
        remove=tuple(remove),
        create=docker_user.create,
        chains=wanted.chains,
        insert=tuple(insert),
        place=observed.place if insert else 0,
        delete=(*(n for n in observed.chains if n not in wanted.chains), *docker_user.delete),
    )
    return None if change == TableChange(table=table) else change


class DockerUserSteps(NamedTuple):
    """What happens to DOCKER-USER and the jumps to it when a table is rewritten."""

    remove: tuple[ObservedJump, ...] = ()
    create: tuple[str, ...] = ()
    delete: tuple[str, ...] = ()
    foreign: bool = False
    """True if the inserted jump is the moved one of another program, without our comment."""


def docker_user_steps(observed: ObservedTable, *, wanted: bool) -> DockerUserSteps:
    """The steps for DOCKER-USER; `wanted` is true if a jump to it is wanted.

    A foreign jump that every packet takes is moved to the head, and replaces ours: with two jumps
    the rules would apply twice. On clean-up our jump stays while it is the only one and the chain
    has rules, which are the administrator's; an empty chain without another jump is ours.
    """
    jumps = [jump for jump in observed.jumps if jump.target == DOCKER_USER]
    ours = tuple(jump for jump in jumps if jump.ours)
    foreign = [jump for jump in jumps if not jump.ours]
    in_forward = [jump for jump in foreign if jump.base == "FORWARD" and jump.unconditional]
    if wanted:
        return DockerUserSteps(
            remove=(*ours, *in_forward[:1]),
            create=() if observed.docker_user is not None else (DOCKER_USER,),
            foreign=bool(in_forward),
        )
    made_by_us = ours and not foreign and observed.docker_user == 0
    return DockerUserSteps(
        remove=ours if in_forward or not observed.docker_user else (),
        delete=(DOCKER_USER,) if made_by_us else (),
    )


def predict(observed: ObservedTable, change: TableChange) -> ObservedTable:
    """The state of a table after a change of chains only; written chains have no digest yet."""
    deleted = set(change.delete)
    chains = {name: digest for name, digest in observed.chains.items() if name not in deleted}
    chains |= {name: f"{len(rules)}:" for name, rules in change.chains.items()}
    return replace(observed, chains=chains)


def unverified_chains(observed: ObservedTable) -> list[str]:
    """Names of chains that were written and not yet read back: they have no digest."""
    return [name for name, digest in observed.chains.items() if digest.endswith(":")]


def with_digests(observed: ObservedTable, now: Map[str, str]) -> ObservedTable:
    """`observed` with missing digests taken from `now`, if the numbers of rules agree."""
    chains = {
        name: found if (found := now.get(name, "")).startswith(digest) else digest
        for name, digest in observed.chains.items()
    }
    return replace(observed, chains=chains)


def has_drifted(expected: ObservedTable, now: ObservedTable, *, keep_order: bool = True) -> bool:
    """True if another program changed our chains, the jumps to them or, with `keep_order`, placed
    a rule before our jump in FORWARD that may not stand there."""
    return (
        expected.chains.keys() != now.chains.keys()
        # A chain that has not been read back has only its number of rules.
        or not all(now.chains[name].startswith(text) for name, text in expected.chains.items())
        or _jumps(expected) != _jumps(now)
        or (keep_order and (bool(now.displacing) or _targets(expected) != _targets(now)))
    )


def matches(wanted: TableRules, observed: ObservedTable, *, keep_order: bool = True) -> bool:
    """True if the table has the chains, numbers of rules and jumps of `wanted` and, with
    `keep_order`, its jumps in FORWARD in their order and before all rules that displace them.

    Finds a foreign edit between our write and the read after it, without comparing our text with
    the kernel's.
    """
    sizes = {name: digest.partition(":")[0] for name, digest in observed.chains.items()}
    wanted_jumps = sorted((jump.base, jump.target) for jump in wanted.jumps)
    first = [jump.target for jump in wanted.jumps if jump.first and jump.base == "FORWARD"]
    found_jumps = [(jump.base, jump.target) for jump in observed.jumps]
    ours = sorted(jump for jump in found_jumps if jump[1] != DOCKER_USER)
    return (
        sizes == {name: str(len(rules)) for name, rules in wanted.chains.items()}
        and ours == [jump for jump in wanted_jumps if jump[1] != DOCKER_USER]
        and all(jump in found_jumps for jump in wanted_jumps)
        and (
            not keep_order
            or (not observed.displacing and first == list(dict.fromkeys(_targets(observed))))
        )
    )


def _jumps(observed: ObservedTable) -> list[tuple[str, str, str]]:
    return sorted((jump.base, jump.target, jump.text) for jump in observed.jumps)


def _targets(observed: ObservedTable) -> list[str]:
    """The targets of the jumps in FORWARD, in their order."""
    jumps = [jump for jump in observed.jumps if jump.base == "FORWARD"]
    return [jump.target for jump in sorted(jumps, key=lambda jump: jump.position)]
