"""Random forged packets, from the model: packets with the source of another machine.

Nothing here sends. No server may receive such a packet, and none may come back to an attacker, with
any options of the networks: a source in a container network is valid only on that network's bridge,
and a source of the host is valid only on the host.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address, IPv6Network
from random import Random

from tests.harness.forge import datagram, kinds
from tests.harness.sandbox import CLIENT
from tests.stress.soak.model import LISTENS, Ask, Other, Want, World

PORTS = range(6600, 6608)
"""Source and destination ports of attackers. They are few, so that the conntrack table, which
ipv6natd reads, stays small."""
UNPUBLISHED = {"tcp": 81, "udp": 54}
"""Ports on which every container listens, and that no container publishes."""
TOKEN = b"forged "
"""The beginning of each attacker's datagram; a server records its datagrams."""
DATAGRAMS = ("udp", "behind destination options", "fragments")
"""The kinds of `forge.kinds` that a UDP server receives."""
STRANGER = 0x66
"""The last part of an unused source address, in each network and on each link."""
GROUPS = tuple(map(IPv6Address, ("ff02::1", "ff02::2", "ff05::2")))
"""All nodes and all routers. A socket on all addresses receives these packets too."""


class Aim(StrEnum):
    """The kind of destination of a forged packet."""

    BACK = "attackers themselves"
    PORT = "published ports"
    CONTAINER = "containers"
    GROUP = "groups"


class Pose(StrEnum):
    """The kind of source of a forged packet."""

    CONTAINER = "a container"
    NOBODY = "an unused address of a container network"
    GATEWAY = "a gateway"
    HOST = "the host"
    OUTSIDER = "a host outside"
    ITSELF = "itself"


