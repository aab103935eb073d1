"""Docker's own IPv6 rules: save text -> EngineRules and Leftover.

EngineRules show which networks the engine manages itself: the chains of Docker 20.10 to 29 with
iptables, and the table `ip6 docker-bridges` of Docker 29 with nftables.

A Leftover is a rule or chain of docker-ipv6nat, or of an engine that no longer writes IPv6 rules.
Docker's chains are identified by name. A rule in a base chain is a leftover only if its text is
exactly that of Docker 20.10 to 28 or docker-ipv6nat, and its bridge is Docker's. DOCKER-USER
belongs to the administrator and is never a leftover.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Network

from ipv6natd.model import EngineRules, Network, Protocol
from ipv6natd.netfilter.parse import save_lines
from ipv6natd.netfilter.rules import PREFIX

_RULE_CHAIN = re.compile(r"-A (DOCKER(?!-USER\b)[A-Z0-9-]*) ")
# Up to Docker 27 the engine writes the rules of a bridge to FORWARD itself.
_FORWARD_RULE = re.compile(r"-A FORWARD .*-j DOCKER$")
_DNAT_PORT = re.compile(r"-p (tcp|udp|sctp) .*--dport (\d{1,5}) .*-j DNAT ")
_NFT_INTERFACE = re.compile(r'"([^"]+)" : jump filter-forward-')
_NFT_PORT = re.compile(r"\b(tcp|udp|sctp) dport (\d{1,5}) .*\bdnat\b")

_CHAIN = re.compile(r"DOCKER(?!-USER$)(?:-[A-Z0-9-]+)?")
_TARGET = re.compile(rf"(?:.* )?-[jg] {_CHAIN.pattern}")
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


NFT_TABLE = ("ip6", "docker-bridges")
"""Family and name of Docker 29's table with nftables."""


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
    lines = list(_foreign_lines(text, variant))
    named = [line for line in lines if _is_docker_jump(line) or is_docker_chain(line.chain)]
    current = list(networks)
    bridges = {network.bridge for network in current if network.bridge}
    bridges.update(*(_INTERFACE.findall(line.rule) for line in named))
    matched = [(line, parts) for line in lines if (parts := _matched_parts(line))]
    about_bridges = [
        (line, parts)
        for line, parts in matched
        if _is_docker_bridge(parts.get("bridge", ""), bridges)
    ]
    subnets = {subnet for network in current for subnet in network.subnets}
    subnets.update(
        subnet for _, parts in about_bridges if (subnet := _subnet(parts.get("subnet", "")))
    )
    hairpins = [
        line
        for line, parts in matched
        if (address := _subnet(parts.get("address", "")))
        and any(address.subnet_of(subnet) for subnet in subnets)
    ]
    rules = {*filter(_is_docker_jump, named), *(line for line, _ in about_bridges), *hairpins}
    chains = [line for line in named if not line.rule]
    return (*(line for line in lines if line in rules), *chains)


def is_docker_chain(chain: str) -> bool:
    """True if the name is that of a chain of Docker or docker-ipv6nat."""
    return _CHAIN.fullmatch(chain) is not None


def jumps_to_docker_chain(rule: str) -> bool:
    """True if the rule jumps to a chain of Docker or docker-ipv6nat."""
    return _TARGET.fullmatch(rule) is not None


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


def _foreign_lines(text: str, variant: str) -> Iterator[Leftover]:
    """All chains and rules without our prefix, in the form of a Leftover."""
    table = ""
    for line in save_lines(text):
        match line[:1]:
            case "*":
                table = line[1:]
            case ":":
                yield Leftover(variant=variant, table=table, chain=line[1:].split(" ", 1)[0])
            case "-" if line.count(" ") > 1:
                _, chain, rule = line.split(" ", 2)
                if not chain.startswith(PREFIX):
                    yield Leftover(variant=variant, table=table, chain=chain, rule=rule)


def _is_docker_jump(line: Leftover) -> bool:
    return line.chain in _JUMP_BASES and jumps_to_docker_chain(line.rule)


def _matched_parts(line: Leftover) -> dict[str, str]:
    """The bridge, subnet or address of a rule in a base chain; {} if its text is not Docker's or
    docker-ipv6nat's."""
    for pattern in _RULE_PATTERNS.get((line.table, line.chain), ()):
        if match := pattern.fullmatch(line.rule):
            return match.groupdict()
    return {}


def _subnet(text: str) -> IPv6Network | None:
    """The network of a match; None if it is not a prefix: ip6tables allows any mask."""
    try:
        return IPv6Network(text)
    except ValueError:
        return None


def _is_docker_bridge(bridge: str, bridges: set[str]) -> bool:
    return bridge in bridges or DOCKER_BRIDGE_NAME.fullmatch(bridge) is not None


def engine_rules_from_save(text: str) -> EngineRules:
    """The engine's rules in the output of one ip6tables-save."""
    bridges: set[str] = set()
    ports: set[tuple[Protocol, int]] = set()
    for line in save_lines(text):
        if not (_RULE_CHAIN.match(line) or _FORWARD_RULE.match(line)):
            continue
        bridges.update(_INTERFACE.findall(line))
        if port := _DNAT_PORT.search(line):
            ports.add((Protocol(port[1]), int(port[2])))
    return EngineRules(bridges=frozenset(bridges), ports=frozenset(ports))


def engine_rules_from_nft(text: str) -> EngineRules:
    """The engine's rules in the output of `nft list table ip6 docker-bridges`."""
    return EngineRules(
        bridges=frozenset(_NFT_INTERFACE.findall(text)),
        ports=frozenset((Protocol(p), int(n)) for p, n in _NFT_PORT.findall(text)),
    )


def merged_engine_rules(parts: Iterable[EngineRules]) -> EngineRules:
    """The union: both variants of ip6tables and nft may hold rules of the engine."""
    every = list(parts)
    return EngineRules(
        bridges=frozenset().union(*(rules.bridges for rules in every)),
        ports=frozenset().union(*(rules.ports for rules in every)),
    )
