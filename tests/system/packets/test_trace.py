"""The tracer and the kernel have the same result for the same rules and packets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, IPv6Network

import pytest

from tests.harness import Answer, Failure, Namespace, Regime, serve, tcp, udp, until, watch
from tests.harness.probe import PATIENCE
from tests.harness.sandbox import CLIENT, HOST, HOST_LINK_LOCAL, HOST_TOO, ROGUE
from tests.harness.trace import DELIVERED, Fate, Host, Link, Packet, Verdict, trace
from tests.system.packets.asking import SHORT, opened

pytestmark = [pytest.mark.ours, pytest.mark.depends_on("variant", "proxy")]

X1, X2 = IPv6Address("fd00:a::2"), IPv6Address("fd00:a::3")
Y1 = IPv6Address("fd00:b::2")
I1, I2 = IPv6Address("fd00:c::2"), IPv6Address("fd00:c::3")
LOOPBACK = IPv6Address("::1")
LINK_LOCAL_CLIENT = IPv6Address("fe80::ff:fe00:2")
GATEWAY = IPv6Address("fd00:a::1")
FORGED = IPv6Address("fd00:a::9")
PUBLISHED = {("tcp", 8080), ("tcp", 8443), ("udp", 5353)}
"""The ports on which the userland proxy listens, if it is enabled."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A request: its sender, destination, port and protocol."""

    caller: str
    to: IPv6Address
    port: int
    protocol: str = "tcp"


CALLERS = {
    "client": ("ext0", CLIENT),
    "rogue": ("ext0", ROGUE),
    "x1": ("brX", X1),
    "x2": ("brX", X2),
    "y1": ("brY", Y1),
    "i1": ("brI", I1),
    "i2": ("brI", I2),
    "host": ("", HOST),
}
"""Sender -> incoming interface and source address of its packets."""


def probe_of(caller: str, to: IPv6Address, port: int, protocol: str = "tcp") -> Probe:
    return Probe(caller=caller, to=to, port=port, protocol=protocol)


PROBES = {
    "p1": probe_of("client", HOST, 8080),
    "p1-u1": probe_of("client", HOST, 5353, "udp"),
    "p2": probe_of("client", HOST_TOO, 8080),
    "p2-udp": probe_of("client", HOST_TOO, 5353, "udp"),
    "p4-other-port": probe_of("client", HOST, 8443),
    "p4-unknown-port": probe_of("client", HOST, 9999),
    "p4-other-protocol": probe_of("client", HOST, 8443, "udp"),
    "o1": probe_of("x1", CLIENT, 9000),
    "o1-udp": probe_of("y1", CLIENT, 9000, "udp"),
    "h1": probe_of("host", HOST, 8080),
    "h1-udp": probe_of("host", HOST, 5353, "udp"),
    "h2-h3": probe_of("host", LOOPBACK, 8080),
    "h2-h3-udp": probe_of("host", LOOPBACK, 5353, "udp"),
    "h4-h6": probe_of("x2", HOST, 8080),
    "h12": probe_of("x2", HOST_TOO, 5353, "udp"),
    "h7-h8": probe_of("x1", HOST, 8080),
    "h7-h8-udp": probe_of("x1", HOST, 5353, "udp"),
    "h9": probe_of("y1", HOST, 8080),
    "h9-udp": probe_of("y1", HOST_TOO, 5353, "udp"),
    "h10": probe_of("y1", IPv6Address("fd00:b::1"), 8080),
    "h13": probe_of("x2", X1, 80),
    "h13-udp": probe_of("x2", X1, 53, "udp"),
    "h14": probe_of("client", HOST_LINK_LOCAL, 8080),
    "h14-udp": probe_of("client", HOST_LINK_LOCAL, 5353, "udp"),
    "i1": probe_of("rogue", X1, 81),
    "i1-udp": probe_of("rogue", X1, 54, "udp"),
    "i2": probe_of("rogue", X1, 80),
    "i5": probe_of("y1", X1, 80),
    "i5-unpublished": probe_of("y1", X1, 81),
    "i5-udp": probe_of("x1", Y1, 53, "udp"),
    "i7-in": probe_of("rogue", I1, 80),
    "i7-other-network": probe_of("y1", I1, 80),
    "i7-out": probe_of("i1", CLIENT, 9000),
    "i7-to-other-network": probe_of("i1", X1, 53, "udp"),
    "i8": probe_of("i2", I1, 80),
    "i9": probe_of("host", I1, 80),
}


