"""What the filter table let pass until our rules stood in it."""

from __future__ import annotations

from ipv6natd.conntrack.stale import Exposure
from ipv6natd.netfilter.diff import ObservedTable, stands
from ipv6natd.netfilter.rules import TableRules
from ipv6natd.policy.ruleset import asks_for_sources


def exposure(wanted: TableRules, found: ObservedTable) -> Exposure:
    """What the filter table that was found let pass, where `wanted` should have stood."""
    if stands(wanted, found, keep_order=False):
        return Exposure.NONE
    return Exposure.OPEN if asks_for_sources(found.own) else Exposure.UNGUARDED
