"""Closes the networks of last time, first of all: before the libraries of the engine and of the bus
are loaded, which takes longer than all else, and without waiting for the engine. Containers may
start any moment.
"""

from __future__ import annotations

import logging

from ipv6natd.firewall import Backend, FirewallError
from ipv6natd.firewall.restore import RestoreFirewall, detect
from ipv6natd.kept import Kept
from ipv6natd.plan import plan
from ipv6natd.rules import Ruleset, Table

log = logging.getLogger(__name__)


def close_networks(setting: str) -> None:
    """Put the kept filter table in force, for `backend = "auto" | "nft" | "legacy"`.

    By the tools on legacy, too: python-iptables takes half a second to load. What fails is logged.
    """
    kept = Kept().read()
    if kept is None:
        return
    try:
        firewall = RestoreFirewall(detect() if setting == "auto" else Backend(setting))
        read = {Table.FILTER: firewall.read()[Table.FILTER]}
        early = Ruleset(filter=kept)
        for change in plan(applied=None, interim=kept, wanted=early, observed=read):
            firewall.write(change)
        log.info("closed the networks of last time until the engine tells of them")
    except FirewallError as error:
        log.error("cannot close the networks of last time: %s", error)
