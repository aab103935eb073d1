"""Port bindings of containers -> requests for host ports, with one owner each, as ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from itertools import count, groupby
from operator import attrgetter

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
    Policy,
    PortBinding,
    Protocol,
    RejectedPorts,
    Skipped,
    is_plain_interface,
)
from ipv6natd.policy.networks import Attachment, attachments, gateway_attachment

ANY_IPV4 = IPv4Address(0)
HostPort = tuple[bool, int, Protocol, int]
"""Whether the address is the wildcard, the address as a number, the protocol, and the port.
Addresses sort before the wildcard: the first matching rule wins."""


@dataclass(frozen=True, slots=True)
class HostPortRequest:
    """A container's request for one host port."""

    container: Container
    network: Network
    address: IPv6Address
    protocol: Protocol
    host_address: IPv6Address
    host_port: int
    container_port: int
    key: HostPort
    proxy_binds_address: bool = field(compare=False)
    """True if the binding itself names `host_address`, so the userland proxy listens only there."""


@dataclass(frozen=True, slots=True)
class ContainerPorts:
    """The ports of one container: requested, directly reachable, and skipped."""

    requests: tuple[HostPortRequest, ...] = ()
    direct_access: tuple[DirectAccess, ...] = ()
    proxy_udp_ports: tuple[int, ...] = ()
    """See Desired; may contain duplicates."""
    other_sources: tuple[OtherSource, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[tuple[str, str], ...] = ()
    """(network id, warning) for each port with different host ports for IPv4 and IPv6."""


def container_ports(
    container: Container,
    networks: Iterable[Network],
    managed: dict[str, Network],
    policy: Policy,
) -> ContainerPorts:
    """The ports of a container; `networks` are all networks, managed or not."""
    attached = attachments(container, networks)
    gateway = gateway_attachment(attached)
    network = managed.get(gateway.network.id) if gateway else None
    skipped = [_skipped(container, gateway, port, reason) for port, reason in container.problems]
    requests: list[HostPortRequest] = []
    direct_access: list[DirectAccess] = []
    proxy_udp_ports: list[int] = []
    ports_with_any = {
        (binding.container_port, binding.protocol)
        for binding in container.bindings
        if binding.host_address == ANY
    }
    for binding in container.bindings:
        key = binding.container_port, binding.protocol
        if key in ports_with_any and _is_fallback(binding, policy):
            continue
        host_address = ipv6_host_address(binding, gateway.network if gateway else None, policy)
        if host_address is None:
            continue
        direct_access += _direct_access(binding, attached, gateway, managed, policy)
        port = f"{binding.container_port}/{binding.protocol}"
        proxy_binds_address = host_address == binding.host_address != ANY
        if not binding.host_port:
            continue
        if network is not None and not network.uses_nat:
            # A socket that is bound to a unicast address receives no multicast.
            if binding.protocol is Protocol.UDP and not proxy_binds_address:
                proxy_udp_ports.append(binding.host_port)
            continue
        reason = _unreachable_reason(attached, gateway, managed, host_address)
        if reason:
            skipped.append(_skipped(container, gateway, port, reason))
        elif gateway and network and gateway.endpoint.address:
            requests.append(
                HostPortRequest(
                    container=container,
                    network=network,
                    address=gateway.endpoint.address,
                    protocol=binding.protocol,
                    host_address=host_address,
                    host_port=binding.host_port,
                    container_port=binding.container_port,
                    key=(
                        host_address == ANY,
                        int(host_address),
                        binding.protocol,
                        binding.host_port,
                    ),
                    proxy_binds_address=proxy_binds_address,
                )
            )
    warnings: list[tuple[str, str]] = []
    if network and requests:
        warnings = [(network.id, warning) for warning in _port_number_warnings(container)]
    return ContainerPorts(
        requests=tuple(requests),
        direct_access=tuple(direct_access),
        proxy_udp_ports=tuple(proxy_udp_ports),
        other_sources=tuple(_other_sources(attached, gateway)),
        skipped=tuple(skipped),
        warnings=tuple(warnings),
    )


def _other_sources(
    attached: Iterable[Attachment], gateway: Attachment | None
) -> Iterator[OtherSource]:
    if gateway is None or not is_plain_interface(gateway.network.bridge):
        return
    for endpoint, network in attached:
        if network is not gateway.network and endpoint.address is not None:
            yield OtherSource(endpoint.address, network.bridge, gateway.network.bridge)


def _skipped(container: Container, gateway: Attachment | None, port: str, reason: str) -> Skipped:
    name = gateway.network.name if gateway else ""
    return Skipped(container_name=container.name, network=name, port=port, reason=reason)


def ipv6_host_address(
    binding: PortBinding, network: Network | None, policy: Policy
) -> IPv6Address | None:
    """The host's IPv6 address that a binding is for; None if it is for IPv4 only.

    Docker lists `::` if the user named no address: the network's default for IPv6 bindings then
    replaces it. A default for IPv4 bindings hides the IPv6 binding in Docker's list; the default
    for IPv6 applies nevertheless. Engine 28 without the userland proxy omits the IPv6 binding of a
    container without an IPv6 gateway; the request is then taken from HostConfig.
    """
    address = binding.host_address
    default = network.host_binding_ipv6 if network else None
    if isinstance(address, IPv4Address):
        if address in policy.address_map:
            return policy.address_map[address]
        if not binding.explicit_address and (default or (network is None and address == ANY_IPV4)):
            return default or ANY
        any_counts = policy.ipv4_any_means_ipv6 and address == ANY_IPV4
        return (default or ANY) if any_counts else None
    if address is None or address == ANY:
        return default or ANY
    return address


def _is_fallback(binding: PortBinding, policy: Policy) -> bool:
    """True if this IPv4 binding is used for IPv6 only when the engine lists no `::` binding.

    Before Docker 27 the two families may get different host ports.
    """
    address = binding.host_address
    return (
        isinstance(address, IPv4Address)
        and not binding.explicit_address
        and address not in policy.address_map
        and not policy.ipv4_any_means_ipv6
    )


def _unreachable_reason(
    attached: list[Attachment],
    gateway: Attachment | None,
    managed: dict[str, Network],
    host_address: IPv6Address,
) -> str:
    """Why a binding cannot be forwarded over IPv6; empty if it can, or if IPv6 is not requested.

    For a container that is on IPv4 networks only, Docker lists `::` because the userland proxy can
    connect an IPv6 client to an IPv4 address. That is no request for IPv6.
    """
    if gateway is None or gateway.endpoint.address is None:
        ours = [managed[network.id] for _, network in attached if network.id in managed]
        if all(network.closed for network in ours):
            return ""
        return (
            f"the container has no IPv6 address on network '{ours[0].name}'; "
            "check if a sysctl disables IPv6 in the container"
        )
    if gateway.network.id in managed and host_address in LINK_LOCAL:
        return (
            f"{host_address} is link-local, and link-local clients cannot be forwarded; "
            "bind to `::`"
        )
    return ""


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
    binding: PortBinding,
    attached: list[Attachment],
    gateway: Attachment | None,
    managed: dict[str, Network],
    policy: Policy,
) -> Iterator[DirectAccess]:
    """Direct access as Docker permits it.

    On a routed network, to each endpoint. With NAT, only to the gateway endpoint: from trusted
    interfaces, or from every interface with allow_direct_routing.
    """
    for endpoint, attached_network in attached:
        network = managed.get(attached_network.id)
        if network is None or network.closed or endpoint.address is None:
            continue
        interfaces: tuple[str, ...] = ("",)
        if network.uses_nat:
            if gateway is None or network.id != gateway.network.id:
                continue
            interfaces = ("",) if policy.allow_direct_routing else network.trusted_interfaces
        for interface in interfaces:
            yield DirectAccess(
                bridge=network.bridge,
                in_interface=interface,
                address=endpoint.address,
                protocol=binding.protocol,
                first=binding.container_port,
                last=binding.container_port,
            )


