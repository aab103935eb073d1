"""The reads of the engine's rules with tools that fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipv6natd.firewall import leftovers
from ipv6natd.firewall.backend import FirewallError

RULE = '{"nftables": [{"rule": {"expr": [{"jump": {"target": "filter-forward-in__br-x"}}]}}]}'


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with the only tools of the host."""

    def which(name: str) -> str | None:
        return str(tmp_path / name) if (tmp_path / name).exists() else None

    monkeypatch.setattr(leftovers, "which", which)
    monkeypatch.setattr(leftovers, "existing_tables", lambda: frozenset({"nat"}))
    return tmp_path


def add_tool(folder: Path, name: str, *, output: str = "", error: str = "", status: str) -> None:
    (folder / "said").mkdir(exist_ok=True)
    (folder / "said" / name).write_text(output)
    (folder / name).write_text(
        f"#!/bin/sh\ncat '{folder}/said/{name}'\necho '{error}' >&2\n{status}\n"
    )
    (folder / name).chmod(0o755)


def test_rules_of_the_engine_are_read_with_every_tool_of_the_host(tools: Path) -> None:
    assert leftovers.read_engine_rules().bridges == frozenset()
    add_tool(tools, "nft", output=RULE, status="exit 0")
    assert leftovers.read_engine_rules().bridges == {"br-x"}


@pytest.mark.parametrize(
    "error",
    [
        "Error: No such file or directory",
        "Error: cache initialization failed: Protocol not supported",
        "ip6tables-nft-save: Failed to initialize nft: Protocol not supported",
    ],
)
@pytest.mark.parametrize("tool", ["nft", "ip6tables-nft-save"])
def test_missing_table_is_empty(tools: Path, tool: str, error: str) -> None:
    add_tool(tools, tool, error=error, status="exit 1")
    assert leftovers.read_engine_rules().bridges == frozenset()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("Error: Operation not permitted", "exit 1"),
        ("cache initialization failed: Operation not permitted", "exit 1"),
        ("nft: netlink_delinearize.c: Assertion failed", "kill -ABRT $$"),
        ("", "kill -SEGV $$"),
    ],
)
@pytest.mark.parametrize("tool", ["nft", "ip6tables-nft-save", "ip6tables-legacy-save"])
def test_tool_that_fails_is_an_error_and_not_an_empty_table(
    tools: Path, tool: str, error: str, status: str
) -> None:
    """Q13."""
    add_tool(tools, tool, output=RULE, error=error, status=status)
    with pytest.raises(FirewallError):
        leftovers.read_engine_rules()


@pytest.mark.parametrize("output", ["{", "[]", "table ip6 x {}", '{"nftables": 5}', "[" * 100_000])
def test_output_of_nft_that_is_something_else_is_an_error(tools: Path, output: str) -> None:
    add_tool(tools, "nft", output=output, status="exit 0")
    with pytest.raises(FirewallError, match="cannot read the output of nft"):
        leftovers.read_engine_rules()
