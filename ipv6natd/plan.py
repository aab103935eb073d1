"""(applied, wanted, observed) -> Plan; Plan -> restore text; save text -> Observed.

The kernel's state enters the project here and nowhere else. Rules are compared ours with ours (what
to write) and the kernel's with the kernel's (did somebody else write), never across: the kernel
words rules in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ipv6natd.ruleset import BaseJump, Chain, Table


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedJump:
    """A rule in a chain that is not ours, with one of our chains or DOCKER-USER as its target.

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
    """Name of each chain with our prefix -> digest over its rules in the backend's wording."""
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
