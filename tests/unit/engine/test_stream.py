"""The rows of a JSON list, from pieces of any size."""

from __future__ import annotations

import json
import re
import threading
import tracemalloc
from collections.abc import Iterator

import pytest

from ipv6natd.engine import stream
from ipv6natd.engine.stream import LongRow, TooLong, bounded, json_lines, json_rows, json_value

ROWS = [{"Id": "a", "Names": ["/é€😀"], "n": 12}, 345, None, "x,]", [], {"long": "y" * 500}, -1.5]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1 << 16])
@pytest.mark.parametrize("rows", [ROWS, [], [7]])
def test_json_rows_yields_all_rows_for_pieces_of_any_size(rows: list[object], size: int) -> None:
    for text in (json.dumps(rows), json.dumps(rows, indent=1, ensure_ascii=False) + "\n"):
        data = text.encode()
        assert (
            list(json_rows(data[start : start + size] for start in range(0, len(data), size)))
            == rows
        )


@pytest.mark.parametrize(
    "text", ["", "  ", "{}", "null", '[{"a": 1}', '[{"a": 1},', "[1, 2", "[tru]", "[1] x", "\xff"]
)
def test_json_rows_without_a_complete_list_raises(text: str) -> None:
    with pytest.raises(ValueError, match=r"list|decode"):
        list(json_rows([text.encode("latin-1")]))


def test_json_rows_yields_a_row_before_the_next_piece() -> None:
    pieces = iter([b'[{"a": 1}, ', b'{"b": 2}]'])
    rows = json_rows(pieces)
    assert next(rows) == {"a": 1}
    assert list(pieces) == [b'{"b": 2}]']


# Limits.

NASTY = '\\"}]{[,\n\\\\' * 30
"""The text of a label that looks like the end of its row."""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_LENGTH", 200)
    monkeypatch.setattr(stream, "MAX_EVENT", 100)
    monkeypatch.setattr(stream, "_LONG", 50)


def cut(value: object, size: int) -> list[bytes]:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1 << 16])
def test_json_rows_skips_a_row_that_is_too_long(size: int) -> None:
    long = {"Id": "b", "Labels": {"a": [NASTY], NASTY: {}}}
    rows = [{"Id": "a"}, long, {"Id": "c"}, [[], [NASTY]], 5, long]
    if size < 1000:
        kept = [
            row if not isinstance(row, LongRow) else "long" for row in json_rows(cut(rows, size))
        ]
        assert kept == [{"Id": "a"}, "long", {"Id": "c"}, "long", 5, "long"]
        (first, *_) = [row for row in json_rows(cut(rows, size)) if isinstance(row, LongRow)]
        assert first.start.startswith('{"Id": "b", ')
    else:
        assert list(json_rows(cut(rows, size))) == rows  # it was in memory already


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("size", [1, 7, 100])
def test_json_rows_with_an_unfinished_long_row_raises(size: int) -> None:
    data = json.dumps([{"a": NASTY}]).encode()
    for end in range(250, len(data) - 1, 31):
        with pytest.raises(ValueError, match="incomplete"):
            list(json_rows(cut(data[:end], size)))
    with pytest.raises(TooLong, match="a row of the list is longer than"):
        list(json_rows(cut(["x" * 300], size)))


@pytest.mark.usefixtures("short")
def test_json_value_and_whole_answer_are_bounded() -> None:
    for size in (1, 7, 100, 1000):
        assert json_value(cut({"a": 1, "b": 2}, size)) == {"a": 1, "b": 2}
        assert json_value(cut({"a": "x" * 150, "b": 2}, size), ("b", "c")) == {"b": 2}
        assert json_value(cut([1], size), ("a",)) == [1]
        assert bounded(cut(b"x" * 200, size)) == b"x" * 200
        for read in (json_value, bounded):
            with pytest.raises(TooLong, match="the answer is longer than"):
                read(cut({"a": "x" * 200}, size))
    with pytest.raises(ValueError, match=re.escape("Expecting")):
        json_value([b""])


@pytest.mark.parametrize("value", ["", "x"])
def test_many_short_labels_take_bounded_memory(value: str) -> None:
    """In CPython, 16 times their length."""
    count = stream.MAX_LENGTH // len(f'"a1234567":"{value}",') - 10
    data = json.dumps({f"a{number:07}": value for number in range(count)}, separators=(",", ":"))
    assert len(data) < stream.MAX_LENGTH
    tracemalloc.start()
    try:
        assert len(json_value(cut(data.encode(), 1 << 16))) == count
        assert tracemalloc.get_traced_memory()[1] < 80 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("short")
def test_long_answers_are_read_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many containers can have the labels of one image."""
    monkeypatch.setattr(stream, "_LONG_TIMEOUT", 0.01)
    answer = cut({"a": "x" * 100}, 10)
    pieces = iter(answer)
    failures: list[str] = []

    def read_another() -> None:
        assert json_value([b"{}"]) == {}
        try:
            json_value(answer)
        except ValueError as error:
            failures.append(str(error))

    def paused() -> Iterator[bytes]:
        for number, piece in enumerate(pieces):
            if number == len(answer) - 1:
                thread = threading.Thread(target=read_another)
                thread.start()
                thread.join()
            yield piece

    assert json_value(paused()) == {"a": "x" * 100}
    assert failures == ["it waits for other long answers"]
    assert json_value(answer) == {"a": "x" * 100}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("size", [1, 2, 7, 100, 1 << 16])
def test_json_lines_drops_the_attributes_of_a_long_event(size: int) -> None:
    short = {"Type": "network", "Actor": {"ID": "x", "Attributes": {"container": "é"}}}
    long = {"Type": "container", "Actor": {"ID": "y", "Attributes": {NASTY: NASTY}}, "time": 1}
    text = "\n".join(json.dumps(it, separators=(",", ":")) for it in (short, long, short, long))
    without = {"Type": "container", "Actor": {"ID": "y", "Attributes": {}}}
    assert list(json_lines(cut(text.encode(), size))) == [short, without, short, without]
    assert list(json_lines(cut(b"\n\n", size))) == []
    for bad in (b"{]\n", json.dumps({"Type": NASTY}).encode()):
        with pytest.raises(ValueError, match=r"Expecting|an event is too long"):
            list(json_lines(cut(bad, size)))
