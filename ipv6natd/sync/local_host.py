"""This host, for the reconciler: its facts and faults, flows, saved rules and forwarding."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from collections.abc import Mapping as Map
from dataclasses import replace
from functools import partial
from ipaddress import IPv6Address

from ipv6natd.conntrack.flush import Conntrack
from ipv6natd.firewall.leftovers import read_engine_rules
from ipv6natd.host.facts import (
    addresses,
    advertised_routes,
    check_host,
    routes,
    tracks_sctp,
    userland_proxy,
)
from ipv6natd.host.findings import HostReport
from ipv6natd.model import ANY, LOOPBACK, Engine, EngineRules, Network, Route, Snapshot
from ipv6natd.netfilter.prefixes import PrefixIndex
from ipv6natd.netfilter.rules import Backend
from ipv6natd.sync.forwarding import Forwarding
from ipv6natd.sync.saved_rules import SavedRules
from ipv6natd.system.threads import in_thread


class LocalHost:
    """This host. `zones` returns the zones of firewalld by interface, None if it does not run."""

    def __init__(
        self, forwarding: Forwarding, zones: Callable[[], Awaitable[Map[str, str] | None]]
    ) -> None:
        self._facts = HostFactsReader()
        self._conntrack = Conntrack(addresses)
        self._saved_rules = SavedRules()
        self.forwarding = forwarding
        self._zones = zones
        self.add_facts = self._facts.add_host_facts
        self.routes_changed = self._facts.routes_changed
        self.flush_stale_flows = self._conntrack.flush_stale_flows
        self.save_rules = self._saved_rules.write
        self.update_forwarding = forwarding.update

    async def check(
        self,
        networks: tuple[Network, ...],
        *,
        bridges: frozenset[str],
        backend: Backend,
        engine_writes: bool,
        rules_removed: bool,
    ) -> HostReport:
        """See Host."""
        zones = await self._zones()
        if not rules_removed:
            await in_thread(self.forwarding.keep_ra_routes)
        check = partial(check_host, networks, backend, zones, bridges, engine_writes=engine_writes)
        return await in_thread(check)


class HostFactsReader:
    """Reads only the facts of the host that decisions need: every event waits for it."""

    def __init__(self) -> None:
        self._without_rules: tuple[Engine, tuple[Network, ...]] | None = None
        self._known_routes: tuple[tuple[Network, ...], tuple[Route, ...]] | None = None

    def routes_changed(self) -> None:
        """Read the routes again for the next snapshot. May be called from any thread."""
        self._known_routes = None

    def add_host_facts(self, snapshot: Snapshot, refresh: bool) -> Snapshot:
        """`snapshot` with the facts of the host; `refresh` reads rules and routes again. Blocks."""
        bridges = [n.bridge for n in snapshot.networks if n.driver == "bridge" and n.bridge]
        return replace(
            snapshot,
            userland_proxy=userland_proxy(bridges),
            host_addresses=addresses() if _needs_host_addresses(snapshot) else None,
            routes=self._routes(snapshot.networks, refresh),
            engine_rules=self._engine_rules(snapshot, refresh),
            tracks_sctp=tracks_sctp(),
        )

    def _routes(self, networks: tuple[Network, ...], refresh: bool) -> tuple[Route, ...]:
        """The routes that concern the networks; a router may have a million others."""
        if self._known_routes is not None and self._known_routes[0] == networks and not refresh:
            return self._known_routes[1]
        bridges = {network.bridge for network in networks if network.bridge}
        own = {subnet for network in networks for subnet in network.subnets}
        all_routes = [route for route in routes() if route.prefix not in own]
        routed = {route.prefix for route in all_routes if route.interface in bridges}
        known = PrefixIndex(own | routed)
        found = [
            route
            for route in all_routes
            if route.interface in bridges or any(known.supernets(route.prefix))
        ]
        if found:
            from_ra = advertised_routes()
            found = [route for route in found if route not in from_ra]
        self._known_routes = networks, tuple(found)
        return tuple(found)

    def _engine_rules(self, snapshot: Snapshot, refresh: bool) -> EngineRules:
        """The engine's IPv6 rules. Reading them means reading all tables, so they are read only if
        there can be new ones: an engine without IPv6 rules writes its first ones with a new
        network or after a restart, not with a port."""
        engine = snapshot.engine
        if engine is None or not engine.may_write_ipv6_rules:
            return EngineRules()
        if not refresh and self._without_rules == (engine, snapshot.networks):
            return EngineRules()
        rules = read_engine_rules()
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
