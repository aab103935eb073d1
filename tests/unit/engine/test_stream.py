"""The rows of a JSON list, from pieces of any size."""

from __future__ import annotations

import json

import pytest

from ipv6natd.engine.stream import json_rows

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
