"""Containers and their bindings -> claims on host ports, one owner each, merged into runs."""

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
    ManagedBy,
    Mapping,
    Network,
    Opened,
    Policy,
    PortBinding,
    Protocol,
    Refused,
    Skipped,
    same_ends,
)
from ipv6natd.policy.networks import Place, gateway6, places

ANY_IPV4 = IPv4Address(0)
_PROTOCOLS = sorted(Protocol)
_PROTOCOL, _ADDRESS = 16, 24
"""The lowest bits of each in a place; below them is the port."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One host port that one container is to have."""

    container: Container
    network: Network
    address: IPv6Address
    protocol: Protocol
    host_address: IPv6Address
    host_port: int
    container_port: int
    place: int
    """Tells host ports apart and puts them in order: a number, because there may be very many."""
    proxy_there: bool = field(compare=False)
    """Whether the engine itself was asked for that one address, and none of our settings."""


def _place(protocol: Protocol, address: IPv6Address, port: int) -> int:
    # A binding to an address precedes a wildcard: the first matching rule wins.
    last = 1 << 128 if address == ANY else int(address)
    return last << _ADDRESS | _PROTOCOLS.index(protocol) << _PROTOCOL | port


def on_loopback(claims: list[Claim]) -> slice:
    """Those of claims in their order that are for [::1], which no rule can forward."""
    first, behind = (int(LOOPBACK) + i << _ADDRESS for i in (0, 1))
    place = attrgetter("place")
    return slice(bisect_left(claims, first, key=place), bisect_left(claims, behind, key=place))


@dataclass(frozen=True, slots=True)
class Wants:
    """What one container wants: host ports, ports of its own address, and what it cannot have."""

    claims: tuple[Claim, ...] = ()
    opened: tuple[Opened, ...] = ()
    proxied: tuple[int, ...] = ()
    """See Desired; some may be twice."""
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[tuple[str, str], ...] = ()
    """(network id, sentence) for each port that is not what its user may take it for."""


def wants(
    container: Container,
    networks: Iterable[Network],
    managed: dict[str, Network],
    policy: Policy,
) -> Wants:
    """What a container wants; `networks` are all there are, managed or not."""
    every = places(container, networks)
    place = gateway6(every)
    here = managed.get(place[1].id) if place else None
    skipped = [_skip(container, place, port, reason) for port, reason in container.problems]
    claims: list[Claim] = []
    opened: list[Opened] = []
    proxied: list[int] = []
    listed = {(b.container_port, b.protocol) for b in container.bindings if b.host_address == ANY}
    for binding in container.bindings:
        if _stands_in(binding, policy) and (binding.container_port, binding.protocol) in listed:
            continue
        host_address = ipv6_side(binding, place[1] if place else None, policy)
        if host_address is None:
            continue
        opened += _opened(binding, every, place, managed, policy)
        port = f"{binding.container_port}/{binding.protocol}"
        proxy_there = host_address == binding.host_address != ANY
        if not binding.host_port:
            continue
        if here is not None and not here.translated:
            # A proxy that listens on one address alone hears no group.
            if binding.protocol is Protocol.UDP and not proxy_there:
                proxied.append(binding.host_port)
            continue
        reason = _unreachable(every, place, managed, host_address)
        if reason:
            skipped.append(_skip(container, place, port, reason))
        elif place and here and place[0].address:
            claims.append(
                Claim(
                    container=container,
                    network=here,
                    address=place[0].address,
                    protocol=binding.protocol,
                    host_address=host_address,
                    host_port=binding.host_port,
                    container_port=binding.container_port,
                    place=_place(binding.protocol, host_address, binding.host_port),
                    proxy_there=proxy_there,
                )
            )
    warnings = [(here.id, each) for each in _uneven(container)] if here and claims else []
    return Wants(
        claims=tuple(claims),
        opened=tuple(opened),
        proxied=tuple(proxied),
        skipped=tuple(skipped),
        warnings=tuple(warnings),
    )


def _skip(container: Container, place: Place | None, port: str, reason: str) -> Skipped:
    name = place[1].name if place else ""
    return Skipped(container_name=container.name, network=name, port=port, reason=reason)


