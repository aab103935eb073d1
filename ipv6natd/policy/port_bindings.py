"""Port bindings of containers -> decisions, and requests for host ports with one owner each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from itertools import count, groupby, product
from operator import attrgetter, itemgetter
from typing import TypeVar

from ipv6natd.model import (
    ANY,
    LINK_LOCAL,
    LOOPBACK,
    Container,
    DirectAccess,
    ManagedBy,
    Mapping,
    Network,
    OtherSource,
    Outcome,
    Policy,
    PortBinding,
    PortDecision,
    Protocol,
    RejectedPorts,
    Skipped,
    is_plain_interface,
)
from ipv6natd.policy.networks import Attachment, attachments, gateway_attachment

T = TypeVar("T")
ANY_IPV4 = IPv4Address(0)
ANSWERS_ON_LOOPBACK = "Docker's userland proxy answers on [::1]"
NOT_IN_FORCE = "its rules are not in force yet; see `ipv6natctl status`"
HostPort = tuple[bool, int, Protocol, int]
"""Whether the address is the wildcard, the address as a number, the protocol, and the port.
Addresses sort before the wildcard: the first matching rule wins."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HostPortRequest:
    """A request for the host port of a binding; `decision` holds unless the request is refused."""

    decision: PortDecision
    mapping: Mapping
    """The mapping if the request gets the port and is no part of a range."""
    key: HostPort
    target: tuple[str, int, bool]
    """Equal for requests that one rule can serve if their ports are consecutive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPorts:
    """The decisions about the ports of one container, and what follows from them."""

    container: Container
    decisions: tuple[PortDecision, ...]
    requests: tuple[HostPortRequest, ...]
    """One for each decision to forward."""
    direct_access: tuple[DirectAccess, ...]
    proxy_udp_ports: tuple[int, ...]
    """See Desired; may contain duplicates."""
    other_sources: tuple[OtherSource, ...]
    skipped: tuple[Skipped, ...]
    warnings: tuple[tuple[str, str], ...]
    """(network id, warning) for each port with different host ports for IPv4 and IPv6."""


def container_ports(
    container: Container, networks: Iterable[Network], policy: Policy
) -> ContainerPorts:
    """The ports of a container; `networks` are all networks, as decided."""
    attached = attachments(container, networks)
    gateway = gateway_attachment(attached)
    network = gateway.network if gateway else None
    decisions = [
        PortDecision(
            container=container,
            network=network,
            binding=binding,
            host_address=host_address,
            outcome=outcome,
            reason=reason,
        )
        for binding, host_address in _host_addresses(container.bindings, network, policy)
        for outcome, reason in [_outcome(binding, host_address, attached, gateway)]
    ]
    decided = (*decisions, *_unpublished_decisions(container, network, attached))
    # An endpoint may be known before its network.
    complete = len(attached) >= len(container.endpoints)
    by_proxy = _proxy_ports(decisions) if complete else ()
    requests = [
        _request(decision, gateway)
        for decision in decisions
        if decision.outcome is Outcome.FORWARDED
    ]
    bindings = [decision.binding for decision in decisions if decision.host_address is not None]
    warnings = _port_number_warnings(container) if requests else ()
    return ContainerPorts(
        container=container,
        decisions=decided,
        requests=tuple(requests),
        direct_access=tuple(_direct_access(bindings, attached, gateway, policy)),
        proxy_udp_ports=tuple(_proxy_udp_ports(decisions)),
        other_sources=tuple(_other_sources(attached, gateway)),
        skipped=(*unreadable_ports(container, network), *skipped_ports(decided), *by_proxy),
        warnings=tuple((network.id, warning) for warning in warnings) if network else (),
    )


def _unpublished_decisions(
    container: Container, network: Network | None, attached: Sequence[Attachment]
) -> Iterator[PortDecision]:
    for binding in container.unpublished:
        yield PortDecision(
            container=container,
            network=network,
            binding=binding,
            host_address=None,
            outcome=Outcome.SKIPPED,
            reason=_unpublished_reason(attached),
        )


def _host_addresses(
    bindings: Iterable[PortBinding], network: Network | None, policy: Policy
) -> Iterator[tuple[PortBinding, IPv6Address | None]]:
    """The bindings with the host's IPv6 address that each is for; None if it is for IPv4 only.

    A binding for IPv4 that the engine also lists for IPv6 is left out.
    """
    for_any: set[tuple[Protocol, int]] = set()
    for_ipv6: set[tuple[Protocol, int, int, IPv6Address | None]] = set()
    for binding in bindings:
        if not isinstance(binding.host_address, IPv4Address):
            port = binding.protocol, binding.container_port
            if binding.host_address == ANY:
                for_any.add(port)
            host_address = _host_address(binding, network, policy, has_any=False)
            for_ipv6 |= {(*port, binding.host_port, host_address), (*port, binding.host_port, None)}
    for binding in bindings:
        port = binding.protocol, binding.container_port
        host_address = _host_address(binding, network, policy, has_any=port in for_any)
        if not (
            isinstance(binding.host_address, IPv4Address)
            and (*port, binding.host_port, host_address) in for_ipv6
        ):
            yield binding, host_address


def _host_address(
    binding: PortBinding, network: Network | None, policy: Policy, *, has_any: bool
) -> IPv6Address | None:
    """The host's IPv6 address that a binding is for; None if it is for IPv4 only.

    Docker lists `::` if the user named no address: the network's default for IPv6 bindings then
    replaces it. A default for IPv4 bindings hides the IPv6 binding in Docker's list; the default
    for IPv6 applies nevertheless. Engine 28 without the userland proxy omits the IPv6 binding of a
    container without an IPv6 gateway; the request is then taken from HostConfig.

    `has_any`: the engine also lists a binding of the port to `::`. Before Docker 27 the two
    families may get different host ports.
    """
    address = binding.host_address
    default = network.host_binding_ipv6 if network else None
    if address is None or address == ANY:
        return default or ANY
    if isinstance(address, IPv6Address):
        return address
    if address in policy.address_map:
        return policy.address_map[address]
    if policy.ipv4_any_means_ipv6:
        if address == ANY_IPV4:
            return default or ANY
    elif has_any:
        return None
    chosen = not binding.explicit_address
    is_ipv6_too = default or (network is None and address == ANY_IPV4)
    return (default or ANY) if chosen and is_ipv6_too else None


def _outcome(
    binding: PortBinding,
    host_address: IPv6Address | None,
    attached: list[Attachment],
    gateway: Attachment | None,
) -> tuple[Outcome, str]:
    """The outcome and the reason, before host ports are assigned."""
    if host_address is None:
        return Outcome.IPV4_ONLY, _ipv4_only_reason(binding)
    network = gateway.network if gateway else None
    if network is not None and network.managed and not network.uses_nat:
        if gateway and gateway.endpoint.address and not network.closed:
            return Outcome.DIRECT, "its network has no NAT: clients use the container's own address"
    elif binding.host_port:
        if reason := _unreachable_reason(attached, gateway, host_address):
            return Outcome.SKIPPED, reason
        if network is not None and network.managed:
            return Outcome.FORWARDED, ""
    if host_address == LOOPBACK:
        return Outcome.PROXY, ANSWERS_ON_LOOPBACK
    return _network_outcome(network)


def _ipv4_only_reason(binding: PortBinding) -> str:
    reason = f"it is bound to {binding.host_address}, an IPv4 address; publish it on [::]"
    if binding.host_address == ANY_IPV4:
        return f"{reason}, or set ipv4_any_means_ipv6 = true"
    return f"{reason}, or on an IPv6 address of this host"


def _unreachable_reason(
    attached: list[Attachment], gateway: Attachment | None, host_address: IPv6Address
) -> str:
    """Why a binding cannot be forwarded over IPv6; empty if it can, or if IPv6 is not requested.

    For a container that is on IPv4 networks only, Docker lists `::` because the userland proxy can
    connect an IPv6 client to an IPv4 address. That is no request for IPv6.
    """
    if gateway is None or gateway.endpoint.address is None:
        managed = [network for _, network in attached if network.managed]
        if all(network.closed for network in managed):
            return ""
        return (
            f"the container has no IPv6 address on network '{managed[0].name}'; "
            "check if a sysctl disables IPv6 in the container"
        )
    if gateway.network.managed and host_address in LINK_LOCAL:
        return (
            f"{host_address} is link-local, and link-local clients cannot be forwarded; "
            "bind to `::`"
        )
    return ""


def _unpublished_reason(attached: Iterable[Attachment]) -> str:
    """Why the engine publishes a port on no host port, as far as the facts tell."""
    bridges = [network for _, network in attached if network.driver == "bridge"]
    if not bridges:
        return (
            "Docker publishes it on no port of the host, because the container is on no bridge "
            "network; clients use the container's own address, or connect it to a bridge network"
        )
    if all(network.internal for network in bridges):
        names = " and ".join(f"'{network.name}'" for network in bridges)
        return (
            f"Docker publishes it on no port of the host, because {names} is internal; connect "
            "the container to a network that is not"
        )
    return "Docker publishes it on no port of the host; see: docker port"


def _network_outcome(network: Network | None) -> tuple[Outcome, str]:
    """The outcome of a binding that decides nothing itself."""
    if network is None:
        return Outcome.PROXY, (
            "the container has no network with an IPv6 gateway, so only Docker's userland proxy "
            "can forward the port, and hides the client's address; connect it to a network with a "
            "ULA subnet"
        )
    if network.problem:
        return Outcome.UNMANAGED, f"network '{network.name}' is not handled: {network.problem}"
    if network.closed:
        return Outcome.CLOSED, f"network '{network.name}' accepts no connections from outside"
    if not network.enable_ipv6:
        return Outcome.PROXY, (
            f"network '{network.name}' has no IPv6, so only Docker's userland proxy can forward "
            "the port, and hides the client's address; create it with --ipv6"
        )
    return Outcome.PENDING, NOT_IN_FORCE


def _request(decision: PortDecision, gateway: Attachment | None) -> HostPortRequest:
    assert gateway is not None
    assert gateway.endpoint.address is not None
    assert decision.host_address is not None
    container, binding, network = decision.container, decision.binding, gateway.network
    address, proxy_binds_address = decision.host_address, _proxy_binds_address(decision)
    mapping = Mapping(
        container_id=container.id,
        container_name=container.name,
        network_id=network.id,
        network_name=network.name,
        bridge=network.bridge,
        protocol=binding.protocol,
        host_address=address,
        host_port=binding.host_port,
        container_address=gateway.endpoint.address,
        container_port=binding.container_port,
        proxy_binds_address=proxy_binds_address,
    )
    return HostPortRequest(
        decision=decision,
        mapping=mapping,
        key=(address == ANY, int(address), binding.protocol, binding.host_port),
        target=(container.id, binding.container_port - binding.host_port, proxy_binds_address),
    )


def _proxy_binds_address(decision: PortDecision) -> bool:
    return decision.host_address == decision.binding.host_address != ANY


def _proxy_udp_ports(decisions: Iterable[PortDecision]) -> Iterator[int]:
    for decision in decisions:
        network, binding = decision.network, decision.binding
        if network is None or not network.managed or network.uses_nat:
            return
        # A socket that is bound to a unicast address receives no multicast.
        if (
            decision.host_address is not None
            and binding.host_port
            and binding.protocol is Protocol.UDP
            and not _proxy_binds_address(decision)
        ):
            yield binding.host_port


def _other_sources(
    attached: Iterable[Attachment], gateway: Attachment | None
) -> Iterator[OtherSource]:
    if gateway is None or not is_plain_interface(gateway.network.bridge):
        return
    for endpoint, network in attached:
        if network is not gateway.network and endpoint.address is not None:
            yield OtherSource(endpoint.address, network.bridge, gateway.network.bridge)


def unreadable_ports(container: Container, network: Network | None) -> Iterator[Skipped]:
    """A row for each binding that could not be parsed; `network` is the gateway's."""
    for port, reason in container.problems:
        yield _skipped(container, network, port, reason)


