"""Facts of the engine -> Snapshot: adds what the host itself says about them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address

from ipv6natd.firewall.leftovers import read_engine_rules
from ipv6natd.host.facts import addresses, advertised_routes, routes, tracks_sctp, userland_proxy
from ipv6natd.model import ANY, LOOPBACK, Engine, EngineRules, Network, Route, Snapshot
from ipv6natd.netfilter.prefixes import PrefixIndex


class Completion:
    """Adds the host's side to snapshots. Reads no more than what decides something: this is on the
    way of every event."""

    def __init__(self) -> None:
        self._ruleless: tuple[Engine, tuple[Network, ...]] | None = None
        self._routed: tuple[tuple[Network, ...], tuple[Route, ...]] | None = None

    def routes_changed(self) -> None:
        """Read the routes again for the next snapshot. From any thread."""
        self._routed = None

    def __call__(self, snapshot: Snapshot, anew: bool) -> Snapshot:
        """`anew`: somebody else may have written rules. Blocks."""
        bridges = [n.bridge for n in snapshot.networks if n.driver == "bridge" and n.bridge]
        return replace(
            snapshot,
            userland_proxy=userland_proxy(bridges),
            host_addresses=addresses() if _names_addresses(snapshot) else None,
            routes=self._routes(snapshot.networks, anew),
            engine_rules=self._engine_rules(snapshot, anew),
            tracks_sctp=tracks_sctp(),
        )

    def _routes(self, networks: tuple[Network, ...], anew: bool) -> tuple[Route, ...]:
        """Those that concern the networks: there may be a million others."""
        if self._routed is not None and self._routed[0] == networks and not anew:
            return self._routed[1]
        bridges = {network.bridge for network in networks if network.bridge}
        own = {subnet for network in networks for subnet in network.subnets}
        every = [route for route in routes() if route.prefix not in own]
        behind = {route.prefix for route in every if route.interface in bridges}
        known = PrefixIndex(own | behind)
        found = [
            route
            for route in every
            if route.interface in bridges or any(known.supernets(route.prefix))
        ]
        if found:
            learned = advertised_routes()
            found = [route for route in found if route not in learned]
        self._routed = networks, tuple(found)
        return tuple(found)

    def _engine_rules(self, snapshot: Snapshot, anew: bool) -> EngineRules:
        """To read them is to read all tables. An engine that has no rule for IPv6 will not write
        one for a port: it would come with a network, or another start of the engine."""
        engine = snapshot.engine
        if engine is None or not engine.may_write_ipv6_rules:
            return EngineRules()
        if not anew and self._ruleless == (engine, snapshot.networks):
            return EngineRules()
        rules = read_engine_rules()
        self._ruleless = None if rules.bridges else (engine, snapshot.networks)
        return rules


def _names_addresses(snapshot: Snapshot) -> bool:
    return any(each.source_address or each.host_binding_ipv6 for each in snapshot.networks) or any(
        # Nearly all of them are that one object: see docker_facts.
        binding.host_address is not ANY
        and isinstance(binding.host_address, IPv6Address)
        and binding.host_address not in (ANY, LOOPBACK)
        for container in snapshot.containers
        for binding in container.bindings
    )
