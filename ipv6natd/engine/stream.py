"""Parses the engine's answers piece by piece, in bounded memory: a long JSON array row by row,
events, and single values. An image can have labels of any length, and they are in all of these.
"""

from __future__ import annotations

import json
import re
import threading
from codecs import getincrementaldecoder
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any, NamedTuple

MAX_LENGTH = 4 << 20
"""Bytes of an answer, or characters of a row of a list. Any image can have many short labels, which
take 16 times their length in memory. A container with 25,000 published ports has this length."""
MAX_EVENT = 1 << 20
"""Bytes of an event; of a longer one, the attributes are not read."""
_LONG = 1 << 18
"""Bytes. Longer answers are read one at a time: the JSON takes several times their memory."""
_LONG_TIMEOUT = 30.0
"""Seconds to wait for other long answers: half of the time of a call, which goes on meanwhile."""
_one_long = threading.Lock()

_SEPARATORS = re.compile(r"[\s,]*")
_ROW_END = re.compile(r"\s*[,\]]")
_BRACKETS = re.compile(r'["\[\]{}]')
_STRING = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)
"""The rest of a string, up to its quote or to a backslash that ends the text."""
_ATTRIBUTES = b'"Attributes":{'


class TooLong(ValueError):
    """An answer or a row is longer than MAX_LENGTH; the text says so."""


class LongRow(NamedTuple):
    """Replaces a row of an array that is longer than MAX_LENGTH."""

    start: str
    """Its first characters."""


def json_rows(pieces: Iterable[bytes]) -> Iterator[Any]:
    """Yield the rows of a JSON array. Raises ValueError if the bytes are not a complete array."""
    decode = getincrementaldecoder("utf-8")().decode
    text, pending, started = "", "", False
    skipped: _SkippedRow | None = None
    for piece in chain(pieces, [b""]):
        pending += decode(piece)
        if piece and len(pending) < min(len(text), MAX_LENGTH - len(text)):
            continue  # a very long row: do not parse it again with every piece
        text, pending = text + pending, ""
        if skipped:
            text = skipped.rest(text)
            skipped = None if skipped.ended else skipped
        if not started and (text := text.lstrip()):
            if text[0] != "[":
                raise ValueError("the answer is not a list")
            text, started = text[1:], True
        end = yield from _complete_rows(text)
        text = text[end:]
        if len(text) > MAX_LENGTH:
            yield LongRow(text[:200])
            row = _SkippedRow(text)
            skipped, text = None if row.ended else row, ""
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


class _SkippedRow:
    """Finds the end of an object or array whose text is not kept."""

    def __init__(self, start: str) -> None:
        """`start` is the incomplete beginning. Raises ValueError for other values."""
        if start[0] not in "{[":
            raise TooLong(_too_long("a row of the list"))
        self.ended = False
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.rest(start)

    def rest(self, text: str) -> str:
        """Read more text; return what follows the end, "" before the end."""
        position, self._escaped = (1 if self._escaped and text else 0), self._escaped and not text
        while position < len(text):
            if self._in_string:
                run = _STRING.match(text, position)
                position = (run.end() if run else position) + 1
                self._in_string = text[position - 1 : position] != '"'
                self._escaped = text[position - 1 : position] == "\\"
            elif mark := _BRACKETS.search(text, position):
                position = mark.end()
                self._in_string = mark[0] == '"'
                self._depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(mark[0], 0)
                if self._depth == 0:
                    self.ended = True
                    return text[position:]
            else:
                break
        return ""


def json_value(pieces: Iterable[bytes], keys: Iterable[str] = ()) -> Any:
    """The JSON value of an answer; of an object only these keys, all by default.

    Raises ValueError: TooLong, or for other bytes than JSON.
    """
    data = bytearray()
    with ExitStack() as stack:
        for piece in pieces:
            if len(data) <= _LONG < len(data) + len(piece):
                stack.enter_context(_only_long_answer())
            _extend(data, piece)
        value = json.loads(data)
        if isinstance(value, dict) and keys:
            return {key: value[key] for key in keys if key in value}
        return value


def bounded(pieces: Iterable[bytes]) -> bytes:
    """The complete answer. Raises TooLong."""
    data = bytearray()
    for piece in pieces:
        _extend(data, piece)
    return bytes(data)


def _extend(data: bytearray, piece: bytes) -> None:
    """Raises TooLong."""
    data += piece
    if len(data) > MAX_LENGTH:
        data.clear()  # the traceback of the error would keep it
        raise TooLong(_too_long("the answer"))


def json_lines(pieces: Iterable[bytes]) -> Iterator[Any]:
    """Yield the events of a stream, each in a line. Raises ValueError for a line without JSON.

    An event has the labels of its container as attributes. If they are too long, the event comes
    without attributes: no rule depends on those of a container.
    """
    line, length = bytearray(), 0
    for piece in chain(pieces, [b"\n"]):
        *ends, rest = piece.split(b"\n")
        for end in ends:
            line += end[: MAX_EVENT - len(line)]
            if line.strip():
                yield json.loads(line if length + len(end) <= MAX_EVENT else _shortened(line))
            line, length = bytearray(), 0
        line += rest[: MAX_EVENT - len(line)]
        length += len(rest)


def _shortened(start: bytearray) -> bytearray:
    """An event without its attributes, which Docker writes after all that is needed."""
    head, found, _ = start.partition(_ATTRIBUTES)
    if not found:
        raise TooLong("an event is too long")
    return head + found + b"}}}"


def _too_long(what: str) -> str:
    return f"{what} is longer than {MAX_LENGTH >> 20} MB"


@contextmanager
def _only_long_answer() -> Iterator[None]:
    if not _one_long.acquire(timeout=_LONG_TIMEOUT):
        raise ValueError("it waits for other long answers")
    try:
        yield
    finally:
        _one_long.release()
