"""(applied, wanted, observed) -> Plan; Plan -> restore text; save text -> Observed.

The kernel's state enters the project here and nowhere else. Rules are compared ours with ours (what
to write) and the kernel's with the kernel's (did somebody else write), never across: the kernel
words rules in its own way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping as Map
from dataclasses import dataclass, field, replace

from ipv6natd.netfilter.rules import (
    DOCKER_USER,
    EMPTY,
    PREFIX,
    BaseJump,
    Chain,
    Jump,
    Rule,
    Ruleset,
    Table,
    TableRules,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedJump:
    """A rule in a chain that is not ours, with one of our chains or DOCKER-USER as its target, or
    with our comment: a chain of ours that somebody renames takes its jump along.

    `text` is the backend's own wording, opaque here; it serves to take the very rule out again.
    """

    base: str
    position: int
    """Counted from 0 within `base`."""
    target: str
    ours: bool
    """Whether it carries our comment."""
    unconditional: bool
    """Whether it has no match at all besides a comment: every packet takes it."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedTable:
    """What stands in one table and concerns us."""

    chains: dict[str, str] = field(default_factory=dict)
    """Name of each chain with our prefix -> "N:digest": the number of its rules, and a digest over
    them in the backend's own wording; "N:" while nobody has read what the kernel made of it."""
    jumps: tuple[ObservedJump, ...] = ()
    docker_user: int | None = None
    """Number of rules in DOCKER-USER; None where there is no such chain."""


Observed = dict[Table, ObservedTable]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableChange:
    """One transaction on one table. The order of the fields is the order of the steps.

    Removing comes first, so that a jump that is to stand elsewhere can be taken out and put back
    within the transaction; no packet sees what is in between.
    """

    table: Table
    remove: tuple[ObservedJump, ...] = ()
    """Taken out of chains that are not ours, found again by base and text."""
    create: tuple[str, ...] = ()
    """Chains to make; the transaction fails if one exists (somebody else was quicker)."""
    chains: tuple[Chain, ...] = ()
    """Chains of ours, made or emptied, then filled."""
    insert: tuple[BaseJump, ...] = ()
    """`first` ones end up at the head of their base chain in this order, the others at its end."""
    delete: tuple[str, ...] = ()
    """Chains to delete. Ours are emptied first; a DOCKER-USER that is not empty fails it all."""


def diff(
    *,
    applied: Ruleset | None,
    interim: TableRules,
    wanted: Ruleset,
    observed: Observed | None,
    keep_order: bool = True,
) -> list[TableChange]:
    """The transactions that take the kernel from `applied` to `wanted`, in their order.

    `interim` is the filter table for the time in which the nat table still holds the old rules or
    already the new ones: filter goes first when something is added, nat when something goes, so
    that at no moment something is forwarded that no rule guards.

    With `observed`, each table in it is written whole, whatever `applied` says: on the first pass,
    after somebody else's edit, and where jumps come or go. Without it only chains that changed are
    written, and `applied` must be what stands. With `keep_order` false, jumps that stand in FORWARD
    stay where they are, whoever stands before them.
    """
    old = applied or EMPTY
    if observed is not None:
        # Nobody knows the old rules of a first pass, so there is nothing to bridge.
        first = wanted.filter if applied is None or wanted == EMPTY else interim
        changes = [
            _rewrite(
                table,
                first if table is Table.FILTER else wanted.nat,
                observed[table],
                keep_order=keep_order,
            )
            for table in Table
            if table in observed
        ]
        if wanted == EMPTY:
            return changes[::-1]
        last = _chain_changes(Table.FILTER, first, wanted.filter)
        return [*changes, last] if last else changes
    steps = (
        _chain_changes(Table.FILTER, old.filter, interim),
        _chain_changes(Table.NAT, old.nat, wanted.nat),
        _chain_changes(Table.FILTER, interim, wanted.filter),
    )
    return [change for change in steps if change is not None]


def jumps_differ(applied: Ruleset | None, wanted: Ruleset) -> bool:
    """Whether a jump comes or goes, so that diff() must read the tables."""
    return applied is None or any(
        applied.table(table).jumps != wanted.table(table).jumps for table in Table
    )


def _chain_changes(table: Table, old: TableRules, new: TableRules) -> TableChange | None:
    old_chains = {chain.name: chain for chain in old.chains}
    changed = tuple(chain for chain in new.chains if old_chains.get(chain.name) != chain)
    names = {chain.name for chain in new.chains}
    deleted = tuple(name for name in old_chains if name not in names)
    if not changed and not deleted:
        return None
    return TableChange(table=table, chains=changed, delete=deleted)


