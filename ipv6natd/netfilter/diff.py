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
    plain: bool
    """Whether it has no match at all besides a comment: every packet takes it."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedTable:
    """What stands in one table and concerns us."""

    own: dict[str, str] = field(default_factory=dict)
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


def plan(
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
    before = applied or EMPTY
    if observed is not None:
        # Nobody knows the old rules of a first pass, so there is nothing to bridge.
        first = wanted.filter if applied is None or wanted == EMPTY else interim
        steps = [
            _whole(
                table,
                first if table is Table.FILTER else wanted.nat,
                observed[table],
                keep_order=keep_order,
            )
            for table in Table
            if table in observed
        ]
        if wanted == EMPTY:
            return steps[::-1]
        last = _difference(Table.FILTER, first, wanted.filter)
        return [*steps, last] if last else steps
    differences = (
        _difference(Table.FILTER, before.filter, interim),
        _difference(Table.NAT, before.nat, wanted.nat),
        _difference(Table.FILTER, interim, wanted.filter),
    )
    return [step for step in differences if step is not None]


def jumps_differ(applied: Ruleset | None, wanted: Ruleset) -> bool:
    """Whether a jump comes or goes, so that plan() has to see the tables of others."""
    return applied is None or any(
        applied.table(table).jumps != wanted.table(table).jumps for table in Table
    )


def _difference(table: Table, old: TableRules, new: TableRules) -> TableChange | None:
    standing = {chain.name: chain for chain in old.chains}
    changed = tuple(chain for chain in new.chains if standing.get(chain.name) != chain)
    names = {chain.name for chain in new.chains}
    gone = tuple(name for name in standing if name not in names)
    if not changed and not gone:
        return None
    return TableChange(table=table, chains=changed, delete=gone)


def _whole(
    table: Table, wanted: TableRules, observed: ObservedTable, *, keep_order: bool
) -> TableChange:
    """The table as it should be, whatever stands there of ours.

    Every jump to one of our chains is taken out and put in anew: by whom and in which words it was
    made does not matter then. One of ours that leads elsewhere by now goes as well: the chain there
    may still let in what we do not. A DOCKER-USER jump that is not ours stays what it is; it is
    only moved to the head, and takes the place of ours.
    """
    jumps = list(wanted.jumps)
    others = [each for each in observed.jumps if each.target != DOCKER_USER]
    remove = [each for each in others if each.ours or each.target.startswith(PREFIX)]
    own = [each for each in observed.jumps if each.target == DOCKER_USER and each.ours]
    foreign = [each for each in observed.jumps if each.target == DOCKER_USER and not each.ours]
    leading = next((each for each in foreign if each.base == "FORWARD" and each.plain), None)
    wants_user = any(jump.target == DOCKER_USER for jump in jumps)
    stay = {chain.name for chain in wanted.chains}
    delete = [name for name in observed.own if name not in stay]
    if wants_user or leading is not None or not observed.docker_user:
        remove += own
    if not wants_user and own and not foreign and observed.docker_user == 0:
        delete.append(DOCKER_USER)
    if wants_user and leading is not None:
        remove.append(leading)
        jumps = [_without_comment(j) if j.target == DOCKER_USER else j for j in jumps]
    create = (DOCKER_USER,) if wants_user and observed.docker_user is None else ()
    if not keep_order:
        kept = _in_forward_once(observed) & {jump.target for jump in jumps}
        remove = [each for each in remove if each.base != "FORWARD" or each.target not in kept]
        jumps = [each for each in jumps if each.base != "FORWARD" or each.target not in kept]
    return TableChange(
        table=table,
        remove=tuple(remove),
        create=create,
        chains=wanted.chains,
        insert=tuple(jumps),
        delete=tuple(delete),
    )


def _in_forward_once(observed: ObservedTable) -> set[str]:
    targets = Counter(each.target for each in observed.jumps if each.base == "FORWARD")
    return {target for target, count in targets.items() if count == 1}


def _without_comment(jump: BaseJump) -> BaseJump:
    rule = Rule(target=Jump(jump.target))
    return BaseJump(base=jump.base, rule=rule, first=jump.first)


def written(observed: ObservedTable, change: TableChange) -> ObservedTable:
    """What stands after a change of chains alone, as far as that is known without reading."""
    gone = set(change.delete)
    own = {name: digest for name, digest in observed.own.items() if name not in gone}
    own |= {chain.name: f"{len(chain.rules)}:" for chain in change.chains}
    return replace(observed, own=own)


def unread(observed: ObservedTable) -> list[str]:
    """Chains of which only the number of rules is known."""
    return [name for name, digest in observed.own.items() if digest.endswith(":")]


def learned(observed: ObservedTable, now: Map[str, str]) -> ObservedTable:
    """With the digests that were read since, where they do not contradict."""
    own = {
        name: now[name] if digest.endswith(":") and _same(digest, now.get(name, "")) else digest
        for name, digest in observed.own.items()
    }
    return replace(observed, own=own)


def _same(expected: str, now: str) -> bool:
    return now.startswith(expected) if expected.endswith(":") else now == expected


def drifted(expected: ObservedTable, now: ObservedTable, *, keep_order: bool = True) -> bool:
    """Whether somebody else changed what is ours: a chain, a jump, or who comes first."""
    return (
        expected.own.keys() != now.own.keys()
        or not all(_same(digest, now.own[name]) for name, digest in expected.own.items())
        or _standing(expected, keep_order) != _standing(now, keep_order)
    )


def stands(wanted: TableRules, observed: ObservedTable, *, keep_order: bool = True) -> bool:
    """Whether the table has the shape of what was written: chains, numbers of rules, jumps, and,
    with `keep_order`, who comes first in FORWARD.

    It tells an edit that slipped in between our write and the read after it, without comparing
    our words with the kernel's.
    """
    sizes = {name: digest.partition(":")[0] for name, digest in observed.own.items()}
    jumps = sorted((jump.base, jump.target) for jump in wanted.jumps)
    first = [each.target for each in wanted.jumps if each.first and each.base == "FORWARD"]
    in_forward = [each for each in observed.jumps if each.base == "FORWARD"]
    seen = [(each.base, each.target) for each in observed.jumps]
    ours = sorted(each for each in seen if each[1] != DOCKER_USER)
    return (
        sizes == {chain.name: str(len(chain.rules)) for chain in wanted.chains}
        and ours == [each for each in jumps if each[1] != DOCKER_USER]
        and all(each in seen for each in jumps)
        and (
            not keep_order
            or first == [each.target for each in in_forward if each.position < len(first)]
        )
    )


def _standing(observed: ObservedTable, keep_order: bool) -> list[tuple[str, int, str, str]]:
    """Jumps as far as their place matters: in FORWARD it does, elsewhere only that they stand."""
    placed = ("FORWARD",) if keep_order else ()
    return sorted(
        (each.base, each.position if each.base in placed else 0, each.target, each.text)
        for each in observed.jumps
    )
