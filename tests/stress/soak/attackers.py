"""Two attackers that never rest: a rogue on the host's segment, and a container.

They send what forgery.py draws, past their own stack, and watch their links: a packet
of theirs that comes back has opened a way. To its sender they answer, as an attacker would.
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
"""Packets that each attacker forges in a round."""
ECHO_REQUEST = 128
ODD = {"44", "47", "60", "253"}
"""Fragments, GRE, destination options and an unknown protocol: only attackers send these here."""
SEQUENCE = b"\0\0\0\1"
"""That of the segments that forge makes."""
SO_RCVBUFFORCE = 33
UNREAD = 1 << 22
"""Bytes of packets that wait between two rounds: a volley's answers are hundreds."""

SEGMENT = Place(
    name="rogue",
    address=ROGUE,
    link=IPv6Network("2001:db8:1::/64"),
    router=IPv6Address(int(HOST_LINK_LOCAL)),
    container=False,
)


INSIDE = "a container"


def inside(net: Net, address: IPv6Address) -> Place:
    """The place of an attacker in a container; the engine gives each bridge this address."""
    router = IPv6Address("fe80::1")
    return Place(name=INSIDE, address=address, link=net.subnet, router=router, container=True)


class Attacker:
    """One attacker: what it sends and sees at its link."""

    def __init__(self, ns: Namespace, link: str, router: bytes, place: Place) -> None:
        self.place = place
        self._link, self._router = link, router
        self._raw = ns.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self._seen = ns.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IPV6))
        self._seen.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, UNREAD)
        self._seen.setblocking(False)

    def send(self, packets: Iterable[bytes]) -> None:
        """To the host, and to a group as the link layer has it. A link may be gone: that is no
        matter of the attacker's."""
        for packet in packets:
            to = self._router if packet[24] != 0xFF else b"\x33\x33" + packet[36:40]
            with contextlib.suppress(OSError):
                self._raw.sendto(packet, (self._link, ETH_P_IPV6, 0, 0, to))

    def came(self) -> list[str]:
        """What came to this link since the last call and only an attacker's packet can be."""
        found = []
        with contextlib.suppress(OSError):  # nothing more, or a link that has just gone
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
    """Whether nobody but an attacker sends such a packet; ports say nothing, which the kernel
    changes where two flows would look the same.

    One to a group never left its link: a bridge whose ports are in hairpin mode gives it back.
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
    """All of them; `forged` and `answered` count what they have sent."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.forged: Counter[str] = Counter()
        """By attacker, and by aim."""
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
        """From now on forge by what is known; None: rest."""
        with self._lock:
            self._known = known
            self._due.clear()

    def enter(self, ns: Namespace, net: Net, address: IPv6Address) -> None:
        """One of them is in this container from now on."""
        self.leave()
        router = hardware(self._sandbox.host, net.bridge)
        with self._lock:
            self._container = Attacker(ns, "eth0", router, inside(net, address))

    def leave(self) -> None:
        """Nobody is in a container any more, which keeps its namespace from going."""
        with self._lock:
            self._due.clear()
            gone, self._container = self._container, None
            if gone is not None:
                self._look(gone)
                gone.close()

    def round(self) -> None:
        """Look what came, answer, and forge some more."""
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
        """Which datagrams of attackers this server received."""
        return of_each_kind(
            f"arrived: {each.data.decode().strip()}, at {server} from {each.peer}"
            for each in received
            if each.data.startswith(TOKEN)
        )

    def back(self) -> list[str]:
        """Which packets came to attackers since the last call."""
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
    """The first of each, and how many more; what varies stands behind the second colon."""
    kinds: dict[str, list[str]] = {}
    for each in found:
        kinds.setdefault(":".join(each.split(":", 2)[:2]), []).append(each)
    return [first + f" (and {len(more)} more)" * bool(more) for first, *more in kinds.values()]