def _rewrite(
    table: Table, wanted: TableRules, observed: ObservedTable, *, keep_order: bool
) -> TableChange:
    """The table as it should be, whatever stands there of ours.

    Every jump to one of our chains is taken out and put in anew: by whom and in which words it was
    made does not matter then. One of ours that leads elsewhere by now goes as well: the chain there
    may still let in what we do not. A DOCKER-USER jump that is not ours stays what it is; it is
    only moved to the head, and takes the place of ours.
    """
    jumps = list(wanted.jumps)
    other_jumps = [jump for jump in observed.jumps if jump.target != DOCKER_USER]
    remove = [jump for jump in other_jumps if jump.ours or jump.target.startswith(PREFIX)]
    our_user_jumps = [jump for jump in observed.jumps if jump.target == DOCKER_USER and jump.ours]
    foreign_user_jumps = [
        jump for jump in observed.jumps if jump.target == DOCKER_USER and not jump.ours
    ]
    user_jump = next(
        (jump for jump in foreign_user_jumps if jump.base == "FORWARD" and jump.unconditional), None
    )
    wants_docker_user = any(jump.target == DOCKER_USER for jump in jumps)
    wanted_chains = {chain.name for chain in wanted.chains}
    delete = [name for name in observed.chains if name not in wanted_chains]
    if wants_docker_user or user_jump is not None or not observed.docker_user:
        remove += our_user_jumps
    if (
        not wants_docker_user
        and our_user_jumps
        and not foreign_user_jumps
        and observed.docker_user == 0
    ):
        delete.append(DOCKER_USER)
    if wants_docker_user and user_jump is not None:
        remove.append(user_jump)
        jumps = [_without_comment(jump) if jump.target == DOCKER_USER else jump for jump in jumps]
    create = (DOCKER_USER,) if wants_docker_user and observed.docker_user is None else ()
    if not keep_order:
        unmoved = _single_forward_targets(observed) & {jump.target for jump in jumps}
        remove = [jump for jump in remove if jump.base != "FORWARD" or jump.target not in unmoved]
        jumps = [jump for jump in jumps if jump.base != "FORWARD" or jump.target not in unmoved]
    return TableChange(
        table=table,
        remove=tuple(remove),
        create=create,
        chains=wanted.chains,
        insert=tuple(jumps),
        delete=tuple(delete),
    )


def _single_forward_targets(observed: ObservedTable) -> set[str]:
    targets = Counter(jump.target for jump in observed.jumps if jump.base == "FORWARD")
    return {target for target, count in targets.items() if count == 1}


def _without_comment(jump: BaseJump) -> BaseJump:
    rule = Rule(target=Jump(jump.target))
    return BaseJump(base=jump.base, rule=rule, first=jump.first)


def predict(observed: ObservedTable, change: TableChange) -> ObservedTable:
    """What stands after a change of chains alone, as far as that is known without reading."""
    deleted = set(change.delete)
    chains = {name: digest for name, digest in observed.chains.items() if name not in deleted}
    chains |= {chain.name: f"{len(chain.rules)}:" for chain in change.chains}
    return replace(observed, chains=chains)


def unverified_chains(observed: ObservedTable) -> list[str]:
    """Chains of which only the number of rules is known."""
    return [name for name, digest in observed.chains.items() if digest.endswith(":")]


def with_digests(observed: ObservedTable, now: Map[str, str]) -> ObservedTable:
    """With the digests that were read since, where they do not contradict."""
    chains = {
        name: now[name]
        if digest.endswith(":") and _digest_matches(digest, now.get(name, ""))
        else digest
        for name, digest in observed.chains.items()
    }
    return replace(observed, chains=chains)


def _digest_matches(expected: str, now: str) -> bool:
    return now.startswith(expected) if expected.endswith(":") else now == expected


def has_drifted(expected: ObservedTable, now: ObservedTable, *, keep_order: bool = True) -> bool:
    """Whether somebody else changed what is ours: a chain, a jump, or who comes first."""
    return (
        expected.chains.keys() != now.chains.keys()
        or not all(
            _digest_matches(digest, now.chains[name]) for name, digest in expected.chains.items()
        )
        or _jump_positions(expected, keep_order) != _jump_positions(now, keep_order)
    )


def matches(wanted: TableRules, observed: ObservedTable, *, keep_order: bool = True) -> bool:
    """Whether the table has the shape of what was written: chains, numbers of rules, jumps, and,
    with `keep_order`, who comes first in FORWARD.

    It tells an edit that slipped in between our write and the read after it, without comparing
    our words with the kernel's.
    """
    sizes = {name: digest.partition(":")[0] for name, digest in observed.chains.items()}
    wanted_jumps = sorted((jump.base, jump.target) for jump in wanted.jumps)
    first = [jump.target for jump in wanted.jumps if jump.first and jump.base == "FORWARD"]
    in_forward = [jump for jump in observed.jumps if jump.base == "FORWARD"]
    found_jumps = [(jump.base, jump.target) for jump in observed.jumps]
    ours = sorted(jump for jump in found_jumps if jump[1] != DOCKER_USER)
    return (
        sizes == {chain.name: str(len(chain.rules)) for chain in wanted.chains}
        and ours == [jump for jump in wanted_jumps if jump[1] != DOCKER_USER]
        and all(jump in found_jumps for jump in wanted_jumps)
        and (
            not keep_order
            or first == [jump.target for jump in in_forward if jump.position < len(first)]
        )
    )


def _jump_positions(observed: ObservedTable, keep_order: bool) -> list[tuple[str, int, str, str]]:
    """Jumps as far as their place matters: in FORWARD it does, elsewhere only that they stand."""
    ordered_bases = ("FORWARD",) if keep_order else ()
    return sorted(
        (jump.base, jump.position if jump.base in ordered_bases else 0, jump.target, jump.text)
        for jump in observed.jumps
    )
