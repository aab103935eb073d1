"""Reads and removes Docker's own IPv6 rules, in both variants of ip6tables and in nft."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.firewall.restore import TOOL_TIMEOUT, RestoreFirewall
from ipv6natd.firewall.xtables import existing_tables
from ipv6natd.model import EngineRules, Network
from ipv6natd.netfilter.docker_rules import (
    NFT_TABLE,
    Leftover,
    engine_rules,
    leftovers_from_save,
    removal_text,
)
from ipv6natd.netfilter.rules import Backend
from ipv6natd.system.process import output_of

NFTABLES = "nftables"


def read_engine_rules() -> EngineRules:
    """The rules of the engine, in force or left over; empty if a tool fails. Blocks."""
    return engine_rules((text for _, text in _read_saves()), _run_nft("list"))


def read_leftovers(networks: Sequence[Network]) -> tuple[Leftover, ...]:
    """All rules and chains of Docker or docker-ipv6nat, also those in force. Blocks."""
    leftovers = [
        leftover
        for backend, text in _read_saves()
        for leftover in leftovers_from_save(backend, text, networks)
    ]
    if _run_nft("list"):
        leftovers.append(Leftover(variant=NFTABLES, table=" ".join(NFT_TABLE)))
    return tuple(leftovers)


def remove_leftovers(leftovers: Sequence[Leftover]) -> None:
    """Remove leftovers, in one transaction a table. Blocks. Raises FirewallError."""
    for backend in Backend:
        of_variant = [leftover for leftover in leftovers if leftover.variant == backend]
        if of_variant:
            RestoreFirewall(backend).restore(removal_text(of_variant))
    if any(leftover.variant == NFTABLES for leftover in leftovers):
        _run_nft("delete")
        if _run_nft("list"):
            raise FirewallError(f"nft did not delete table {' '.join(NFT_TABLE)}")


def _read_saves() -> Iterator[tuple[Backend, str]]:
    """The output of ip6tables-save. Legacy is read only if it has tables: reading creates them."""
    for backend in Backend:
        if backend is Backend.NFT or existing_tables():
            yield backend, output_of(f"ip6tables-{backend}-save", timeout=TOOL_TIMEOUT)


def _run_nft(verb: str) -> str:
    return output_of("nft", verb, "table", *NFT_TABLE, timeout=TOOL_TIMEOUT)
