"""Docker's own IPv6 rules: save text -> EngineRules and Leftover.

EngineRules show which networks the engine manages itself: the chains of Docker 20.10 to 29 with
iptables; `docker_nft` reads the table of Docker 29 with nftables.

A Leftover is a rule or chain of docker-ipv6nat, or of an engine that no longer writes IPv6 rules.
Docker's chains are identified by their whole names. A rule in a base chain is a leftover only if
its text is exactly that of Docker 20.10 to 28 or docker-ipv6nat, and its bridge is Docker's.
DOCKER-USER belongs to the administrator and is never a leftover.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Network

from ipv6natd.model import EngineRules, Network, Protocol
from ipv6natd.netfilter.docker_nft import nft_engine_rules
from ipv6natd.netfilter.parse import save_rules
from ipv6natd.netfilter.rules import PREFIX

_DNAT_PORT = re.compile(r"-p (tcp|udp|sctp) .*--dport (\d{1,5}) .*-j DNAT ")

_CHAINS = frozenset(
    {"DOCKER", "DOCKER-BRIDGE", "DOCKER-CT", "DOCKER-FORWARD", "DOCKER-INGRESS", "DOCKER-INTERNAL"}
    # Without a stage: Docker 17.06 and the docker-ipv6nat of that time.
    | {"DOCKER-ISOLATION", "DOCKER-ISOLATION-STAGE-1", "DOCKER-ISOLATION-STAGE-2"}
)
"""All chains that Docker and docker-ipv6nat make, without DOCKER-USER. Users have chains with such
names too, for example DOCKER-BLOCKLIST."""
_TARGET = re.compile(rf"(?:.* )?-[jg] (?:{'|'.join(sorted(_CHAINS))})")
_JUMP_BASES = frozenset({"FORWARD", "PREROUTING", "OUTPUT"})
DOCKER_BRIDGE_NAME = re.compile(r"docker0|docker_gwbridge|br-[0-9a-f]{12}")
_INTERFACE = re.compile(r"-[io] (\S+)")
_MASQUERADE = r"-j (?:MASQUERADE|SNAT --to-source \S+)"
_PORT = r"-p (?P<protocol>tcp|udp|sctp) -m (?P=protocol) --dport \d+"
_RULES = {
    ("filter", "FORWARD"): (
        r"-o (?P<bridge>\S+) -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        r"-i (?P<bridge>\S+) ! -o (?P=bridge) -j ACCEPT",
        r"-i (?P<bridge>\S+) -o (?P=bridge) -j (?:ACCEPT|DROP)",
    ),
    ("nat", "POSTROUTING"): (
        rf"-s (?P<subnet>\S+) ! -o (?P<bridge>\S+) {_MASQUERADE}",
        rf"-o (?P<bridge>\S+) -m addrtype --(?:src|dst)-type LOCAL {_MASQUERADE}",
        rf"-s (?P<address>\S+)/128 -d (?P=address)/128 {_PORT} -j MASQUERADE",
    ),
    ("raw", "PREROUTING"): (
        r"-d \S+/128 ! -i (?P<bridge>\S+) -j DROP",
        rf"-d \S+/128 {_PORT} ! -i (?P<bridge>\S+) -j DROP",
        rf"-d \S+/128 ! -i (?P<bridge>\S+) {_PORT} -j DROP",
    ),
}
_RULE_PATTERNS = {chain: tuple(map(re.compile, rules)) for chain, rules in _RULES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A rule, a chain with the rules in it, or Docker's own nft table."""

    variant: str
    """The ip6tables variant, `nft` or `legacy`; `nftables` for the table of Docker 29."""
    table: str
    chain: str = ""
    rule: str = ""
    """The text after `-A CHAIN`; "" for the whole chain."""


