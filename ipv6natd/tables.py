"""Text for people: tables as systemctl makes them, and names that cannot move the cursor.

Pure; what is shown and in which order is ctl's business.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def printable(text: str) -> str:
    r"""The text with everything escaped that a terminal would act on: "\x1b", "\n", "\u202e"."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode()
        for each in text
    )


def width(text: str) -> int:
    """The columns that printable text takes: two for wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 1 + (unicodedata.east_asian_width(each) in "WF")
        for each in text
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, legend: bool = True) -> str:
    """Columns without borders; `legend` False leaves out the header."""
    lines = [[printable(cell) or "-" for cell in row] for row in rows]
    if legend:
        lines.insert(0, list(header))
    widths = [max((width(line[i]) for line in lines), default=0) for i in range(len(header))]
    return "".join(_line(line, widths) for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell + " " * (full - width(cell)) for cell, full in zip(cells, widths, strict=True))
    return " ".join(padded).rstrip() + "\n"


def pairs(items: Sequence[tuple[str, str]]) -> str:
    """One "name: value" a line, the colons below each other, as `systemctl status` has them."""
    full = max((width(name) for name, _ in items), default=0)
    return "".join(
        f"{' ' * (full - width(name))}{name}: {printable(value)}\n" for name, value in items
    )
