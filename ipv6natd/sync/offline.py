"""Closes the networks of last time, first of all: before the libraries of the engine and of the bus
are loaded, which takes longer than all else, and without waiting for the engine. Containers may
start any moment.
"""

from __future__ import annotations

import logging

from ipv6natd.conntrack.stale import Exposure
from ipv6natd.firewall.backend import FirewallError
from ipv6natd.firewall.restore import RestoreFirewall, detect
from ipv6natd.netfilter.diff import plan
from ipv6natd.netfilter.rules import Backend, Ruleset, Table
from ipv6natd.policy.ruleset import asks_for_sources, shut
from ipv6natd.sync.exposure import exposure
from ipv6natd.sync.saved_rules import Kept

log = logging.getLogger(__name__)


def close_networks(setting: str) -> Exposure:
    """Put the kept filter table in force, for `backend = "auto" | "nft" | "legacy"`; returns what
    may have passed while it was not.

    By the tools on legacy, too: python-iptables takes half a second to load. What fails is logged.
    """
    found = Exposure.NONE
    kept = Kept().read()
    if kept is None:
        return found
    try:
        firewall = RestoreFirewall(detect() if setting == "auto" else Backend(setting))
        read = {Table.FILTER: firewall.read()[Table.FILTER]}
        found = exposure(kept, read[Table.FILTER])
        if not asks_for_sources({chain.name for chain in kept.chains}):
            if found is Exposure.NONE:
                log.info("the rules of the former version stand until the engine tells of networks")
                return Exposure.UNGUARDED
            kept, found = shut(kept), Exposure.UNGUARDED
        early = Ruleset(filter=kept)
        for change in plan(applied=None, interim=kept, wanted=early, observed=read):
            firewall.write(change)
        log.info("closed the networks of last time until the engine tells of them")
    except FirewallError as error:
        log.error("cannot close the networks of last time: %s", error)
    return found
