"""Parses a long JSON array row by row; the complete array is never in memory."""

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
    """Yield the rows of a JSON array. Raises ValueError if the bytes are not a complete array."""
    decode = getincrementaldecoder("utf-8")().decode
    text, pending, started = "", "", False
    for piece in chain(pieces, [b""]):
        pending += decode(piece)
        if piece and len(pending) < len(text):
            continue  # a very long row: do not parse it again with every piece
        text, pending = text + pending, ""
        if not started and (text := text.lstrip()):
            if text[0] != "[":
                raise ValueError("the answer is not a list")
            text, started = text[1:], True
        end = yield from _complete_rows(text)
        text = text[end:]
    if not started or text.strip() != "]":
        raise ValueError("the list is incomplete")


def _complete_rows(text: str) -> Generator[Any, None, int]:
    """Yield the complete rows in the text; return the position of the incomplete rest."""
    raw_decode = json.JSONDecoder().raw_decode
    position = 0
    while True:
        separators = _SEPARATORS.match(text, position)
        start = separators.end() if separators else position
        try:
            row, end = raw_decode(text, start)
        except json.JSONDecodeError:
            return start
        except RecursionError:
            raise ValueError("the list is nested too deeply") from None
        if not _ROW_END.match(text, end):
            return start  # the number may continue: "-1.5e" and then "3"
        yield row
        position = end
