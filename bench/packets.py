"""The cost of a packet: new connections with many mappings, open ones with many networks.

There is no engine and no daemon: the same functions make the rules, the restore tool loads them,
and a namespace behind a bridge is the container. One thread has both sockets, so the cost of a
packet is the time of the send call: veth and bridge pass the packet through all of netfilter before
the call returns, and no thread has to wake up.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network
from statistics import median

from bench.engine import scattered
from ipv6natd.model import Container, Endpoint, Network, Policy, PortBinding, Protocol, Snapshot
from ipv6natd.netfilter.render import format_ruleset
from ipv6natd.netfilter.rules import DOCKER_USER, Ruleset
from ipv6natd.policy.desired import desired
from ipv6natd.policy.ruleset import ruleset
from tests.harness import Namespace, Sandbox
from tests.harness.sandbox import HOST, Variant, namespace

BATCH = 400
"""New connections in one measurement. For packets, a tenth as many groups of 64."""
ROUNDS = 5
_BRIDGE = "br-fff000000000"
_SUBNET = IPv6Network("fd00:ffff::/64")
INSIDE, PORT_INSIDE = _SUBNET[2], 80
"""Address and port of the servers in the container."""
_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Median seconds of one new connection by the first, middle or last mapping of `mappings`."""

    variant: Variant
    protocol: str
    mappings: int
    at: str
    seconds: float


