"""Which container owns which port: scenarios as facts, with the expected mappings and reasons."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from itertools import permutations

import pytest

from ipv6natd.engine import parse as docker_facts
from ipv6natd.model import (
    LINK_LOCAL,
    Container,
    Desired,
    Endpoint,
    Engine,
    GatewayMode,
    Network,
    Outcome,
    Policy,
    PortBinding,
    Protocol,
    RejectedPorts,
    Route,
    Snapshot,
)
from ipv6natd.policy.desired import desired, during_change
from ipv6natd.policy.networks import attachments, gateway_attachment
from tests.harness.build import (
    binding,
    container,
    endpoint,
    identity,
    line,
    lines,
    network,
    recorded,
    snapshot,
)

X = network(name="x", subnet="fd00:a::/64", bridge="brX")
Y = network(name="y", subnet="fd00:b::/64", bridge="brY")
INTERNAL = network(name="in", subnet="fd00:c::/64", internal=True)
GWBRIDGE = network(name="docker_gwbridge", subnet="fd00:e::/64")
GUA = network(name="gua", subnet="2001:db8:5::/64")
MACVLAN = network(name="lan", subnet="fd00:1a::/64", driver="macvlan", bridge="")
NO_IPV6 = network(name="four", subnet="", enable_ipv6=False)
D = network(
    name="bridge",
    subnet="fd00:d::/64",
    bridge="docker0",
    host_binding_ipv4=IPv4Address("0.0.0.0"),
)
TEN = IPv6Address("2001:db8:1::10")
DEFAULT = Policy()
ANY_MEANS_IPV6 = Policy(ipv4_any_means_ipv6=True)
WIDER = Policy(nat_prefixes=(IPv6Network("fc00::/7"), IPv6Network("2001:db8::/32")))
TO_WEB = "tcp [::]:8080 -> web [fd00:a::2]:80"


def web(*ports: str, on: Network = X) -> Container:
    return container(name="web", on=[on], ports=ports)


def ipv4_only(on: Network) -> Endpoint:
    return replace(endpoint(on=X, gateways="4"), network_id=on.id, address=None)


def ip6_off(on: Network) -> Container:
    return container(name="web", on=[ipv4_only(on)], ports=["8080:80"])


def unpublished(*on: Network) -> Container:
    return container(on=on, unpublished=(binding(),))


def chosen(address: str, host_port: int) -> PortBinding:
    """A binding whose address the engine chose."""
    return replace(binding(address=address, host_port=host_port), explicit_address=False)


@dataclass(frozen=True, kw_only=True)
class Case:
    facts: Snapshot
    mappings: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    """A part of every reason, in the order of the result."""
    policy: Policy = DEFAULT


CASES = {
    "P1: a published port": Case(facts=snapshot(X, web("8080:80")), mappings=(TO_WEB,)),
    "P4: two ports of one container": Case(
        facts=snapshot(X, web("8080:80", "8443:443")),
        mappings=(TO_WEB, "tcp [::]:8443 -> web [fd00:a::2]:443"),
    ),
    "P5: two containers": Case(
        facts=snapshot(
            X,
            web("8080:80"),
            container(name="b", on=[endpoint(on=X, address="fd00:a::3")], ports=["8081:80"]),
        ),
        mappings=(TO_WEB, "tcp [::]:8081 -> b [fd00:a::3]:80"),
    ),
    "P7: a static address": Case(
        facts=snapshot(
            X,
            container(name="web", on=[endpoint(on=X, address="fd00:a::50")], ports=["8080:80"]),
        ),
        mappings=("tcp [::]:8080 -> web [fd00:a::50]:80",),
    ),
    "P9: a stopped container is not among the facts": Case(facts=snapshot(X)),
    "P11: IPv6 switched off inside": Case(
        facts=snapshot(X, ip6_off(X)),
        skipped=("has no IPv6 address on network 'x'; check if a sysctl",),
    ),
    "P11: and the engine lists no IPv6 for it": Case(
        facts=snapshot(X, replace(ip6_off(X), bindings=(chosen("0.0.0.0", 8080),))),
        skipped=("has no IPv6 address on network 'x'; check if a sysctl",),
    ),
    "P11: and only IPv4 was asked for": Case(
        facts=snapshot(X, replace(ip6_off(X), bindings=(binding(address="0.0.0.0"),))),
    ),
    "P11: and nobody asked on a network that is not ours": Case(facts=snapshot(X, ip6_off(GUA))),
    "P12: a network without IPv4": Case(
        facts=snapshot(X, container(on=[endpoint(on=X, gateways="6")], ports=["[::]:8080:80"])),
        mappings=(TO_WEB,),
    ),
    "P13: the default bridge": Case(
        facts=snapshot(D, web("8080:80", on=D)),
        mappings=("tcp [::]:8080 -> web [fd00:d::2]:80",),
    ),
    **{
        f"P14: {driver}": Case(
            facts=snapshot(replace(X, driver=driver), web("8080:80", on=replace(X, driver=driver)))
        )
        for driver in ("macvlan", "ipvlan", "overlay")
    },
    "P15: a network with public addresses": Case(
        facts=snapshot(GUA, web("8080:80", on=GUA)),
        skipped=("its subnet 2001:db8:5::/64 is not in nat_prefixes (fc00::/7)",),
    ),
    "P15: unless its prefix is configured": Case(
        facts=snapshot(GUA, web("8080:80", on=GUA)),
        mappings=("tcp [::]:8080 -> web [2001:db8:5::2]:80",),
        policy=WIDER,
    ),
    "P15: one subnet outside is enough": Case(
        facts=snapshot(network(subnet="fd00:a::/64 2001:db8:5::/64")),
        skipped=("its subnet 2001:db8:5::/64",),
    ),
    "B1: bound to 127.0.0.1": Case(facts=snapshot(X, web("127.0.0.1:8080:80"))),
    "B1: also where 0.0.0.0 counts": Case(
        facts=snapshot(X, web("127.0.0.1:8080:80")), policy=ANY_MEANS_IPV6
    ),
    "B2: bound to an IPv4 address": Case(facts=snapshot(X, web("192.0.2.10:8080:80"))),
    "B3: bound to 0.0.0.0": Case(facts=snapshot(X, web("0.0.0.0:8080:80"))),
    "B3: with ipv4_any_means_ipv6": Case(
        facts=snapshot(X, web("0.0.0.0:8080:80")), mappings=(TO_WEB,), policy=ANY_MEANS_IPV6
    ),
    "B3: ipv4_any_means_ipv6 and a binding to both is one claim": Case(
        facts=snapshot(X, web("8080:80")), mappings=(TO_WEB,), policy=ANY_MEANS_IPV6
    ),
    "B3: ipv4_any_means_ipv6 beside a binding of the port to one IPv6 address": Case(
        facts=snapshot(X, web("0.0.0.0:8080:80", "[2001:db8:1::10]:8080:80")),
        mappings=("tcp [2001:db8:1::10]:8080 -> web [fd00:a::2]:80", TO_WEB),
        policy=ANY_MEANS_IPV6,
    ),
    "B4: bound to [::]": Case(facts=snapshot(X, web("[::]:8080:80")), mappings=(TO_WEB,)),
    "B5: bound to one IPv6 address": Case(
        facts=snapshot(X, web("[2001:db8:1::10]:8080:80")),
        mappings=("tcp [2001:db8:1::10]:8080 -> web [fd00:a::2]:80",),
    ),
    "B6: bound to [::1], where a proxy serves it": Case(facts=snapshot(X, web("[::1]:8080:80"))),
    "B6: bound to [::1], where nobody does": Case(
        facts=snapshot(X, web("[::1]:8080:80"), userland_proxy=False),
        skipped=("[::1] cannot be forwarded to a container and the engine runs without",),
    ),
    "B7: a network bound to 127.0.0.1 by its label": Case(
        facts=snapshot(
            replace(X, host_binding_ipv4=IPv4Address("127.0.0.1")), web("127.0.0.1:8080:80")
        ),
    ),
    "B8: an engine bound to 127.0.0.1": Case(
        facts=snapshot(D, web("127.0.0.1:8080:80", on=D)),
    ),
    "B10: host_binding_ipv6": Case(
        facts=snapshot(replace(X, host_binding_ipv6=TEN), web("8080:80")),
        mappings=("tcp [2001:db8:1::10]:8080 -> web [fd00:a::2]:80",),
    ),
    "B10: and ipv4_any_means_ipv6": Case(
        facts=snapshot(replace(X, host_binding_ipv6=TEN), web("0.0.0.0:8080:80")),
        mappings=("tcp [2001:db8:1::10]:8080 -> web [fd00:a::2]:80",),
        policy=ANY_MEANS_IPV6,
    ),
    "B10: leaves a binding that names its address": Case(
        facts=snapshot(replace(X, host_binding_ipv6=TEN), web("[2001:db8:1::1]:8080:80")),
        mappings=("tcp [2001:db8:1::1]:8080 -> web [fd00:a::2]:80",),
    ),
    "B10: host_binding_ipv6=::1": Case(
        facts=snapshot(
            replace(X, host_binding_ipv6=IPv6Address("::1")), web("8080:80"), userland_proxy=False
        ),
        skipped=("[::1] cannot be forwarded",),
    ),
    "B13: one port on two addresses, two containers": Case(
        facts=snapshot(
            X,
            Y,
            web("[2001:db8:1::10]:8080:80"),
            container(name="b", on=[Y], ports=["[2001:db8:1::1]:8080:80"]),
        ),
        mappings=(
            "tcp [2001:db8:1::1]:8080 -> b [fd00:b::2]:80",
            "tcp [2001:db8:1::10]:8080 -> web [fd00:a::2]:80",
        ),
    ),
    "B14: an address precedes the wildcard": Case(
        facts=snapshot(
            X,
            Y,
            web("8080:80"),
            container(name="b", on=[Y], ports=["[2001:db8:1::1]:8080:80"]),
        ),
        mappings=("tcp [2001:db8:1::1]:8080 -> b [fd00:b::2]:80", TO_WEB),
    ),
    "B15: an address that is none": Case(
        facts=snapshot(X, replace(web("8080:80"), problems=(("81/tcp", "is not an IP address"),))),
        mappings=(TO_WEB,),
        skipped=("is not an IP address",),
    ),
    "R1: the engine's number": Case(
        facts=snapshot(X, web("32768:80")), mappings=("tcp [::]:32768 -> web [fd00:a::2]:80",)
    ),
    "R2: two ports of -P": Case(
        facts=snapshot(X, web("32768:80", "32769:443")),
        mappings=(
            "tcp [::]:32768 -> web [fd00:a::2]:80",
            "tcp [::]:32769 -> web [fd00:a::2]:443",
        ),
    ),
    "R3: the one chosen from a range": Case(
        facts=snapshot(X, web("8003:80")), mappings=("tcp [::]:8003 -> web [fd00:a::2]:80",)
    ),
    "R4: a run is one mapping": Case(
        facts=snapshot(X, web("7000-7100:7000-7100")),
        mappings=("tcp [::]:7000-7100 -> web [fd00:a::2]:7000-7100",),
    ),
    "R5: a shifted run": Case(
        facts=snapshot(X, web("6000-6009:7000-7009/udp")),
        mappings=("udp [::]:6000-6009 -> web [fd00:a::2]:7000-7009",),
    ),
    "R7: two numbers of one port": Case(
        facts=snapshot(X, web("0.0.0.0:32768:80", "[::]:32769:80")),
        mappings=("tcp [::]:32769 -> web [fd00:a::2]:80",),
    ),
    "U6: tcp and udp of one number": Case(
        facts=snapshot(X, web("53:53", "53:5353/udp")),
        mappings=(
            "tcp [::]:53 -> web [fd00:a::2]:53",
            "udp [::]:53 -> web [fd00:a::2]:5353",
        ),
    ),
    "S1: sctp": Case(
        facts=snapshot(X, web("36412:36412/sctp")),
        mappings=("sctp [::]:36412 -> web [fd00:a::2]:36412",),
    ),
    "S2: sctp where the kernel does not track it": Case(
        facts=replace(snapshot(X, web("36412:36412/sctp", "8080:80")), tracks_sctp=False),
        mappings=(TO_WEB,),
        skipped=("this kernel cannot forward SCTP",),
    ),
    "V1: a routed network has no mapping": Case(
        facts=snapshot(replace(X, gateway_mode=GatewayMode.ROUTED), web("8080:80")),
    ),
    "V8: a bad label does not hide the network": Case(
        facts=snapshot(replace(X, warnings=("enable_icc='yes' …",)), web("8080:80")),
        mappings=(TO_WEB,),
    ),
    "V8: a bridge name that cannot be used in a rule": Case(
        facts=snapshot(replace(X, bridge="", problem="its bridge name 'a b'"), web("8080:80")),
        skipped=("its bridge name 'a b'",),
    ),
    "H14: bound to a link-local address": Case(
        facts=snapshot(X, web("[fe80::1]:8080:80")),
        skipped=("fe80::1 is link-local",),
    ),
    "H16: network_mode host or container": Case(
        facts=snapshot(
            X,
            container(name="sh"),
            container(name="ho", on=[endpoint(on=NO_IPV6, address="fd00::1", gateways="")]),
        )
    ),
    "I10: an internal network publishes nothing": Case(
        facts=snapshot(INTERNAL, web("8080:80", on=INTERNAL)),
    ),
    "M5: one internal and one other network": Case(
        facts=snapshot(X, INTERNAL, container(on=[INTERNAL, X], ports=["8080:80"])),
        mappings=(TO_WEB,),
    ),
    "M6: the network without IPv6 sorts first": Case(
        facts=snapshot(
            X,
            NO_IPV6,
            container(
                on=[replace(endpoint(on=X), network_id=NO_IPV6.id, has_gateway6=False), X],
                ports=["8080:80"],
            ),
        ),
        mappings=(TO_WEB,),
    ),
    "M1: the way out is a network that is not ours": Case(
        facts=snapshot(X, GUA, container(on=[X, GUA], ports=["8080:80"])),
        skipped=("its subnet 2001:db8:5::/64",),
    ),
    "a network with IPv6 and no subnet that could be read": Case(
        facts=snapshot(network(subnet="")),
        skipped=("no valid IPv6 subnet",),
    ),
    "a network without IPv6 is no news": Case(facts=snapshot(NO_IPV6)),
    "a container that waits for its host port": Case(
        facts=snapshot(X, container(on=[X], ports=[binding(host_port=0)]))
    ),
    "a network that nobody knows yet": Case(facts=snapshot(web("8080:80"))),
    "Q19: a port that the engine publishes nowhere": Case(
        facts=snapshot(X, MACVLAN, unpublished(MACVLAN)),
        skipped=("on no port of the host, because the container is on no bridge network",),
    ),
    "Q19: and the container has no network": Case(
        facts=snapshot(X, unpublished()), skipped=("the container is on no bridge network",)
    ),
    "Q19: and its network is internal": Case(
        facts=snapshot(INTERNAL, unpublished(INTERNAL)), skipped=("is internal; connect",)
    ),
    "Q19: and it is on both": Case(
        facts=snapshot(INTERNAL, MACVLAN, unpublished(INTERNAL, MACVLAN)),
        skipped=("is internal; connect",),
    ),
    "Q19: and nobody knows why": Case(facts=snapshot(X, unpublished(X)), skipped=("docker port",)),
    "Q25: a port on a network without IPv6": Case(
        facts=snapshot(NO_IPV6, container(on=[ipv4_only(NO_IPV6)], ports=["8080:80"])),
        skipped=("only Docker's userland proxy can forward the port, and hides the client's",),
    ),
    "Q25: and for IPv4 only": Case(
        facts=snapshot(
            NO_IPV6, container(on=[ipv4_only(NO_IPV6)], ports=[binding(address="0.0.0.0")])
        )
    ),
    "Q25: and for [::1] only": Case(
        facts=snapshot(NO_IPV6, container(on=[ipv4_only(NO_IPV6)], ports=[binding(address="::1")]))
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_scenario(name: str) -> None:
    """Q19, Q25, and others by the names of the cases."""
    case = CASES[name]
    want = desired(case.facts, case.policy)
    assert lines(want) == list(case.mappings)
    assert len(want.skipped) == len(case.skipped)
    for reason, skipped in zip(case.skipped, want.skipped, strict=True):
        assert reason in skipped.reason


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("::", "is no address of a host"),
        ("::1", "is the loopback address"),
        ("fe80::1", "is link-local"),
        ("ff02::1", "is a multicast address"),
        ("fd00:a::1", "is in the network's own subnet fd00:a::/64"),
    ],
)
def test_address_that_no_host_can_answer_to_is_no_source(
    source: str, reason: str, known: bool
) -> None:
    """Q17: also if the host has the address, or if a router could send it to this host."""
    address = IPv6Address(source)
    network = replace(X, source_address=address, gateway=IPv6Address("fd00:a::1"))
    facts = replace(
        snapshot(network, web("8080:80")),
        host_addresses=frozenset({address}) if known else frozenset(),
        routed_sources=frozenset() if known else frozenset({address}),
    )
    (decided,) = desired(facts, DEFAULT).networks
    (warning,) = decided.warnings
    assert decided.source_address is None
    assert f"host_ipv6={source} {reason}" in warning
    assert warning.endswith("with a global address of this host, or without the option")


@pytest.mark.parametrize("known", [True, False])
def test_address_inside_the_subnet_is_a_source_only_if_the_host_has_it(known: bool) -> None:
    """On a LAN that lies inside the subnet. A container could have another address."""
    address = IPv6Address("fd00:a::1:77")
    facts = replace(
        snapshot(replace(X, source_address=address), web("8080:80")),
        host_addresses=frozenset({address}) if known else frozenset(),
    )
    (decided,) = desired(facts, DEFAULT).networks
    assert decided.source_address == (address if known else None)


@pytest.mark.parametrize(
    ("bindings", "text"),
    [
        (
            (chosen("0.0.0.0", 32768), chosen("::", 32769)),
            "host port 32769 for IPv6 and 32768 for IPv4",
        ),
        ((chosen("0.0.0.0", 32768), chosen("::", 32768)), ""),
        ((chosen("0.0.0.0", 1), chosen("0.0.0.0", 2), chosen("::", 2), chosen("::", 1)), ""),
        ((binding(address="0.0.0.0", host_port=1), binding(host_port=2)), ""),
        ((chosen("0.0.0.0", 1), binding(host_port=2)), ""),
    ],
    ids=["apart", "together", "two of them", "as asked", "one as asked"],
)
@pytest.mark.parametrize("default", [None, TEN], ids=["", "host_binding_ipv6"])
def test_different_host_ports_for_ipv4_and_ipv6_give_a_warning(
    bindings: tuple[PortBinding, ...], text: str, default: IPv6Address | None
) -> None:
    """R7: the DNAT is for the host port of the IPv6 binding."""
    network = replace(X, host_binding_ipv6=default)
    want = desired(snapshot(network, replace(web(), bindings=bindings)), Policy())
    assert len(lines(want)) == len([b for b in bindings if isinstance(b.host_address, IPv6Address)])
    warnings = want.networks[0].warnings
    assert len(warnings) == bool(text)
    assert all(
        text in warning and "port 80/tcp of container 'web'" in warning for warning in warnings
    )


def test_a_mapping_carries_the_bridge_of_its_network() -> None:
    """V7."""
    (mapping,) = desired(snapshot(X, web("8080:80")), Policy()).mappings
    assert (mapping.bridge, mapping.network_name, mapping.network_id) == ("brX", "x", X.id)
    assert (mapping.container_id, mapping.container_name) == (identity("web"), "web")


def test_a_paused_container_keeps_its_ports() -> None:
    """P10: for the engine, a paused container is running, so the facts are the same."""
    raw = recorded("inspect-web.json")
    engine = Engine(version="20.10.24")
    before = docker_facts.container(raw, engine)
    raw["State"]["Paused"] = True
    assert docker_facts.container(raw, engine) == before


def test_desired_for_the_recorded_answers_of_engine_20_10() -> None:
    """P11, P13, P15, I10 and R2, as a real engine 20.10 words them."""
    engine = docker_facts.engine(recorded("version.json"), recorded("info.json"))
    facts = [docker_facts.network(answer) for answer in recorded("networks.json")]
    names = ("web", "in", "def", "noip6", "ho", "sh")
    found = [docker_facts.container(recorded(f"inspect-{name}.json"), engine) for name in names]
    known = [fact for fact in (*facts, *found) if fact is not None]
    want = desired(snapshot(*known), Policy())
    assert [network.name for network in want.networks] == ["bridge", "neti", "netx"]
    # The gateway network of web is gua, by its name, and gua is not managed.
    assert lines(want) == ["tcp [::]:32769 -> def [fd00:dead:beef::242:ac11:2]:90"]
    assert [(skip.network, skip.container_name, skip.port) for skip in want.skipped] == [
        ("gua", "", ""),
        ("neti", "in", "80/tcp"),
        ("", "noip6", "80/tcp"),
    ]
    assert "because 'neti' is internal" in want.skipped[1].reason


# The gateway of a container with several networks.

A_AND_Z = (network(name="a", subnet="fd00:1::/64"), network(name="z", subnet="fd00:2::/64"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(
            endpoint(on=A_AND_Z[1], priority=1), endpoint(on=A_AND_Z[0]), id="M2 priority"
        ),
        pytest.param(
            endpoint(on=A_AND_Z[0]),
            endpoint(on=A_AND_Z[1], priority=-1),
            id="M2 a priority below none",
        ),
        pytest.param(endpoint(on=X), endpoint(on=GWBRIDGE), id="not docker_gwbridge"),
        pytest.param(endpoint(on=X), endpoint(on=INTERNAL), id="M5 not internal"),
        pytest.param(
            endpoint(on=GWBRIDGE, priority=5),
            endpoint(on=X),
            id="priority before not docker_gwbridge",
        ),
        pytest.param(
            endpoint(on=INTERNAL),
            endpoint(on=GWBRIDGE),
            id="not docker_gwbridge before not internal",
        ),
        pytest.param(
            endpoint(on=A_AND_Z[1]),
            endpoint(on=A_AND_Z[0], gateways="6"),
            id="the larger number of gateways",
        ),
        pytest.param(
            endpoint(on=X, gateways="6"),
            endpoint(on=INTERNAL),
            id="not internal before the number of gateways",
        ),
        pytest.param(endpoint(on=A_AND_Z[0]), endpoint(on=A_AND_Z[1]), id="M1 name"),
        pytest.param(
            endpoint(on=A_AND_Z[1]),
            endpoint(on=A_AND_Z[0], gateways="4", priority=9),
            id="M6 without an IPv6 gateway it is none",
        ),
    ],
)
def test_gateway_attachment_follows_dockers_order(first: Endpoint, second: Endpoint) -> None:
    known = {network.id: network for network in (X, Y, INTERNAL, GWBRIDGE, *A_AND_Z)}
    for order in permutations((first, second)):
        found = gateway_attachment(attachments(container(on=order), known.values()))
        assert found is not None
        assert found.endpoint == first


def test_gateway_attachment_is_none_without_an_ipv6_gateway() -> None:
    assert (
        gateway_attachment(attachments(container(on=[endpoint(on=X, gateways="4")]), [X])) is None
    )
    assert gateway_attachment(attachments(container(), [X])) is None


def test_desired_is_the_same_for_facts_in_any_order() -> None:
    """M1: the result does not depend on the order in the engine's answers."""
    endpoints = [endpoint(on=network) for network in (X, Y, INTERNAL, GWBRIDGE)]
    containers = [
        container(
            name=name, on=endpoints, ports=[f"{port}:80", "9000:9000", "[2001:db8::1]:9000:1"]
        )
        for name, port in (("a", 8001), ("b", 8002), ("c", 8003))
    ]
    facts: list[Network | Container] = [X, Y, INTERNAL, GWBRIDGE, GUA, *containers]
    expected = desired(snapshot(*facts, userland_proxy=False), Policy())
    shuffle = random.Random(1).shuffle
    for _ in range(20):
        shuffle(facts)
        shuffle(endpoints)
        reordered = [
            replace(fact, endpoints=tuple(endpoints), bindings=fact.bindings[::-1])
            if isinstance(fact, Container)
            else fact
            for fact in facts
        ]
        assert desired(snapshot(*reordered, userland_proxy=False), Policy()) == expected


