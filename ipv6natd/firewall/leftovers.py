"""Reads and removes Docker's own IPv6 rules, in both variants of ip6tables and in nft."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.firewall.restore import RestoreFirewall
from ipv6natd.firewall.save import save_text
from ipv6natd.firewall.tools import run_tool
from ipv6natd.firewall.xtables import existing_tables
from ipv6natd.model import EngineRules, Network
from ipv6natd.netfilter.docker_nft import NFT_TABLE
from ipv6natd.netfilter.docker_rules import (
    Leftover,
    engine_rules,
    leftovers_from_save,
    removal_text,
)
from ipv6natd.netfilter.rules import Backend
from ipv6natd.system.process import which

NFTABLES = "nftables"
_NOTHING_THERE = re.compile("No such file or directory|Protocol not supported")


def read_engine_rules() -> EngineRules:
    """The rules of the engine, in force or left over. Blocks. Raises FirewallError if a tool fails:
    what it does not show may be there."""
    try:
        return engine_rules((text for _, text in _read_saves()), _run_nft("-j", "list"))
    except ValueError as error:
        raise FirewallError(f"cannot read the output of nft -j list: {error}") from None


def read_leftovers(networks: Sequence[Network]) -> tuple[Leftover, ...]:
    """All rules and chains of Docker or docker-ipv6nat, also those in force. Blocks. Raises
    FirewallError if a tool fails."""
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
        tool = which(f"ip6tables-{backend}-save")
        if tool and (backend is Backend.NFT or existing_tables()):
            with _nothing_there():
                yield backend, save_text(tool)


def _run_nft(*verb: str) -> str:
    """The output; "" if the table does not exist."""
    if nft := which("nft"):
        with _nothing_there():
            return run_tool([nft, *verb, "table", *NFT_TABLE])
    return ""


@contextmanager
def _nothing_there() -> Iterator[None]:
    """Suppress the error of a tool that finds no nf_tables in the kernel, or no such table."""
    try:
        yield
    except FirewallError as error:
        if not _NOTHING_THERE.search(str(error)):
            raise
