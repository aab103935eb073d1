"""`backend = "auto"` follows the variant with Docker's IPv4 chains."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.netfilter.rules import Backend
from ipv6natd.sync import variant
from ipv6natd.sync.variant import chosen_backend

NFT, LEGACY = Backend


@pytest.mark.parametrize(
    ("docker", "tools", "chosen"),
    [
        ({"legacy"}, {NFT, LEGACY}, LEGACY),
        ({"nft"}, {NFT, LEGACY}, NFT),
        # Before the engine has started, and with chains of an earlier one.
        (set(), {NFT, LEGACY}, NFT),
        ({"nft", "legacy"}, {NFT, LEGACY}, NFT),
        ({"legacy"}, {NFT}, NFT),
    ],
)
def test_auto_is_the_variant_of_docker_or_that_of_the_tools(
    monkeypatch: pytest.MonkeyPatch, docker: set[str], tools: set[Backend], chosen: Backend
) -> None:
    def tool(backend: Backend, *_: str) -> str:
        if backend not in tools:
            raise FirewallError("this host has no such tool")
        return "/usr/sbin/tool"

    monkeypatch.setattr(variant, "docker_ipv4_variants", lambda: frozenset(docker))
    monkeypatch.setenv("IPV6NATD_CONTAINER", "1")
    monkeypatch.setattr(variant, "variant_tool", tool)
    monkeypatch.setattr(variant, "detect_backend", lambda: NFT)
    assert chosen_backend("auto") is chosen
    assert chosen_backend("legacy") is LEGACY


@pytest.mark.parametrize("runs", [True, False])
def test_chains_of_an_engine_that_does_not_run_count_for_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runs: bool
) -> None:
    """`ip6tables` may be another one since the engine wrote them."""
    monkeypatch.delenv("IPV6NATD_CONTAINER", raising=False)
    monkeypatch.setattr(variant, "_PID_FILE", tmp_path if runs else tmp_path / "none")
    monkeypatch.setattr(variant, "docker_ipv4_variants", lambda: frozenset({"nft"}))
    monkeypatch.setattr(variant, "variant_tool", lambda *_: "/usr/sbin/tool")
    monkeypatch.setattr(variant, "detect_backend", lambda: LEGACY)
    assert chosen_backend("auto") is (NFT if runs else LEGACY)