def skipped_ports(decisions: Iterable[PortDecision]) -> Iterator[Skipped]:
    """A row for each binding that is skipped."""
    for decision in decisions:
        if decision.outcome is Outcome.SKIPPED:
            yield _skipped_port(decision)


def _proxy_ports(decisions: Iterable[PortDecision]) -> Iterator[Skipped]:
    """A row for each binding that only Docker's userland proxy forwards, except on [::1]."""
    for decision in decisions:
        if decision.outcome is Outcome.PROXY and decision.host_address != LOOPBACK:
            yield _skipped_port(decision)


def _skipped_port(decision: PortDecision) -> Skipped:
    port = f"{decision.binding.container_port}/{decision.binding.protocol}"
    return _skipped(decision.container, decision.network, port, decision.reason)


def _skipped(container: Container, network: Network | None, port: str, reason: str) -> Skipped:
    name = network.name if network else ""
    return Skipped(container_name=container.name, network=name, port=port, reason=reason)


def _port_number_warnings(container: Container) -> Iterator[str]:
    """Ports with different host ports for IPv4 and IPv6, as engines before 27 may choose them."""
    host_ports: dict[tuple[int, Protocol], tuple[set[int], set[int]]] = {}
    for binding in container.bindings:
        address = binding.host_address
        if not binding.explicit_address and binding.host_port and address in (ANY_IPV4, ANY):
            key = binding.container_port, binding.protocol
            ipv4, ipv6 = host_ports.setdefault(key, (set(), set()))
            (ipv4 if address == ANY_IPV4 else ipv6).add(binding.host_port)
    for (port, protocol), (ipv4, ipv6) in sorted(host_ports.items()):
        if ipv4 - ipv6 and ipv6 - ipv4:
            yield (
                f"the engine published port {port}/{protocol} of container '{container.name}' on "
                f"host port {_joined(ipv6 - ipv4)} for IPv6 and {_joined(ipv4 - ipv6)} for IPv4; "
                "publish it on a fixed host port to get the same for both"
            )


