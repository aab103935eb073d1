"""Selects the firewall backend."""

from __future__ import annotations

from ipv6natd.firewall.backend import Firewall, FirewallError
from ipv6natd.firewall.restore import RestoreFirewall, detect_backend
from ipv6natd.netfilter.rules import Backend


def open_firewall(setting: str) -> Firewall:
    """Opens the backend for `backend = "auto" | "nft" | "legacy"`. Raises FirewallError."""
    backend = detect_backend() if setting == "auto" else Backend(setting)
    if backend is Backend.NFT:
        return RestoreFirewall(backend)
    # Not at the top: the import of python-iptables loads kernel modules and libraries of the legacy
    # variant, which must not happen on a host with the nft variant.
    try:
        from ipv6natd.firewall.legacy import LegacyFirewall
    except (ImportError, OSError) as error:
        text = f"python-iptables cannot be loaded: {error}; install the package python3-iptables"
        raise FirewallError(text) from None

    return LegacyFirewall()
