"""The tracer and the kernel side by side: the same rules, the same packets, the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, IPv6Network

import pytest

from tests.harness import Answer, Failure, Namespace, Regime, serve, tcp, udp, until, watch
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
"""Where the proxy listens, if there is one."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Who asks for what."""

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
"""Where each caller's packets come in, and from which address."""


def asks(caller: str, to: IPv6Address, port: int, protocol: str = "tcp") -> Probe:
    return Probe(caller=caller, to=to, port=port, protocol=protocol)


PROBES = {
    "p1": asks("client", HOST, 8080),
    "p1-u1": asks("client", HOST, 5353, "udp"),
    "p2": asks("client", HOST_TOO, 8080),
    "p2-udp": asks("client", HOST_TOO, 5353, "udp"),
    "p4-other-port": asks("client", HOST, 8443),
    "p4-unknown-port": asks("client", HOST, 9999),
    "p4-other-protocol": asks("client", HOST, 8443, "udp"),
    "o1": asks("x1", CLIENT, 9000),
    "o1-udp": asks("y1", CLIENT, 9000, "udp"),
    "h1": asks("host", HOST, 8080),
    "h1-udp": asks("host", HOST, 5353, "udp"),
    "h2-h3": asks("host", LOOPBACK, 8080),
    "h2-h3-udp": asks("host", LOOPBACK, 5353, "udp"),
    "h4-h6": asks("x2", HOST, 8080),
    "h12": asks("x2", HOST_TOO, 5353, "udp"),
    "h7-h8": asks("x1", HOST, 8080),
    "h7-h8-udp": asks("x1", HOST, 5353, "udp"),
    "h9": asks("y1", HOST, 8080),
    "h9-udp": asks("y1", HOST_TOO, 5353, "udp"),
    "h10": asks("y1", IPv6Address("fd00:b::1"), 8080),
    "h13": asks("x2", X1, 80),
    "h13-udp": asks("x2", X1, 53, "udp"),
    "h14": asks("client", HOST_LINK_LOCAL, 8080),
    "h14-udp": asks("client", HOST_LINK_LOCAL, 5353, "udp"),
    "i1": asks("rogue", X1, 81),
    "i1-udp": asks("rogue", X1, 54, "udp"),
    "i2": asks("rogue", X1, 80),
    "i5": asks("y1", X1, 80),
    "i5-unpublished": asks("y1", X1, 81),
    "i5-udp": asks("x1", Y1, 53, "udp"),
    "i7-in": asks("rogue", I1, 80),
    "i7-other-network": asks("y1", I1, 80),
    "i7-out": asks("i1", CLIENT, 9000),
    "i7-to-other-network": asks("i1", X1, 53, "udp"),
    "i8": asks("i2", I1, 80),
    "i9": asks("host", I1, 80),
}


def link(interface: str, subnet: str, *more: IPv6Address) -> Link:
    net = IPv6Network(subnet)
    return Link(interface=interface, subnets=(net,), addresses=(net[1], *more))


def the_host(regime: Regime, *more: Link) -> Host:
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
    """What the rules that stand in the kernel say, in the kernel's own words."""
    in_interface, usual = CALLERS[probe.caller]
    to = IPv6Address(str(probe.to).partition("%")[0])
    if probe.to.scope_id:
        usual = LINK_LOCAL_CLIENT
    elif probe.caller == "host":
        # The kernel speaks to its own addresses from the very address.
        usual = to if to in (HOST, LOOPBACK) else IPv6Address("fd00:c::1")
    packet = Packet(
        source=source or usual,
        destination=to,
        in_interface=in_interface,
        protocol=probe.protocol,
        port=probe.port,
    )
    return trace(regime.sandbox.rules(), packet, the_host(regime))


def caller(regime: Regime, name: str) -> Namespace:
    space = getattr(regime, name)
    return space if isinstance(space, Namespace) else space.ns


def sent(regime: Regime, probe: Probe, *, patience: float) -> Answer | Failure:
    ask = tcp if probe.protocol == "tcp" else udp
    return ask(caller(regime, probe.caller), probe.to, probe.port, timeout=patience)