def connections(variant: Variant, sizes: tuple[int, ...]) -> list[Cost]:
    """The costs for the first, the middle and the last mapping of each size, TCP and UDP."""
    found: dict[tuple[str, int, str], list[float]] = {}
    with container(variant) as (sandbox, inside), _listening(inside) as (stream, datagrams):
        for _ in range(ROUNDS):
            for size in sizes:
                ports = scattered(size)
                load(sandbox, [mapped(ports)])
                for at, port in zip(
                    ("first", "middle", "last"),
                    (ports[0], ports[size // 2], ports[-1]),
                    strict=True,
                ):
                    for protocol, costs in (
                        ("tcp", tcp(sandbox.client, (str(HOST), port), stream)),
                        ("udp", _udp(sandbox.client, port, datagrams)),
                    ):
                        found.setdefault((protocol, size, at), []).append(median(costs))
                sandbox.host.run("conntrack", "-F", "-f", "ipv6", check=False)
    return [
        Cost(variant=variant, protocol=protocol, mappings=size, at=at, seconds=median(costs))
        for (protocol, size, at), costs in found.items()
    ]


def established(variant: Variant, counts: tuple[int, int]) -> dict[tuple[int, str], float]:
    """Median seconds of one packet of an open flow, by number of networks and direction."""
    found: dict[tuple[int, str], list[float]] = {}
    port = 7000
    with container(variant) as (sandbox, inside):
        load(sandbox, [mapped([port])])
        with ExitStack() as stack:
            asking = stack.enter_context(sandbox.client.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            answering = stack.enter_context(inside.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            answering.bind(("::", PORT_INSIDE + 1))
            asking.connect((str(HOST), port + 1))
            load(sandbox, [mapped([port, port + 1], inside=PORT_INSIDE + 1)])
            asking.send(b"")
            (
                _,
                peer,
            ) = answering.recvfrom(16)
            answering.connect(peer)
            for _ in range(ROUNDS * 2):
                for count in counts:
                    networks = [
                        mapped([port, port + 1], inside=PORT_INSIDE + 1),
                        *map(other, range(count - 1)),
                    ]
                    load(sandbox, networks)
                    for direction, sender in (("in", asking), ("out", answering)):
                        found.setdefault((count, direction), []).append(_sent(sender.send))
    return {key: median(costs) for key, costs in found.items()}


@contextmanager
def container(variant: Variant) -> Iterator[tuple[Sandbox, Namespace]]:
    """A host with one bridge and a namespace behind it."""
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(variant))
        inside = stack.enter_context(namespace(sandbox.name, "inside"))
        host = sandbox.host
        host.ip(f"link add {_BRIDGE} type bridge")
        host.ip(f"address add {_SUBNET[1]}/64 dev {_BRIDGE} nodad")
        host.ip(f"link set {_BRIDGE} up")
        host.ip(f"link add port0 type veth peer name eth0 netns {inside.path.name}")
        host.ip(f"link set port0 master {_BRIDGE} up")
        inside.sysctl("net.ipv6.conf.all.accept_dad", 0)
        for words in (
            "link set lo up",
            f"address add {INSIDE}/64 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via {_SUBNET[1]}",
        ):
            inside.ip(words)
        time.sleep(1)
        yield sandbox, inside


def mapped(
    ports: list[int],
    *,
    inside: int = PORT_INSIDE,
    keep: bool = False,
    protocols: tuple[Protocol, ...] = (Protocol.TCP, Protocol.UDP),
) -> tuple[Network, Container]:
    """The network of the namespace, and a container that publishes these host ports: all for one
    container port, or with `keep` each for the same port."""
    made = Network(
        id="f" * 64,
        name="bench",
        driver="bridge",
        bridge=_BRIDGE,
        enable_ipv6=True,
        subnets=(_SUBNET,),
    )
    bindings = tuple(
        PortBinding(
            protocol=protocol,
            container_port=port if keep else inside,
            host_address=IPv6Address("::"),
            host_port=port,
        )
        for port in ports
        for protocol in protocols
    )
    endpoint = Endpoint(network_id=made.id, address=INSIDE, has_gateway4=True, has_gateway6=True)
    return made, Container(id="c" * 64, name="web", endpoints=(endpoint,), bindings=bindings)


def other(number: int) -> tuple[Network, None]:
    """An additional network with a bridge name like Docker's; the bridge need not exist."""
    identity = f"{number * 0x9E3779B97F4A7C15 % (1 << 64):016x}"
    return Network(
        id=identity * 4,
        name=f"n{number}",
        driver="bridge",
        bridge=f"br-{identity[:12]}",
        enable_ipv6=True,
        subnets=(IPv6Network(f"fd01:{number:x}::/64"),),
    ), None


Facts = Sequence[tuple[Network, Container | None]]


def wanted(facts: Facts) -> Ruleset:
    """The rules for these networks and containers."""
    return ruleset(
        desired(
            Snapshot(
                networks=tuple(network for network, _ in facts),
                containers=tuple(each for _, each in facts if each is not None),
            ),
            Policy(),
        )
    )


def load(sandbox: Sandbox, facts: Facts) -> None:
    """Load the rules for these networks and containers, and no other rules."""
    text = format_ruleset(wanted(facts))
    text = text.replace("*filter\n", f"*filter\n:{DOCKER_USER} - [0:0]\n", 1)
    path = sandbox.dir / "rules"
    path.write_text(text)
    tool = f"ip6tables-{sandbox.variant}-restore"
    sandbox.host.run("sh", "-c", f"exec {tool} --wait <{path}")


@contextmanager
def _listening(inside: Namespace) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The TCP and the UDP server socket of the container."""
    with (
        inside.socket(socket.AF_INET6, socket.SOCK_STREAM) as stream,
        inside.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagrams,
    ):
        stream.bind(("::", PORT_INSIDE))
        stream.listen(16)
        stream.settimeout(1)
        datagrams.bind(("::", PORT_INSIDE))
        datagrams.settimeout(1)
        yield stream, datagrams


def tcp(client: Namespace, address: tuple[str, int], server: socket.socket) -> list[float]:
    """Seconds of each new connection until the server's first byte."""

    def ask() -> list[float]:
        costs = []
        for _ in range(BATCH):
            with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                began = time.perf_counter()
                sock.connect(address)
                with server.accept()[0] as accepted:
                    accepted.send(b".")
                    sock.recv(1)
                    costs.append(time.perf_counter() - began)
        return costs

    return client.within(ask)


def _udp(client: Namespace, port: int, server: socket.socket) -> list[float]:
    """Seconds of each first datagram from a new socket until its answer."""

    def ask() -> list[float]:
        costs = []
        for _ in range(BATCH):
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                sock.settimeout(1)
                sock.connect((str(HOST), port))
                began = time.perf_counter()
                sock.send(b".")
                server.sendto(b".", server.recvfrom(16)[1])
                sock.recv(1)
                costs.append(time.perf_counter() - began)
        return costs

    return client.within(ask)


def _sent(send: Callable[[bytes], int]) -> float:
    """Median seconds of one packet. The receiver drops packets when its buffer is full."""
    costs = []
    for _ in range(BATCH // 10):
        began = time.perf_counter()
        for _ in range(64):
            send(b"")
        costs.append((time.perf_counter() - began) / 64)
    return median(costs)
