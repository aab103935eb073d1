"""Chains, rules and jumps as values. The text of a rule is made in `render`."""

from __future__ import annotations

from collections.abc import Mapping as Map
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv6Address, IPv6Network

from ipv6natd.model import Protocol

PREFIX = "IPV6NAT-"
COMMENT = "ipv6natd"
DOCKER_USER = "DOCKER-USER"
HANDLE = "nft-handle:"
"""Begins a comment with nft's number of a rule, in the text of a rule that nft listed."""


class Backend(StrEnum):
    """The two variants of ip6tables."""

    NFT = "nft"
    LEGACY = "legacy"


class Table(StrEnum):
    """The tables that ipv6natd writes to.

    In the order in which they are written if rules are added, and in reverse order if all rules are
    removed: nat never forwards a flow that filter does not guard, and filter accepts no established
    packet whose source raw has not checked.
    """

    RAW = "raw"
    FILTER = "filter"
    NAT = "nat"


GUARD_TABLES = (Table.RAW, Table.FILTER)
"""The tables that only accept and drop. They protect without the engine, so they are saved."""


class Verdict(StrEnum):
    """Targets that take no argument, as ip6tables-restore reads them."""

    ACCEPT = "ACCEPT"
    DROP = "DROP"
    RETURN = "RETURN"
    MASQUERADE = "MASQUERADE"
    REDIRECT = "REDIRECT"
    """Rewrites the destination to the address of the input interface; the port stays."""
    TCP_RESET = "REJECT --reject-with tcp-reset"
    PORT_UNREACHABLE = "REJECT --reject-with icmp6-port-unreachable"


LIMIT_INTERFACE = "--limit-iface-in"
"""An option of addrtype without a value: only addresses of the incoming interface count."""


class Match(StrEnum):
    """Matches that take no argument, as ip6tables-restore reads them."""

    SYN = "-m tcp --tcp-flags FIN,SYN,RST,ACK SYN"
    """The first segment of a connection; needs TCP as the protocol."""
    ICMP = "-p ipv6-icmp"
    """Instead of a protocol."""
    AUTHENTICATION = "-p ah"
    """An authentication header (RFC 4302), instead of a protocol. nf_tables stops its search for
    the protocol at this header, conntrack continues behind it."""
    SOURCE_LOCAL = "-m addrtype --src-type LOCAL"
    SOURCE_LOCAL_OR_ANYCAST = "-m addrtype --src-type LOCAL,ANYCAST"
    SOURCE_LOCAL_ON_LINK = f"-m addrtype --src-type LOCAL {LIMIT_INTERFACE}"
    SOURCE_LOCAL_OR_ANYCAST_ON_LINK = f"-m addrtype --src-type LOCAL,ANYCAST {LIMIT_INTERFACE}"
    SOURCE_NOT_LOCAL = "-m addrtype ! --src-type LOCAL"
    DESTINATION_LOCAL = "-m addrtype --dst-type LOCAL"
    DESTINATION_NOT_LOCAL = "-m addrtype ! --dst-type LOCAL"
    NO_FLOW = "-m conntrack --ctstate NEW,INVALID,UNTRACKED"
    """A packet that belongs to no conntrack entry yet, or to none at all."""
    INVALID = "-m conntrack --ctstate INVALID"
    ESTABLISHED = "-m conntrack --ctstate ESTABLISHED"
    RELATED = "-m conntrack --ctstate RELATED"
    RELATED_OR_ESTABLISHED = "-m conntrack --ctstate RELATED,ESTABLISHED"
    """Only in rules that an earlier build saved."""
    DNAT = "-m conntrack --ctstate DNAT"
    REPLY = "-m conntrack --ctdir REPLY"
    """A packet of the reply direction of a conntrack entry."""
    BROADCAST = "-m pkttype --pkt-type broadcast"
    """The Ethernet frame is for all."""
    MULTICAST = "-m pkttype --pkt-type multicast"
    FRAGMENT = "-m frag"
    """A packet with a fragment header, among whatever other headers."""
    OURS = f"-m comment --comment {COMMENT}"
    """In each of our rules in a foreign chain."""


@dataclass(frozen=True, slots=True)
class Jump:
    """Continue in another chain."""

    chain: str


@dataclass(frozen=True, slots=True)
class Dnat:
    """Rewrite the destination address and, if `port` is set, the destination port."""

    address: IPv6Address
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Snat:
    """Rewrite the source address."""

    address: IPv6Address


Target = Verdict | Jump | Dnat | Snat


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A target and the matches for it. A field that is None, empty or false is no match.

    One field for each option of ip6tables that is used, so it has many.

    A `not_` field is the inverted match; a rule sets at most one of the two. An interface name may
    end with "+", which matches any suffix.
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
    """First and last destination port; needs `protocol`."""
    matches: tuple[Match, ...] = ()
    mark: tuple[int, int] | None = None
    """Mark and mask."""
    flow: tuple[Protocol, int, int] | None = None
    """Matches the conntrack entry: its protocol, and the first and last destination port of its
    original direction."""


Chains = Map[str, tuple[Rule, ...]]
"""Names of our chains -> all their rules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseJump:
    """A jump from a foreign chain (`base`) to one of our chains. `first` keeps it at the head."""

    base: str
    rule: Rule
    first: bool = False

    @property
    def target(self) -> str:
        """The chain that the jump leads to."""
        assert isinstance(self.rule.target, Jump)
        return self.rule.target.chain


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRules:
    """Our chains and jumps of one table. `jumps` with `first` are in their final order."""

    chains: Chains = field(default_factory=dict)
    jumps: tuple[BaseJump, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """Our chains and jumps of all tables."""

    raw: TableRules = TableRules()
    filter: TableRules = TableRules()
    nat: TableRules = TableRules()

    def table(self, table: Table) -> TableRules:
        """The chains and jumps of one table."""
        rules: TableRules = getattr(self, table)
        return rules

    @property
    def guard(self) -> Ruleset:
        """Without nat: the tables that only accept and drop."""
        return replace(self, nat=TableRules())


EMPTY = Ruleset()
