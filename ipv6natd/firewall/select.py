"""Opens the firewall of a variant."""

from __future__ import annotations

import logging

from ipv6natd.firewall.backend import Firewall
from ipv6natd.firewall.legacy import LegacyFirewall
from ipv6natd.firewall.restore import RestoreFirewall
from ipv6natd.netfilter.rules import Backend

log = logging.getLogger(__name__)


def open_firewall(backend: Backend) -> Firewall:
    """Open the firewall of this variant. Raises FirewallError."""
    if backend is Backend.NFT:
        return RestoreFirewall(backend)
    # Not at the top: the import of python-iptables loads kernel modules and libraries of the legacy
    # variant, which must not happen on a host with the nft variant.
    try:
        from ipv6natd.firewall.libiptc import LibiptcWriter
    except (ImportError, OSError) as error:
        firewall = LegacyFirewall(None)
        log.info(
            "python-iptables cannot be loaded (%s): ip6tables-legacy-restore writes all changes",
            error,
        )
        return firewall
    return LegacyFirewall(LibiptcWriter().write)
