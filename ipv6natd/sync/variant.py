"""Chooses the variant of ip6tables."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.firewall.restore import detect_backend
from ipv6natd.firewall.tools import variant_tool
from ipv6natd.host.firewalls import docker_ipv4_variants
from ipv6natd.netfilter.rules import Backend
from ipv6natd.system.process import in_image

_PID_FILE = Path("/run/docker.pid")
"""dockerd removes it when it ends."""


def _engine_runs() -> bool:
    """True in the image: the engine has started its container."""
    return in_image() or _PID_FILE.exists()


def chosen_backend(setting: str) -> Backend:
    """The variant for `backend`: "auto", "nft" or "legacy". Raises FirewallError.

    With "auto" it is the one that contains Docker's IPv4 chains, so that one tool shows the rules
    of both: in a container, the tools are not those of the host. It is that of `ip6tables` if both
    variants have such chains, and before the engine has started: the chains stay when it ends, and
    `ip6tables` may be another one since then.
    """
    if setting != "auto":
        return Backend(setting)
    variants = docker_ipv4_variants() if _engine_runs() else frozenset()
    with suppress(FirewallError):
        if len(variants) == 1:
            backend = Backend(*variants)
            variant_tool(backend, "restore")
            return backend
    return detect_backend()
