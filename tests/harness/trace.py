"""A tracer: the verdict of netfilter for a packet, from rule text and without a kernel.

The grammar is a part of ip6tables-save's. An unknown option is an error, and no rule is skipped.
This module has its own parser, so that a mistake in the package's parser does not hide here.

Frames between two ports of one bridge pass FORWARD, as with br_netfilter.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network

LINK_LOCAL = IPv6Network("fe80::/10")
LOOPBACK = IPv6Address("::1")


class State(StrEnum):
    """The conntrack state of a packet."""

    NEW = "NEW"
    ESTABLISHED = "ESTABLISHED"
    RELATED = "RELATED"
    INVALID = "INVALID"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An interface of the host, with the subnets behind it and the host's addresses on it. The
    first address is the source of the host's packets."""

    interface: str
    subnets: tuple[IPv6Network, ...]
    addresses: tuple[IPv6Address, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The interfaces of the host."""

    links: tuple[Link, ...]

    def is_local(self, address: IPv6Address) -> bool:
        """True if the address has the type LOCAL."""
        return address == LOOPBACK or any(address in link.addresses for link in self.links)

    def is_anycast(self, address: IPv6Address) -> bool:
        """True for the first address of a subnet of the host (RFC 4291, 2.6.1)."""
        return any(address == subnet[0] for link in self.links for subnet in link.subnets)

    def output_interface(self, destination: IPv6Address) -> str:
        """The interface of the route with the longest prefix."""
        routes = [
            (subnet.prefixlen, link.interface)
            for link in self.links
            for subnet in link.subnets
            if destination in subnet
        ]
        if not routes:
            raise ValueError(f"no route to {destination}")
        return max(routes)[1]

    def source_address(self, interface: str) -> IPv6Address:
        """The source of the host's packets on an interface, and the destination of REDIRECT."""
        (link,) = (link for link in self.links if link.interface == interface)
        return link.addresses[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """A packet that the host receives or sends."""

    source: IPv6Address
    destination: IPv6Address
    in_interface: str = ""
    """Empty for a packet of the host."""
    protocol: str = "tcp"
    port: int = 0
    authenticated: bool = False
    """True with an authentication header before the protocol; `-p` matches only this header."""
    state: State = State.NEW
    mark: int = 0
    reply: bool = False
    """True for the reply direction of an entry."""
    dnat: bool = False
    """True if the entry has the status DNAT."""
    out_interface: str = ""
    """Set by the routing decision."""


class Fate(StrEnum):
    """The end of a packet."""

    DROPPED = "dropped"
    REFUSED = "refused"
    HOST = "delivered to the host"
    FORWARDED = "forwarded"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The end of a packet; for a forwarded packet, its destination and source."""

    fate: Fate
    address: IPv6Address | None = None
    port: int = 0
    source: IPv6Address | None = None


DROPPED, REFUSED, DELIVERED = Verdict(Fate.DROPPED), Verdict(Fate.REFUSED), Verdict(Fate.HOST)


def trace(text: str, packet: Packet, host: Host) -> Verdict:
    """The verdict of these rules for a packet. ValueError for rules that it cannot parse."""
    tables = parse(text)
    from_host = not packet.in_interface
    entry = "OUTPUT" if from_host else "PREROUTING"
    if walk(tables["raw"], entry, packet, host).name == "DROP":
        return DROPPED
    packet = _after_dnat(tables["nat"], entry, packet, host)
    to_host = host.is_local(packet.destination)
    packet = replace(
        packet, out_interface="" if to_host else host.output_interface(packet.destination)
    )
    if from_host:
        leaving = replace(packet, out_interface="lo") if to_host else packet
        verdict = _filter_verdict(tables["filter"], "OUTPUT", leaving, host)
        if verdict:
            return verdict
    if to_host:
        arriving = replace(packet, in_interface="lo") if from_host else packet
        return _filter_verdict(tables["filter"], "INPUT", arriving, host) or DELIVERED
    if not from_host:
        # The kernel does not route link-local packets, whatever the rules say.
        if packet.source in LINK_LOCAL and packet.in_interface != packet.out_interface:
            return DROPPED
        verdict = _filter_verdict(tables["filter"], "FORWARD", packet, host)
        if verdict:
            return verdict
    source = _source_after_nat(tables["nat"], packet, host)
    return Verdict(Fate.FORWARDED, packet.destination, packet.port, source)


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a rule, with the address of a translation."""

    name: str
    address: IPv6Address | None = None
    port: int | None = None


Match = Callable[[Packet, Host], bool]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: its target applies if all matches are true."""

    matches: tuple[Match, ...]
    target: Target


@dataclass(slots=True)
class Chain:
    """A chain with its policy, which is empty for a user-defined chain."""

    policy: str = ""
    rules: list[Rule] = field(default_factory=list)


Chains = dict[str, Chain]


def _after_dnat(chains: Chains, base: str, packet: Packet, host: Host) -> Packet:
    """The packet after DNAT. Only the first packet of a flow passes the nat table."""
    if packet.state is not State.NEW:
        return packet
    target = walk(chains, base, packet, host)
    match target.name:
        case "ACCEPT":
            return packet
        case "DNAT":
            assert target.address is not None
            port = packet.port if target.port is None else target.port
            return replace(packet, destination=target.address, port=port, dnat=True)
        case "REDIRECT":
            to = host.source_address(packet.in_interface) if packet.in_interface else LOOPBACK
            return replace(packet, destination=to, dnat=True)
    raise ValueError(f"{target.name} in {base} of the nat table")


def _source_after_nat(chains: Chains, packet: Packet, host: Host) -> IPv6Address:
    """The source of the outgoing packet."""
    if packet.state is not State.NEW:
        return packet.source
    target = walk(chains, "POSTROUTING", packet, host)
    match target:
        case Target("ACCEPT"):
            return packet.source
        case Target("MASQUERADE"):
            return host.source_address(packet.out_interface)
        case Target("SNAT", IPv6Address() as address):
            return address
    raise ValueError(f"{target.name} in POSTROUTING of the nat table")


def _filter_verdict(chains: Chains, base: str, packet: Packet, host: Host) -> Verdict | None:
    target = walk(chains, base, packet, host)
    match target.name:
        case "ACCEPT":
            return None
        case "DROP":
            return DROPPED
        case "REJECT":
            return REFUSED
    raise ValueError(f"{target.name} in {base} of the filter table")


def walk(
    chains: Chains,
    base: str,
    packet: Packet,
    host: Host,
    seen: Callable[[Rule], None] = lambda _: None,
) -> Target:
    """The target that ends the packet's way through a base chain. `seen` gets each rule."""
    return _walk_chain(chains, base, packet, host, seen) or Target(chains[base].policy)


def _walk_chain(
    chains: Chains, name: str, packet: Packet, host: Host, seen: Callable[[Rule], None]
) -> Target | None:
    """The target that ends the chain; None if the chain ends or returns without a target."""
    for rule in chains[name].rules:
        seen(rule)
        if not all(match(packet, host) for match in rule.matches):
            continue
        if rule.target.name == "RETURN":
            return None
        if rule.target.name not in chains:
            return rule.target
        target = _walk_chain(chains, rule.target.name, packet, host, seen)
        if target is not None:
            return target
    return None


# The grammar.

BUILT_IN = {
    "raw": ("PREROUTING", "OUTPUT"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
}
PLAIN = {
    "raw": ("ACCEPT", "DROP", "RETURN"),
    "filter": ("ACCEPT", "DROP", "RETURN"),
    "nat": ("ACCEPT", "RETURN", "MASQUERADE", "REDIRECT"),
}
"""Targets without an argument, by table."""
PROTOCOLS = {"tcp": "tcp", "udp": "udp", "sctp": "sctp", "ipv6-icmp": "icmp6", "ah": "ah"}
NUMBERS = {"6": "tcp", "17": "udp", "132": "sctp"}
MODULES = {
    "--mark": "mark",
    "--src-type": "addrtype",
    "--dst-type": "addrtype",
    "--ctstate": "conntrack",
    "--ctproto": "conntrack",
    "--ctdir": "conntrack",
    "--ctorigdstport": "conntrack",
    "--comment": "comment",
    "--pkt-type": "pkttype",
}
"""The `-m` module that each option needs right before it; for --dport, the protocol."""


@lru_cache(maxsize=8)
def parse(text: str) -> dict[str, Chains]:
    """The raw, filter and nat tables. Another table may exist, but without rules.

    Missing built-in chains get the policy ACCEPT, and a missing DOCKER-USER has no rules.
    """
    tables = {table: {name: Chain("ACCEPT") for name in names} for table, names in BUILT_IN.items()}
    tables["filter"]["DOCKER-USER"] = Chain()
    table, later = "", []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("*"):
            table = line[1:]
        elif line == "COMMIT":
            table = ""
        elif not table:
            raise ValueError(f"outside of any table: {line}")
        elif declared := re.fullmatch(r":(\S+) (ACCEPT|DROP|-)(?: \[\d+:\d+\])?", line):
            policy = declared[2].replace("-", "")
            tables.setdefault(table, {})[declared[1]] = Chain(policy)
        else:
            later.append((table, line))
    for table, line in later:
        _append(table, tables[table], line)
    return tables


def _append(table: str, chains: Chains, line: str) -> None:
    words = shlex.split(line)
    if table not in BUILT_IN or len(words) < 2 or words[0] != "-A" or words[1] not in chains:
        raise ValueError(f"not understood in table {table}: {line}")
    try:
        chains[words[1]].rules.append(_rule(table, chains, iter(words[2:])))
    except ValueError as error:
        raise ValueError(f"{error} in table {table}: {line}") from error


def _rule(table: str, chains: Chains, words: Iterator[str]) -> Rule:
    matches: list[Match] = []
    protocol = module = ""
    for word in words:
        if word == "-j":
            target = _target(table, chains, next(words, ""), list(words))
            return Rule(tuple(matches), target)
        if word == "-m":
            module = next(words, "")
            if module == "frag":
                matches.append(lambda *_: False)  # no packet is a fragment
                continue
            if module not in MODULES.values() and (module not in PROTOCOLS or module != protocol):
                raise ValueError(f"-m {module} is not known here")
            continue
        inverted = word == "!"
        option = next(words, "") if inverted else word
        value = next(words, "")
        needed = (
            (protocol or "its protocol")
            if option in ("--dport", "--tcp-flags")
            else MODULES.get(option, module)
        )
        if module != needed:
            raise ValueError(f"{option} without its module")
        if option == "-p" and not inverted:
            protocol = value
        if option == "--tcp-flags":
            value = f"{value} {next(words, '')}"
        match = _match(option, value)
        matches.append(_inverse(match) if inverted else match)
    raise ValueError("no target")


def _inverse(match: Match) -> Match:
    return lambda packet, host: not match(packet, host)


def _match(option: str, value: str) -> Match:
    match option, value:
        case "-s", _:
            net = IPv6Network(value)
            return lambda packet, _: packet.source in net
        case "-d", _:
            net = IPv6Network(value)
            return lambda packet, _: packet.destination in net
        case "-i", _ if value:
            return lambda packet, _: _interface_matches(packet.in_interface, value)
        case "-o", _ if value:
            return lambda packet, _: _interface_matches(packet.out_interface, value)
        case "-p", _ if value in PROTOCOLS:
            return lambda packet, _: _matched_protocol(packet) == PROTOCOLS[value]
        case (("--dport" | "--ctorigdstport"), _):
            first, _, last = value.partition(":")
            ports = range(int(first), int(last or first) + 1)
            return lambda packet, _: packet.port in ports
        case "--ctproto", _ if value in NUMBERS or value in PROTOCOLS:
            # ip6tables-save prints the number.
            return lambda packet, _: packet.protocol == NUMBERS.get(value, value)
        case "--mark", _:
            mark, _, mask = value.partition("/")
            wanted, bits = int(mark, 16), int(mask or "0xffffffff", 16)
            return lambda packet, _: packet.mark & bits == wanted
        case "--pkt-type", "broadcast" | "multicast":
            return lambda *_: False  # each packet comes in a frame for one host
        case "--src-type", "LOCAL,ANYCAST":
            return lambda packet, host: (
                host.is_local(packet.source) or host.is_anycast(packet.source)
            )
        case "--src-type", "LOCAL":
            return lambda packet, host: host.is_local(packet.source)
        case "--dst-type", "LOCAL":
            return lambda packet, host: host.is_local(packet.destination)
        case "--ctstate", _:
            states = value.split(",")
            if not set(states) <= {*State, "DNAT", "UNTRACKED"}:
                raise ValueError(f"an unknown state in {value}")
            return lambda packet, _: packet.state in states or (packet.dnat and "DNAT" in states)
        case "--tcp-flags", "FIN,SYN,RST,ACK SYN":
            return lambda packet, _: packet.state is State.NEW or packet.reply
        case "--ctdir", "REPLY":
            return lambda packet, _: packet.reply
        case "--comment", _ if value:
            return lambda *_: True
    raise ValueError(f"{option} {value} is not known")


def _matched_protocol(packet: Packet) -> str:
    return "ah" if packet.authenticated else packet.protocol


def _interface_matches(interface: str, pattern: str) -> bool:
    if pattern.endswith("+"):
        return interface.startswith(pattern[:-1])
    return interface == pattern


def _target(table: str, chains: Chains, name: str, rest: list[str]) -> Target:
    match table, name, rest:
        case _, _, [] if name in PLAIN[table] or (name in chains and name not in BUILT_IN[table]):
            return Target(name)
        case "filter", "REJECT", ["--reject-with", _]:
            return Target(name)
        case "nat", "DNAT", ["--to-destination", to] if to.startswith("["):
            address, _, port = to[1:].partition("]:")
            return Target(name, IPv6Address(address), int(port))
        case "nat", "DNAT", ["--to-destination", to]:
            return Target(name, IPv6Address(to))
        case "nat", "SNAT", ["--to-source", to]:
            return Target(name, IPv6Address(to))
    raise ValueError(f"the target {name} {' '.join(rest)} is not known")