def link(interface: str, subnet: str, *more: IPv6Address) -> Link:
    net = IPv6Network(subnet)
    return Link(interface=interface, subnets=(net,), addresses=(net[1], *more))


def traced_host(regime: Regime, *more: Link) -> Host:
    return Host(
        links=(
            link("ext0", "2001:db8:1::/64", HOST_TOO, IPv6Address("fe80::ff:fe00:1")),
            link(regime.x.bridge, "fd00:a::/64"),
            link(regime.y.bridge, "fd00:b::/64"),
            link(regime.inner.bridge, "fd00:c::/64"),
            *more,
        )
    )


def traced(regime: Regime, probe: Probe, source: IPv6Address | None = None) -> Verdict:
    """The verdict of the tracer for the rules of the kernel."""
    in_interface, usual = CALLERS[probe.caller]
    to = IPv6Address(str(probe.to).partition("%")[0])
    if probe.to.scope_id:
        usual = LINK_LOCAL_CLIENT
    elif probe.caller == "host":
        # The kernel uses the destination as the source for its own addresses.
        usual = to if to in (HOST, LOOPBACK) else IPv6Address("fd00:c::1")
    packet = Packet(
        source=source or usual,
        destination=to,
        in_interface=in_interface,
        protocol=probe.protocol,
        port=probe.port,
    )
    return trace(regime.sandbox.rules(), packet, traced_host(regime))


def caller(regime: Regime, name: str) -> Namespace:
    space = getattr(regime, name)
    return space if isinstance(space, Namespace) else space.ns


def send_probe(regime: Regime, probe: Probe, *, patience: float) -> Answer | Failure:
    ask = tcp if probe.protocol == "tcp" else udp
    return ask(caller(regime, probe.caller), probe.to, probe.port, timeout=patience)


def matches_answer(
    regime: Regime, probe: Probe, verdict: Verdict, answer: Answer | Failure
) -> bool:
    """True if the answer matches the verdict, with the proxy taken into account."""
    served = regime.proxy and (probe.protocol, probe.port) in PUBLISHED
    if verdict.fate is Fate.HOST and served:
        # The proxy connects to the container.
        return isinstance(answer, Answer) and answer.peer == GATEWAY
    return matches_verdict(verdict, answer)


def matches_verdict(verdict: Verdict, answer: Answer | Failure) -> bool:
    """True if the answer matches the verdict for a port without proxy."""
    match verdict.fate:
        case Fate.DROPPED:
            return answer in (Failure.TIMEOUT, Failure.UNREACHABLE)
        case Fate.REFUSED | Fate.HOST:
            return answer is Failure.REFUSED
    return isinstance(answer, Answer) and (answer.local, answer.port, answer.peer) == (
        verdict.address,
        verdict.port,
        verdict.source,
    )


@contextmanager
def outgoing_route(regime: Regime) -> Iterator[None]:
    """A default route for i1 and a server on the client. Some engines add a route of their own."""
    route = "default via fd00:c::1 metric 9"
    regime.i1.ns.ip(f"-6 route add {route}")
    try:
        with serve(regime.client, "client", tcp=[9000], udp=[9000]):
            yield
    finally:
        regime.i1.ns.ip(f"-6 route del {route}")


@pytest.mark.depends_on
@pytest.mark.parametrize("scenario", PROBES)
def test_tracer_verdict_matches_the_kernel(regime: Regime, scenario: str) -> None:
    probe = PROBES[scenario]
    verdict = traced(regime, probe)
    patience = SHORT if verdict.fate is Fate.DROPPED else PATIENCE
    with outgoing_route(regime):
        answer = send_probe(regime, probe, patience=patience)
    assert matches_answer(regime, probe, verdict, answer), (verdict, answer)


