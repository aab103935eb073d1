"""The engine's own IPv6 rules, as iptables-save and nft list them -> EngineRules.

Read to tell which networks the engine manages itself; nothing of it is ever written or removed
here. Chains: Docker 20.10 to 29 with iptables; table `ip6 docker-bridges`: Docker 29 with nftables.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ipv6natd.model import EngineRules, Protocol
from ipv6natd.netfilter.render import save_lines

_CHAIN = re.compile(r"-A (DOCKER(?!-USER\b)[A-Z0-9-]*) ")
# Up to 27 the engine's rules about a bridge stand in FORWARD itself.
_FORWARD = re.compile(r"-A FORWARD .*-j DOCKER$")
_INTERFACE = re.compile(r"-[io] ([^ ]+)")
_PORT = re.compile(r"-p (tcp|udp|sctp) .*--dport (\d{1,5}) .*-j DNAT ")
_NFT_INTERFACE = re.compile(r'"([^"]+)" : jump filter-forward-')
_NFT_PORT = re.compile(r"\b(tcp|udp|sctp) dport (\d{1,5}) .*\bdnat\b")


def from_save(text: str) -> EngineRules:
    """The engine's rules in the output of one ip6tables-save."""
    bridges: set[str] = set()
    ports: set[tuple[Protocol, int]] = set()
    for line in save_lines(text):
        if not (_CHAIN.match(line) or _FORWARD.match(line)):
            continue
        bridges.update(_INTERFACE.findall(line))
        if port := _PORT.search(line):
            ports.add((Protocol(port[1]), int(port[2])))
    return EngineRules(bridges=frozenset(bridges), ports=frozenset(ports))


def from_nft(text: str) -> EngineRules:
    """The engine's rules in the output of `nft list table ip6 docker-bridges`."""
    return EngineRules(
        bridges=frozenset(_NFT_INTERFACE.findall(text)),
        ports=frozenset((Protocol(p), int(n)) for p, n in _NFT_PORT.findall(text)),
    )


def joined(parts: Iterable[EngineRules]) -> EngineRules:
    """All of them: the host's two variants and nft may each hold some."""
    found = list(parts)
    return EngineRules(
        bridges=frozenset().union(*(each.bridges for each in found)),
        ports=frozenset().union(*(each.ports for each in found)),
    )
