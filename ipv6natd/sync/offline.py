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
from ipv6natd.sync.saved_rules import SavedFilter, filter_exposure

log = logging.getLogger(__name__)


def close_networks(setting: str) -> Exposure:
    """Put the kept filter table in force, for `backend = "auto" | "nft" | "legacy"`; returns what
    may have passed while it was not.

    By the tools on legacy, too: python-iptables takes half a second to load. What fails is logged.
    """
    exposure = Exposure.NONE
    saved = SavedFilter().read()
    if saved is None:
        return exposure
    try:
        firewall = RestoreFirewall(detect_backend() if setting == "auto" else Backend(setting))
        observed = {Table.FILTER: firewall.read()[Table.FILTER]}
        exposure = filter_exposure(saved, observed[Table.FILTER])
        if not checks_sources({chain.name for chain in saved.chains}):
            if exposure is Exposure.NONE:
                log.info("the rules of the former version stand until the engine tells of networks")
                return Exposure.UNGUARDED
            saved, exposure = closed_filter(saved), Exposure.UNGUARDED
        closed = Ruleset(filter=saved)
        for change in diff(applied=None, interim=saved, wanted=closed, observed=observed):
            firewall.write(change)
        log.info("closed the networks of last time until the engine tells of them")
    except FirewallError as error:
        log.error("cannot close the networks of last time: %s", error)
    return exposure


def flush(setting: str) -> int:
    """Returns the number of chains and jumps that went. Raises FirewallError.

    The variant that is not in use too: it may hold some of earlier days.
    """
    firewall_in_use = open_firewall(setting)
    firewalls: list[Firewall] = [firewall_in_use]
    other = Backend.LEGACY if firewall_in_use.backend is Backend.NFT else Backend.NFT
    try:
        firewalls.append(RestoreFirewall(other))
    except FirewallError as error:
        log.debug("the other variant is not here: %s", error)
    # First: without rules nothing guards what forwarding opens.
    Forwarding().restore()
    count = sum(remove_all(firewall) for firewall in firewalls)
    SavedFilter().remove()
    return count
