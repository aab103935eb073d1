"""Answers that are kept while the very object that was asked about stays.

What is computed with them is what would be computed without: they save time, and decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """A pure function's answers, from one turn to the next."""

    def __init__(self, key: Callable[[K], object] = id) -> None:
        """`key` tells what is the same thing as in the turn before."""
        self._key = key
        self._basis: object = None
        self._known: dict[object, tuple[K, V]] = {}

    def all(
        self, things: Iterable[K], answer: Callable[[K], V], *, basis: object = None
    ) -> list[V]:
        """`answer` of each thing, in their order. With another basis than in the turn before
        everything is answered anew; what is not asked about this time is forgotten."""
        known = self._known if basis == self._basis else {}
        kept: dict[object, tuple[K, V]] = {}
        answers: list[V] = []
        for thing in things:
            key = self._key(thing)
            # Holding the thing keeps its id from being another's.
            pair = known.get(key) or (thing, answer(thing))
            kept[key] = pair
            answers.append(pair[1])
        self._known, self._basis = kept, basis
        return answers
