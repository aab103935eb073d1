"""The table: each measurement with its limit and its verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

HEAD = ("measurement", "variant", "limit", "measured", "compared with", "verdict")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One measurement. `must` is its limit, `beside` the figure for comparison."""

    what: str
    variant: str
    must: float
    found: float
    unit: str
    beside: str = ""

    @property
    def met(self) -> bool:
        """True if the figure does not exceed its limit."""
        return self.found <= self.must

    def cells(self) -> tuple[str, ...]:
        """The cells as text, in the order of HEAD."""
        form = FORMS[self.unit]
        verdict = "met" if self.met else "MISSED"
        return (self.what, self.variant, form(self.must), form(self.found), self.beside, verdict)


FORMS: dict[str, Callable[[float], str]] = {
    "s": lambda value: f"{value:.2f} s",
    "ms": lambda value: f"{value * 1000:.0f} ms",
    "ratio": lambda value: f"{value:.2f} x",
    "MB": lambda value: f"{value:.1f} MB",
    "%": lambda value: f"{value * 100:.2f} %",
    "each": lambda value: f"{value:.1f}",
    "": lambda value: f"{value:.0f}",
}


def text(lines: Iterable[Line]) -> str:
    """The table for a terminal."""
    rows = [HEAD, *(line.cells() for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def markdown(lines: Iterable[Line]) -> Iterator[str]:
    """The table for docs/performance."""
    yield f"| {' | '.join(HEAD)} |"
    yield f"|{'---|' * len(HEAD)}"
    for line in lines:
        yield f"| {' | '.join(line.cells())} |"
