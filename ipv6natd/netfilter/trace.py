"""Follows a packet through rule text, hook by hook, without the kernel: which rule decides?

Pure. The text is that of ip6tables-save. A match that is not known here makes its rule uncertain.
If the end of the packet depends on such a rule, the fate is UNKNOWN, and `doubt` is this rule.

Frames between two ports of one bridge pass FORWARD, as with br_netfilter. Base chains of nft are
not seen; `host.nft` evaluates them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv6Address, IPv6Network

from ipv6natd.netfilter.parse import save_lines
from ipv6natd.netfilter.rules import LIMIT_INTERFACE

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

    def on_link(self, interface: str) -> Host:
        """The host with only this interface."""
        return Host(links=tuple(link for link in self.links if link.interface == interface))

    def is_local(self, address: IPv6Address) -> bool:
        """True if the address has the type LOCAL."""
        return address == LOOPBACK or any(address in link.addresses for link in self.links)

    def is_anycast(self, address: IPv6Address) -> bool:
        """True for the first address of a subnet of the host (RFC 4291, 2.6.1)."""
        return any(address == subnet[0] for link in self.links for subnet in link.subnets)

    def output_interface(self, destination: IPv6Address) -> str:
        """The interface of the route with the longest prefix. Raises ValueError without one."""
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
    """A packet that the host receives or sends.

    It has many fields: one for each property that a match of a rule can ask about.
    """

    source: IPv6Address
    destination: IPv6Address
    in_interface: str = ""
    """Empty for a packet of the host."""
    any_source: bool = False
    """True if source and incoming interface may be any: a match of them is uncertain."""
    protocol: str = "tcp"
    port: int = 0
    original_port: int = 0
    """The port before DNAT, if there was one."""
    authenticated: bool = False
    """True with an authentication header before the protocol; `-p` matches only this header."""
    state: State = State.NEW
    mark: int | None = 0
    """None if it is unknown."""
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
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Step:
    """The rule or the policy that ended a packet's way through a base chain."""

    table: str
    hook: str
    chain: str
    rule: str
    """Its words after "-A CHAIN"; empty for the policy of the chain."""
    verdict: str
    """The target with its argument, such as "DNAT [fd00::2]:80"; "?" if it is uncertain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The end of a packet, and its way there."""

    fate: Fate
    address: IPv6Address | None = None
    """The destination of a forwarded packet."""
    port: int = 0
    source: IPv6Address | None = None
    """The source of a forwarded packet."""
    steps: tuple[Step, ...] = ()
    """For each hook, what decided; the last one decided about the fate."""
    doubt: Step | None = None
    """The rule on which an UNKNOWN fate depends."""


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a rule, with the address of a translation."""

    name: str
    address: IPv6Address | None = None
    port: int | None = None

    def __str__(self) -> str:
        """ "ACCEPT", "DNAT [fd00::2]:80"."""
        if self.address is None:
            return self.name
        return (
            f"{self.name} {self.address if self.port is None else f'[{self.address}]:{self.port}'}"
        )


Match = Callable[[Packet, Host], bool | None]
"""None: it is not known whether the packet matches."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: its target applies if all matches are true."""

    text: str
    matches: tuple[Match, ...]
    target: Target
    goto: bool = False
    unknown: tuple[str, ...] = ()
    """The options that are not known here, and the target if it is not."""

    def applies(self, packet: Packet, host: Host) -> bool | None:
        """Whether the target applies; None if it is not known."""
        found = [match(packet, host) for match in self.matches]
        if False in found:
            return False
        return None if None in found else True


@dataclass(slots=True)
class Chain:
    """A chain with its policy, which is empty for a user-defined chain."""

    policy: str = ""
    rules: list[Rule] = field(default_factory=list)


Chains = dict[str, Chain]
Tables = dict[str, Chains]


class _Undecided(Exception):
    """The way of the packet depends on an uncertain rule."""

    def __init__(self, doubt: Step) -> None:
        super().__init__(doubt.rule)
        self.doubt = doubt


def trace(tables: Tables, packet: Packet, host: Host) -> Trace:
    """Follow the packet through these tables. Raises ValueError if it has no route."""
    walker = Walker(tables, host)
    try:
        return walker.follow(packet)
    except _Undecided as undecided:
        return Trace(fate=Fate.UNKNOWN, steps=tuple(walker.steps), doubt=undecided.doubt)


