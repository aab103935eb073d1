"""The page of a failed run."""

from __future__ import annotations

from tests.stress.soak.report import wrongs


def test_similar_failures_are_one_line() -> None:
    closed = [f"long run, nft: closed, and answered: r{n} at fd00:{n:x}::2" for n in range(159)]
    page = wrongs([*closed, "long run, nft: there is a traceback in the log"])
    assert page.splitlines() == [
        "**This run failed:**",
        "",
        "- long run, nft: closed, and answered: r0 at fd00:0::2; 158 more of this kind",
        "- long run, nft: there is a traceback in the log",
    ]
