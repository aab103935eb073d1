"""Tables, colours and escaped names."""

from __future__ import annotations

from ipv6natd.system.terminal import Colour, Screen, pairs, printable, table, width

COLOURED = Screen(colour=True)


def test_width_counts_columns_not_characters() -> None:
    texts = ("abc", "容器", "e\u0301", "", COLOURED.paint("ok", Colour.GOOD))
    assert [width(text) for text in texts] == [3, 4, 1, 0, 2]
    rows = [{"A": "容器", "B": "x"}, {"A": "y", "B": ""}]
    assert table(rows, legend=False) == "容器 x\ny    -\n"


def test_table_with_colours_keeps_its_columns() -> None:
    rows = [{"A": COLOURED.paint("ok", Colour.GOOD), "B": "x"}, {"A": "y", "B": "z"}]
    assert table(rows) == "A  B\n\x1b[32mok\x1b[0m x\ny  z\n"


def test_table_underlines_only_the_header() -> None:
    assert table([{"A": "b"}], screen=COLOURED) == "\x1b[4mA\x1b[0m\nb\n"
    assert table([{"A": "b"}], screen=COLOURED, legend=False) == "b\n"


def test_table_folds_the_last_column() -> None:
    screen = Screen(columns=30)
    rows = [{"A": "name", "B": "one two three four five six seven"}]
    assert table(rows, legend=False, screen=screen) == (
        "name one two three four five\n     six seven\n"
    )
    narrow = Screen(columns=12)
    assert table(rows, legend=False, screen=narrow).count("\n") == 1


def test_pairs_without_a_name_continue_the_value_above() -> None:
    assert pairs([("State", "x"), ("A", "b"), ("", "c")]) == "State: x\n    A: b\n       c\n"


def test_printable_keeps_ordinary_text() -> None:
    assert printable("käse 容器 'x' \\n") == "käse 容器 'x' \\n"
    assert printable("\x00\x7f\x9b\n\u2028\ud800") == r"\x00\x7f\x9b\n\u2028\ud800"