OFTEN = {Aim.BACK: 4, Aim.PORT: 3, Aim.CONTAINER: 2, Aim.GROUP: 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The attackers' knowledge about a host, without anything that a step changes."""

    containers: tuple[IPv6Address, ...]
    free: tuple[IPv6Address, ...]
    """Unused addresses in container networks."""
    closed: frozenset[IPv6Address]
    """Containers' addresses without an option that opens unpublished ports."""
    gateways: tuple[IPv6Address, ...]
    outside: tuple[IPv6Address, ...]
    """The host's addresses on its link."""
    ports: tuple[int, ...]
    """The host's published UDP ports."""

    @property
    def grouped(self) -> list[int]:
        """The ports for packets to groups. With a bridge in hairpin mode a container receives its
        own packets, so ports on which containers listen are excluded."""
        return [port for port in self.ports if port not in LISTENS["udp"]]


def known(
    old: World, new: World, touched: Collection[str], wants: Mapping[Ask, Want]
) -> Known | None:
    """The facts that are true before and after a step; `wants` are the answers before the step.
    None without a network, because then there are no rules.

    The ports of a starting container are excluded: the engine opens them, with its proxy, before
    any rule can exist.
    """
    nets = {name: net for name, net in old.nets.items() if new.nets.get(name) == net}
    if not nets:
        return None
    ends = {
        address
        for box in old.boxes.values()
        for name, address in box.ends.items()
        if box.up and address is not None and name in nets
    }
    closed = (a for a in ends if wants.get(Ask("rogue", "udp", a, 54)) is Other.CLOSED)
    ports = {
        port
        for name, box in old.boxes.items()
        if box.up and name not in touched and name in new.boxes
        for publish in box.publish
        if publish.protocol == "udp" and publish.ipv6
        for port, _ in publish.pairs(box.chosen.get(publish, ()))
    }
    return Known(
        containers=tuple(sorted(ends)),
        free=tuple(net.subnet[STRANGER] for net in nets.values()),
        closed=frozenset(closed),
        gateways=tuple(net.gateway for net in nets.values()),
        outside=tuple(a for a in old.addresses if a in new.addresses),
        ports=tuple(sorted(ports)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The place of an attacker."""

    name: str
    address: IPv6Address
    link: IPv6Network
    """The subnet of its link."""
    router: IPv6Address
    """The host's link-local address on this link."""
    container: bool
    """True if the link is a container network. Sources of this network are not forged there."""

    def sources(self, known: Known) -> dict[Pose, list[IPv6Address]]:
        """The sources that are forged here."""

        def others(addresses: Iterable[IPv6Address]) -> list[IPv6Address]:
            return [a for a in addresses if not (self.container and a in self.link)]

        found = {
            Pose.CONTAINER: others(known.containers),
            Pose.NOBODY: others(known.free),
            Pose.GATEWAY: list(known.gateways),
            Pose.HOST: list(known.outside),
        }
        return {pose: sources for pose, sources in found.items() if sources}

    def translated(self, known: Known) -> tuple[IPv6Address, ...]:
        """The sources that the host may have put into a packet that came back here."""
        return (*known.outside, *(a for a in known.gateways if a in self.link))


@dataclass(frozen=True, slots=True, kw_only=True)
class Forged:
    """A forged packet, or its fragments."""

    attacker: str
    pose: Pose
    aim: Aim
    kind: str
    source: IPv6Address
    destination: IPv6Address
    ports: tuple[int, int]

    @property
    def data(self) -> bytes:
        """The data, which describe the packet for the server that receives it."""
        text = (
            f"by {self.attacker} as {self.pose} to {self.aim}, {self.kind}:"
            f" {self.source} > [{self.destination}]:{self.ports[1]}\n"
        )
        return TOKEN + text.encode()

    def packets(self) -> list[bytes]:
        return kinds(self.source, self.destination, self.ports, self.data)[self.kind]


def drawn(rng: Random, place: Place, known: Known, machines: Collection[IPv6Address]) -> Forged:
    """The next packet from a place; `machines` are the addresses of attackers."""
    to_what = {
        Aim.BACK: machines,
        Aim.PORT: known.ports,
        Aim.CONTAINER: known.containers,
        Aim.GROUP: known.grouped,
    }
    can = [aim for aim in OFTEN if to_what[aim]]
    (aim,) = rng.choices(can, [OFTEN[each] for each in can])
    kind, destination, ports = _aimed(rng, aim, place, known, machines)
    sources = place.sources(known)
    if aim is Aim.GROUP:
        # The own address is wrong too: the proxy would hide it.
        sources[Pose.ITSELF] = [place.address, IPv6Address(f"fe80::{STRANGER:x}")]
    elif aim is Aim.BACK and not place.container:
        # Such a packet is forwarded between two outside hosts, without a container.
        sources.pop(Pose.HOST, None)
    elif aim is Aim.BACK and destination not in place.link:
        sources[Pose.OUTSIDER] = [CLIENT]
    pose = rng.choice(list(sources))
    return Forged(
        attacker=place.name,
        pose=pose,
        aim=aim,
        kind=kind,
        source=rng.choice(sources[pose]),
        destination=destination,
        ports=ports,
    )


def _aimed(
    rng: Random, aim: Aim, place: Place, known: Known, machines: Collection[IPv6Address]
) -> tuple[str, IPv6Address, tuple[int, int]]:
    """The kind, the destination and the two ports of a packet."""
    kind, port = rng.choice(DATAGRAMS), rng.choice(PORTS)
    match aim:
        case Aim.BACK:
            kind = rng.choice((*DATAGRAMS, "tcp", "echo", "gre", "unknown protocol"))
            # Also with the host's source: the answer goes to the host at this port, and conntrack
            # takes packets from this port for replies.
            ports = UNPUBLISHED["tcp" if kind == "tcp" else "udp"], port
            return kind, rng.choice(list(machines)), ports
        case Aim.PORT:
            hosts = (*known.gateways, *known.outside, place.router)
            return kind, rng.choice(hosts), (port, rng.choice(known.ports))
        case Aim.CONTAINER:
            return kind, rng.choice(known.containers), (port, UNPUBLISHED["udp"])
        case Aim.GROUP:
            # The last is the anycast address of all routers of the link.
            groups = (*GROUPS, place.link[0])
            return kind, rng.choice(groups), (port, rng.choice(known.grouped))


def answers(forged: Forged, place: Place, known: Known) -> list[bytes]:
    """The answers of the machine at `place` to the sources that a packet may have had."""
    if forged.source not in known.closed or forged.kind not in DATAGRAMS:
        return []
    ports = forged.ports[1], forged.ports[0]
    data = TOKEN + f"answer by {place.name}: {place.address} > {forged.source}\n".encode()
    return [
        datagram(place.address, to, ports, data) for to in (forged.source, *place.translated(known))
    ]
