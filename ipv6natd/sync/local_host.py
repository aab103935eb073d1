"""This host, for the reconciler: its facts and faults, flows, saved rules and forwarding."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from collections.abc import Mapping as Map
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network

from ipv6natd.conntrack.flush import Conntrack
from ipv6natd.firewall.backend import FirewallError
from ipv6natd.firewall.leftovers import read_engine_rules
from ipv6natd.host.facts import (
    addresses,
    advertised_routes,
    check_host,
    guest_ports,
    interfaces_with_learned_routes,
    routed_elsewhere,
    routes,
    tracks_sctp,
    userland_proxy,
)
from ipv6natd.host.findings import Finding
from ipv6natd.model import ANY, LOOPBACK, Desired, Engine, EngineRules, Network, Route, Snapshot
from ipv6natd.netfilter.prefixes import PrefixIndex
from ipv6natd.netfilter.rules import Backend
from ipv6natd.sync.forwarding import Forwarding
from ipv6natd.sync.saved_ports import SavedPorts
from ipv6natd.sync.saved_rules import SavedRules
from ipv6natd.system.threads import in_thread

log = logging.getLogger(__name__)
_EVERYWHERE = IPv6Network("::/0")


class LocalHost:
    """This host. `zones` returns the zones of firewalld by interface, None if it does not run."""

    def __init__(
        self, forwarding: Forwarding, zones: Callable[[], Awaitable[Map[str, str] | None]]
    ) -> None:
        self.forwarding = forwarding
        self._zones = zones
        self._engine_rules = _EngineRulesReader()
        self._userland_proxy = True
        """As the last containers have shown it: nothing depends on it while there are none, but the
        next one starts faster if it does not change."""
        self._route_changes = 0
        self._known_routes: tuple[tuple[Network, ...], int, tuple[Route, ...]] = ((), 0, ())
        """The networks and the number of changes that the routes were read for, and the routes."""
        self._conntrack = Conntrack(addresses)
        self.flush_stale_flows = self._conntrack.flush_stale_flows
        self.scan_again = self._conntrack.scan_again
        self.save_rules = SavedRules().write
        self.update_forwarding = forwarding.update
        self.saved_ports = SavedPorts()

    @property
    def needs_scan(self) -> bool:
        """See Host."""
        return self._conntrack.needs_scan

    async def check(
        self, desired: Desired, *, bridges: frozenset[str], backend: Backend, rules_removed: bool
    ) -> tuple[Finding, ...]:
        """See Host."""
        zones = await self._zones()
        if not rules_removed:
            await in_thread(self.forwarding.keep_ra_routes)
        return await in_thread(lambda: check_host(desired, backend, zones, bridges))

    def ports_have_left(self, bridges: Collection[str]) -> bool | None:
        """See Host."""
        return self.saved_ports.have_left(bridges)

    def routes_changed(self) -> None:
        """Read the routes again for the next snapshot. May be called from any thread."""
        self._route_changes += 1

    def add_facts(self, snapshot: Snapshot, refresh: bool) -> Snapshot:
        """See Host. Reads only the facts that decisions need: every event waits for it."""
        bridges = [n.bridge for n in snapshot.networks if n.driver == "bridge" and n.bridge]
        own = addresses() if _needs_host_addresses(snapshot) else None
        named = frozenset(n.source_address for n in snapshot.networks if n.source_address)
        sources = named - (own or named)
        if (proxy := userland_proxy(bridges)) is not None:
            self._userland_proxy = proxy
        return replace(
            snapshot,
            userland_proxy=self._userland_proxy,
            host_addresses=own,
            routed_sources=sources - routed_elsewhere(sources),
            routes=self._routes(snapshot.networks, refresh),
            engine_rules=self._engine_rules.read(snapshot, refresh),
            tracks_sctp=tracks_sctp(),
        )

    def _routes(self, networks: tuple[Network, ...], refresh: bool) -> tuple[Route, ...]:
        """The routes that concern the networks; a router may have a million others."""
        changes = self._route_changes  # before the read: a later change causes another one
        known_networks, known_changes, known_routes = self._known_routes
        if (known_networks, known_changes) == (networks, changes) and not refresh:
            return known_routes
        bridges = {network.bridge for network in networks if network.bridge}
        own = {
            Route(prefix=subnet, interface=network.bridge)
            for network in networks
            for subnet in network.subnets
        }
        all_routes = [*routes()]
        others = [route for route in all_routes if route not in own]
        routed = {route.prefix for route in others if route.interface in bridges}
        known = PrefixIndex(routed.union(route.prefix for route in own))
        found = [
            route
            for route in others
            if route.prefix in routed
            or route.interface in bridges
            or any(known.supernets(route.prefix))
        ]
        # Also a network inside a prefix that is routed to another one.
        wider = PrefixIndex(routed)
        found += [r for r in all_routes if r in own and any(wider.supernets(r.prefix))]
        learned = interfaces_with_learned_routes()
        from_ra = advertised_routes() if found else frozenset()
        if found:
            learned = learned.union(route.interface for route in found if route in from_ra)
            found = [route for route in found if route not in from_ra]
        if leads := [name for name in sorted(learned & bridges) if guest_ports(name)]:
            # Guests may have any address, except for those that another interface leads to. A
            # container can advertise a route too.
            known_or_learned = from_ra.union(found)
            found += [route for route in others if route not in known_or_learned]
            found += [Route(prefix=_EVERYWHERE, interface=name) for name in leads]
        self._known_routes = networks, changes, tuple(found)
        return tuple(found)


class _EngineRulesReader:
    """The engine's IPv6 rules. Reading them means reading all tables, so they are read only if
    there can be new ones: an engine without IPv6 rules writes its first ones with a new network or
    after a restart, not with a port."""

    def __init__(self) -> None:
        self._without_rules: tuple[Engine, tuple[Network, ...]] | None = None
        self._last_rules: tuple[Engine, EngineRules] | None = None
        self._failure = ""

    def read(self, snapshot: Snapshot, refresh: bool) -> EngineRules:
        """The rules of the snapshot's engine; the last known ones if they cannot be read."""
        engine = snapshot.engine
        if engine is None or not engine.may_write_ipv6_rules:
            return EngineRules()
        if not refresh and self._without_rules == (engine, snapshot.networks):
            return EngineRules()
        try:
            rules = read_engine_rules()
        except FirewallError as error:
            # What may belong to the engine is left alone until it is known.
            if self._failure != str(error):
                log.warning("cannot read whether the engine has IPv6 rules: %s", error)
            self._failure = str(error)
            if self._last_rules is not None and self._last_rules[0] == engine:
                return self._last_rules[1]
            bridges = frozenset(network.bridge for network in snapshot.networks)
            return EngineRules(bridges=bridges, complete=False)
        self._failure = ""
        self._last_rules = engine, rules
        self._without_rules = None if rules.bridges else (engine, snapshot.networks)
        return rules


def _needs_host_addresses(snapshot: Snapshot) -> bool:
    return any(
        network.source_address or network.host_binding_ipv6 for network in snapshot.networks
    ) or any(
        # Nearly all addresses are this object (see engine.parse), and `is` is fast.
        binding.host_address is not ANY
        and isinstance(binding.host_address, IPv6Address)
        and binding.host_address not in (ANY, LOOPBACK)
        for container in snapshot.containers
        for binding in container.bindings
    )
