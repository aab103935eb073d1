"""The rows of Explain for published ports: how each is forwarded, or why it is not.

Pure. It decides nothing: it words the decisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Map
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from ipv6natd.model import Container, Desired, ManagedBy, Mapping, Outcome, PortBinding, Protocol
from ipv6natd.netfilter.counters import DnatKey, dnat_key
from ipv6natd.netfilter.render import format_rule
from ipv6natd.netfilter.rules import Dnat, Ruleset
from ipv6natd.policy.port_bindings import NOT_IN_FORCE
from ipv6natd.report.status import mapping_id, port_range


@dataclass(frozen=True, slots=True, kw_only=True)
class PortReport:
    """One binding, or a range of them, with its outcome."""

    binding: str
    outcome: Outcome
    reason: str = ""
    rule: str = ""
    """The arguments of ip6tables; empty if no rule of ours forwards it."""
    connections: int | None = None
    """Connections by this rule, None if they are not known."""
    container_address: str | None = None
    """Where the port leads to; None if nothing forwards it."""
    container_port: int | None = None
    """The first one of a range."""

    @property
    def protocol(self) -> str:
        """The protocol of the binding."""
        return self.binding.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionsRow:
    """One row of ListConnections."""

    id: str
    """That of the mapping."""
    connections: int
    """Since its rules were written."""


def port_reports(container: Container, desired: Desired, rules: DnatRules) -> Iterator[PortReport]:
    """In the order of container ports. A range of ports with one rule is one report."""
    mappings: dict[tuple[Protocol, IPv6Address | None, int], Mapping] = {
        (part.protocol, part.host_address, part.host_port): part
        for mapping in desired.mappings
        if mapping.container_id == container.id
        for part in _parts(mapping)
    }
    decisions = desired.decisions.get(container.id)
    if decisions is None:
        # The container is newer than the rules.
        for binding in sorted(container.bindings, key=_binding_order):
            yield _unmapped_port(binding, Outcome.SKIPPED, NOT_IN_FORCE)
    for decision in sorted(decisions or (), key=lambda decision: _binding_order(decision.binding)):
        binding = decision.binding
        if decision.outcome is not Outcome.FORWARDED:
            yield _unmapped_port(binding, decision.outcome, decision.reason)
        elif mapping := mappings.get((binding.protocol, decision.host_address, binding.host_port)):
            yield _mapped_port(mapping, rules)


def _parts(mapping: Mapping) -> Iterator[Mapping]:
    """The mapping itself, or its ports if each of them has a rule: see policy.ruleset."""
    if mapping.host_port == mapping.container_port or mapping.managed_by is ManagedBy.ENGINE:
        yield mapping
    else:
        for i in range(mapping.count):
            host_port, container_port = mapping.host_port + i, mapping.container_port + i
            yield replace(mapping, host_port=host_port, container_port=container_port, count=1)


def _binding_order(binding: PortBinding) -> tuple[Protocol, int, int, str]:
    host_address = str(binding.host_address)
    return binding.protocol, binding.container_port, binding.host_port, host_address


def _mapped_port(mapping: Mapping, rules: DnatRules) -> PortReport:
    host = port_range(mapping.host_port, mapping.host_port_end)
    inside = port_range(mapping.container_port, mapping.container_port_end)
    binding = f"[{mapping.host_address}]:{host} -> {inside}/{mapping.protocol}"
    forwarded = PortReport(
        binding=binding,
        outcome=Outcome.FORWARDED,
        container_address=str(mapping.container_address),
        container_port=mapping.container_port,
    )
    if mapping.managed_by is ManagedBy.ENGINE:
        reason = "the engine's own rules forward it; ipv6natd writes none for this network"
        return replace(forwarded, outcome=Outcome.NATIVE, reason=reason)
    return replace(forwarded, rule=_rule_text(mapping, rules))


def _rule_text(mapping: Mapping, rules: DnatRules) -> str:
    destination = None if mapping.wildcard else IPv6Network(mapping.host_address)
    return rules.get((mapping.protocol, destination, mapping.host_port), "")


DnatRules = Map[tuple[Protocol, IPv6Network | None, int], str]


def dnat_rules(rules: Ruleset) -> DnatRules:
    """The text of each DNAT rule, by its protocol, destination and first port."""
    return {
        (rule.protocol, rule.destination, rule.ports[0]): f"-A {chain} {format_rule(rule)}"
        for chain, chain_rules in rules.nat.chains.items()
        for rule in chain_rules
        if isinstance(rule.target, Dnat) and rule.protocol and rule.ports
    }


def mapping_connections(
    mappings: Iterable[Mapping], rules: DnatRules, counts: Map[DnatKey, int]
) -> Iterator[ConnectionsRow]:
    """The connections of each mapping whose rules are counted; the engine's rules are not."""
    for mapping in mappings:
        keys = (
            dnat_key(_rule_text(part, rules))
            for part in _parts(mapping)
            if mapping.managed_by is ManagedBy.IPV6NATD
        )
        found = [counts[key] for key in keys if key is not None and key in counts]
        if found:
            yield ConnectionsRow(id=mapping_id(mapping), connections=sum(found))


def _unmapped_port(binding: PortBinding, outcome: Outcome, reason: str) -> PortReport:
    text = f"{binding.container_port}/{binding.protocol}"
    if binding.host_port:
        address = "" if binding.host_address is None else f"[{binding.host_address}]:"
        if isinstance(binding.host_address, IPv4Address):
            address = f"{binding.host_address}:"
        text = f"{address}{binding.host_port} -> {text}"
    if outcome in (Outcome.UNMANAGED, Outcome.PENDING):
        outcome = Outcome.SKIPPED
    return PortReport(binding=text, outcome=outcome, reason=reason)