def resolve_conflicts(
    requests: list[HostPortRequest],
) -> tuple[list[HostPortRequest], list[Skipped]]:
    """The requests with one owner for each host port, sorted, and the conflicting ones.

    The container with the lowest id is the owner.
    """
    owners: dict[HostPort, HostPortRequest] = {}
    conflicting: list[HostPortRequest] = []
    for request in requests:
        owner = owners.setdefault(request.key, request)
        # With ipv4_any_means_ipv6, bindings to `::` and to 0.0.0.0 are the same request.
        if owner is not request and owner != request:
            owners[request.key], loser = sorted((owner, request), key=_priority)
            conflicting.append(loser)
    skipped = [
        Skipped(
            container_name=request.container.name,
            network=request.network.name,
            port=f"{request.container_port}/{request.protocol}",
            reason=(
                f"[{request.host_address}]:{request.host_port} already belongs to container "
                f"'{owners[request.key].container.name}'; "
                "publish one of the two on another port"
            ),
        )
        for request in sorted(conflicting, key=_priority)
    ]
    return sorted(owners.values(), key=attrgetter("key")), skipped


def split_loopback(
    requests: list[HostPortRequest],
) -> tuple[list[HostPortRequest], list[HostPortRequest]]:
    """The requests for [::1], which no rule can forward, and all others."""
    loopback = int(LOOPBACK)
    return (
        [request for request in requests if request.key[1] == loopback],
        [request for request in requests if request.key[1] != loopback],
    )