def ipv6_side(binding: PortBinding, network: Network | None, policy: Policy) -> IPv6Address | None:
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
        if not binding.asked_address and (default or (network is None and address == ANY_IPV4)):
            return default or ANY
        any_counts = policy.ipv4_any_means_ipv6 and address == ANY_IPV4
        return (default or ANY) if any_counts else None
    if address is None or address == ANY:
        return default or ANY
    return address


def _stands_in(binding: PortBinding, policy: Policy) -> bool:
    """Whether it counts for IPv6 only where the engine lists none: their numbers may differ."""
    address = binding.host_address
    return (
        isinstance(address, IPv4Address)
        and not binding.asked_address
        and address not in policy.address_map
        and not policy.ipv4_any_means_ipv6
    )


def _unreachable(
    every: list[Place],
    place: Place | None,
    managed: dict[str, Network],
    host_address: IPv6Address,
) -> str:
    """Why a binding that wants IPv6 cannot have it; empty where it can, or where nobody asked us.

    A container on IPv4 networks alone did not ask: Docker lists `::` for it only because its proxy
    can carry an IPv6 client to an IPv4 address.
    """
    if place is None or place[0].address is None:
        ours = [managed[network.id] for _, network in every if network.id in managed]
        if all(each.closed for each in ours):
            return ""
        return (
            f"the container has no IPv6 address on network '{ours[0].name}'; "
            "see whether a sysctl switches IPv6 off in it"
        )
    if place[1].id in managed and host_address in LINK_LOCAL:
        return f"{host_address} is link-local, and such clients cannot be forwarded; bind to `::`"
    return ""


def _uneven(container: Container) -> Iterator[str]:
    """Ports whose number the engine chose for IPv4 and IPv6 apart, as engines before 27 do."""
    chosen: dict[tuple[int, Protocol], tuple[set[int], set[int]]] = {}
    for each in container.bindings:
        if not each.asked_address and each.host_port and each.host_address in (ANY_IPV4, ANY):
            four, six = chosen.setdefault((each.container_port, each.protocol), (set(), set()))
            (four if each.host_address == ANY_IPV4 else six).add(each.host_port)
    for (port, protocol), (four, six) in sorted(chosen.items()):
        if four - six and six - four:
            yield (
                f"the engine gave port {port}/{protocol} of container '{container.name}' the "
                f"number {_listed(six - four)} on IPv6 and {_listed(four - six)} on IPv4; "
                "name a host port to have one for both"
            )


def _listed(ports: set[int]) -> str:
    return ", ".join(map(str, sorted(ports)))


def _opened(
    binding: PortBinding,
    every: list[Place],
    gateway: Place | None,
    managed: dict[str, Network],
    policy: Policy,
) -> Iterator[Opened]:
    """Direct access, as Docker gives it: to a routed network's ports on whichever of its
    endpoints, else by trusted interfaces, or by all with allow_direct_routing, on the gateway."""
    for endpoint, found in every:
        network = managed.get(found.id)
        if network is None or network.closed or endpoint.address is None:
            continue
        interfaces: tuple[str, ...] = ("",)
        if network.translated:
            if gateway is None or found.id != gateway[1].id:
                continue
            interfaces = ("",) if policy.allow_direct_routing else network.trusted_interfaces
        for interface in interfaces:
            yield Opened(
                bridge=network.bridge,
                in_interface=interface,
                address=endpoint.address,
                protocol=binding.protocol,
                first=binding.container_port,
                last=binding.container_port,
            )


def settled(claims: list[Claim]) -> tuple[list[Claim], list[Skipped]]:
    """One owner for each host port, in their order: the container whose id sorts first."""
    owners: dict[int, Claim] = {}
    beaten: list[Claim] = []
    for claim in claims:
        owner = owners.setdefault(claim.place, claim)
        # `::` and, where that counts too, 0.0.0.0 of one port are one claim made twice.
        if owner is not claim and owner != claim:
            owners[claim.place], loser = sorted((owner, claim), key=_age)
            beaten.append(loser)
    skipped = [
        Skipped(
            container_name=claim.container.name,
            network=claim.network.name,
            port=f"{claim.container_port}/{claim.protocol}",
            reason=(
                f"[{claim.host_address}]:{claim.host_port} already belongs to container "
                f"'{owners[claim.place].container.name}'; publish one of them elsewhere"
            ),
        )
        for claim in sorted(beaten, key=_age)
    ]
    return [owners[place] for place in sorted(owners)], skipped


