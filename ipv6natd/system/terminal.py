"""Formats text for terminals: tables in the style of systemctl, colours, escaped names.

Pure; `ctl` decides what is shown.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

_MIN_FOLD_WIDTH = 24
"""Minimum width in columns to fold the last cell; narrower text would be unreadable."""
_ESCAPES = re.compile(r"\x1b\[\d+m")


class Colour(StrEnum):
    """The meaning of a colour; the value is its SGR code."""

    GOOD = "32"
    BAD = "31"
    WARNING = "33"
    HEADER = "4"
    NAME = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """The properties of the output; the default is a pipe or a file."""

    colour: bool = False
    columns: int = 0
    """The width; 0 if lines can have any length."""

    def paint(self, text: str, colour: Colour) -> str:
        """The text in this colour, if the output has colours."""
        return f"\x1b[{colour}m{text}\x1b[0m" if self.colour and text else text


PIPE = Screen()


def printable(text: str) -> str:
    r"""The text with all unprintable characters escaped: "\x1b", "\n", "\u202e"."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def width(text: str) -> int:
    """The columns of a text: two for a wide character, none for a combining one or a colour."""
    if text.isprintable() and text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in _ESCAPES.sub("", text)
    )


def table(rows: Sequence[Mapping[str, str]], *, legend: bool = True, screen: Screen = PIPE) -> str:
    """Rows (name of the column -> cell) without borders; without `legend`, without a header.

    Cells must be safe text: `printable`, then painted. The last column is folded if it is wider
    than the screen.
    """
    lines = [[cell or "-" for cell in row.values()] for row in rows]
    if legend and rows:
        lines.insert(0, list(rows[0]))
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    texts = [_line(line, widths, screen) for line in lines]
    if legend and texts:
        texts[0] = screen.paint(texts[0].removesuffix("\n"), Colour.HEADER) + "\n"
    return "".join(texts)


def _line(cells: Sequence[str], widths: Sequence[int], screen: Screen) -> str:
    padded = [cell + " " * (size - width(cell)) for cell, size in zip(cells, widths, strict=True)]
    indent = sum(widths[:-1]) + len(widths) - 1
    padded[-1] = folded(cells[-1], indent, screen)
    return " ".join(padded).rstrip() + "\n"


def folded(text: str, indent: int, screen: Screen) -> str:
    """The text in lines no wider than the screen; all but the first are indented."""
    available = screen.columns - indent
    if not screen.columns or width(text) <= available or available < _MIN_FOLD_WIDTH:
        return text
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and width(lines[-1]) + 1 + width(word) > available:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return ("\n" + " " * indent).join(lines)


def pairs(items: Sequence[tuple[str, str]], screen: Screen = PIPE) -> str:
    """A "name: value" for each line, with aligned colons, as in `systemctl status`.

    A value without a name continues the value above. Values must be safe text, as in `table`.
    """
    longest = max((width(name) for name, _ in items), default=0)
    return "".join(
        " " * (longest - width(name))
        + (f"{name}: " if name else "  ")
        + folded(value, longest + 2, screen)
        + "\n"
        for name, value in items
    )
