"""Docker's own IPv6 rules: save text -> EngineRules and Leftover.

EngineRules tell which networks the engine manages itself: the chains of Docker 20.10 to 29 with
iptables, and table `ip6 docker-bridges` of Docker 29 with nftables.

A Leftover is a rule or chain of docker-ipv6nat or of an engine that was switched off. Chains of
Docker are known by name. In the kernel's own chains a rule is a leftover only in the exact words
of Docker 20.10 to 28 or docker-ipv6nat, and only for a bridge of Docker. DOCKER-USER belongs to
the administrator and is never a leftover.
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
# Up to 27 the engine's rules about a bridge stand in FORWARD itself.
_FORWARD = re.compile(r"-A FORWARD .*-j DOCKER$")
_DNAT_PORT = re.compile(r"-p (tcp|udp|sctp) .*--dport (\d{1,5}) .*-j DNAT ")
_NFT_INTERFACE = re.compile(r'"([^"]+)" : jump filter-forward-')
_NFT_PORT = re.compile(r"\b(tcp|udp|sctp) dport (\d{1,5}) .*\bdnat\b")

_CHAIN = re.compile(r"DOCKER(?!-USER$)(?:-[A-Z0-9-]+)?")
_TARGET = re.compile(rf"(?:.* )?-[jg] {_CHAIN.pattern}")
_FROM = frozenset({"FORWARD", "PREROUTING", "OUTPUT"})
NAMED_BY_DOCKER = re.compile(r"docker0|docker_gwbridge|br-[0-9a-f]{12}")
_INTERFACE = re.compile(r"-[io] (\S+)")
_TO_US = r"-j (?:MASQUERADE|SNAT --to-source \S+)"
_PORT = r"-p (?P<protocol>tcp|udp|sctp) -m (?P=protocol) --dport \d+"
_WORDS = {
    ("filter", "FORWARD"): (
        r"-o (?P<bridge>\S+) -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        r"-i (?P<bridge>\S+) ! -o (?P=bridge) -j ACCEPT",
        r"-i (?P<bridge>\S+) -o (?P=bridge) -j (?:ACCEPT|DROP)",
    ),
    ("nat", "POSTROUTING"): (
        rf"-s (?P<subnet>\S+) ! -o (?P<bridge>\S+) {_TO_US}",
        rf"-o (?P<bridge>\S+) -m addrtype --(?:src|dst)-type LOCAL {_TO_US}",
        rf"-s (?P<address>\S+)/128 -d (?P=address)/128 {_PORT} -j MASQUERADE",
    ),
    ("raw", "PREROUTING"): (
        r"-d \S+/128 ! -i (?P<bridge>\S+) -j DROP",
        rf"-d \S+/128 {_PORT} ! -i (?P<bridge>\S+) -j DROP",
        rf"-d \S+/128 ! -i (?P<bridge>\S+) {_PORT} -j DROP",
    ),
}
_PATTERNS = {place: tuple(map(re.compile, words)) for place, words in _WORDS.items()}


NFT_TABLE = ("ip6", "docker-bridges")
"""Family and name of Docker 29's own table, with nftables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A rule, a chain with the rules in it, or Docker's own nft table."""

    variant: str
    """`nft` or `legacy`, of ip6tables; `nftables` for Docker 29's own table."""
    table: str
    chain: str = ""
    rule: str = ""
    """What stands behind `-A CHAIN`; "" for the whole chain."""


def in_save(variant: str, text: str, networks: Iterable[Network]) -> tuple[Leftover, ...]:
    """All of it in the output of one ip6tables-save; rules before the chains they jump to.

    `networks` are those that the engine has now.
    """
    lines = list(_lines(text, variant))
    theirs = [each for each in lines if _jumps(each) or is_theirs(each.chain)]
    known = list(networks)
    bridges = {each.bridge for each in known if each.bridge}
    bridges.update(*(_INTERFACE.findall(each.rule) for each in theirs))
    hits = [(each, hit) for each in lines if (hit := _worded(each))]
    about = [(each, hit) for each, hit in hits if _is_docker(hit.get("bridge", ""), bridges)]
    subnets = {subnet for each in known for subnet in each.subnets}
    subnets.update(subnet for _, hit in about if (subnet := _subnet(hit.get("subnet", ""))))
    hairpins = [
        each
        for each, hit in hits
        if (address := _subnet(hit.get("address", "")))
        and any(address.subnet_of(subnet) for subnet in subnets)
    ]
    loose = {*filter(_jumps, theirs), *(each for each, _ in about), *hairpins}
    chains = [each for each in theirs if not each.rule]
    return (*(each for each in lines if each in loose), *chains)


def is_theirs(chain: str) -> bool:
    """Whether a chain is one of an engine or of docker-ipv6nat, by its name."""
    return _CHAIN.fullmatch(chain) is not None


def is_jump(rule: str) -> bool:
    """Whether a rule leads to such a chain."""
    return _TARGET.fullmatch(rule) is not None


def removal(leftovers: Iterable[Leftover]) -> str:
    """The text for ip6tables-restore that takes out those of one variant, a table at a time.

    A table in which somebody else's rule jumps to a chain of theirs is refused as a whole.
    """
    found = list(leftovers)
    lines: list[str] = []
    # Nothing is to be translated that no rule lets through: nat first.
    for table in sorted({each.table for each in found}, key=lambda each: (each != "nat", each)):
        here = [each for each in found if each.table == table]
        chains = [each.chain for each in here if not each.rule]
        lines.append(f"*{table}")
        lines += [f"-D {each.chain} {each.rule}" for each in here if each.rule]
        # Emptied first, all of them: a chain goes only when no rule jumps to it.
        lines += [f":{chain} - [0:0]" for chain in chains]
        lines += [f"-X {chain}" for chain in chains]
        lines.append("COMMIT")
    return "".join(f"{line}\n" for line in lines)


def _lines(text: str, variant: str) -> Iterator[Leftover]:
    """Every chain and rule that is not ours, as if it were one."""
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


def _jumps(line: Leftover) -> bool:
    return line.chain in _FROM and is_jump(line.rule)


def _worded(line: Leftover) -> dict[str, str]:
    """Which bridge, subnet or address a rule in one of the kernel's chains is about; {} if it is
    in other words than theirs."""
    for pattern in _PATTERNS.get((line.table, line.chain), ()):
        if hit := pattern.fullmatch(line.rule):
            return hit.groupdict()
    return {}


def _subnet(text: str) -> IPv6Network | None:
    """None for what is none: a mask may have holes."""
    try:
        return IPv6Network(text)
    except ValueError:
        return None


def _is_docker(bridge: str, bridges: set[str]) -> bool:
    return bridge in bridges or NAMED_BY_DOCKER.fullmatch(bridge) is not None


def from_save(text: str) -> EngineRules:
    """The engine's rules in the output of one ip6tables-save."""
    bridges: set[str] = set()
    ports: set[tuple[Protocol, int]] = set()
    for line in save_lines(text):
        if not (_RULE_CHAIN.match(line) or _FORWARD.match(line)):
            continue
        bridges.update(_INTERFACE.findall(line))
        if port := _DNAT_PORT.search(line):
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
