"""Containers and their bindings -> requests on host ports, one owner each, merged into runs."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from itertools import accumulate, pairwise
from operator import attrgetter, itemgetter

from ipv6natd.model import (
    ANY,
    LINK_LOCAL,
    LOOPBACK,
    Container,
    DirectAccess,
    ManagedBy,
    Mapping,
    Network,
    Policy,
    PortBinding,
    Protocol,
    RejectedPorts,
    Skipped,
    common_ends,
)
from ipv6natd.policy.networks import Attachment, attachments, gateway_attachment

ANY_IPV4 = IPv4Address(0)
_PROTOCOLS = sorted(Protocol)
_PROTOCOL_SHIFT, _ADDRESS_SHIFT = 16, 24
"""The lowest bits of each in a sort key; below them is the port."""


@dataclass(frozen=True, slots=True)
class HostPortRequest:
    """One host port that one container is to have."""

    container: Container
    network: Network
    address: IPv6Address
    protocol: Protocol
    host_address: IPv6Address
    host_port: int
    container_port: int
    sort_key: int
    """Tells host ports apart and puts them in order: a number, because there may be very many."""
    proxy_binds_address: bool = field(compare=False)
    """Whether the engine itself was asked for that one address, and none of our settings."""


def _sort_key(protocol: Protocol, address: IPv6Address, port: int) -> int:
    # A binding to an address precedes a wildcard: the first matching rule wins.
    number = 1 << 128 if address == ANY else int(address)
    return number << _ADDRESS_SHIFT | _PROTOCOLS.index(protocol) << _PROTOCOL_SHIFT | port


def loopback_slice(requests: list[HostPortRequest]) -> slice:
    """Those of requests in their order that are for [::1], which no rule can forward."""
    first, behind = (int(LOOPBACK) + i << _ADDRESS_SHIFT for i in (0, 1))
    sort_key = attrgetter("sort_key")
    return slice(
        bisect_left(requests, first, key=sort_key), bisect_left(requests, behind, key=sort_key)
    )


@dataclass(frozen=True, slots=True)
class ContainerPorts:
    """What one container wants: host ports, ports of its own address, and what it cannot have."""

    requests: tuple[HostPortRequest, ...] = ()
    direct_access: tuple[DirectAccess, ...] = ()
    proxy_udp_ports: tuple[int, ...] = ()
    """See Desired; some may be twice."""
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[tuple[str, str], ...] = ()
    """(network id, sentence) for each port that is not what its user may take it for."""


def container_ports(
    container: Container,
    networks: Iterable[Network],
    managed: dict[str, Network],
    policy: Policy,
) -> ContainerPorts:
    """What a container wants; `networks` are all there are, managed or not."""
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
            # A proxy that listens on one address alone hears no group.
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
                    sort_key=_sort_key(binding.protocol, host_address, binding.host_port),
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
        skipped=tuple(skipped),
        warnings=tuple(warnings),
    )


def _skipped(container: Container, gateway: Attachment | None, port: str, reason: str) -> Skipped:
    name = gateway.network.name if gateway else ""
    return Skipped(container_name=container.name, network=name, port=port, reason=reason)


def ipv6_host_address(
    binding: PortBinding, network: Network | None, policy: Policy
) -> IPv6Address | None:
    """The IPv6 address that a binding is for, None where it is for IPv4 only.

    `::` is what Docker lists where the user named no address, so the network's own default for
    IPv6 bindings takes its place. Where the network's default for IPv4 keeps Docker from listing
    any, that default for IPv6 counts all the same. Without a network that is its IPv6 gateway a
    container has no IPv6, and engine 28 without its proxy lists none for it then; asked for it was.
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
    """Whether it counts for IPv6 only where the engine lists none: their numbers may differ."""
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
    """Why a binding that wants IPv6 cannot have it; empty where it can, or where nobody asked us.

    A container on IPv4 networks alone did not ask: Docker lists `::` for it only because its proxy
    can carry an IPv6 client to an IPv4 address.
    """
    if gateway is None or gateway.endpoint.address is None:
        ours = [managed[network.id] for _, network in attached if network.id in managed]
        if all(network.closed for network in ours):
            return ""
        return (
            f"the container has no IPv6 address on network '{ours[0].name}'; "
            "see whether a sysctl switches IPv6 off in it"
        )
    if gateway.network.id in managed and host_address in LINK_LOCAL:
        return f"{host_address} is link-local, and such clients cannot be forwarded; bind to `::`"
    return ""