# Conflicts.


def rivals(*ports: str, names: tuple[str, str] = ("one", "two")) -> Desired:
    both = [container(name=name, on=[X], ports=ports, id=name * 8) for name in names]
    return desired(snapshot(X, *both), Policy())


def test_conflict_the_container_with_the_lower_id_gets_the_port() -> None:
    """Decision 14: a fixed rule decides, and the other container is skipped with the reason."""
    want = rivals("8080:80")
    assert lines(want) == ["tcp [::]:8080 -> one [fd00:a::2]:80"]
    (lost,) = want.skipped
    assert (lost.container_name, lost.network, lost.port) == ("two", "x", "80/tcp")
    assert "[::]:8080 already belongs to container 'one'" in lost.reason


def test_conflict_every_lost_port_of_a_range_is_skipped() -> None:
    want = rivals("8080-8082:80-82")
    assert [skip.port for skip in want.skipped] == ["80/tcp", "81/tcp", "82/tcp"]


def test_conflict_in_one_container_the_lower_container_port_wins() -> None:
    want = desired(snapshot(X, web("[::]:8080:81", "[::]:8080:80")), Policy())
    assert lines(want) == [TO_WEB]
    assert [skip.port for skip in want.skipped] == ["81/tcp"]


def test_a_wildcard_and_an_address_do_not_conflict() -> None:
    want = desired(snapshot(X, web("8080:80", "[2001:db8::1]:8080:81")), Policy())
    assert lines(want) == ["tcp [2001:db8::1]:8080 -> web [fd00:a::2]:81", TO_WEB]
    assert want.skipped == ()


