"""The engine's own IPv6 rules, wherever it may have put them: either variant, or nft.

Read on the way of events; taken out only where somebody asks for it, and nobody writes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.firewall.restore import RestoreFirewall
from ipv6natd.firewall.xtables import present
from ipv6natd.model import EngineRules, Network
from ipv6natd.netfilter.docker_rules import (
    NFT_TABLE,
    Leftover,
    engine_rules_from_nft,
    engine_rules_from_save,
    leftovers_from_save,
    merged_engine_rules,
    removal_text,
)
from ipv6natd.netfilter.rules import Backend
from ipv6natd.system.process import output_of

TIMEOUT = 30.0
NFTABLES = "nftables"


def engine_rules() -> EngineRules:
    """What an engine wrote, in force or left over; what cannot be read is not there. Blocks."""
    return merged_engine_rules(
        [
            *(engine_rules_from_save(text) for _, text in _saved()),
            engine_rules_from_nft(_nft("list")),
        ]
    )


def leftovers(networks: Iterable[Network]) -> tuple[Leftover, ...]:
    """All rules and chains of an engine or of docker-ipv6nat, whoever keeps them. Blocks."""
    known = tuple(networks)
    found = [
        each for backend, text in _saved() for each in leftovers_from_save(backend, text, known)
    ]
    if _nft("list"):
        found.append(Leftover(variant=NFTABLES, table=" ".join(NFT_TABLE)))
    return tuple(found)


def remove(found: Iterable[Leftover]) -> None:
    """Take these out, in one transaction a table. Blocks. Raises FirewallError."""
    every = tuple(found)
    for backend in Backend:
        here = [each for each in every if each.variant == backend]
        if here:
            RestoreFirewall(backend).restore(removal_text(here))
    if any(each.variant == NFTABLES for each in every):
        _nft("delete")
        if _nft("list"):
            raise FirewallError(f"nft did not delete table {' '.join(NFT_TABLE)}")


def _saved() -> Iterator[tuple[Backend, str]]:
    """No table is made by reading: legacy is only asked where it has tables."""
    for backend in Backend:
        if backend is Backend.NFT or present():
            yield backend, output_of(f"ip6tables-{backend}-save", timeout=TIMEOUT)


def _nft(verb: str) -> str:
    return output_of("nft", verb, "table", *NFT_TABLE, timeout=TIMEOUT)
