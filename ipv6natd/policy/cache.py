"""Answers that are kept while the very object that was asked about stays.

What is computed with them is what would be computed without: they save time, and decide nothing.
Where one thing of ten thousand came or went, nothing is done for each of the others but to see that
it is the same object at the same place, by what needs no step of Python's own for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from ipv6natd.model import common_ends

K = TypeVar("K")
V = TypeVar("V")


class IdentityCache(Generic[K, V]):
    """A pure function's answers, from one turn to the next."""

    def __init__(self) -> None:
        self._key: object = None
        self._items: list[K] = []
        self._results: list[V] = []

    def map(self, items: Iterable[K], function: Callable[[K], V], *, key: object = None) -> list[V]:
        """`function` of each item, in their order; the list is not to be changed.

        With another key than in the call before everything is computed anew; an item that is not
        in this call is forgotten.
        """
        new = list(items)
        old, results = (self._items, self._results) if key == self._key else ([], [])
        head, tail = common_ends(old, new)
        # The old list holds the items, so that an id cannot be another's.
        known = dict(zip(map(id, old[head : len(old) - tail]), results[head:], strict=False))
        changed = new[head : len(new) - tail]
        between = [known[id(item)] if id(item) in known else function(item) for item in changed]
        self._results = [*results[:head], *between, *results[len(results) - tail :]]
        self._items, self._key = new, key
        return self._results