def _joined(ports: set[int]) -> str:
    return ", ".join(map(str, sorted(ports)))


def _direct_access(
    bindings: list[PortBinding],
    attached: Iterable[Attachment],
    gateway: Attachment | None,
    policy: Policy,
) -> Iterator[DirectAccess]:
    """Direct access as Docker permits it.

    On a routed network, to each endpoint. With NAT, only to the gateway endpoint: from trusted
    interfaces, or from every interface with allow_direct_routing.
    """
    for endpoint, network in attached:
        if not network.managed or network.closed or endpoint.address is None:
            continue
        interfaces: tuple[str, ...] = ("",)
        if network.uses_nat:
            if gateway is None or network is not gateway.network:
                continue
            interfaces = ("",) if policy.allow_direct_routing else network.trusted_interfaces
        for interface, binding in product(interfaces, bindings):
            yield DirectAccess(
                bridge=network.bridge,
                in_interface=interface,
                address=endpoint.address,
                protocol=binding.protocol,
                first=binding.container_port,
                last=binding.container_port,
            )


Changes = dict[PortDecision, PortDecision]
"""A decision to forward -> the decision that replaces it."""


def refused(
    requests: Iterable[HostPortRequest], reason: str, outcome: Outcome = Outcome.SKIPPED
) -> Changes:
    """The new decisions for these requests."""
    return {
        request.decision: replace(request.decision, outcome=outcome, reason=reason)
        for request in requests
    }


