"""Chains, rules and jumps as values, and the one function that words a rule."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address, IPv6Network

from ipv6natd.model import Protocol

PREFIX = "IPV6NAT-"
COMMENT = "ipv6natd"
DOCKER_USER = "DOCKER-USER"
SYN = ("FIN,SYN,RST,ACK", "SYN")
"""The flags that tell whether a segment begins a connection, and the one of them that it has."""


class Backend(StrEnum):
    """The two variants of ip6tables."""

    NFT = "nft"
    LEGACY = "legacy"


class Table(StrEnum):
    """The tables we write to."""

    FILTER = "filter"
    NAT = "nat"


class Verdict(StrEnum):
    """Targets that take no argument."""

    ACCEPT = "ACCEPT"
    DROP = "DROP"
    RETURN = "RETURN"
    MASQUERADE = "MASQUERADE"
    REDIRECT = "REDIRECT"
    """To the address of the interface that it came in by, same port."""


class RejectWith(StrEnum):
    """What a refused client is told."""

    TCP_RESET = "tcp-reset"
    PORT_UNREACHABLE = "icmp6-port-unreachable"


@dataclass(frozen=True, slots=True)
class Jump:
    """Go on in another chain."""

    chain: str


@dataclass(frozen=True, slots=True)
class Dnat:
    """Rewrite the destination; without a port the packet keeps its own."""

    address: IPv6Address
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Snat:
    """Rewrite the source to one address."""

    address: IPv6Address


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse, and say so."""

    reject_with: RejectWith


Target = Verdict | Jump | Dnat | Snat | Reject


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What a packet must have for `target` to happen to it; what is None or empty is not asked.

    A `not_` field is the same match inverted; a rule sets at most one of the two. `in_interface`
    and `out_interface` may end with "+", which stands for any letters or none.
    """

    target: Target
    source: IPv6Network | None = None
    not_source: IPv6Network | None = None
    destination: IPv6Network | None = None
    not_destination: IPv6Network | None = None
    in_interface: str = ""
    not_in_interface: str = ""
    out_interface: str = ""
    not_out_interface: str = ""
    protocol: Protocol | None = None
    ports: tuple[int, int] | None = None
    """Destination ports, first and last; needs `protocol`."""
    syn: bool = False
    """Only the segment that begins a connection; needs TCP as `protocol`."""
    icmp: bool = False
    """Any ICMPv6; instead of `protocol`."""
    authentication: bool = False
    """An authentication header (RFC 4302); instead of `protocol`. In nf_tables that is where the
    search for the protocol ends, and conntrack's goes on."""
    flow: tuple[Protocol, int, int] | None = None
    """What conntrack takes the packet for: a protocol, and first and last of the destination ports
    of its flow's first packet."""
    mark: tuple[int, int] | None = None
    """Mark and mask."""
    destination_local: bool = False
    destination_not_local: bool = False
    source_local: bool = False
    source_not_local: bool = False
    states: tuple[str, ...] = ()
    """conntrack states, as `--ctstate` takes them."""
    reply: bool = False
    """What conntrack takes for an answer, whatever it is."""
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain of ours with all its rules."""

    name: str
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseJump:
    """A rule of ours in a chain that is not ours. `first` keeps it at the head of that chain."""

    base: str
    rule: Rule
    first: bool = False

    @property
    def target(self) -> str:
        """The chain it jumps to."""
        assert isinstance(self.rule.target, Jump)
        return self.rule.target.chain


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRules:
    """All that we want to stand in one table; `jumps` with `first` are in their order."""

    chains: tuple[Chain, ...] = ()
    jumps: tuple[BaseJump, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """All that we want to stand in the kernel."""

    filter: TableRules = TableRules()
    nat: TableRules = TableRules()

    def table(self, table: Table) -> TableRules:
        """The part for one table."""
        return self.filter if table is Table.FILTER else self.nat


EMPTY = Ruleset()
