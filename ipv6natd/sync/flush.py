"""All our rules out of both variants, and forwarding as it was found, without engine and bus.

For `ipv6natd -flush`, and for clean-up where no daemon runs.
"""

from __future__ import annotations

import logging

from ipv6natd.firewall.backend import Firewall, FirewallError
from ipv6natd.firewall.restore import RestoreFirewall
from ipv6natd.firewall.select import open_firewall
from ipv6natd.netfilter.rules import Backend
from ipv6natd.sync.applier import remove_all
from ipv6natd.sync.forwarding import Forwarding
from ipv6natd.sync.saved_rules import Kept

log = logging.getLogger(__name__)


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
