"""The jumps from the base chains of a table to our chains: the only rules of ours outside them."""

from __future__ import annotations

from collections.abc import Mapping as Map
from ipaddress import IPv6Network

from ipv6natd.model import LINK_LOCAL, LOOPBACK
from ipv6natd.netfilter.rules import DOCKER_USER, PREFIX, BaseJump, Jump, Match, Rule, Table

SOURCES = f"{PREFIX}SRC"
FORWARD = f"{PREFIX}FORWARD"
INPUT = f"{PREFIX}INPUT"
OUTPUT = f"{PREFIX}OUTPUT"
PRE = f"{PREFIX}PRE"
DNAT = f"{PREFIX}DNAT"
POST = f"{PREFIX}POST"
LOOPBACK_NET = IPv6Network(LOOPBACK)


def _jump(
    base: str,
    chain: str,
    *matches: Match,
    first: bool = False,
    not_source: IPv6Network | None = None,
    not_destination: IPv6Network | None = None,
) -> BaseJump:
    rule = Rule(
        target=Jump(chain),
        not_source=not_source,
        not_destination=not_destination,
        matches=(*matches, Match.OURS),
    )
    return BaseJump(base=base, rule=rule, first=first)


JUMPS: Map[Table, tuple[BaseJump, ...]] = {
    # First, so that no ACCEPT of another program skips the checks. Not in OUTPUT: processes in the
    # network namespace of the host are trusted (SECURITY.md).
    Table.RAW: (_jump("PREROUTING", SOURCES, first=True),),
    Table.FILTER: (
        _jump("FORWARD", DOCKER_USER, first=True),
        _jump("FORWARD", FORWARD, first=True),
        _jump("INPUT", INPUT, first=True),
        _jump("OUTPUT", OUTPUT, first=True),
    ),
    Table.NAT: (
        _jump("PREROUTING", PRE, Match.DESTINATION_LOCAL),
        # A packet to ::1 has the source ::1. The kernel drops a reply to ::1 that comes in by
        # another interface than lo, so with DNAT the connection would hang. It does not forward
        # link-local sources.
        _jump(
            "OUTPUT",
            DNAT,
            Match.DESTINATION_LOCAL,
            not_source=LINK_LOCAL,
            not_destination=LOOPBACK_NET,
        ),
        _jump("POSTROUTING", POST),
    ),
}
"""All jumps of each table, in their order."""
