"""What the service does without the engine and the bus: close the saved networks, remove all rules.

`close_networks` is the first step of a start, before the libraries of the engine and of the bus
are loaded. Loading them takes longer than all else, and containers may start at any moment.
`flush` is `ipv6natd -flush`, and the clean-up where no daemon runs.
"""

from __future__ import annotations

import logging

from ipv6natd.conntrack.stale import Exposure
from ipv6natd.firewall.backend import Firewall, FirewallError
from ipv6natd.firewall.restore import RestoreFirewall, detect_backend
from ipv6natd.firewall.select import open_firewall
from ipv6natd.netfilter.diff import diff
from ipv6natd.netfilter.rules import Backend, Ruleset, Table
from ipv6natd.policy.ruleset import checks_sources, closed_filter
from ipv6natd.sync.applier import remove_all
from ipv6natd.sync.forwarding import Forwarding
from ipv6natd.sync.saved_rules import Kept, exposure

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
        firewall = RestoreFirewall(detect_backend() if setting == "auto" else Backend(setting))
        read = {Table.FILTER: firewall.read()[Table.FILTER]}
        found = exposure(kept, read[Table.FILTER])
        if not checks_sources({chain.name for chain in kept.chains}):
            if found is Exposure.NONE:
                log.info("the rules of the former version stand until the engine tells of networks")
                return Exposure.UNGUARDED
            kept, found = closed_filter(kept), Exposure.UNGUARDED
        early = Ruleset(filter=kept)
        for change in diff(applied=None, interim=kept, wanted=early, observed=read):
            firewall.write(change)
        log.info("closed the networks of last time until the engine tells of them")
    except FirewallError as error:
        log.error("cannot close the networks of last time: %s", error)
    return found


def flush(setting: str) -> int:
    """Returns the number of chains and jumps that went. Raises FirewallError.

    The variant that is not in use too: it may hold some of earlier days.
    """
    used = open_firewall(setting)
    firewalls: list[Firewall] = [used]
    other = Backend.LEGACY if used.backend is Backend.NFT else Backend.NFT
    try:
        firewalls.append(RestoreFirewall(other))
    except FirewallError as error:
        log.debug("the other variant is not here: %s", error)
    # First: without rules nothing guards what forwarding opens.
    Forwarding().put_back()
    count = sum(remove_all(each) for each in firewalls)
    Kept().remove()
    return count
