"""Explains for each published port of a container how it is forwarded, or why it is not.

Pure. It decides nothing: it looks the port up in the decisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Map
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from ipv6natd.model import (
    LOOPBACK,
    Container,
    Desired,
    ManagedBy,
    Mapping,
    Policy,
    PortBinding,
    Protocol,
)
from ipv6natd.netfilter.counters import DnatKey, dnat_key
from ipv6natd.netfilter.render import format_rule
from ipv6natd.netfilter.rules import Dnat, Ruleset
from ipv6natd.policy.networks import Attachment
from ipv6natd.policy.port_bindings import ipv6_host_address
from ipv6natd.report.status import Row


class Outcome(StrEnum):
    """How a binding is handled."""

    FORWARDED = "forwarded"
    NATIVE = "native"
    DIRECT = "direct"
    IPV4_ONLY = "ipv4-only"
    SKIPPED = "skipped"
    PROXY = "proxy"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortReport:
    """One binding, or a range of them, with its outcome."""

    binding: str
    outcome: Outcome
    reason: str = ""
    rule: str = ""
    """The arguments of ip6tables; empty if no rule of ours forwards it."""
    key: DnatKey | None = None
    """The key of this rule among the counters of the kernel."""


def port_outcomes(
    container: Container,
    used: Attachment | None,
    policy: Policy,
    desired: Desired,
    rules: DnatRules,
) -> Iterator[PortReport]:
    """In the order of container ports. A mapping of a range of ports is one report."""
    mappings = {
        (mapping.protocol, mapping.host_address, port): mapping
        for mapping in desired.mappings
        if mapping.container_id == container.id
        for port in range(mapping.host_port, mapping.host_port_end + 1)
    }
    reported: set[Mapping] = set()
    for binding in sorted(_ipv6_bindings(container.bindings), key=_binding_order):
        address = ipv6_host_address(binding, used.network if used else None, policy)
        mapping = mappings.get((binding.protocol, address, binding.host_port)) if address else None
        if mapping is None:
            yield _unmapped_port(container, used, binding, address, desired)
        elif mapping not in reported:
            reported.add(mapping)
            yield _mapped_port(mapping, rules)


def _ipv6_bindings(bindings: Iterable[PortBinding]) -> list[PortBinding]:
    """The bindings without those for IPv4 that also exist for IPv6."""
    all_bindings = list(bindings)
    ipv6_ports = {
        _port_key(binding)
        for binding in all_bindings
        if not isinstance(binding.host_address, IPv4Address)
    }
    return [
        binding
        for binding in all_bindings
        if not isinstance(binding.host_address, IPv4Address) or _port_key(binding) not in ipv6_ports
    ]


def _port_key(binding: PortBinding) -> tuple[Protocol, int, int]:
    return binding.protocol, binding.container_port, binding.host_port


def _binding_order(binding: PortBinding) -> tuple[Protocol, int, int, str]:
    host_address = str(binding.host_address)
    return binding.protocol, binding.container_port, binding.host_port, host_address


def _mapped_port(mapping: Mapping, rules: DnatRules) -> PortReport:
    host_end, container_end = f"-{mapping.host_port_end}", f"-{mapping.container_port_end}"
    if mapping.count == 1:
        host_end = container_end = ""
    binding = (
        f"[{mapping.host_address}]:{mapping.host_port}{host_end} -> "
        f"{mapping.container_port}{container_end}/{mapping.protocol}"
    )
    if mapping.managed_by is ManagedBy.ENGINE:
        return PortReport(
            binding=binding,
            outcome=Outcome.NATIVE,
            reason="the engine's own rules forward it; ipv6natd writes none for this network",
        )
    destination = None if mapping.wildcard else IPv6Network(mapping.host_address)
    rule = rules.get((mapping.protocol, destination, mapping.host_port), "")
    return PortReport(binding=binding, outcome=Outcome.FORWARDED, rule=rule, key=dnat_key(rule))


DnatRules = Map[tuple[Protocol, IPv6Network | None, int], str]


def dnat_rules(rules: Ruleset) -> DnatRules:
    """The text of each DNAT rule, by its protocol, destination and first port."""
    return {
        (rule.protocol, rule.destination, rule.ports[0]): f"-A {chain.name} {format_rule(rule)}"
        for chain in rules.nat.chains
        for rule in chain.rules
        if isinstance(rule.target, Dnat) and rule.protocol and rule.ports
    }


def _unmapped_port(
    container: Container,
    used: Attachment | None,
    binding: PortBinding,
    address: IPv6Address | None,
    desired: Desired,
) -> PortReport:
    port = f"{binding.container_port}/{binding.protocol}"
    address_prefix = "" if binding.host_address is None else f"[{binding.host_address}]:"
    if isinstance(binding.host_address, IPv4Address):
        address_prefix = f"{binding.host_address}:"
    outcome, reason = _unmapped_reason(container, used, binding, address, desired)
    text = f"{address_prefix}{binding.host_port} -> {port}" if binding.host_port else port
    return PortReport(binding=text, outcome=outcome, reason=reason)


def _unmapped_reason(
    container: Container,
    used: Attachment | None,
    binding: PortBinding,
    address: IPv6Address | None,
    desired: Desired,
) -> tuple[Outcome, str]:
    if address is None:
        return Outcome.IPV4_ONLY, _ipv4_only_reason(binding)
    port = f"{binding.container_port}/{binding.protocol}"
    for entry in desired.skipped:
        if (entry.container_name, entry.port) == (container.name, port):
            return Outcome.SKIPPED, entry.reason
    for access in desired.direct_access:
        if (
            used is not None
            and access.address == used.endpoint.address
            and access.protocol is binding.protocol
            and access.first <= binding.container_port <= access.last
        ):
            text = "its network has no NAT: clients use the container's own address"
            return Outcome.DIRECT, text
    if address == LOOPBACK:
        return Outcome.PROXY, "Docker's userland proxy answers on [::1]"
    return _network_reason(used, desired)


def _ipv4_only_reason(binding: PortBinding) -> str:
    reason = f"it is bound to {binding.host_address}, an IPv4 address; publish it on [::]"
    if str(binding.host_address) == "0.0.0.0":
        return f"{reason}, or set ipv4_any_means_ipv6 = true"
    return f"{reason}, or on an IPv6 address of this host"


def _network_reason(used: Attachment | None, desired: Desired) -> tuple[Outcome, str]:
    if used is None:
        return Outcome.PROXY, (
            "the container has no network with an IPv6 gateway, so Docker's userland proxy "
            "forwards the port and hides the client's address; connect it to a network with a "
            "ULA subnet"
        )
    for entry in desired.skipped:
        if entry.network == used.network.name and not entry.port:
            return Outcome.SKIPPED, f"network '{entry.network}' is not handled: {entry.reason}"
    if used.network.closed:
        return Outcome.CLOSED, f"network '{used.network.name}' accepts no connections from outside"
    if not used.network.enable_ipv6:
        return Outcome.PROXY, f"network '{used.network.name}' has no IPv6: create it with --ipv6"
    return Outcome.SKIPPED, "its rules are not in force yet; see `ipv6natctl status`"


def port_row(port: PortReport, connections: Map[DnatKey, int]) -> Row:
    """One port in a row of Explain."""
    row: Row = {
        "Binding": ("s", port.binding),
        "Outcome": ("s", port.outcome.value),
        "Reason": ("s", port.reason),
        "Rule": ("s", port.rule),
    }
    if port.key is not None and port.key in connections:
        row["Connections"] = ("t", connections[port.key])
    return row