def met_rules(tables: Tables, table: str, hook: str, packet: Packet, host: Host) -> Iterator[Step]:
    """The rules with a verdict that the packet meets in a base chain, or may meet, in order."""
    known: dict[str, bool] = {}

    def meet(name: str) -> Generator[Step, None, bool]:
        """True at the end if the packet may leave the chain without a verdict."""
        for rule in tables[table][name].rules:
            applies, target = rule.applies(packet, host), rule.target.name
            if applies is False or target in _CONTINUES:
                continue
            if target not in tables[table]:
                yield Step(table, hook, name, rule.text, str(rule.target))
                if applies:
                    return target == "RETURN"
                continue
            if target not in known:
                known[target] = True  # ends a loop, which the kernel rejects anyway
                known[target] = yield from meet(target)
            if applies and (rule.goto or not known[target]):
                return known[target]
        return True

    yield from meet(hook)


_FATES = {"DROP": Fate.DROPPED, "REJECT": Fate.REFUSED}


class Walker:
    """One packet on its way."""

    def __init__(self, tables: Tables, host: Host) -> None:
        self.steps: list[Step] = []
        self._tables = tables
        self._host = host

    def follow(self, packet: Packet) -> Trace:
        """The packet's way from its first hook to its end."""
        host, from_host = self._host, not packet.in_interface
        entry = "OUTPUT" if from_host else "PREROUTING"
        if fate := self._filtered("raw", entry, packet):
            return self._ended(fate)
        packet = self._after_dnat(entry, packet)
        to_host = host.is_local(packet.destination)
        packet = replace(
            packet, out_interface="" if to_host else host.output_interface(packet.destination)
        )
        if from_host:
            leaving = replace(packet, out_interface="lo") if to_host else packet
            if fate := self._filtered("filter", "OUTPUT", leaving):
                return self._ended(fate)
        if to_host:
            arriving = replace(packet, in_interface="lo") if from_host else packet
            return self._ended(self._filtered("filter", "INPUT", arriving) or Fate.HOST)
        if not from_host:
            # The kernel does not route link-local packets, whatever the rules say.
            if packet.source in LINK_LOCAL and packet.in_interface != packet.out_interface:
                return self._ended(Fate.DROPPED)
            if fate := self._filtered("filter", "FORWARD", packet):
                return self._ended(fate)
        return Trace(
            fate=Fate.FORWARDED,
            address=packet.destination,
            port=packet.port,
            source=self._source_after_nat(packet),
            steps=tuple(self.steps),
        )

    def _ended(self, fate: Fate) -> Trace:
        return Trace(fate=fate, steps=tuple(self.steps))

    def _filtered(self, table: str, hook: str, packet: Packet) -> Fate | None:
        """The fate of the packet if it ends here."""
        return _FATES.get(self.decide(table, hook, packet).name)

    def _after_dnat(self, hook: str, packet: Packet) -> Packet:
        """The packet after DNAT. Only the first packet of a flow passes the nat table."""
        if packet.state is not State.NEW:
            return packet
        target = self.decide("nat", hook, packet)
        if target.name == "DNAT" and target.address is not None:
            port = packet.port if target.port is None else target.port
            return replace(
                packet,
                destination=target.address,
                port=port,
                dnat=True,
                original_port=packet.port,
            )
        if target.name == "REDIRECT":
            incoming = packet.in_interface
            to = self._host.source_address(incoming) if incoming else LOOPBACK
            return replace(packet, destination=to, dnat=True)
        return packet

    def _source_after_nat(self, packet: Packet) -> IPv6Address:
        """The source of the outgoing packet."""
        if packet.state is not State.NEW:
            return packet.source
        target = self.decide("nat", "POSTROUTING", packet)
        if target.name == "MASQUERADE":
            return self._host.source_address(packet.out_interface)
        return target.address if target.name == "SNAT" and target.address else packet.source

    def decide(self, table: str, hook: str, packet: Packet) -> Target:
        """The target that ends the packet's way through a base chain."""
        chains = self._tables[table]
        ends, doubt = self._ends(table, hook, hook, packet)
        final = {target: step for target, step in ends.items() if target is not None}
        if None in ends:
            policy = Target(chains[hook].policy)
            final.setdefault(policy, Step(table, hook, hook, "", str(policy)))
        target, step = next(iter(final.items()))
        if len(final) > 1 or target.name not in _TERMINAL:
            raise _Undecided(doubt or step)
        self.steps.append(step)
        return target

    def _ends(
        self, table: str, hook: str, name: str, packet: Packet
    ) -> tuple[dict[Target | None, Step], Step | None]:
        """The possible ends of a chain, each with its rule, and the first rule in doubt. None is
        the end without a target."""
        chains, ends, doubt = self._tables[table], dict[Target | None, Step](), None
        end_of_chain = Step(table, hook, name, "", "")
        for rule in chains[name].rules:
            applies = rule.applies(packet, self._host)
            if applies is False or rule.target.name in _CONTINUES:
                continue
            step = Step(table, hook, name, rule.text, str(rule.target))
            if applies is None:
                doubt = doubt or replace(step, verdict="?")
            inner: dict[Target | None, Step] = {rule.target: step}
            leaves = rule.target.name == "RETURN"
            if leaves:
                inner = {None: step}
            elif rule.target.name in chains:
                inner, inner_doubt = self._ends(table, hook, rule.target.name, packet)
                doubt, leaves = doubt or inner_doubt, rule.goto
            for target, last in inner.items():
                if target is not None or leaves:
                    ends.setdefault(target, last)
            if applies and (leaves or None not in inner):
                return ends, doubt
        ends.setdefault(None, end_of_chain)
        return ends, doubt


