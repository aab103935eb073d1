"""The model: the expected answer to each question, from the documented behaviour alone.

A `World` has the networks and containers; `asks` returns all questions with the expected answers.
This module has no knowledge of rules, chains or modules of ipv6natd. Packets are compared with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv6Address, IPv6Network
from typing import Literal

from tests.harness.sandbox import CLIENT, HOST, HOST_TOO, ROGUE

Protocol = Literal["tcp", "udp"]
State = Literal["running", "paused", "stopped"]

LISTENS: dict[Protocol, tuple[int, ...]] = {
    "tcp": (80, 81, 443, 7000, 7001, 7002),
    "udp": (53, 54, 7000, 7001, 7002),
}
"""Ports on which every container listens, published or not."""
OUTSIDE = 9
"""The port of the rogue for outgoing connections of containers, TCP and UDP."""
LATE = IPv6Address("2001:db8:1::66")
"""An address that the host has only at times."""

CLIENTS = {"client": CLIENT, "rogue": ROGUE}


class Mode(StrEnum):
    """`com.docker.network.bridge.gateway_mode_ipv6`."""

    NAT = "nat"
    ROUTED = "routed"
    UNPROTECTED = "nat-unprotected"
    ISOLATED = "isolated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """A bridge network."""

    name: str
    subnet: IPv6Network
    mode: Mode = Mode.NAT
    internal: bool = False
    icc: bool = True
    masquerade: bool = True
    source: IPv6Address | None = None
    """`host_ipv6`: the source address of outgoing packets."""
    binding: IPv6Address | None = None
    """`host_binding_ipv6`: the address of bindings without an address."""
    trusted: bool = False
    """True if `trusted_host_interfaces` contains ext0."""

    @property
    def gateway(self) -> IPv6Address:
        return self.subnet[1]

    @property
    def opens(self) -> bool:
        """True if an option opens ports on containers' own addresses."""
        return self.trusted or self.mode in (Mode.ROUTED, Mode.UNPROTECTED)

    @property
    def bridge(self) -> str:
        return f"br{self.name}"

    @property
    def shows(self) -> Literal["masquerade", "source", "own"]:
        """The source of its containers' outgoing packets."""
        if self.mode is Mode.ROUTED or not self.masquerade:
            return "own"
        return "source" if self.source else "masquerade"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """One `-p`: `count` consecutive host ports, each for one container port."""

    protocol: Protocol
    inside: int
    port: int | None
    """None: the engine chooses."""
    count: int = 1
    host: str | None = None
    """The requested address of the host, IPv4 or IPv6."""

    @property
    def ipv6(self) -> bool:
        return self.host is None or ":" in self.host

    def words(self) -> str:
        """The argument of `docker run --publish`."""
        last = self.count - 1
        inside = f"{self.inside}-{self.inside + last}" if last else f"{self.inside}"
        if self.port is None:
            return f"{inside}/{self.protocol}"
        outside = f"{self.port}-{self.port + last}" if last else f"{self.port}"
        host = "" if self.host is None else f"[{self.host}]:" if self.ipv6 else f"{self.host}:"
        return f"{host}{outside}:{inside}/{self.protocol}"

    def pairs(self, chosen: Iterable[int] = ()) -> Iterator[tuple[int, int]]:
        """Pairs of host port and container port; none before the engine has chosen."""
        for first in chosen if self.port is None else (self.port,):
            yield from ((first + n, self.inside + n) for n in range(self.count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A container."""

    name: str
    ends: Mapping[str, IPv6Address | None]
    """Its networks with its address; None before the engine has chosen the address."""
    publish: tuple[Publish, ...] = ()
    state: State = "running"
    fixed: frozenset[str] = frozenset()
    """Networks with a fixed address; in the others each start may give a new address."""
    always: bool = False
    """True if the engine restarts the container at its own start."""
    chosen: Mapping[Publish, tuple[int, ...]] = field(default_factory=dict)
    """The IPv6 host ports that the engine chose."""

    @property
    def up(self) -> bool:
        return self.state != "stopped"

    def started(self) -> Box:
        """The container after a start, before the engine's choices are known."""
        ends = {name: at if name in self.fixed else None for name, at in self.ends.items()}
        return replace(self, state="running", ends=ends, chosen={})

    def stopped(self) -> Box:
        return replace(self.started(), state="stopped")

    def inside(self, protocol: Protocol) -> set[int]:
        """The published container ports."""
        return {
            p.inside + n for p in self.publish if p.protocol == protocol for n in range(p.count)
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """All facts that decide the answers."""

    proxy: bool
    nets: Mapping[str, Net] = field(default_factory=dict)
    boxes: Mapping[str, Box] = field(default_factory=dict)
    late: bool = False
    """True if the host has its late address."""
    drop: bool = False
    """True if the policy of FORWARD is DROP."""

    @property
    def addresses(self) -> tuple[IPv6Address, ...]:
        """The host's outside addresses."""
        return (HOST, HOST_TOO, *([LATE] if self.late else []))

    def gateway(self, box: Box) -> Net | None:
        """The gateway network of a container: by name, the first that is not internal."""
        nets = sorted((self.nets[name] for name in box.ends), key=lambda net: net.name)
        return next((net for net in nets if not net.internal), None)

    def holding(self, *nets: Net) -> World:
        return replace(self, nets={**self.nets, **{net.name: net for net in nets}})

    def having(self, *boxes: Box) -> World:
        return replace(self, boxes={**self.boxes, **{box.name: box for box in boxes}})

    def without(self, *names: str) -> World:
        """The world without these containers."""
        left = {name: box for name, box in self.boxes.items() if name not in names}
        return replace(self, boxes=left)

    def without_net(self, name: str) -> World:
        return replace(self, nets={key: net for key, net in self.nets.items() if key != name})


@dataclass(frozen=True, slots=True)
class Ask:
    """A question: a connection from "client", "rogue", "host" or a container to a port."""

    origin: str
    protocol: Protocol
    address: IPv6Address
    port: int
    kept: bool = False
    """True if the same socket is used each time."""

    def __str__(self) -> str:
        kept = " from the socket of before" if self.kept else ""
        return f"{self.origin} asks [{self.address}]:{self.port}/{self.protocol}{kept}"


@dataclass(frozen=True, slots=True)
class Reached:
    """An answer of this server, which saw one of these peers (None: any)."""

    server: str
    peers: frozenset[IPv6Address] | None = None

    def __str__(self) -> str:
        seen = "" if self.peers is None else f", which sees {', '.join(map(str, self.peers))}"
        return f"{self.server}{seen}"


class Other(StrEnum):
    """An expectation without a certain answer."""

    CLOSED = "no answer"
    HIDDEN = "no answer, or one by the engine's proxy"
    """Not forwarded. The engine's proxy may answer, and the server sees the proxy as its peer."""
    UNSAID = "any result"


Want = Reached | Other
CLOSED, HIDDEN, UNSAID = Other.CLOSED, Other.HIDDEN, Other.UNSAID


def asks(world: World) -> dict[Ask, Want]:
    """All questions with their expected answers.

    Two parts of the model may have different answers to one question. Then a certain answer takes
    precedence, and closed is the weakest: of two containers with one port, a stopped one does not
    close the port of the other.
    """
    found: dict[Ask, Want] = {}
    for ask, want in (*_published(world), *_direct(world), *_outward(world)):
        before = found.get(ask, CLOSED)
        if before is CLOSED or (isinstance(want, Reached) and not isinstance(before, Reached)):
            found[ask] = want
    return found


def _claims(world: World) -> Iterator[tuple[Box, Publish, int, int]]:
    """The published ports: the container, its `-p`, the host port, the container port."""
    for box in world.boxes.values():
        for publish in box.publish:
            for port, inside in publish.pairs(box.chosen.get(publish, ())):
                yield box, publish, port, inside


def bound(world: World, box: Box, publish: Publish) -> frozenset[IPv6Address]:
    """The host's addresses on which a port is forwarded."""
    net = world.gateway(box)
    if net is None or net.mode is Mode.ROUTED or not publish.ipv6 or not box.up:
        return frozenset()
    one = publish.host or net.binding
    return frozenset(a for a in world.addresses if one is None or a == IPv6Address(one))


def _published(world: World) -> Iterator[tuple[Ask, Want]]:
    """Questions to the host's addresses: from outside, from the host, and from containers."""
    for box, publish, port, _ in _claims(world):
        here = bound(world, box, publish)
        for address in world.addresses:
            forwarded = address in here
            for origin, peer in CLIENTS.items():
                want: Want = Reached(box.name, frozenset({peer}))
                if not forwarded:
                    by_proxy = publish.ipv6 and publish.host in (None, str(address))
                    want = HIDDEN if by_proxy and box.up else CLOSED
                yield Ask(origin, publish.protocol, address, port), want
                if publish.protocol == "udp" and origin == "client" and publish.port:
                    yield Ask(origin, "udp", address, port, kept=True), want
            if forwarded:
                seen = Reached(box.name, frozenset({address}))
                yield Ask("host", publish.protocol, address, port), seen
        for other in world.boxes.values() if box.up else ():
            if other.up and here:
                address = min(here)
                want = _from_box(world, other, box)
                yield Ask(other.name, publish.protocol, address, port), want


def _from_box(world: World, origin: Box, target: Box) -> Want:
    """The answer to a container that connects to a published port of the host."""
    leaves, enters = world.gateway(origin), world.gateway(target)
    if leaves is None or enters is None:
        return UNSAID  # the engine decides the way
    if leaves is enters:
        return Reached(target.name)
    return _across(origin, leaves, target, enters)


def _across(origin: Box, leaves: Net, target: Box, enters: Net) -> Want:
    """The answer from one network into another, if the port is open."""
    own = origin.ends[leaves.name]
    match leaves.shows:
        case "masquerade":
            return Reached(target.name, frozenset({enters.gateway}))
        case "source":
            assert leaves.source is not None
            return Reached(target.name, frozenset({leaves.source}))
        case "own":
            if own is None or leaves.name in target.ends:
                return UNSAID  # the reply would not pass the host, so it would not be translated
            return Reached(target.name, frozenset({own}))


def _direct(world: World) -> Iterator[tuple[Ask, Want]]:
    """Questions to a container's own address."""
    for box in world.boxes.values():
        for name, address in box.ends.items():
            if address is None or not box.up:
                continue
            for protocol, ports in LISTENS.items():
                for port in ports[:3]:
                    want = _from_outside(world, box, world.nets[name], protocol, port)
                    yield Ask("rogue", protocol, address, port), want
                yield Ask("host", protocol, address, ports[1]), Reached(box.name)
                for other in world.boxes.values():
                    if other.up and other is not box:
                        for port in ports[:2]:
                            want = _between(world, other, box, world.nets[name], protocol, port)
                            yield Ask(other.name, protocol, address, port), want


def _opened(net: Net, box: Box, protocol: Protocol, port: int, *, outside: bool) -> bool:
    """True if an option opens this port on the container's own address."""
    if net.internal:
        return False
    if net.mode is Mode.UNPROTECTED:
        return True
    published = port in box.inside(protocol)
    return published and (net.mode is Mode.ROUTED or (net.trusted and outside))


def _from_outside(world: World, box: Box, net: Net, protocol: Protocol, port: int) -> Want:
    if not _opened(net, box, protocol, port, outside=True):
        return CLOSED
    # The reply of a container leaves by its gateway network.
    return Reached(box.name, frozenset({ROGUE})) if net is world.gateway(box) else UNSAID


def _between(
    world: World, origin: Box, target: Box, net: Net, protocol: Protocol, port: int
) -> Want:
    if net.name in origin.ends:
        own = origin.ends[net.name]
        if not net.icc:
            return CLOSED
        return Reached(target.name, None if own is None else frozenset({own}))
    leaves = world.gateway(origin)
    if leaves is None or not _opened(net, target, protocol, port, outside=False):
        return CLOSED
    if net is not world.gateway(target):
        return UNSAID
    return _across(origin, leaves, target, net)


def _outward(world: World) -> Iterator[tuple[Ask, Want]]:
    """Questions from containers to the outside."""
    for box in world.boxes.values():
        if not box.up:
            continue
        net = world.gateway(box)
        for protocol in LISTENS:
            want: Want = CLOSED
            if net is not None:
                own = box.ends[net.name]
                seen = {
                    "masquerade": frozenset({HOST, HOST_TOO}),
                    "source": frozenset({net.source}) if net.source else None,
                    "own": None if own is None else frozenset({own}),
                }[net.shows]
                want = Reached("rogue", seen)
            yield Ask(box.name, protocol, ROGUE, OUTSIDE), want
