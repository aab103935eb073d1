"""What became of each port that a container publishes, in sentences: bindings and what holds.

Pure. It decides nothing: what it says of a port is looked up in what was decided.
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
    """What a binding came to."""

    FORWARDED = "forwarded"
    NATIVE = "native"
    DIRECT = "direct"
    IPV4_ONLY = "ipv4-only"
    SKIPPED = "skipped"
    PROXY = "proxy"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One binding, or a run of them, and what became of it."""

    binding: str
    outcome: Outcome
    reason: str = ""
    rule: str = ""
    """As ip6tables takes it; empty where no rule of ours forwards it."""
    key: DnatKey | None = None
    """By which the kernel's counter of that rule is found."""


def port_outcomes(
    container: Container,
    used: Attachment | None,
    policy: Policy,
    desired: Desired,
    rules: ByFirstPort,
) -> Iterator[Port]:
    """In the order of container ports; what a mapping forwards as a run comes as a run."""
    held = {
        (each.protocol, each.host_address, port): each
        for each in desired.mappings
        if each.container_id == container.id
        for port in range(each.host_port, each.host_port_end + 1)
    }
    told: set[Mapping] = set()
    for binding in sorted(_six(container.bindings), key=_binding_order):
        address = ipv6_host_address(binding, used.network if used else None, policy)
        mapping = held.get((binding.protocol, address, binding.host_port)) if address else None
        if mapping is None:
            yield _not_mapped(container, used, binding, address, desired)
        elif mapping not in told:
            told.add(mapping)
            yield _mapped(mapping, rules)


def _six(bindings: Iterable[PortBinding]) -> list[PortBinding]:
    """Those that could concern IPv6: an IPv4 binding beside its IPv6 twin does not."""
    every = list(bindings)
    six = {_port(each) for each in every if not isinstance(each.host_address, IPv4Address)}
    return [
        each
        for each in every
        if not isinstance(each.host_address, IPv4Address) or _port(each) not in six
    ]


def _port(binding: PortBinding) -> tuple[Protocol, int, int]:
    return binding.protocol, binding.container_port, binding.host_port


def _binding_order(binding: PortBinding) -> tuple[Protocol, int, int, str]:
    where = str(binding.host_address)
    return binding.protocol, binding.container_port, binding.host_port, where


def _mapped(mapping: Mapping, rules: ByFirstPort) -> Port:
    last, inside = f"-{mapping.host_port_end}", f"-{mapping.container_port_end}"
    if mapping.count == 1:
        last = inside = ""
    binding = (
        f"[{mapping.host_address}]:{mapping.host_port}{last} -> "
        f"{mapping.container_port}{inside}/{mapping.protocol}"
    )
    if mapping.managed_by is ManagedBy.ENGINE:
        return Port(
            binding=binding,
            outcome=Outcome.NATIVE,
            reason="the engine's own rules forward it; ipv6natd writes none for this network",
        )
    destination = None if mapping.wildcard else IPv6Network(mapping.host_address)
    rule = rules.get((mapping.protocol, destination, mapping.host_port), "")
    return Port(binding=binding, outcome=Outcome.FORWARDED, rule=rule, key=dnat_key(rule))


ByFirstPort = Map[tuple[Protocol, IPv6Network | None, int], str]


def by_first_port(rules: Ruleset) -> ByFirstPort:
    """The text of each DNAT rule, by what it matches; a run's first rule begins with its first
    port."""
    return {
        (rule.protocol, rule.destination, rule.ports[0]): f"-A {chain.name} {format_rule(rule)}"
        for chain in rules.nat.chains
        for rule in chain.rules
        if isinstance(rule.target, Dnat) and rule.protocol and rule.ports
    }


def _not_mapped(
    container: Container,
    used: Attachment | None,
    binding: PortBinding,
    address: IPv6Address | None,
    desired: Desired,
) -> Port:
    port = f"{binding.container_port}/{binding.protocol}"
    where = "" if binding.host_address is None else f"[{binding.host_address}]:"
    if isinstance(binding.host_address, IPv4Address):
        where = f"{binding.host_address}:"
    outcome, reason = _why_not(container, used, binding, address, desired)
    shown = f"{where}{binding.host_port} -> {port}" if binding.host_port else port
    return Port(binding=shown, outcome=outcome, reason=reason)


def _why_not(
    container: Container,
    used: Attachment | None,
    binding: PortBinding,
    address: IPv6Address | None,
    desired: Desired,
) -> tuple[Outcome, str]:
    if address is None:
        return Outcome.IPV4_ONLY, _only_ipv4(binding)
    port = f"{binding.container_port}/{binding.protocol}"
    for each in desired.skipped:
        if (each.container_name, each.port) == (container.name, port):
            return Outcome.SKIPPED, each.reason
    for opened in desired.direct_access:
        if (
            used is not None
            and opened.address == used.endpoint.address
            and opened.protocol is binding.protocol
            and opened.first <= binding.container_port <= opened.last
        ):
            text = "its network is not translated: it is reached by the container's own address"
            return Outcome.DIRECT, text
    if address == LOOPBACK:
        return Outcome.PROXY, "[::1] is left to Docker's userland proxy, which answers there"
    return _by_network(used, desired)


def _only_ipv4(binding: PortBinding) -> str:
    reason = f"it is bound to {binding.host_address}, which is for IPv4 alone; publish it on [::]"
    if str(binding.host_address) == "0.0.0.0":
        return f"{reason}, or set ipv4_any_means_ipv6 = true"
    return f"{reason}, or on an IPv6 address of this host"


def _by_network(used: Attachment | None, desired: Desired) -> tuple[Outcome, str]:
    if used is None:
        return Outcome.PROXY, (
            "the container is on no network with an IPv6 gateway, so Docker's userland proxy "
            "carries it, and hides who the client is; connect it to a network with a ULA subnet"
        )
    for each in desired.skipped:
        if each.network == used.network.name and not each.port:
            return Outcome.SKIPPED, f"network '{each.network}' is not handled: {each.reason}"
    if used.network.closed:
        return Outcome.CLOSED, f"network '{used.network.name}' lets nothing in"
    if not used.network.enable_ipv6:
        return Outcome.PROXY, f"network '{used.network.name}' has no IPv6: create it with --ipv6"
    return Outcome.SKIPPED, "it is not in force yet; see `ipv6natctl status`"


def port_row(port: Port, connections: Map[DnatKey, int]) -> Row:
    """One of the ports in a row of Explain."""
    found: Row = {
        "Binding": ("s", port.binding),
        "Outcome": ("s", port.outcome.value),
        "Reason": ("s", port.reason),
        "Rule": ("s", port.rule),
    }
    if port.key is not None and port.key in connections:
        found["Connections"] = ("t", connections[port.key])
    return found
