"""Two permanent attackers: a rogue on the host's link, and a container.

They send the packets of forgery.py, without their own network stack, and watch their links. A
forged packet that comes back shows a gap in the rules. They answer to its source, as an attacker
would.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv6Address, IPv6Network
from random import Random

from tests.harness.forge import hardware
from tests.harness.namespace import Namespace
from tests.harness.probe import ETH_P_IPV6, Packet, dissected
from tests.harness.sandbox import HOST_LINK_LOCAL, ROGUE, Sandbox
from tests.harness.serve import Arrival
from tests.stress.soak.forgery import TOKEN, Aim, Forged, Known, Place, answers, drawn
from tests.stress.soak.model import Net

AT_ONCE = 5
"""Packets of each attacker per round."""
ECHO_REQUEST = 128
ODD = {"44", "47", "60", "253"}
"""Fragments, GRE, destination options and an unknown protocol: only attackers send them here."""
SEQUENCE = b"\0\0\0\1"
"""The sequence number of the segments of tests/harness/forge.py."""
SO_RCVBUFFORCE = 33
UNREAD = 1 << 22
"""Bytes of the receive buffer: a volley has hundreds of answers between two rounds."""

SEGMENT = Place(
    name="rogue",
    address=ROGUE,
    link=IPv6Network("2001:db8:1::/64"),
    router=IPv6Address(int(HOST_LINK_LOCAL)),
    container=False,
)


INSIDE = "a container"


def inside(net: Net, address: IPv6Address) -> Place:
    """The place of an attacker in a container. The engine gives each bridge this router address."""
    router = IPv6Address("fe80::1")
    return Place(name=INSIDE, address=address, link=net.subnet, router=router, container=True)


class Attacker:
    """One attacker on its link."""

    def __init__(self, ns: Namespace, link: str, router: bytes, place: Place) -> None:
        self.place = place
        self._link, self._router = link, router
        self._raw = ns.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self._seen = ns.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IPV6))
        self._seen.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, UNREAD)
        self._seen.setblocking(False)

    def send(self, packets: Iterable[bytes]) -> None:
        """Send packets to the host, or to a multicast group. A missing link is ignored."""
        for packet in packets:
            to = self._router if packet[24] != 0xFF else b"\x33\x33" + packet[36:40]
            with contextlib.suppress(OSError):
                self._raw.sendto(packet, (self._link, ETH_P_IPV6, 0, 0, to))

    def came(self) -> list[str]:
        """The packets since the last call that only an attacker sends."""
        found = []
        with contextlib.suppress(OSError):  # no more packets, or the link was removed
            while True:
                data, where = self._seen.recvfrom(2048)
                packet = dissected(data, outgoing=where[2] == socket.PACKET_OUTGOING)
                if not packet.outgoing and attackers(packet, data):
                    found.append(self._told(packet, data))
        return found

    def close(self) -> None:
        self._raw.close()
        self._seen.close()

    def _told(self, packet: Packet, data: bytes) -> str:
        _, token, text = data.partition(TOKEN)
        what = (token + text).decode().strip() or f"forged {packet.protocol} to {self.place.name}:"
        come = f"[{packet.source}]:{packet.source_port} > [{packet.destination}]:{packet.port}"
        return f"came: {what} {come}"


def attackers(packet: Packet, data: bytes) -> bool:
    """True if only an attacker sends such a packet.

    Ports are no criterion: the kernel changes them if two flows would have the same tuple. A
    packet to a group never left its link: a bridge with ports in hairpin mode sends it back.
    """
    if packet.destination.is_multicast:
        return False
    match packet.protocol:
        case "icmp6":
            return packet.port == ECHO_REQUEST
        case "tcp":
            return data[44:48] == SEQUENCE
    return packet.protocol in ODD or TOKEN in data


class Attackers:
    """Both attackers; `forged` and `answered` count their packets."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.forged: Counter[str] = Counter()
        """Packets by attacker, and by aim."""
        self.answered = 0
        self._sandbox = sandbox
        self._known: Known | None = None
        self._came: list[str] = []
        self._due: list[tuple[Attacker, list[bytes]]] = []
        """Answers for the next round."""
        self._draw = Random(0)
        self._lock = threading.Lock()
        router = hardware(sandbox.host, "ext0")
        self._rogue = Attacker(sandbox.rogue, "ext0", router, SEGMENT)
        self._container: Attacker | None = None

    def aim(self, known: Known | None) -> None:
        """Forge packets with this knowledge from now on; None: pause."""
        with self._lock:
            self._known = known
            self._due.clear()

    def enter(self, ns: Namespace, net: Net, address: IPv6Address) -> None:
        """Put the second attacker into this container."""
        self.leave()
        router = hardware(self._sandbox.host, net.bridge)
        with self._lock:
            self._container = Attacker(ns, "eth0", router, inside(net, address))

    def leave(self) -> None:
        """Remove the attacker from the container, so that its namespace can be removed."""
        with self._lock:
            self._due.clear()
            gone, self._container = self._container, None
            if gone is not None:
                self._look(gone)
                gone.close()

    def round(self) -> None:
        """Receive packets, answer them, and send new forged packets."""
        with self._lock:
            there = [a for a in (self._rogue, self._container) if a is not None]
            for attacker in there:
                self._look(attacker)
            for attacker, packets in self._due:
                self.answered += len(packets)
                attacker.send(packets)
            self._due.clear()
            if self._known is None:
                return
            for attacker in there:
                for _ in range(AT_ONCE):
                    self._forge(attacker, there, self._known)

    def through(self, server: str, received: Iterable[Arrival]) -> list[str]:
        """The datagrams of attackers that this server received."""
        return of_each_kind(
            f"arrived: {each.data.decode().strip()}, at {server} from {each.peer}"
            for each in received
            if each.data.startswith(TOKEN)
        )

    def back(self) -> list[str]:
        """The packets that came back to attackers since the last call."""
        with self._lock:
            came, self._came = self._came, []
        return of_each_kind(came)

    def close(self) -> None:
        self.leave()
        self._rogue.close()

    def _look(self, attacker: Attacker) -> None:
        self._came += attacker.came()

    def _forge(self, attacker: Attacker, there: list[Attacker], known: Known) -> None:
        machines = {SEGMENT.address: self._rogue}
        if attacker.place.container:
            machines |= {each.place.address: each for each in there}
        forged = drawn(self._draw, attacker.place, known, list(machines))
        attacker.send(forged.packets())
        self._count(forged)
        if forged.aim is Aim.BACK:
            machine = machines[forged.destination]
            self._due.append((machine, answers(forged, machine.place, known)))

    def _count(self, forged: Forged) -> None:
        self.forged.update((forged.attacker, forged.aim))


def of_each_kind(found: Iterable[str]) -> list[str]:
    """The first text of each kind, with the number of others. A kind ends at the second colon."""
    kinds: dict[str, list[str]] = {}
    for each in found:
        kinds.setdefault(":".join(each.split(":", 2)[:2]), []).append(each)
    return [first + f" (and {len(more)} more)" * bool(more) for first, *more in kinds.values()]