def test_a_network_that_is_not_managed_is_skipped_once() -> None:
    both = [container(name=name, on=[GUA], ports=["8080-8089:80-89"]) for name in ("a", "b")]
    (skipped,) = desired(snapshot(GUA, *both), Policy()).skipped
    assert (skipped.network, skipped.container_name, skipped.port) == ("gua", "", "")
    assert "widen nat_prefixes" in skipped.reason


def test_closed_networks_that_are_not_managed() -> None:
    """Without IPv6, or outside of nat_prefixes; but no bridge on which the host has other hosts,
    none of a managed network, and none of a rootless engine."""
    public = replace(GUA, internal=True)
    no6 = replace(INTERNAL, name="no6", bridge="br-no", enable_ipv6=False, subnets=())
    twin = replace(no6, name="twin", id="f" * 64, bridge=X.bridge)
    unnamed = replace(no6, name="unnamed", id="e" * 64, bridge="")
    open_too = replace(no6, name="open", id="d" * 64, bridge="br-o", internal=False)
    facts = snapshot(X, INTERNAL, public, no6, twin, unnamed, open_too)

    def closed(facts: Snapshot) -> dict[str, tuple[IPv6Network, ...]]:
        return {net.name: net.subnets for net in desired(facts, Policy()).closed_networks}

    assert closed(facts) == {public.name: public.subnets, "no6": (LINK_LOCAL,)}
    lan = Route(prefix=IPv6Network("2001:db8:77::/64"), interface="br-no")
    assert closed(replace(facts, routes=(lan,))) == {public.name: public.subnets}
    learned = replace(lan, prefix=IPv6Network("::/0"))
    assert "no6" in closed(replace(facts, routes=(learned,)))
    assert closed(replace(facts, engine=Engine(version="28", rootless=True))) == {}


