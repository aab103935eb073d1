"""Works without the engine and the bus: close the saved networks, and remove all rules.

`close_networks` is the first step of a start. The libraries of the engine and of the bus are
loaded later, because that takes long and containers may start at any moment. `flush` is
`ipv6natd -flush`, also used for a clean-up while no daemon runs.
"""

from __future__ import annotations

import logging

from ipv6natd.conntrack.stale import Exposure
from ipv6natd.firewall.backend import Firewall, FirewallError
from ipv6natd.firewall.restore import RestoreFirewall
from ipv6natd.firewall.select import open_firewall
from ipv6natd.netfilter.diff import rewrite_tables
from ipv6natd.netfilter.rules import GUARD_TABLES, Backend, Ruleset
from ipv6natd.policy.ruleset import checks_sources, closed_guard
from ipv6natd.sync.applier import remove_all
from ipv6natd.sync.forwarding import Forwarding
from ipv6natd.sync.saved_rules import SavedRules, past_exposure
from ipv6natd.sync.variant import chosen_backend

log = logging.getLogger(__name__)


def close_networks(setting: str) -> tuple[Ruleset | None, Exposure]:
    """Write the saved rules; returns them, and what the tables before them let pass.

    `setting` is `backend`: "auto", "nft" or "legacy". Uses the tools on legacy too, because
    python-iptables takes half a second to load. Errors are logged.
    """
    saved = SavedRules().read()
    return saved, _write_saved(saved, setting) if saved else Exposure.NONE


def _write_saved(saved: Ruleset, setting: str) -> Exposure:
    exposure = Exposure.NONE
    try:
        firewall = RestoreFirewall(chosen_backend(setting))
        found = firewall.read()
        observed = {table: found[table] for table in GUARD_TABLES}
        exposure = past_exposure(saved, observed, saved)
        if not checks_sources(saved.raw.chains, saved.filter.chains):
            if exposure is Exposure.NONE:
                log.info(
                    "the rules of the old version stay in force until the engine lists its networks"
                )
                return Exposure.UNGUARDED
            saved, exposure = closed_guard(saved), Exposure.UNGUARDED
        firewall.write_all(rewrite_tables(observed, saved))
        log.info("closed the saved networks until the engine lists its networks")
    except FirewallError as error:
        log.error("cannot close the saved networks: %s", error)
    return exposure


def flush(setting: str) -> int:
    """Remove all rules; returns the number of removed chains and jumps. Raises FirewallError.

    Also in the variant that is not in use: it may contain rules of an earlier start.
    """
    firewall_in_use = open_firewall(chosen_backend(setting))
    firewalls: list[Firewall] = [firewall_in_use]
    other = Backend.LEGACY if firewall_in_use.backend is Backend.NFT else Backend.NFT
    try:
        firewalls.append(RestoreFirewall(other))
    except FirewallError as error:
        log.debug("the other variant is not available: %s", error)
    # Before the removal: without rules nothing protects the networks that forwarding connects.
    Forwarding().restore()
    count = sum(remove_all(firewall) for firewall in firewalls)
    SavedRules().remove()
    return count