@pytest.mark.parametrize(
    ("to", "port", "protocol"),
    [(X1, 80, "tcp"), (X1, 54, "udp"), (HOST, 8080, "tcp"), (HOST, 5353, "udp")],
    ids=["i11-address", "i11-address-udp", "i11-published-port", "i11-published-port-udp"],
)
def test_i11_tracer_and_kernel_drop_a_forged_neighbour(
    regime: Regime, to: IPv6Address, port: int, protocol: str
) -> None:
    verdict = traced(regime, probe_of("rogue", to, port, protocol), source=FORGED)
    ask = tcp if protocol == "tcp" else udp
    with watch(regime.x1.ns) as packets:
        ask(regime.rogue, to, port, source=FORGED, forged=True, timeout=SHORT)
        arrived = [
            each for each in packets() if each.source == FORGED and each.protocol == protocol
        ]
    assert arrived == []
    assert verdict.fate is Fate.DROPPED


def test_f8_tracer_matches_the_kernel_with_an_appended_drop(regime: Regime) -> None:
    tool = f"ip6tables-{regime.variant}"
    opened(regime.client, 8080)
    regime.host.run(tool, "-A", "FORWARD", "-j", "DROP")
    try:
        for scenario in ("p1", "p1-u1", "h9", "h13", "i2", "o1"):
            probe = PROBES[scenario]
            verdict = traced(regime, probe)
            assert verdict != DELIVERED
            with serve(regime.client, "client", tcp=[9000]):
                answer = send_probe(regime, probe, patience=1.0)
            assert matches_answer(regime, probe, verdict, answer), (scenario, verdict, answer)
    finally:
        regime.host.run(tool, "-D", "FORWARD", "-j", "DROP")


# Networks with options, each with a container that serves 80 and 81 and publishes 80, and with a
# neighbour of it.

BRIDGE = "com.docker.network.bridge"
MODE = f"{BRIDGE}.gateway_mode_ipv6"
OPTIONS: dict[str, dict[str, str]] = {
    "v1": {MODE: "routed"},
    "v2": {MODE: "nat-unprotected"},
    "v3": {MODE: "isolated"},
    "v4": {f"{BRIDGE}.trusted_host_interfaces": "ext0"},
    "o2": {f"{BRIDGE}.enable_ip_masquerade": "false"},
    "o3": {"com.docker.network.host_ipv6": str(HOST_TOO)},
    "i6": {f"{BRIDGE}.enable_icc": "false"},
}


@pytest.mark.depends_on
@pytest.mark.parametrize("scenario", OPTIONS)
def test_tracer_matches_the_kernel_for_each_network_option(regime: Regime, scenario: str) -> None:
    port = regime.port()
    isolated = ("--internal",) * (scenario == "v3")
    with (
        regime.network(*isolated, options=OPTIONS[scenario]) as network,
        regime.container(network=network, publish=[f"{port}:80"], tcp=(80, 81)) as made,
        regime.container(network=network) as neighbour,
        serve(regime.rogue, "rogue", tcp=[9000]),
    ):
        assert made.address is not None
        assert neighbour.address is not None
        subnet = IPv6Network((made.address, 64), strict=False)
        bridge = link(network.bridge, str(subnet))
        if isolated:
            # Engine 28 gives the host no address there, and gives a container the first one.
            bridge = replace(bridge, addresses=())
        host = traced_host(regime, bridge)
        asked = [
            (regime.rogue, ROGUE, "ext0", made.address, 80),
            (regime.rogue, ROGUE, "ext0", made.address, 81),
            (regime.y1.ns, Y1, "brY", made.address, 80),
            (regime.y1.ns, Y1, "brY", made.address, 81),
            (neighbour.ns, neighbour.address, network.bridge, made.address, 80),
            (made.ns, made.address, network.bridge, ROGUE, 9000),
            (made.ns, made.address, network.bridge, X1, 80),
        ]
        if scenario not in ("v1", "v3"):
            # In v1 and v3 the engine's proxy may listen on the host's port.
            asked.append((regime.client, CLIENT, "ext0", HOST, port))
        until(lambda: f"-i {network.bridge} " in regime.sandbox.rules(), True)
        for space, source, at, to, number in asked:
            packet = Packet(source=source, destination=to, in_interface=at, port=number)

            def agree(space: Namespace = space, packet: Packet = packet) -> tuple[bool, object]:
                verdict = trace(regime.sandbox.rules(), packet, host)
                answer = tcp(space, packet.destination, packet.port, timeout=SHORT)
                return matches_verdict(verdict, answer), (packet, verdict, answer)

            # The rules for the new container may change between the two results.
            agreed, said = until(agree, lambda each: each[0])
            assert agreed, said
