"""Text for people: tables as systemctl makes them, colours, names that cannot move the cursor.

Pure; what is shown and in which order is ctl's business.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

_MIN_FOLD_WIDTH = 24
"""Columns below which a last cell is not folded: it would be unreadable."""
_ESCAPES = re.compile(r"\x1b\[\d+m")


class Colour(StrEnum):
    """What a word says beside its letters."""

    GOOD = "32"
    BAD = "31"
    WARNING = "33"
    HEADER = "4"
    NAME = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """Where text goes to; the default is a pipe or a file."""

    colour: bool = False
    columns: int = 0
    """0 where lines may be of any length."""

    def paint(self, text: str, colour: Colour) -> str:
        """The text in that colour, where there are colours."""
        return f"\x1b[{colour}m{text}\x1b[0m" if self.colour and text else text


PIPE = Screen()


def printable(text: str) -> str:
    r"""The text with everything escaped that a terminal would act on: "\x1b", "\n", "\u202e"."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode()
        for each in text
    )


def width(text: str) -> int:
    """The columns that text takes: two for wide characters, none for combining ones or colours."""
    if text.isprintable() and text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(each) else 1 + (unicodedata.east_asian_width(each) in "WF")
        for each in _ESCAPES.sub("", text)
    )


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    legend: bool = True,
    screen: Screen = PIPE,
) -> str:
    """Columns without borders; `legend` False leaves out the header.

    A cell is already safe text: `printable`, or painted after that. On a screen the last column is
    folded where it would be cut.
    """
    lines = [[cell or "-" for cell in row] for row in rows]
    if legend:
        lines.insert(0, list(header))
    widths = [max((width(line[i]) for line in lines), default=0) for i in range(len(header))]
    texts = [_line(line, widths, screen) for line in lines]
    if legend and texts:
        texts[0] = screen.paint(texts[0].removesuffix("\n"), Colour.HEADER) + "\n"
    return "".join(texts)


def _line(cells: Sequence[str], widths: Sequence[int], screen: Screen) -> str:
    padded = [cell + " " * (full - width(cell)) for cell, full in zip(cells, widths, strict=True)]
    indent = sum(widths[:-1]) + len(widths) - 1
    padded[-1] = folded(cells[-1], indent, screen)
    return " ".join(padded).rstrip() + "\n"


def folded(text: str, indent: int, screen: Screen) -> str:
    """The text, its further lines indented so that none is wider than the screen."""
    room = screen.columns - indent
    if not screen.columns or width(text) <= room or room < _MIN_FOLD_WIDTH:
        return text
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and width(lines[-1]) + 1 + width(word) > room:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return ("\n" + " " * indent).join(lines)


def pairs(items: Sequence[tuple[str, str]], screen: Screen = PIPE) -> str:
    """One "name: value" a line, the colons below each other, as `systemctl status` has them.

    Without a name the value goes on below the one before. Values are safe text, as in `table`.
    """
    full = max((width(name) for name, _ in items), default=0)
    return "".join(
        " " * (full - width(name))
        + (f"{name}: " if name else "  ")
        + folded(value, full + 2, screen)
        + "\n"
        for name, value in items
    )
