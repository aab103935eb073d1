"""What attackers forge, drawn from the model: packets that claim to come from somebody else.

Nothing here sends. No server may see any of these packets, and none may come back to an attacker,
whatever the options of the networks are: a source in a container network is right only on that
network's bridge, and a source that is the host's own is right only on the host.
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
"""Ports of attackers: they send from these, and ask for packets to these. Few, so that what they
send adds little to the table of conntrack, which ipv6natd reads."""
UNPUBLISHED = {"tcp": 81, "udp": 54}
"""Where every container listens, and none publishes."""
TOKEN = b"forged "
"""How each datagram of an attacker begins; a server remembers what it was sent."""
DATAGRAMS = ("udp", "behind destination options", "fragments")
"""Those of `forge.kinds` that a UDP server receives."""
STRANGER = 0x66
"""The last part of a source that no container has, in each network and on each link."""
GROUPS = tuple(map(IPv6Address, ("ff02::1", "ff02::2", "ff05::2")))
"""All nodes and all routers. A socket that is bound to all addresses hears them, too."""


class Aim(StrEnum):
    """Where a forged packet goes."""

    BACK = "attackers themselves"
    PORT = "published ports"
    CONTAINER = "containers"
    GROUP = "groups"


class Pose(StrEnum):
    """As whom it comes."""

    CONTAINER = "a container"
    NOBODY = "nobody of a container network"
    GATEWAY = "a gateway"
    HOST = "the host"
    OUTSIDER = "a host outside"
    ITSELF = "itself"


OFTEN = {Aim.BACK: 4, Aim.PORT: 3, Aim.CONTAINER: 2, Aim.GROUP: 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What attackers know of a host, and what a step does not change."""

    containers: tuple[IPv6Address, ...]
    free: tuple[IPv6Address, ...]
    """Addresses in container networks that nobody has."""
    closed: frozenset[IPv6Address]
    """Containers' addresses at which no option opens an unpublished port."""
    gateways: tuple[IPv6Address, ...]
    outside: tuple[IPv6Address, ...]
    """The host's addresses on the segment."""
    ports: tuple[int, ...]
    """The host's published UDP ports."""

    @property
    def grouped(self) -> list[int]:
        """The ports that groups are sent to. By a bridge in hairpin mode a container hears what it
        sends itself, so none is a port on which it listens."""
        return [port for port in self.ports if port not in LISTENS["udp"]]


def known(
    old: World, new: World, touched: Collection[str], wants: Mapping[Ask, Want]
) -> Known | None:
    """What holds before and after a step; `wants` is what must hold before it. None where there is
    no network: then there is no rule, either.

    A port is left out while its container starts: the engine opens it, with its proxy behind it,
    before anybody can have a rule for it.
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
    """Where an attacker is."""

    name: str
    address: IPv6Address
    link: IPv6Network
    """The network of its link."""
    router: IPv6Address
    """The host's link-local address there."""
    container: bool
    """True if the link is a container network: its sources are no forgery there."""

    def sources(self, known: Known) -> dict[Pose, list[IPv6Address]]:
        """What it may not send from."""

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
        """What the host may have made of a forged source before a packet came back here."""
        return (*known.outside, *(a for a in known.gateways if a in self.link))


@dataclass(frozen=True, slots=True, kw_only=True)
class Forged:
    """A packet of an attacker, or the fragments of one."""

    attacker: str
    pose: Pose
    aim: Aim
    kind: str
    source: IPv6Address
    destination: IPv6Address
    ports: tuple[int, int]

    @property
    def data(self) -> bytes:
        """What a server that receives it can say of it."""
        text = (
            f"by {self.attacker} as {self.pose} to {self.aim}, {self.kind}:"
            f" {self.source} > [{self.destination}]:{self.ports[1]}\n"
        )
        return TOKEN + text.encode()

    def packets(self) -> list[bytes]:
        return kinds(self.source, self.destination, self.ports, self.data)[self.kind]


def drawn(rng: Random, place: Place, known: Known, machines: Collection[IPv6Address]) -> Forged:
    """The next packet from there; `machines` are attackers' own, to which packets may come back."""
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
        # Even one's own address is not right: the proxy would hide who asks.
        sources[Pose.ITSELF] = [place.address, IPv6Address(f"fe80::{STRANGER:x}")]
    elif aim is Aim.BACK and not place.container:
        # It is forwarded as any other: no container has a part in it.
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
    """What kind of packet, to whom, from and to which port."""
    kind, port = rng.choice(DATAGRAMS), rng.choice(PORTS)
    match aim:
        case Aim.BACK:
            kind = rng.choice((*DATAGRAMS, "tcp", "echo", "gre", "unknown protocol"))
            # As the host, too: an answer asks it at that port, and conntrack takes what comes from
            # there for an answer to that.
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
    """What the machine at `place`, to which a packet was to come back, says to its sender."""
    if forged.source not in known.closed or forged.kind not in DATAGRAMS:
        return []
    ports = forged.ports[1], forged.ports[0]
    data = TOKEN + f"answer by {place.name}: {place.address} > {forged.source}\n".encode()
    return [
        datagram(place.address, to, ports, data) for to in (forged.source, *place.translated(known))
    ]