# The grammar.

BUILT_IN = {
    "raw": ("PREROUTING", "OUTPUT"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
}
_TERMINAL = frozenset(("ACCEPT", "DROP", "REJECT", "DNAT", "REDIRECT", "MASQUERADE", "SNAT"))
_CONTINUES = frozenset(
    (
        *("AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "CT", "DSCP", "HL", "LOG"),
        *("MARK", "NFLOG", "SECMARK", "SET", "TCPMSS", "TCPOPTSTRIP", "TOS", "TRACE"),
    )
)
"""Targets after which the next rule follows."""
PROTOCOLS = {"tcp": "tcp", "udp": "udp", "sctp": "sctp", "ipv6-icmp": "icmp6", "ah": "ah"}
NUMBERS = {"6": "tcp", "17": "udp", "132": "sctp"}
_MODULES = frozenset(
    ("addrtype", "comment", "conntrack", "mark", "pkttype", "state", *PROTOCOLS, "icmp6")
)
_DECLARATION = re.compile(r":(\S+) (ACCEPT|DROP|-)(?: \[\d+:\d+\])?")


_ONE_PORT = re.compile(r"(?<!!) --dport (\d+)(?!\S)")
_STRING = re.compile(r'"(?:\\.|[^"\\])*"', re.DOTALL)


def for_ports(text: str, ports: Container[int]) -> str:
    """The text without the rules for one other destination port, which no packet to these ports
    matches. A host with many containers has thousands of them, and `parse` is slow."""
    return "\n".join(
        line
        for line in save_lines(text)
        if (found := _ONE_PORT.search(_STRING.sub("", line))) is None or int(found[1]) in ports
    )


def parse(text: str) -> Tables:
    """The tables of ip6tables-save. Lines of no known form are left out.

    Missing built-in chains get the policy ACCEPT, and a missing DOCKER-USER has no rules.
    """
    tables: Tables = {
        table: {name: Chain("ACCEPT") for name in names} for table, names in BUILT_IN.items()
    }
    tables["filter"]["DOCKER-USER"] = Chain()
    table, later = "", []
    for line in save_lines(text):
        if line.startswith("*"):
            table = line[1:]
        elif declared := _DECLARATION.fullmatch(line):
            policy = declared[2].replace("-", "")
            tables.setdefault(table, {})[declared[1]] = Chain(policy)
        elif line.startswith("-A "):
            later.append((table, line))
    for table, line in later:
        name, _, rule = line.removeprefix("-A ").partition(" ")
        chains = tables.setdefault(table, {})
        chains.setdefault(name, Chain()).rules.append(_rule(rule, chains))
    return tables


def _rule(text: str, chains: Chains) -> Rule:
    matches: list[Match] = []
    unknown: list[str] = []
    target, goto = Target(""), False
    try:
        words = shlex.split(text)
    except ValueError:  # a quote without its end
        words, unknown = [], ["no rule"]
    for inverted, option, values in _options(words):
        value = " ".join(values)
        if option in ("-j", "-g"):
            target, goto = Target(value), option == "-g"
        elif target.name:
            target = _with_option(target, option, value)
        elif option == "-m":
            if value == "frag":
                matches.append(lambda *_: False)  # no packet is a fragment
            elif value not in _MODULES:
                unknown.append(value)
        elif option != "--comment":
            match = _match(option, value)
            if match is None:
                unknown.append(option)
            else:
                matches.append(_inverse(match) if inverted else match)
    if unknown:
        matches.append(lambda *_: None)
    if target.name not in {*chains, *_TERMINAL, *_CONTINUES, "RETURN"}:
        unknown.append(target.name or "no target")
    return Rule(text, tuple(matches), target, goto=goto, unknown=tuple(unknown))


def _options(words: Sequence[str]) -> Iterator[tuple[bool, str, list[str]]]:
    """(inverted, option, its values) of the words of a rule. LIMIT_INTERFACE counts as a value of
    the option before it, which it changes."""
    inverted, option, values = False, "", list[str]()
    for word in words:
        if word == "!" or (word.startswith("-") and word != LIMIT_INTERFACE):
            if option:
                yield inverted, option, values
                inverted, option, values = False, "", []
            inverted, option = (True, option) if word == "!" else (inverted, word)
        else:
            values.append(word)
    if option:
        yield inverted, option, values


def _with_option(target: Target, option: str, value: str) -> Target:
    """The target with an option; "?" if it is not known."""
    if target.name in {*_CONTINUES, "REJECT", "MASQUERADE", "REDIRECT"}:
        return target
    with suppress(ValueError):
        if option in ("--to-destination", "--to-source"):
            address, _, port = value.removeprefix("[").partition("]:")
            return Target(target.name, IPv6Address(address), int(port) if port else None)
    return Target("?")


def _inverse(match: Match) -> Match:
    def inverse(packet: Packet, host: Host) -> bool | None:
        found = match(packet, host)
        return None if found is None else not found

    return inverse


def _of_source(match: Match) -> Match:
    """A match of the source or the incoming interface: uncertain if these may be any."""
    return lambda packet, host: None if packet.any_source else match(packet, host)


def _match(option: str, value: str) -> Match | None:
    """The match of an option; None if it is not known here."""
    try:
        return _known_match(option, value)
    except ValueError:
        return None


def _known_match(option: str, value: str) -> Match | None:
    match option, value:
        case "-s", _:
            net = IPv6Network(value, strict=False)
            return _of_source(lambda packet, _: packet.source in net)
        case "-d", _:
            net = IPv6Network(value, strict=False)
            return lambda packet, _: packet.destination in net
        case "-i", _ if value:
            return _of_source(lambda packet, _: _interface_matches(packet.in_interface, value))
        case "-o", _ if value:
            return lambda packet, _: _interface_matches(packet.out_interface, value)
        case "-p", _ if value in PROTOCOLS:
            return lambda packet, _: _matched_protocol(packet) == PROTOCOLS[value]
        case (("--dport" | "--ctorigdstport"), _):
            first, _, last = value.partition(":")
            ports = range(int(first), int(last or first) + 1)
            if option == "--dport":
                return lambda packet, _: packet.port in ports
            return lambda packet, _: (packet.original_port or packet.port) in ports
    return _conntrack_match(option, value) or _address_match(option, value)


def _conntrack_match(option: str, value: str) -> Match | None:
    match option, value:
        case "--ctproto", _ if value in NUMBERS or value in PROTOCOLS:
            # ip6tables-save prints the number.
            return lambda packet, _: packet.protocol == NUMBERS.get(value, value)
        case (("--ctstate" | "--state"), _):
            states = value.split(",")
            if not set(states) <= {*State, "DNAT", "UNTRACKED"}:
                return None
            return lambda packet, _: packet.state in states or (packet.dnat and "DNAT" in states)
        case "--tcp-flags", "FIN,SYN,RST,ACK SYN":
            return lambda packet, _: packet.state is State.NEW or packet.reply
        case "--ctdir", "REPLY":
            return lambda packet, _: packet.reply
    return None


def _address_match(option: str, value: str) -> Match | None:
    match option, value:
        case "--mark", _:
            mark, _, mask = value.partition("/")
            wanted, bits = int(mark, 16), int(mask or "0xffffffff", 16)
            return lambda packet, _: None if packet.mark is None else packet.mark & bits == wanted
        case "--pkt-type", "broadcast" | "multicast":
            return lambda *_: False  # each packet comes in a frame for one host
        case "--src-type", _:
            return _source_type_match(value)
        case "--dst-type", "LOCAL":
            return lambda packet, host: host.is_local(packet.destination)
    return None


def _source_type_match(value: str) -> Match | None:
    types, _, limit = value.partition(" ")
    if types not in ("LOCAL", "LOCAL,ANYCAST") or limit not in ("", LIMIT_INTERFACE):
        return None

    def match(packet: Packet, host: Host) -> bool:
        asked = host.on_link(packet.in_interface) if limit else host
        anycast = types != "LOCAL" and asked.is_anycast(packet.source)
        return anycast or asked.is_local(packet.source)

    return _of_source(match)


def _matched_protocol(packet: Packet) -> str:
    return "ah" if packet.authenticated else packet.protocol


def _interface_matches(interface: str, pattern: str) -> bool:
    if pattern.endswith("+"):
        return interface.startswith(pattern[:-1])
    return interface == pattern
