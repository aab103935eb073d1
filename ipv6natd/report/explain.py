"""Why a container is reached as it is, or is not: facts and what holds -> sentences.

Pure, and decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Map
from dataclasses import dataclass
from ipaddress import IPv6Address

from ipv6natd.model import Container, Desired, Network, Policy, Skipped, Snapshot
from ipv6natd.netfilter.counters import DnatKey
from ipv6natd.netfilter.rules import Ruleset
from ipv6natd.policy.networks import (
    Attachment,
    attachments,
    gateway_attachment,
    gateway_order,
    network_order,
)
from ipv6natd.report.ports import ByFirstPort, Port, by_first_port, port_outcomes, port_row
from ipv6natd.report.status import Row, skipped_row

SHORTEST_ID = 4
"""Characters of a container's id that are taken for one."""
_PORT = re.compile(r"(\d{1,5})(?:/(tcp|udp|sctp))?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One of the container's networks."""

    network: Network
    address: IPv6Address | None
    used: bool
    reason: str
    """Why this is the network by which the container is reached, or why it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All that is known of one container."""

    container: Container
    ways: tuple[Way, ...]
    ports: tuple[Port, ...]
    skipped: tuple[Skipped, ...]
    loopback: str
    """Who answers on [::1], in a sentence; empty where nothing is published."""


def explanations(
    asked: str, snapshot: Snapshot, policy: Policy, desired: Desired, rules: Ruleset
) -> list[Explanation]:
    """Of the containers that `asked` names: a name, the start of an id, or a host port as in "53"
    and "53/udp", which names whoever wants to have it."""
    named = _named(asked, snapshot.containers)
    by_first = by_first_port(rules) if named else {}
    return [_explanation(each, snapshot, policy, desired, by_first) for each in named]


def _named(asked: str, containers: Iterable[Container]) -> list[Container]:
    known = sorted(containers, key=lambda each: (each.name, each.id))
    if by_name := [each for each in known if each.name == asked]:
        return by_name
    port = _PORT.fullmatch(asked)
    if port is not None and int(port[1]) < 65536:
        wanted = int(port[1]), port[2]
        by_port = [
            each
            for each in known
            if any(
                wanted in ((it.host_port, None), (it.host_port, it.protocol))
                for it in each.bindings
            )
        ]
        if by_port:
            return by_port
    if len(asked) < SHORTEST_ID:
        return []
    return [each for each in known if each.id.startswith(asked)]


def _explanation(
    container: Container, snapshot: Snapshot, policy: Policy, desired: Desired, rules: ByFirstPort
) -> Explanation:
    every = attachments(container, sorted(snapshot.networks, key=network_order))
    used = gateway_attachment(every)
    ours = [each for each in desired.mappings if each.container_id == container.id]
    skipped = [each for each in desired.skipped if each.container_name == container.name]
    ports = list(port_outcomes(container, used, policy, desired, rules))
    told = {each.reason for each in ports}
    return Explanation(
        container=container,
        ways=tuple(_ways(every, used)),
        ports=tuple(ports),
        skipped=tuple(each for each in skipped if each.reason not in told),
        loopback=_loopback(desired) if ours else "",
    )


def _loopback(desired: Desired) -> str:
    if desired.userland_proxy:
        return (
            "Docker's userland proxy answers, and the container sees its bridge's address as the "
            "client: [::1] cannot be forwarded"
        )
    return (
        "nobody answers, and clients are refused at once: [::1] cannot be forwarded and the "
        "engine runs without its userland proxy; use another address of the host, or 127.0.0.1"
    )


_NOT_FIRST = (
    "its gateway priority is lower than that of '{}'",
    "docker_gwbridge comes after every other network",
    "it is internal",
    "it is a gateway for one of IPv4 and IPv6, '{}' for both",
    "its name sorts after '{}', and nothing else tells them apart",
    "its id sorts after that of '{}', and nothing else tells them apart",
)
"""Why another network comes before this one, in the fields of networks.gateway_order."""


def _ways(every: list[Attachment], used: Attachment | None) -> Iterator[Way]:
    rivals = [each for each in every if each.endpoint.has_gateway6]
    for attachment in every:
        endpoint, network = attachment
        yield Way(
            network=network,
            address=endpoint.address,
            used=attachment is used,
            reason=_reason(attachment, used, rivals),
        )


def _reason(attachment: Attachment, used: Attachment | None, rivals: list[Attachment]) -> str:
    if not attachment.endpoint.has_gateway6 or used is None:
        if attachment.network.internal:
            return "it is internal: it has no gateway"
        return "the container has no IPv6 gateway there"
    if attachment is used:
        if len(rivals) == 1:
            return "it is the container's only network with an IPv6 gateway"
        return "it comes first of the container's networks with an IPv6 gateway"
    mine, first = gateway_order(attachment), gateway_order(used)
    deciding = next(i for i in range(len(mine)) if mine[i] != first[i])
    return _NOT_FIRST[deciding].format(used.network.name)


def row(explanation: Explanation, connections: Map[DnatKey, int]) -> Row:
    """One row of Explain."""
    container = explanation.container
    return {
        "ContainerId": ("s", container.id),
        "ContainerName": ("s", container.name),
        "Networks": ("aa{sv}", [_way_row(each) for each in explanation.ways]),
        "Ports": ("aa{sv}", [port_row(each, connections) for each in explanation.ports]),
        "Skipped": ("aa{sv}", [skipped_row(each) for each in explanation.skipped]),
        "Loopback": ("s", explanation.loopback),
    }


def _way_row(way: Way) -> Row:
    return {
        "Name": ("s", way.network.name),
        "Bridge": ("s", way.network.bridge),
        "Address": ("s", "" if way.address is None else str(way.address)),
        "Used": ("b", way.used),
        "Reason": ("s", way.reason),
    }
