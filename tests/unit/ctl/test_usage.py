"""The words of a command line."""

from __future__ import annotations

import pytest

from ipv6natd.ctl.usage import parse_arguments


@pytest.mark.parametrize(
    ("line", "argument"),
    [
        ("explain web", "web"),
        ("explain --json=short web", "web"),
        ("--no-legend explain web --json", "web"),
        ("explain -- web", "web"),
        ("explain --json=short -- --web", "--web"),
    ],
)
def test_options_and_arguments_come_in_any_order(line: str, argument: str) -> None:
    name, options = parse_arguments(line.split(), {})
    assert (name, options.argument) == ("explain", argument)


@pytest.mark.parametrize("line", ["explain web more", "explain --nonsense web", "status -- -x"])
def test_a_word_too_many_is_wrong_usage(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_arguments(line.split(), {})
    assert caught.value.code == 2
    assert "see ipv6natctl --help" in capsys.readouterr().err