def expected(regime: Regime, probe: Probe, verdict: Verdict, answer: Answer | Failure) -> bool:
    """Whether the answer is what this verdict means to the one who asked."""
    served = regime.proxy and (probe.protocol, probe.port) in PUBLISHED
    if verdict.fate is Fate.HOST and served:
        # The proxy is the one who calls the container then.
        return isinstance(answer, Answer) and answer.peer == GATEWAY
    return means(verdict, answer)


def means(verdict: Verdict, answer: Answer | Failure) -> bool:
    """The same where no proxy listens."""
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
def way_out(regime: Regime) -> Iterator[None]:
    """A default route for i1, beside the one that some engines make, and who to talk to there."""
    route = "default via fd00:c::1 metric 9"
    regime.i1.ns.ip(f"-6 route add {route}")
    try:
        with serve(regime.client, "client", tcp=[9000], udp=[9000]):
            yield
    finally:
        regime.i1.ns.ip(f"-6 route del {route}")


@pytest.mark.parametrize("scenario", PROBES)
def test_the_tracer_says_of_a_packet_what_the_kernel_does_with_it(
    regime: Regime, scenario: str
) -> None:
    probe = PROBES[scenario]
    verdict = traced(regime, probe)
    patience = SHORT if verdict.fate is Fate.DROPPED else 1.0
    with way_out(regime):
        answer = sent(regime, probe, patience=patience)
    assert expected(regime, probe, verdict, answer), (verdict, answer)


@pytest.mark.parametrize(
    ("to", "port", "protocol"),
    [(X1, 80, "tcp"), (X1, 54, "udp"), (HOST, 8080, "tcp"), (HOST, 5353, "udp")],
    ids=["i11-address", "i11-address-udp", "i11-published-port", "i11-published-port-udp"],
)
def test_i11_tracer_and_kernel_agree_that_a_forged_neighbour_does_not_arrive(
    regime: Regime, to: IPv6Address, port: int, protocol: str
) -> None:
    verdict = traced(regime, asks("rogue", to, port, protocol), source=FORGED)
    ask = tcp if protocol == "tcp" else udp
    with watch(regime.x1.ns) as packets:
        ask(regime.rogue, to, port, source=FORGED, forged=True, timeout=SHORT)
        arrived = [
            each for each in packets() if each.source == FORGED and each.protocol == protocol
        ]
    assert arrived == []
    assert verdict.fate is Fate.DROPPED


def test_f8_tracer_and_kernel_agree_on_a_drop_that_another_tool_appended(regime: Regime) -> None:
    tool = f"ip6tables-{regime.variant}"
    opened(regime.client, 8080)
    regime.host.run(tool, "-A", "FORWARD", "-j", "DROP")
    try:
        for scenario in ("p1", "p1-u1", "h9", "h13", "i2", "o1"):
            probe = PROBES[scenario]
            verdict = traced(regime, probe)
            assert verdict != DELIVERED
            with serve(regime.client, "client", tcp=[9000]):
                answer = sent(regime, probe, patience=1.0)
            assert expected(regime, probe, verdict, answer), (scenario, verdict, answer)
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


@pytest.mark.parametrize("scenario", OPTIONS)
def test_tracer_and_kernel_agree_on_what_an_option_opens(regime: Regime, scenario: str) -> None:
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
            # Engine 28 gives the host no address there, and the first one to a container.
            bridge = replace(bridge, addresses=())
        host = the_host(regime, bridge)
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
            # Of those two the host's port is the engine's business: its proxy may listen there.
            asked.append((regime.client, CLIENT, "ext0", HOST, port))
        until(lambda: f"-i {network.bridge} " in regime.sandbox.rules(), True)
        for space, source, at, to, number in asked:
            packet = Packet(source=source, destination=to, in_interface=at, port=number)

            def agree(space: Namespace = space, packet: Packet = packet) -> tuple[bool, object]:
                verdict = trace(regime.sandbox.rules(), packet, host)
                answer = tcp(space, packet.destination, packet.port, timeout=SHORT)
                return means(verdict, answer), (packet, verdict, answer)

            # The rules of a container that was made just now may come between the two.
            agreed, said = until(agree, lambda each: each[0])
            assert agreed, said