def test_without_nat_prefixes_no_network_is_managed() -> None:
    want = desired(snapshot(X, web("8080:80")), Policy(nat_prefixes=()))
    assert (want.networks, want.mappings) == ((), ())
    assert [skipped.network for skipped in want.skipped] == ["x"]


def test_two_networks_with_one_bridge_the_first_by_name_is_managed() -> None:
    twin = network(name="y", subnet="fd00:b::/64", bridge=X.bridge)
    want = desired(snapshot(twin, X, web("8080:80"), web("81:81", on=twin)), Policy())
    assert want.networks == (X,)
    assert lines(want) == [TO_WEB]
    (skipped,) = want.skipped
    assert (skipped.network, skipped.container_name) == ("y", "")
    assert skipped.reason == "its bridge brX belongs to network 'x'"


# Decisions.


def decided(*facts: Network | Container, policy: Policy = DEFAULT) -> list[tuple[int, Outcome]]:
    """The host port and the outcome of each binding of web."""
    decisions = desired(snapshot(*facts), policy).decisions[identity("web")]
    return [(decision.binding.host_port, decision.outcome) for decision in decisions]


def test_decisions_have_one_outcome_for_each_binding() -> None:
    ports = ("8080:80", "127.0.0.1:81:80", "[fe80::1]:82:80", "[::1]:83:80")
    assert decided(X, web(*ports)) == [
        (8080, Outcome.FORWARDED),
        (81, Outcome.IPV4_ONLY),
        (82, Outcome.SKIPPED),
        (83, Outcome.PROXY),
    ]