def _age(claim: Claim) -> tuple[str, int]:
    return claim.container.id, claim.container_port


Run = tuple[Claim, int]
"""The first of so many claims on host ports in a row."""


def next_port(before: Claim, claim: Claim) -> bool:
    """Whether its host port is the next one, whosever it is."""
    return claim.place == before.place + 1


def in_step(before: Claim, claim: Claim) -> bool:
    """Whether one rule may serve both: the next host port, and the next port of one container."""
    return (
        next_port(before, claim)
        and claim.container is before.container
        and claim.container_port == before.container_port + 1
        and claim.proxy_there == before.proxy_there
    )


def _same(run: Run) -> object:
    """What tells one run from another as long as its claims live."""
    return id(run[0]), run[1]


class Runs:
    """Claims in their order -> runs of them; where no claim changed they are the tuples they were.

    `follows` tells whether a claim goes on with the run of the one before it.
    """

    def __init__(self, follows: Callable[[Claim, Claim], bool]) -> None:
        self._follows = follows
        self._claims: list[Claim] = []
        self._runs: list[Run] = []

    def of(self, claims: list[Claim]) -> list[Run]:
        """The runs of these; the list is not to be changed."""
        head, tail = same_ends(self._claims, claims)
        begins = list(accumulate(map(itemgetter(1), self._runs), initial=0))
        # Where two neighbours both stayed, a run ends and begins between them as it did.
        first = max(bisect_left(begins, head) - 1, 0)
        last = min(bisect_right(begins, len(self._claims) - tail), len(self._runs))
        end = len(claims) - (len(self._claims) - begins[last])
        known = {_same(run): run for run in self._runs[first:last]}
        found = self._among(claims[begins[first] : end])
        between = [known.get(_same(run), run) for run in found]
        self._runs = [*self._runs[:first], *between, *self._runs[last:]]
        self._claims = claims
        return self._runs

    def _among(self, claims: list[Claim]) -> Iterator[Run]:
        begins = [
            at
            for at, claim in enumerate(claims)
            if not at or not self._follows(claims[at - 1], claim)
        ]
        for begin, end in pairwise([*begins, len(claims)]):
            yield claims[begin], end - begin


def mapping(run: Run, managed_by: ManagedBy) -> Mapping:
    """What the container of a run is forwarded."""
    claim, count = run
    return Mapping(
        container_id=claim.container.id,
        container_name=claim.container.name,
        network_id=claim.network.id,
        network_name=claim.network.name,
        bridge=claim.network.bridge,
        protocol=claim.protocol,
        host_address=claim.host_address,
        host_port=claim.host_port,
        container_address=claim.address,
        container_port=claim.container_port,
        proxy_there=claim.proxy_there,
        count=count,
        managed_by=managed_by,
    )


def refused(row: Run) -> Refused:
    """Where clients that cannot be forwarded are told so."""
    claim, count = row
    return Refused(
        protocol=claim.protocol,
        host_address=claim.host_address,
        first=claim.host_port,
        last=claim.host_port + count - 1,
    )


def merged(opened: Iterable[Opened]) -> Iterator[Opened]:
    """Each opened port once, runs of them as one."""
    run: Opened | None = None
    for each in sorted(set(opened), key=_opened_order):
        if run is not None and each == replace(run, first=run.last + 1, last=run.last + 1):
            run = replace(run, last=each.last)
            continue
        if run is not None:
            yield run
        run = each
    if run is not None:
        yield run


def _opened_order(opened: Opened) -> tuple[str, str, IPv6Address, Protocol, int]:
    return opened.bridge, opened.in_interface, opened.address, opened.protocol, opened.first