def leftovers_from_save(
    variant: str, text: str, networks: Iterable[Network]
) -> tuple[Leftover, ...]:
    """The leftovers in the output of one ip6tables-save; rules before the chains they jump to.

    `networks` are the engine's current networks.
    """
    lines = [
        Leftover(variant=variant, table=table, chain=chain, rule=rule)
        for table, chain, rule in save_rules(text)
        if not chain.startswith(PREFIX)
    ]
    chains = [line for line in lines if is_docker_chain(line.chain)]
    jumps = {
        line for line in lines if line.chain in _JUMP_BASES and jumps_to_docker_chain(line.rule)
    }
    current = list(networks)
    bridges = {network.bridge for network in current if network.bridge}
    bridges.update(*(_INTERFACE.findall(line.rule) for line in (*chains, *jumps)))
    matched = {line: parts for line in lines if (parts := _matched_parts(line))}
    of_bridges = {
        line: parts
        for line, parts in matched.items()
        if (bridge := parts.get("bridge", "")) in bridges or DOCKER_BRIDGE_NAME.fullmatch(bridge)
    }
    subnets = {subnet for network in current for subnet in network.subnets}
    subnets.update(_subnets(of_bridges.values(), "subnet"))
    hairpins = {
        line
        for line, parts in matched.items()
        for address in _subnets([parts], "address")
        if any(map(address.subnet_of, subnets))
    }
    rules = {*jumps, *of_bridges, *hairpins}
    return (*(line for line in lines if line in rules), *(line for line in chains if not line.rule))


def is_docker_chain(chain: str) -> bool:
    """True if the name is that of a chain of Docker or docker-ipv6nat."""
    return chain in _CHAINS


def jumps_to_docker_chain(rule: str) -> bool:
    """True if the rule jumps to a chain of Docker or docker-ipv6nat."""
    return _TARGET.fullmatch(rule) is not None


def is_engine_jump(rule: str) -> bool:
    """True for a rule in FORWARD as the engine writes them, in an old or a new version."""
    patterns = _RULE_PATTERNS["filter", "FORWARD"]
    return jumps_to_docker_chain(rule) or any(pattern.fullmatch(rule) for pattern in patterns)


def removal_text(leftovers: Iterable[Leftover]) -> str:
    """The text for ip6tables-restore that removes leftovers of one variant.

    Each table is one transaction. It fails if a foreign rule jumps to a chain that it deletes.
    """
    every = list(leftovers)
    lines: list[str] = []
    # nat first: the host must not translate packets that no filter rule handles any more.
    for table in sorted(
        {leftover.table for leftover in every}, key=lambda table: (table != "nat", table)
    ):
        of_table = [leftover for leftover in every if leftover.table == table]
        chains = [leftover.chain for leftover in of_table if not leftover.rule]
        lines.append(f"*{table}")
        lines += [f"-D {leftover.chain} {leftover.rule}" for leftover in of_table if leftover.rule]
        # All chains are flushed first: the kernel deletes only chains without jumps to them.
        lines += [f":{chain} - [0:0]" for chain in chains]
        lines += [f"-X {chain}" for chain in chains]
        lines.append("COMMIT")
    return "".join(f"{line}\n" for line in lines)


def _matched_parts(line: Leftover) -> dict[str, str]:
    """The bridge, subnet or address of a rule in a base chain; {} if its text is not Docker's or
    docker-ipv6nat's."""
    for pattern in _RULE_PATTERNS.get((line.table, line.chain), ()):
        if match := pattern.fullmatch(line.rule):
            return match.groupdict()
    return {}


def _subnets(parts: Iterable[dict[str, str]], name: str) -> Iterator[IPv6Network]:
    """The parts of this name that are prefixes: ip6tables allows any mask."""
    for part in parts:
        with suppress(ValueError):
            yield IPv6Network(part.get(name, ""))


def engine_rules(saves: Iterable[str], nft: str) -> EngineRules:
    """The engine's rules in the output of ip6tables-save, of both variants, and of
    `nft -j list table ip6 docker-bridges`. Raises ValueError if the latter cannot be read."""
    by_nft = nft_engine_rules(nft)
    bridges = set(by_nft.bridges)
    ports = {(protocol.value, str(port)) for protocol, port in by_nft.ports}
    for _, chain, rule in (line for text in saves for line in save_rules(text)):
        # Up to Docker 27 the engine writes the rules of a bridge to FORWARD itself.
        if is_docker_chain(chain) or (chain == "FORWARD" and rule.endswith("-j DOCKER")):
            bridges.update(_INTERFACE.findall(rule))
            ports.update(_DNAT_PORT.findall(rule))
    return EngineRules(
        bridges=frozenset(bridges),
        ports=frozenset((Protocol(protocol), int(port)) for protocol, port in ports),
        complete=by_nft.complete,
    )
