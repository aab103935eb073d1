"""Answers that are kept while the very object that was asked about stays.

What is computed with them is what would be computed without: they save time, and decide nothing.
Where one thing of ten thousand came or went, nothing is done for each of the others but to see that
it is the same object at the same place, by what needs no step of Python's own for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from ipv6natd.model import same_ends

K = TypeVar("K")
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """A pure function's answers, from one turn to the next."""

    def __init__(self) -> None:
        self._basis: object = None
        self._things: list[K] = []
        self._answers: list[V] = []

    def all(
        self, things: Iterable[K], answer: Callable[[K], V], *, basis: object = None
    ) -> list[V]:
        """`answer` of each thing, in their order; the list is not to be changed.

        With another basis than in the turn before everything is answered anew; what is not asked
        about this time is forgotten.
        """
        new = list(things)
        old, answers = (self._things, self._answers) if basis == self._basis else ([], [])
        head, tail = same_ends(old, new)
        # The old list holds the things, so that an id cannot be another's.
        known = dict(zip(map(id, old[head : len(old) - tail]), answers[head:], strict=False))
        asked = new[head : len(new) - tail]
        between = [known[id(each)] if id(each) in known else answer(each) for each in asked]
        self._answers = [*answers[:head], *between, *answers[len(answers) - tail :]]
        self._things, self._basis = new, basis
        return self._answers
