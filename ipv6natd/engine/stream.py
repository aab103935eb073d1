"""A long JSON array, row by row, as its bytes arrive: the whole of it never stands in memory."""

from __future__ import annotations

import json
import re
from codecs import getincrementaldecoder
from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from typing import Any

_SEPARATORS = re.compile(r"[\s,]*")
_ROW_END = re.compile(r"\s*[,\]]")


def json_rows(pieces: Iterable[bytes]) -> Iterator[Any]:
    """The rows of the array that these bytes are. Raises ValueError where they are none."""
    decode = getincrementaldecoder("utf-8")().decode
    text, more, begun = "", "", False
    for piece in chain(pieces, [b""]):
        more += decode(piece)
        if piece and len(more) < len(text):
            continue  # of a very long row: not to be tried again with every piece
        text, more = text + more, ""
        if not begun and (text := text.lstrip()):
            if text[0] != "[":
                raise ValueError("the answer is not a list")
            text, begun = text[1:], True
        at = yield from _whole_rows(text)
        text = text[at:]
    if not begun or text.strip() != "]":
        raise ValueError("the list breaks off")


def _whole_rows(text: str) -> Generator[Any, None, int]:
    """The rows that end in this text; returns where the rest begins."""
    raw_decode = json.JSONDecoder().raw_decode
    at = 0
    while True:
        between = _SEPARATORS.match(text, at)
        start = between.end() if between else at
        try:
            row, end = raw_decode(text, start)
        except json.JSONDecodeError:
            return start
        except RecursionError:
            raise ValueError("the list is nested too deeply") from None
        if not _ROW_END.match(text, end):
            return start  # it may go on: "-1.5e" and then "3"
        yield row
        at = end