def _port_number_warnings(container: Container) -> Iterator[str]:
    """Ports whose number the engine chose for IPv4 and IPv6 apart, as engines before 27 do."""
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
                f"the engine gave port {port}/{protocol} of container '{container.name}' the "
                f"number {_joined(ipv6 - ipv4)} on IPv6 and {_joined(ipv4 - ipv6)} on IPv4; "
                "name a host port to have one for both"
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
    """Direct access, as Docker gives it: to a routed network's ports on whichever of its
    endpoints, else by trusted interfaces, or by all with allow_direct_routing, on the gateway."""
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
    """One owner for each host port, in their order: the container whose id sorts first."""
    owners: dict[int, HostPortRequest] = {}
    conflicting: list[HostPortRequest] = []
    for request in requests:
        owner = owners.setdefault(request.sort_key, request)
        # `::` and, where that counts too, 0.0.0.0 of one port are one request made twice.
        if owner is not request and owner != request:
            owners[request.sort_key], loser = sorted((owner, request), key=_priority)
            conflicting.append(loser)
    skipped = [
        Skipped(
            container_name=request.container.name,
            network=request.network.name,
            port=f"{request.container_port}/{request.protocol}",
            reason=(
                f"[{request.host_address}]:{request.host_port} already belongs to container "
                f"'{owners[request.sort_key].container.name}'; publish one of them elsewhere"
            ),
        )
        for request in sorted(conflicting, key=_priority)
    ]
    return [owners[key] for key in sorted(owners)], skipped


def _priority(request: HostPortRequest) -> tuple[str, int]:
    return request.container.id, request.container_port


PortRange = tuple[HostPortRequest, int]
"""The first of so many requests on host ports in a row."""


def is_next_port(before: HostPortRequest, request: HostPortRequest) -> bool:
    """Whether its host port is the next one, whosever it is."""
    return request.sort_key == before.sort_key + 1


def extends_range(before: HostPortRequest, request: HostPortRequest) -> bool:
    """Whether one rule may serve both: the next host port, and the next port of one container."""
    return (
        is_next_port(before, request)
        and request.container is before.container
        and request.container_port == before.container_port + 1
        and request.proxy_binds_address == before.proxy_binds_address
    )


def _range_key(port_range: PortRange) -> object:
    """What tells one run from another as long as its requests live."""
    return id(port_range[0]), port_range[1]


class PortRanges:
    """Requests in their order -> runs of them; runs without a changed request stay the same tuples.

    `extends` tells whether a request goes on with the run of the one before it.
    """

    def __init__(self, extends: Callable[[HostPortRequest, HostPortRequest], bool]) -> None:
        self._extends = extends
        self._claims: list[HostPortRequest] = []
        self._ranges: list[PortRange] = []

    def group(self, requests: list[HostPortRequest]) -> list[PortRange]:
        """The runs of these; the list is not to be changed."""
        head, tail = common_ends(self._claims, requests)
        starts = list(accumulate(map(itemgetter(1), self._ranges), initial=0))
        # Where two neighbours both stayed, a run ends and begins between them as it did.
        first = max(bisect_left(starts, head) - 1, 0)
        last = min(bisect_right(starts, len(self._claims) - tail), len(self._ranges))
        end = len(requests) - (len(self._claims) - starts[last])
        known = {_range_key(known_range): known_range for known_range in self._ranges[first:last]}
        changed = self._group(requests[starts[first] : end])
        between = [known.get(_range_key(new_range), new_range) for new_range in changed]
        self._ranges = [*self._ranges[:first], *between, *self._ranges[last:]]
        self._claims = requests
        return self._ranges

    def _group(self, requests: list[HostPortRequest]) -> Iterator[PortRange]:
        starts = [
            index
            for index, request in enumerate(requests)
            if not index or not self._extends(requests[index - 1], request)
        ]
        for start, end in pairwise([*starts, len(requests)]):
            yield requests[start], end - start


def port_mapping(port_range: PortRange, managed_by: ManagedBy) -> Mapping:
    """What the container of a run is forwarded."""
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
    """Where clients that cannot be forwarded are told so."""
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
