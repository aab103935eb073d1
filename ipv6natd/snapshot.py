"""Facts of the engine -> Snapshot: adds what the host itself says about them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address

from ipv6natd.firewall.engine import engine_rules
from ipv6natd.host_facts import addresses, tracks_sctp, userland_proxy
from ipv6natd.model import ANY, LOOPBACK, EngineRules, Snapshot


def completed(snapshot: Snapshot) -> Snapshot:
    """The snapshot with the host's side of it. Reads no more than what decides something: this is
    on the way of every event."""
    engine = snapshot.engine
    bridges = [each.bridge for each in snapshot.networks if each.driver == "bridge" and each.bridge]
    return replace(
        snapshot,
        userland_proxy=userland_proxy(bridges),
        host_addresses=addresses() if _names_addresses(snapshot) else None,
        engine_rules=(engine_rules() if engine and engine.may_write_ipv6_rules else EngineRules()),
        tracks_sctp=tracks_sctp(),
    )


def _names_addresses(snapshot: Snapshot) -> bool:
    return any(each.source_address or each.host_binding_ipv6 for each in snapshot.networks) or any(
        # Nearly all of them are that one object: see docker_facts.
        binding.host_address is not ANY
        and isinstance(binding.host_address, IPv6Address)
        and binding.host_address not in (ANY, LOOPBACK)
        for container in snapshot.containers
        for binding in container.bindings
    )
