"""`backend = "auto"` follows the variant with Docker's IPv4 chains."""

from __future__ import annotations

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
    monkeypatch.setattr(variant, "variant_tool", tool)
    monkeypatch.setattr(variant, "detect_backend", lambda: NFT)
    assert chosen_backend("auto") is chosen
    assert chosen_backend("legacy") is LEGACY
