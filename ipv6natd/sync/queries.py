"""Answers about the rules in force: each reads the tables of the kernel, and changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from ipaddress import IPv6Address

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.firewall.restore import read_counted_tables, read_tables
from ipv6natd.host.facts import trace_host
from ipv6natd.host.firewalls import other_base_chains
from ipv6natd.model import Mapping, Snapshot
from ipv6natd.netfilter.counters import connection_counts, engine_rules, without_counters
from ipv6natd.netfilter.trace import for_ports, parse
from ipv6natd.report.explain import (
    Explanation,
    explanations,
    with_connections,
    with_engine_rules,
    with_other_rules,
)
from ipv6natd.report.ports import ConnectionsRow, dnat_rules, mapping_connections
from ipv6natd.report.traces import TraceRow, other_rules, packets, trace_row
from ipv6natd.sync.applier import AppliedState, Applier
from ipv6natd.system.threads import in_thread

log = logging.getLogger(__name__)

MAX_TRACED = 32
"""Mappings of one container for which the rules of others are searched."""


class Queries:
    """The questions of the bus about one applier's rules. `snapshot` returns the facts now."""

    def __init__(self, applier: Applier, snapshot: Callable[[], Snapshot]) -> None:
        self._applier = applier
        self._snapshot = snapshot

    async def explain(self, query: str) -> list[Explanation]:
        """Explanations of the containers that `query` selects, with what the kernel counts and with
        the rules of others."""
        found = await self.explain_decisions(query)
        if not found:
            return []
        mappings = self._applier.applied.desired.mappings
        return await in_thread(partial(self._with_tables, found, mappings))

    async def explain_decisions(self, query: str) -> list[Explanation]:
        """The same without a look at the kernel."""
        applied = self._applier.applied
        if applied.observed is None:
            # No rule is certainly in force: every port is explained so.
            applied = AppliedState()
        facts = (self._snapshot(), applied.desired, applied.ruleset)
        return await in_thread(partial(explanations, query, *facts))

    def _with_tables(
        self, found: Iterable[Explanation], mappings: Iterable[Mapping]
    ) -> list[Explanation]:
        """The explanations with all that the tables tell. Without an answer of the kernel, this is
        left out."""
        backend, counted = self._applier.backend, ""
        try:
            counted = read_counted_tables(backend)
            text = without_counters(counted)
        except FirewallError as error:
            log.debug("no counters: %s", error)
            try:
                text = read_tables(backend)
            except FirewallError:
                return list(found)
        ours, engines = connection_counts(counted), engine_rules(counted)
        host, chains = trace_host(), other_base_chains(backend.value)
        result = []
        for each in found:
            own = [it for it in mappings if it.container_id == each.container_id][:MAX_TRACED]
            ports = {port for it in own for port in (it.host_port, it.container_port)}
            tables = parse(for_ports(text, ports))
            others = (row for one in own for row in other_rules(one, tables, host, chains))
            with_counts = with_engine_rules(with_connections(each, ours), engines)
            result.append(with_other_rules(with_counts, others))
        return result

    async def trace(self, port: int, protocol: str | None, source: IPv6Address) -> list[TraceRow]:
        """What becomes of a packet from this source to a port of the host. Raises FirewallError,
        and ValueError without a route."""
        mappings = self._applier.applied.desired.mappings

        def read() -> list[TraceRow]:
            backend, host = self._applier.backend, trace_host()
            tables, chains = parse(read_tables(backend)), other_base_chains(backend.value)
            sent = packets(port, protocol, source, mappings, host)
            return [trace_row(packet, tables, host, chains) for packet in sent]

        return await in_thread(read)

    async def connections(self) -> list[ConnectionsRow]:
        """The connections of the mappings in force. Raises FirewallError."""
        applied = self._applier.applied

        def read() -> list[ConnectionsRow]:
            counts = connection_counts(read_counted_tables(self._applier.backend))
            rules = dnat_rules(applied.ruleset)
            return list(mapping_connections(applied.desired.mappings, rules, counts))

        return await in_thread(read) if applied.observed is not None else []