def test_decisions_for_a_port_that_another_container_owns_say_skipped() -> None:
    owner = container(name="owner", on=[X], ports=["8080:80"], id="0")
    want = desired(snapshot(X, owner, web("8080:80", "8081:81")), Policy())
    lost, forwarded = want.decisions[identity("web")]
    assert (lost.outcome, forwarded.outcome) == (Outcome.SKIPPED, Outcome.FORWARDED)
    assert [skip.reason for skip in want.skipped] == [lost.reason]


def test_decisions_for_an_unmanaged_network_give_no_row_for_a_port() -> None:
    assert decided(GUA, web("8080:80", on=GUA)) == [(8080, Outcome.UNMANAGED)]
    assert len(desired(snapshot(GUA, web("8080:80", on=GUA)), Policy()).skipped) == 1


# Ranges.


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        (("10-11:10-11", "12:12"), ["tcp [::]:10-12 -> web [fd00:a::2]:10-12"]),
        (("12:12", "10-11:10-11"), ["tcp [::]:10-12 -> web [fd00:a::2]:10-12"]),
        (
            ("10-11:10-11", "13:13"),
            ["tcp [::]:10-11 -> web [fd00:a::2]:10-11", "tcp [::]:13 -> web [fd00:a::2]:13"],
        ),
        (
            ("10-11:10-11", "12-13:22-23"),
            ["tcp [::]:10-11 -> web [fd00:a::2]:10-11", "tcp [::]:12-13 -> web [fd00:a::2]:22-23"],
        ),
        (("10-11:20-21", "12:22"), ["tcp [::]:10-12 -> web [fd00:a::2]:20-22"]),
        (
            ("10-11:80-81", "12:81"),
            ["tcp [::]:10-11 -> web [fd00:a::2]:80-81", "tcp [::]:12 -> web [fd00:a::2]:81"],
        ),
        (
            ("10:10", "11:11/udp"),
            ["tcp [::]:10 -> web [fd00:a::2]:10", "udp [::]:11 -> web [fd00:a::2]:11"],
        ),
        (
            ("10:10", "[2001:db8::1]:11:11"),
            ["tcp [2001:db8::1]:11 -> web [fd00:a::2]:11", "tcp [::]:10 -> web [fd00:a::2]:10"],
        ),
        (("1-65535:1-65535",), ["tcp [::]:1-65535 -> web [fd00:a::2]:1-65535"]),
    ],
    ids=[
        "goes on",
        "any order",
        "hole",
        "shift",
        "shifted",
        "same port twice",
        "protocol",
        "address",
        "all",
    ],
)
def test_consecutive_ports_with_one_shift_make_one_mapping(
    ports: tuple[str, ...], expected: list[str]
) -> None:
    """R4, R5."""
    assert lines(desired(snapshot(X, web(*ports)), Policy())) == expected