def _priority(request: HostPortRequest) -> tuple[str, int]:
    return request.container.id, request.container_port


PortRange = tuple[HostPortRequest, int]
"""The first request for a range of consecutive host ports, and the number of ports."""


def range_identity(port_range: PortRange) -> tuple[int, int]:
    """The same for equal ranges, while their requests exist."""
    return id(port_range[0]), port_range[1]


def forwarded_ranges(requests: Iterable[HostPortRequest]) -> Iterator[PortRange]:
    """Sorted requests -> ranges that one rule can serve: consecutive ports of one container, and
    on the host."""

    def shared(index: int, request: HostPortRequest) -> object:
        wildcard, address, protocol, port = request.key
        return (
            port - index,
            address,
            protocol,
            wildcard,
            request.container_port - index,
            id(request.container),
            request.proxy_binds_address,
        )

    return _ranges(requests, shared)


def host_port_ranges(requests: Iterable[HostPortRequest]) -> Iterator[PortRange]:
    """Sorted requests -> ranges of consecutive host ports, of any containers."""

    def shared(index: int, request: HostPortRequest) -> object:
        wildcard, address, protocol, port = request.key
        return port - index, address, protocol, wildcard

    return _ranges(requests, shared)


def _ranges(
    requests: Iterable[HostPortRequest], shared: Callable[[int, HostPortRequest], object]
) -> Iterator[PortRange]:
    """`shared(index, request)` is equal for requests of one range: ports grow with the index."""
    ordered = list(requests)
    keys = map(shared, count(), ordered)
    at = 0
    for _, group in groupby(keys):
        size = len(list(group))
        yield ordered[at], size
        at += size


def port_mapping(port_range: PortRange, managed_by: ManagedBy) -> Mapping:
    """The mapping for a range."""
    request, count = port_range
    return Mapping(
        container_id=request.container.id,
        container_name=request.container.name,
        network_id=request.network.id,
        network_name=request.network.name,
        bridge=request.network.bridge,
        protocol=request.protocol,
        host_address=request.host_address,
        host_port=request.host_port,
        container_address=request.address,
        container_port=request.container_port,
        proxy_binds_address=request.proxy_binds_address,
        count=count,
        managed_by=managed_by,
    )


def rejected_ports(port_range: PortRange) -> RejectedPorts:
    """The rejected ports for a range."""
    request, count = port_range
    return RejectedPorts(
        protocol=request.protocol,
        host_address=request.host_address,
        first=request.host_port,
        last=request.host_port + count - 1,
    )


def coalesce(direct_access: Iterable[DirectAccess]) -> Iterator[DirectAccess]:
    """Each port once, consecutive ports as one range."""
    current: DirectAccess | None = None
    for access in sorted(set(direct_access), key=_access_order):
        if current is not None:
            next_port = current.last + 1
            if access == replace(current, first=next_port, last=next_port):
                current = replace(current, last=access.last)
                continue
            yield current
        current = access
    if current is not None:
        yield current


def _access_order(access: DirectAccess) -> tuple[str, str, IPv6Address, Protocol, int]:
    return access.bridge, access.in_interface, access.address, access.protocol, access.first