def resolve_conflicts(requests: Iterable[HostPortRequest]) -> tuple[list[HostPortRequest], Changes]:
    """The requests with one owner for each host port, sorted, and the new decisions for the others.

    The container with the lowest id is the owner, but not one whose start may still fail.
    """
    owners: dict[HostPort, HostPortRequest] = {}
    losers: list[HostPortRequest] = []
    for request in requests:
        owner = owners.setdefault(request.key, request)
        # Two bindings may be one request: with ipv4_any_means_ipv6, those to `::` and to 0.0.0.0.
        if owner is not request and _priority(owner) != _priority(request):
            owners[request.key], loser = sorted((owner, request), key=_priority)
            losers.append(loser)
    conflicts: Changes = {}
    for loser in sorted(losers, key=_priority):
        conflicts |= refused(
            [loser],
            f"[{loser.mapping.host_address}]:{loser.mapping.host_port} already belongs to "
            f"container '{owners[loser.key].mapping.container_name}'; "
            "publish one of the two on another port",
        )
    return sorted(owners.values(), key=attrgetter("key")), conflicts


def _priority(request: HostPortRequest) -> tuple[bool, str, int]:
    mapping = request.mapping
    return request.decision.container.starting, mapping.container_id, mapping.container_port


def ranges(items: Sequence[T], key: Callable[[int, T], object]) -> Iterator[tuple[T, int]]:
    """Sorted items -> the first item of each range, and the number of items.

    `key(index, item)` is equal for neighbours of one range: a port minus the index is constant.
    """
    for _, group in groupby(zip(map(key, count(), items), items, strict=False), itemgetter(0)):
        members = list(group)
        yield members[0][1], len(members)


