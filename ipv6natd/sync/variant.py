"""Chooses the variant of ip6tables."""

from __future__ import annotations

from contextlib import suppress

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.firewall.restore import detect_backend
from ipv6natd.firewall.tools import variant_tool
from ipv6natd.host.firewalls import docker_ipv4_variants
from ipv6natd.netfilter.rules import Backend


def chosen_backend(setting: str) -> Backend:
    """The variant for `backend`: "auto", "nft" or "legacy". Raises FirewallError.

    With "auto" it is the one that contains Docker's IPv4 chains, so that one tool shows the rules
    of both: in a container, the tools are not those of the host. Before the engine has started, and
    if both variants have such chains, it is that of `ip6tables`.
    """
    if setting != "auto":
        return Backend(setting)
    variants = docker_ipv4_variants()
    with suppress(FirewallError):
        if len(variants) == 1:
            backend = Backend(*variants)
            variant_tool(backend, "restore")
            return backend
    return detect_backend()
