"""Explains why the ports of a container are reachable or not: facts and decisions -> sentences.

Pure. It decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Map
from dataclasses import dataclass, replace

from ipv6natd.model import MIN_ID_LENGTH, Container, Desired, Outcome, Skipped, Snapshot
from ipv6natd.netfilter.counters import DnatKey, dnat_key
from ipv6natd.netfilter.rules import Ruleset
from ipv6natd.policy.networks import (
    Attachment,
    attachments,
    gateway_attachment,
    gateway_order,
    network_order,
)
from ipv6natd.policy.port_bindings import unreadable_ports
from ipv6natd.report.ports import DnatRules, PortReport, dnat_rules, port_reports
from ipv6natd.report.traces import StepRow

_PORT = re.compile(r"(\d{1,5})(?:/(tcp|udp|sctp))?", re.ASCII)


MAX_OTHER_RULES = 20
"""A ban list can have thousands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkReport:
    """One network of the container."""

    name: str
    bridge: str
    address: str
    used: bool
    reason: str
    """Why clients reach the container through this network, or why not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All about one container: a row of Explain."""

    container_id: str
    container_name: str
    networks: tuple[NetworkReport, ...]
    ports: tuple[PortReport, ...]
    skipped: tuple[Skipped, ...]
    loopback: str
    """What answers on [::1], as a sentence; empty if no port is forwarded."""
    other_rules: tuple[StepRow, ...] | None = None
    """The rules of others that new connections to the ports may meet, at most MAX_OTHER_RULES; None
    if they are not known."""
    other_rule_count: int | None = None
    """The number of all these rules."""


def explanations(
    query: str, snapshot: Snapshot, desired: Desired, rules: Ruleset
) -> list[Explanation]:
    """Explanations of the containers that `query` selects.

    `query` is a name, the start of an id, or a host port such as "53" or "53/udp", which selects
    all containers that request this port.
    """
    containers = _matching_containers(query, snapshot.containers)
    rules_by_port = dnat_rules(rules) if containers else {}
    return [_explanation(container, snapshot, desired, rules_by_port) for container in containers]


def parse_port(text: str) -> tuple[int, str | None]:
    """The number and the protocol of a host port such as "53" or "53/udp". Raises ValueError."""
    found = _PORT.fullmatch(text)
    if found is None or not 0 < int(found[1]) < 65536:
        raise ValueError(f"{text!r} is not a host port, such as 8080 or 53/udp")
    return int(found[1]), found[2]


def _matching_containers(query: str, containers: Iterable[Container]) -> list[Container]:
    known = sorted(containers, key=lambda container: (container.name, container.id))
    by_name = [container for container in known if container.name == query]
    port = _PORT.fullmatch(query)
    wanted = (int(port[1]), port[2]) if port else None
    by_port = [
        container
        for container in known
        if any(
            wanted in ((binding.host_port, None), (binding.host_port, binding.protocol))
            for binding in (*container.bindings, *container.unpublished)
        )
    ]
    by_id = [container for container in known if container.id.startswith(query)]
    return by_name or by_port or (by_id if len(query) >= MIN_ID_LENGTH else [])


def _explanation(
    container: Container, snapshot: Snapshot, desired: Desired, rules: DnatRules
) -> Explanation:
    all_attachments = attachments(container, sorted(snapshot.networks, key=network_order))
    used = gateway_attachment(all_attachments)
    has_mappings = any(mapping.container_id == container.id for mapping in desired.mappings)
    return Explanation(
        container_id=container.id,
        container_name=container.name,
        networks=tuple(_network_reports(all_attachments, used)),
        ports=tuple(dict.fromkeys(port_reports(container, desired, rules))),
        skipped=tuple(unreadable_ports(container, used.network if used else None)),
        loopback=_loopback_text(desired) if has_mappings else "",
    )


def _loopback_text(desired: Desired) -> str:
    if desired.userland_proxy:
        return (
            "Docker's userland proxy answers, because [::1] cannot be forwarded; the container "
            "sees the address of its bridge as the client"
        )
    return (
        "connections are rejected: [::1] cannot be forwarded, and the engine runs "
        "without its userland proxy; use another address of the host, or 127.0.0.1"
    )


_ORDER_REASONS = (
    "its gateway priority is lower than that of '{}'",
    "docker_gwbridge comes after every other network",
    "it is internal",
    "it has a gateway for only one of IPv4 and IPv6, '{}' has both",
    "its name sorts after '{}', and they are equal otherwise",
    "its id sorts after that of '{}', and they are equal otherwise",
)
"""Why another network comes before this one: a text for each field of networks.gateway_order."""


def _network_reports(
    all_attachments: list[Attachment], used: Attachment | None
) -> Iterator[NetworkReport]:
    candidates = [attachment for attachment in all_attachments if attachment.endpoint.has_gateway6]
    for attachment in all_attachments:
        endpoint, network = attachment
        yield NetworkReport(
            name=network.name,
            bridge=network.bridge,
            address="" if endpoint.address is None else str(endpoint.address),
            used=attachment is used,
            reason=_network_reason(attachment, used, candidates),
        )


def _network_reason(
    attachment: Attachment, used: Attachment | None, candidates: list[Attachment]
) -> str:
    if not attachment.endpoint.has_gateway6 or used is None:
        if attachment.network.internal:
            return "it is internal: it has no gateway"
        return "the container has no IPv6 gateway in it"
    if attachment is used:
        if len(candidates) == 1:
            return "it is the container's only network with an IPv6 gateway"
        return "it is the first of the container's networks with an IPv6 gateway"
    orders = zip(gateway_order(attachment), gateway_order(used), _ORDER_REASONS, strict=True)
    reason = next(reason for own, first, reason in orders if own != first)
    return reason.format(used.network.name)


def with_connections(explanation: Explanation, counts: Map[DnatKey, int]) -> Explanation:
    """The explanation with the number of connections of each port that has one in `counts`."""
    ports = (
        replace(port, connections=counts.get(key) if (key := dnat_key(port.rule)) else None)
        for port in explanation.ports
    )
    return replace(explanation, ports=tuple(ports))


def with_engine_rules(
    explanation: Explanation, rules: Map[tuple[str, str], tuple[str, int]]
) -> Explanation:
    """The explanation with the engine's own rule and its connections, for each port that it
    forwards; see counters.engine_rules."""
    return replace(explanation, ports=tuple(_with_engine_rule(p, rules) for p in explanation.ports))


def _with_engine_rule(port: PortReport, rules: Map[tuple[str, str], tuple[str, int]]) -> PortReport:
    found = rules.get((port.protocol, f"[{port.container_address}]:{port.container_port}"))
    if port.outcome is not Outcome.NATIVE or found is None:
        return port
    return replace(port, rule=found[0], connections=found[1])


def with_other_rules(explanation: Explanation, rules: Iterable[StepRow]) -> Explanation:
    """The explanation with these rules of others, each once."""
    found = tuple(dict.fromkeys(rules))
    return replace(explanation, other_rules=found[:MAX_OTHER_RULES], other_rule_count=len(found))
