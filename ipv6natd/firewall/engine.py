"""Reads the engine's own IPv6 rules, wherever it may have put them: either variant, or nft."""

from __future__ import annotations

import subprocess

from ipv6natd.engine_rules import NFT_TABLE, from_nft, from_save, joined
from ipv6natd.firewall import Backend
from ipv6natd.firewall.xtables import present
from ipv6natd.model import EngineRules
from ipv6natd.tools import call, find

TIMEOUT = 30.0


def engine_rules() -> EngineRules:
    """What an engine wrote, in force or left over. What cannot be read counts as not there.

    Blocks. No table is made by reading: legacy is only asked where it has tables.
    """
    tools = [f"ip6tables-{Backend.NFT}-save"]
    if present():
        tools.append(f"ip6tables-{Backend.LEGACY}-save")
    saved = [from_save(_said(tool)) for tool in tools]
    return joined([*saved, from_nft(_said("nft", "list", "table", *NFT_TABLE))])


def _said(name: str, *words: str) -> str:
    path = find(name)
    if path is None:
        return ""
    try:
        done = call([path, *words], timeout=TIMEOUT)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""