PortRange = tuple[HostPortRequest, int]
"""The first request for a range of consecutive host ports, and the number of ports."""


def range_identity(port_range: PortRange) -> tuple[int, int]:
    """The same for equal ranges, while their requests exist."""
    request, count = port_range
    return id(request), count


def mapping_ranges(requests: Sequence[HostPortRequest]) -> Iterator[PortRange]:
    """The ranges of sorted requests that one mapping each can serve."""
    return ranges(requests, lambda index, it: (*it.key[:3], it.key[3] - index, it.target))


def rejected_ranges(requests: Sequence[HostPortRequest]) -> Iterator[PortRange]:
    """The ranges of sorted requests, whatever their targets are."""
    return ranges(requests, lambda index, it: (*it.key[:3], it.key[3] - index))


def range_mapping(port_range: PortRange, engine_bridges: frozenset[str]) -> Mapping:
    """The mapping for a range."""
    request, count = port_range
    mapping = request.mapping
    if mapping.bridge in engine_bridges:
        mapping = replace(mapping, managed_by=ManagedBy.ENGINE)
    return mapping if count == 1 else replace(mapping, count=count)


def rejection(port_range: PortRange) -> RejectedPorts:
    """The rejected ports for a range."""
    request, count = port_range
    mapping = request.mapping
    return RejectedPorts(
        protocol=mapping.protocol,
        host_address=mapping.host_address,
        first=mapping.host_port,
        last=mapping.host_port + count - 1,
    )


def coalesce(direct_access: Iterable[DirectAccess]) -> Iterator[DirectAccess]:
    """Each port once, consecutive ports as one range."""
    ordered = sorted(set(direct_access))
    for access, size in ranges(ordered, lambda index, access: (access.first - index, access[:4])):
        yield access._replace(last=access.first + size - 1)


def port_ranges(ports: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(first, last) of each range of consecutive ports, sorted; `ports` may contain duplicates."""
    for first, size in ranges(sorted(set(ports)), lambda index, port: port - index):
        yield first, first + size - 1