def test_a_range_ends_at_the_port_of_another_container() -> None:
    other = container(name="b", on=[endpoint(on=X, address="fd00:a::3")], ports=["11:11"])
    want = desired(snapshot(X, web("10:10", "12:12"), other), Policy())
    assert [line(mapping) for mapping in want.mappings] == [
        "tcp [::]:10 -> web [fd00:a::2]:10",
        "tcp [::]:11 -> b [fd00:a::3]:11",
        "tcp [::]:12 -> web [fd00:a::2]:12",
    ]


# Without a userland proxy.


def rejected(*ports: str, userland_proxy: bool = False) -> list[tuple[Protocol, str, int, int]]:
    want = desired(snapshot(X, web(*ports), userland_proxy=userland_proxy), Policy())
    assert all(isinstance(ports, RejectedPorts) for ports in want.rejected)
    return [(r.protocol, str(r.host_address), r.first, r.last) for r in want.rejected]


TCP, UDP = Protocol.TCP, Protocol.UDP


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        (("8080:80",), [(TCP, "::", 8080, 8080)]),
        (("8080-8089:80-89", "8091:1"), [(TCP, "::", 8080, 8089), (TCP, "::", 8091, 8091)]),
        (("8080:80", "8081:9"), [(TCP, "::", 8080, 8081)]),
        (("53:53", "53:53/udp"), [(TCP, "::", 53, 53), (UDP, "::", 53, 53)]),
        (("[::1]:8080:80",), [(TCP, "::1", 8080, 8080)]),
        (("[2001:db8::1]:8080:80",), [(TCP, "2001:db8::1", 8080, 8080)]),
        (("127.0.0.1:8080:80",), []),
        ((), []),
    ],
)
def test_without_a_proxy_ports_reject_clients_that_cannot_be_forwarded(
    ports: tuple[str, ...], expected: list[tuple[Protocol, str, int, int]]
) -> None:
    """H3, H14, B6: ranges of host ports, independent of the container ports."""
    assert rejected(*ports) == expected


def test_with_a_proxy_nothing_is_rejected() -> None:
    """H2."""
    assert rejected("8080:80", "[::1]:81:81", userland_proxy=True) == []


# During a change.


def test_during_a_change_both_networks_and_the_new_mappings_count() -> None:
    """P6, C5: a network with rules in nat stays closed."""
    old = desired(snapshot(X, web("8080:80")), Policy())
    new = desired(snapshot(Y, web("81:81", on=Y)), Policy())
    both = during_change(old, new)
    assert both.networks == (X, Y)
    assert both.mappings == new.mappings


def test_during_a_change_the_new_facts_of_a_network_count() -> None:
    old = desired(snapshot(X), Policy())
    new = desired(snapshot(replace(X, icc=False)), Policy())
    assert during_change(old, new) == new


def test_during_a_change_a_bridge_has_one_network() -> None:
    old = desired(snapshot(X), Policy())
    new = desired(snapshot(network(name="other", bridge=X.bridge)), Policy())
    assert during_change(old, new) == new
