"""The scenarios without a kernel: the verdict for each packet, from the rule text alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, IPv6Network
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ipv6natd.model import (
    Container,
    Desired,
    GatewayMode,
    Network,
    Policy,
    Protocol,
    Snapshot,
)
from ipv6natd.netfilter.render import format_ruleset
from ipv6natd.policy.desired import desired
from ipv6natd.policy.ruleset import ruleset
from tests.harness.build import container, endpoint, network, snapshot
from tests.harness.every import every
from tests.harness.trace import (
    DELIVERED,
    DROPPED,
    REFUSED,
    Fate,
    Host,
    Link,
    Packet,
    State,
    Verdict,
    parse,
    trace,
)
from tests.unit.policy.test_properties import bindings, bounded, names, network_facts
from tests.unit.policy.test_ruleset import GOLDEN, PROXY

LOOPBACK = IPv6Address("::1")
HOST, HOST_TOO = IPv6Address("2001:db8:1::1"), IPv6Address("2001:db8:1::10")
CLIENT, ROGUE = IPv6Address("2001:db8:1::2"), IPv6Address("2001:db8:1::3")
LINK_LOCAL_CLIENT, LINK_LOCAL_HOST = IPv6Address("fe80::2"), IPv6Address("fe80::1")
X1, X2 = IPv6Address("fd00:a::2"), IPv6Address("fd00:a::3")
Y1 = IPv6Address("fd00:b::2")
I1, I2 = IPv6Address("fd00:c::2"), IPv6Address("fd00:c::3")
GATEWAY = IPv6Address("fd00:a::1")
FORGED = IPv6Address("fd00:a::9")


def link(interface: str, subnet: str, *addresses: IPv6Address) -> Link:
    net = IPv6Network(subnet)
    return Link(interface=interface, subnets=(net,), addresses=addresses or (net[1],))


THE_HOST = Host(
    links=(
        link("ext0", "::/0", HOST, HOST_TOO, LINK_LOCAL_HOST),
        link("br-x", "fd00:a::/64"),
        link("br-y", "fd00:b::/64"),
        link("br-i", "fd00:c::/64"),
    )
)
X = network(name="x", subnet="fd00:a::/64")
Y = network(name="y", subnet="fd00:b::/64")
I = network(name="i", subnet="fd00:c::/64", internal=True)  # noqa: E741
FROM = {
    **dict.fromkeys((CLIENT, ROGUE, LINK_LOCAL_CLIENT), "ext0"),
    **dict.fromkeys((X1, X2), "br-x"),
    **dict.fromkeys((I1, I2), "br-i"),
    Y1: "br-y",
    FORGED: "ext0",
    HOST: "",
    HOST_TOO: "",
}
"""The incoming interface of each sender; "" for the host."""


def asks(
    sender: IPv6Address, address: IPv6Address, port: int, protocol: str = "tcp", mark: int = 0
) -> Packet:
    return Packet(
        source=sender,
        destination=address,
        in_interface=FROM[sender],
        protocol=protocol,
        port=port,
        mark=mark,
    )


def reaches(address: IPv6Address, port: int, *, seen_as: IPv6Address) -> Verdict:
    return Verdict(Fate.FORWARDED, address, port, seen_as)


def text(*ports: str, policy: Policy | None = None, proxy: bool = True, **options: Any) -> str:
    """The rules for x1 with these ports on network X with these options, with networks Y and I."""
    facts = (
        replace(X, **options),
        Y,
        I,
        container(name="x1", on=[X], ports=ports),
        container(name="x2", on=[endpoint(on=X, address=str(X2))]),
        container(name="y1", on=[Y]),
        container(name="i1", on=[I], ports=["8888:80"]),
    )
    everything = snapshot(*facts, userland_proxy=proxy)
    return format_ruleset(ruleset(desired(everything, policy or Policy())))


def appended(rules: str) -> str:
    """The rules with a DROP of another tool at the end of FORWARD."""
    return f"{rules}*filter\n-A FORWARD -j DROP\nCOMMIT\n"


def with_user_rule(rules: str) -> str:
    """The rules with a user's rule in DOCKER-USER."""
    return f"{rules}*filter\n-A DOCKER-USER -i ext0 -s {CLIENT}/128 -j DROP\nCOMMIT\n"


# Scenarios of the lab's own networks, with the proxy and without.

PORTS = ("8080:80", "8443:443", "5353:53/udp")
ANYWAY = [
    ("p1", asks(CLIENT, HOST, 8080), reaches(X1, 80, seen_as=CLIENT)),
    ("p1-u1", asks(CLIENT, HOST, 5353, "udp"), reaches(X1, 53, seen_as=CLIENT)),
    ("p2", asks(CLIENT, HOST_TOO, 8080), reaches(X1, 80, seen_as=CLIENT)),
    ("p4-other-port", asks(CLIENT, HOST, 8443), reaches(X1, 443, seen_as=CLIENT)),
    ("p4-unknown-port", asks(CLIENT, HOST, 9999), DELIVERED),
    ("p4-other-protocol", asks(CLIENT, HOST, 8080, "udp"), DELIVERED),
    ("o1", asks(X1, CLIENT, 80), reaches(CLIENT, 80, seen_as=HOST)),
    ("o1-udp", asks(Y1, CLIENT, 53, "udp"), reaches(CLIENT, 53, seen_as=HOST)),
    ("h1", asks(HOST, HOST, 8080), reaches(X1, 80, seen_as=HOST)),
    ("h1-other", asks(HOST_TOO, HOST_TOO, 5353, "udp"), reaches(X1, 53, seen_as=HOST_TOO)),
    ("h9", asks(Y1, HOST, 8080), reaches(X1, 80, seen_as=GATEWAY)),
    ("h9-udp", asks(Y1, HOST_TOO, 5353, "udp"), reaches(X1, 53, seen_as=GATEWAY)),
    ("h13", asks(X2, X1, 80), reaches(X1, 80, seen_as=X2)),
    ("h13-udp", asks(X2, X1, 53, "udp"), reaches(X1, 53, seen_as=X2)),
    ("i1", asks(ROGUE, X1, 81), DROPPED),
    ("i1-udp", asks(ROGUE, X1, 53, "udp"), DROPPED),
    ("i2", asks(ROGUE, X1, 80), DROPPED),
    ("i4", asks(ROGUE, X1, 0, "icmp6"), DROPPED),
    ("i5-published", asks(Y1, X1, 80), DROPPED),
    ("i5-unpublished", asks(Y1, X1, 81), DROPPED),
    ("i7-out", asks(I1, CLIENT, 80), DROPPED),
    ("i7-in", asks(ROGUE, I1, 80), DROPPED),
    ("i7-other-network", asks(Y1, I1, 80), DROPPED),
    ("i7-to-other-network", asks(I1, X1, 80), DROPPED),
    ("i7-published", asks(I1, HOST, 8080), DROPPED),
    ("i8", asks(I2, I1, 80), reaches(I1, 80, seen_as=I2)),
    ("i9", asks(HOST, I1, 80), reaches(I1, 80, seen_as=HOST)),
    ("i10", asks(CLIENT, HOST, 8888), DELIVERED),
    ("i11-address", asks(FORGED, X1, 80), DROPPED),
    ("i11-published-port", asks(FORGED, HOST, 8080), DROPPED),
]
BY_PROXY = [
    ("h4-h6", asks(X2, HOST, 8080), DELIVERED, reaches(X1, 80, seen_as=GATEWAY)),
    ("h12", asks(X2, HOST, 5353, "udp"), DELIVERED, reaches(X1, 53, seen_as=GATEWAY)),
    ("h7-h8", asks(X1, HOST, 8080), DELIVERED, reaches(X1, 80, seen_as=GATEWAY)),
    ("h2-h3", asks(HOST, LOOPBACK, 8080), DELIVERED, REFUSED),
    ("h14", asks(LINK_LOCAL_CLIENT, LINK_LOCAL_HOST, 8080), DELIVERED, REFUSED),
]
"""Scenario, packet, verdict with the proxy, verdict without the proxy."""


def cases(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Parameters from rows whose first column is the scenario."""
    return [pytest.param(*values, id=scenario) for scenario, *values in rows]


@pytest.mark.parametrize("proxy", PROXY)
@pytest.mark.parametrize(("packet", "verdict"), cases(ANYWAY))
def test_whoever_asks_gets_the_same_with_and_without_the_proxy(
    packet: Packet, verdict: Verdict, proxy: str
) -> None:
    assert trace(text(*PORTS, proxy=PROXY[proxy]), packet, THE_HOST) == verdict


@pytest.mark.parametrize(("packet", "with_proxy", "without"), cases(BY_PROXY))
def test_neighbours_and_loopback_are_the_proxys_or_the_rules_business(
    packet: Packet, with_proxy: Verdict, without: Verdict
) -> None:
    assert trace(text(*PORTS, proxy=True), packet, THE_HOST) == with_proxy
    assert trace(text(*PORTS, proxy=False), packet, THE_HOST) == without


# Scenarios with one binding or one option.

TOO = f"[{HOST_TOO}]:8080:81"
KEPT, SHIFTED = text("7000-7100:7000-7100"), text("6000-6009:7000-7009/udp")
WEB = text("8080:80")
ROUTED = text("8080:80", gateway_mode=GatewayMode.ROUTED)
UNPROTECTED = text("8080:80", gateway_mode=GatewayMode.NAT_UNPROTECTED)
ISOLATED = text("8080:80", gateway_mode=GatewayMode.ISOLATED)
TRUSTED = text("8080:80", trusted_interfaces=("ext0",))
DIRECT = text("8080:80", policy=Policy(allow_direct_routing=True))
MARKED = text("8080:80", policy=Policy(accept_fwmark=(1, 1)))
NO_ICC = text("8080:80", icc=False)
SEEN = reaches(X1, 80, seen_as=CLIENT)
DIRECTLY = reaches(X1, 80, seen_as=ROGUE)

OPTIONS = [
    ("b1", text("127.0.0.1:8080:80"), asks(CLIENT, HOST, 8080), DELIVERED),
    ("b5-asked", text(TOO), asks(CLIENT, HOST_TOO, 8080), reaches(X1, 81, seen_as=CLIENT)),
    ("b5-other", text(TOO), asks(CLIENT, HOST, 8080), DELIVERED),
    ("b14-address", text(TOO, "8080:80"), asks(CLIENT, HOST, 8080), SEEN),
    ("b14-too", text(TOO, "8080:80"), asks(CLIENT, HOST_TOO, 8080), replace(SEEN, port=81)),
    ("b14-turned", text("8080:80", TOO), asks(CLIENT, HOST_TOO, 8080), replace(SEEN, port=81)),
    ("r4-before", KEPT, asks(CLIENT, HOST, 6999), DELIVERED),
    ("r4-first", KEPT, asks(CLIENT, HOST, 7000), replace(SEEN, port=7000)),
    ("r4-middle", KEPT, asks(CLIENT, HOST, 7050), replace(SEEN, port=7050)),
    ("r4-last", KEPT, asks(CLIENT, HOST, 7100), replace(SEEN, port=7100)),
    ("r4-behind", KEPT, asks(CLIENT, HOST, 7101), DELIVERED),
    *(
        (f"r5-{port}", SHIFTED, asks(CLIENT, HOST, port, "udp"), replace(SEEN, port=port + 1000))
        for port in range(6000, 6010)
    ),
    ("r5-behind", SHIFTED, asks(CLIENT, HOST, 6010, "udp"), DELIVERED),
    ("o2", text(masquerade=False), asks(X1, CLIENT, 80), reaches(CLIENT, 80, seen_as=X1)),
    (
        "o3",
        text(source_address=HOST_TOO),
        asks(X1, CLIENT, 80),
        reaches(CLIENT, 80, seen_as=HOST_TOO),
    ),
    ("i6", NO_ICC, asks(X2, X1, 80), DROPPED),
    ("i6-published", NO_ICC, asks(CLIENT, HOST, 8080), SEEN),
    ("i10", text("8080:80", internal=True), asks(CLIENT, HOST, 8080), DELIVERED),
    ("v1-published", ROUTED, asks(ROGUE, X1, 80), DIRECTLY),
    ("v1-unpublished", ROUTED, asks(ROGUE, X1, 81), DROPPED),
    ("v1-ping", ROUTED, asks(ROGUE, X1, 0, "icmp6"), replace(DIRECTLY, port=0)),
    ("v1-no-nat", ROUTED, asks(CLIENT, HOST, 8080), DELIVERED),
    ("v1-out", ROUTED, asks(X1, CLIENT, 80), reaches(CLIENT, 80, seen_as=X1)),
    ("v1-i11", ROUTED, asks(FORGED, X1, 80), DROPPED),
    ("v2-nat", UNPROTECTED, asks(CLIENT, HOST, 8080), SEEN),
    ("v2-direct", UNPROTECTED, asks(ROGUE, X1, 81), replace(DIRECTLY, port=81)),
    ("v2-ping", UNPROTECTED, asks(ROGUE, X1, 0, "icmp6"), replace(DIRECTLY, port=0)),
    ("v2-network", UNPROTECTED, asks(Y1, X1, 81), reaches(X1, 81, seen_as=GATEWAY)),
    ("v2-i11", UNPROTECTED, asks(FORGED, X1, 81), DROPPED),
    ("v3-in", ISOLATED, asks(ROGUE, X1, 80), DROPPED),
    ("v3-published", ISOLATED, asks(CLIENT, HOST, 8080), DELIVERED),
    ("v3-out", ISOLATED, asks(X1, CLIENT, 80), DROPPED),
    ("v3-neighbour", ISOLATED, asks(X2, X1, 80), reaches(X1, 80, seen_as=X2)),
    ("v4-nat", TRUSTED, asks(CLIENT, HOST, 8080), SEEN),
    ("v4-published", TRUSTED, asks(ROGUE, X1, 80), DIRECTLY),
    ("v4-unpublished", TRUSTED, asks(ROGUE, X1, 81), DROPPED),
    ("v4-interface", TRUSTED, asks(Y1, X1, 80), DROPPED),
    ("v4-i11", TRUSTED, asks(FORGED, X1, 80), DROPPED),
    ("v5-published", DIRECT, asks(ROGUE, X1, 80), DIRECTLY),
    ("v5-network", DIRECT, asks(Y1, X1, 80), reaches(X1, 80, seen_as=GATEWAY)),
    ("v5-unpublished", DIRECT, asks(ROGUE, X1, 81), DROPPED),
    ("v5-i11", DIRECT, asks(FORGED, X1, 80), DROPPED),
    ("v6-marked", MARKED, asks(ROGUE, X1, 81, mark=3), replace(DIRECTLY, port=81)),
    ("v6-unmarked", MARKED, asks(ROGUE, X1, 81, mark=2), DROPPED),
    ("f8", appended(WEB), asks(CLIENT, HOST, 8080), SEEN),
    ("f8-out", appended(WEB), asks(X1, CLIENT, 80), reaches(CLIENT, 80, seen_as=HOST)),
    ("f8-icc", appended(WEB), asks(X2, X1, 80), reaches(X1, 80, seen_as=X2)),
    ("i12", with_user_rule(WEB), asks(CLIENT, HOST, 8080), DROPPED),
    ("i12-other", with_user_rule(WEB), asks(ROGUE, HOST, 8080), DIRECTLY),
]


@pytest.mark.parametrize(("rules", "packet", "verdict"), cases(OPTIONS))
def test_what_a_binding_or_an_option_opens(rules: str, packet: Packet, verdict: Verdict) -> None:
    assert trace(rules, packet, THE_HOST) == verdict


@pytest.mark.parametrize("proxy", PROXY)
def test_b13_two_containers_share_a_port_on_two_addresses(proxy: str) -> None:
    one = container(name="one", on=[X], ports=[f"[{HOST}]:8080:80"])
    place = endpoint(on=X, address=str(X2))
    two = container(name="two", on=[place], ports=[f"[{HOST_TOO}]:8080:80"])
    rules = format_ruleset(
        ruleset(desired(snapshot(X, one, two, userland_proxy=PROXY[proxy]), Policy()))
    )
    assert trace(rules, asks(CLIENT, HOST, 8080), THE_HOST) == SEEN
    assert trace(rules, asks(CLIENT, HOST_TOO, 8080), THE_HOST) == replace(SEEN, address=X2)


REPLY = Packet(source=CLIENT, destination=X1, in_interface="ext0", state=State.ESTABLISHED)
FLOWS = [
    ("i14-reply-in", REPLY, reaches(X1, 0, seen_as=CLIENT)),
    ("i14-later", replace(REPLY, dnat=True, port=80), reaches(X1, 80, seen_as=CLIENT)),
    ("i7-reply-in", replace(REPLY, destination=I1), DROPPED),
    ("i7-reply-out", replace(REPLY, source=I1, destination=CLIENT, in_interface="br-i"), DROPPED),
    ("o-invalid-in", replace(REPLY, state=State.INVALID), DROPPED),
    (
        "o-invalid-out",
        replace(asks(X1, CLIENT, 80), state=State.INVALID),
        DROPPED,
    ),
]


@pytest.mark.parametrize(("packet", "verdict"), cases(FLOWS))
def test_what_becomes_of_packets_that_open_nothing(packet: Packet, verdict: Verdict) -> None:
    assert trace(WEB, packet, THE_HOST) == verdict


def test_a_network_that_the_engine_manages_is_left_to_its_rules() -> None:
    """Our rules neither accept nor drop packets into this network: later rules decide."""
    rules = (GOLDEN / "beside-the-engines.proxy-on.txt").read_text()
    host = replace(
        THE_HOST,
        links=tuple(
            replace(each, interface={"br-x": "br-a", "br-y": "br-b"}.get(each.interface, "ext0"))
            for each in THE_HOST.links
            if each.interface != "br-i"
        ),
    )
    packet = replace(asks(X1, Y1, 53), in_interface="br-a")
    assert trace(rules, packet, host).fate is Fate.FORWARDED
    assert trace(appended(rules), packet, host) == DROPPED
    assert trace(rules, replace(packet, source=CLIENT, in_interface="ext0"), host) == reaches(
        Y1, 53, seen_as=CLIENT
    )


# The grammar.


@every("path", {path.stem: path for path in sorted(GOLDEN.glob("*.txt"))})
def test_every_reviewed_text_is_read(path: Path) -> None:
    read = parse(path.read_text())
    rules = sum(len(chain.rules) for table in read.values() for chain in table.values())
    assert rules == path.read_text().count("\n-A ")


@pytest.mark.parametrize(
    "rule",
    [
        "FORWARD -m limit --limit 3/min -j ACCEPT",
        "FORWARD -m conntrack --ctorigsrc ::1 -j DROP",
        "FORWARD -m conntrack --ctstate ODD -j DROP",
        "FORWARD -m physdev -j DROP",
        "FORWARD -p esp -j DROP",
        "FORWARD -m addrtype --dst-type MULTICAST -j DROP",
        "FORWARD -s 192.0.2.1/32 -j DROP",
        "FORWARD -i ext0",
        "FORWARD -j SOMEBODY",
        "FORWARD -j DNAT --to-destination ::1-::5",
        "FORWARD -j ACCEPT -i ext0",
    ],
)
def test_a_rule_that_is_not_understood_is_an_error(rule: str) -> None:
    with pytest.raises(ValueError, match="in table filter: -A "):
        parse(f"*filter\n-A {rule}\nCOMMIT\n")


def test_a_rule_of_another_table_is_an_error() -> None:
    assert parse("*mangle\n:PREROUTING ACCEPT [1:2]\nCOMMIT\n")
    with pytest.raises(ValueError, match="in table mangle"):
        parse("*mangle\n:PREROUTING ACCEPT\n-A PREROUTING -j DROP\nCOMMIT\n")


# Properties for any options.

EXT = "ext0"
OUTSIDER, ASKED = IPv6Address("2001:db8::99"), IPv6Address("2001:db8::1")
KINDS = st.sampled_from([GatewayMode.NAT, *GatewayMode])
NUMBERS = (0, 1, 4, 8, 13, 101, 104, 113)
"""Ports inside, next to and outside the ports that the strategies publish."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A host, with its facts, policy and rules."""

    facts: Snapshot
    policy: Policy
    want: Desired
    rules: str
    host: Host

    def network_of(self, address: IPv6Address) -> Network:
        (found,) = (n for n in self.want.networks if any(address in net for net in n.subnets))
        return found

    def containers(self) -> Iterator[tuple[Container, IPv6Address]]:
        """The containers on handled networks, with each address."""
        handled = {each.id for each in self.want.networks}
        for each in self.facts.containers:
            for place in each.endpoints:
                if place.network_id in handled and place.address:
                    yield each, place.address

    def goes(
        self, source: IPv6Address, at: str, to: IPv6Address, port: int, **more: Any
    ) -> Verdict:
        packet = Packet(source=source, in_interface=at, destination=to, port=port, **more)
        return trace(self.rules, packet, self.host)


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """Up to three networks with any options, and up to three containers on them."""
    networks = [
        replace(
            draw(network_facts(name)),
            gateway_mode=draw(KINDS),
            trusted_interfaces=draw(st.sampled_from([(), (), (EXT,)])),
        )
        for name in draw(names)
    ]
    containers = []
    for index in range(draw(st.integers(0, 3)) if networks else 0):
        on = draw(st.lists(st.sampled_from(networks), min_size=1, unique=True))
        containers.append(
            container(
                name=f"c{index}",
                on=[endpoint(on=each, address=str(each.subnets[0][index + 2])) for each in on],
                ports=[b for run in draw(st.lists(bindings(), max_size=3)) for b in run],
            )
        )
    facts = snapshot(*networks, *containers, userland_proxy=draw(st.booleans()))
    policy = Policy(allow_direct_routing=draw(st.sampled_from([False, False, True])))
    want = desired(facts, policy)
    bridges = [
        Link(
            interface=each.bridge,
            subnets=each.subnets,
            addresses=tuple(net[1] for net in each.subnets),
        )
        for each in want.networks
    ]
    host = Host(links=(link(EXT, "::/0", ASKED, IPv6Address("2001:db8::2")), *bridges))
    rules = format_ruleset(ruleset(want))
    return Scene(facts=facts, policy=policy, want=want, rules=rules, host=host)


enough = settings(bounded, max_examples=100)


def published(made: Container, protocol: str, port: int) -> bool:
    return any((each.protocol, each.container_port) == (protocol, port) for each in made.bindings)


@enough
@given(scenes())
def test_i1_i2_i5_an_own_address_opens_to_the_outside_only_what_an_option_opens(
    scene: Scene,
) -> None:
    """With any options, a container's own address is closed from outside and from other networks.
    Exceptions: every port of an unprotected network; published ports of a routed network, from a
    trusted interface, or with direct routing."""
    for made, address in scene.containers():
        network = scene.network_of(address)
        others = [each for each in scene.want.networks if each.bridge != network.bridge]
        senders = [(OUTSIDER, EXT), *((each.subnets[0][9], each.bridge) for each in others)]
        for (source, at), port, protocol in product(senders, NUMBERS, Protocol):
            verdict = scene.goes(source, at, address, port, protocol=protocol)
            if verdict == DROPPED:
                continue
            assert not network.closed
            if network.gateway_mode is GatewayMode.NAT_UNPROTECTED:
                continue
            assert published(made, protocol, port)
            assert (
                network.gateway_mode is GatewayMode.ROUTED
                or scene.policy.allow_direct_routing
                or at in network.trusted_interfaces
            )


@enough
@given(scenes())
def test_p4_a_host_port_leads_only_to_what_a_container_published_on_it(scene: Scene) -> None:
    """With any options, a packet to the host is delivered there, or to a container that published
    this host port, at the right container port, on a translated network."""
    made = {address: each for each, address in scene.containers()}
    for port, protocol, to in product(range(14), Protocol, (ASKED, IPv6Address("2001:db8::2"))):
        verdict = scene.goes(OUTSIDER, EXT, to, port, protocol=protocol)
        if verdict == DELIVERED:
            continue
        assert verdict.fate is Fate.FORWARDED
        assert verdict.address is not None
        assert verdict.source == OUTSIDER
        assert scene.network_of(verdict.address).uses_nat
        assert (protocol, port, verdict.port) in {
            (each.protocol, each.host_port, each.container_port)
            for each in made[verdict.address].bindings
        }


@enough
@given(scenes())
def test_i7_nothing_enters_or_leaves_a_closed_network(scene: Scene) -> None:
    """With any options, conntrack state and destination, no packet passes between a closed network
    and another interface."""
    interfaces = {EXT: OUTSIDER, **{n.bridge: n.subnets[0][9] for n in scene.want.networks}}
    hosts = [ASKED, *(net[1] for each in scene.want.networks for net in each.subnets)]
    places = [*hosts, OUTSIDER, *(address for _, address in scene.containers())]
    for closed in (each for each in scene.want.networks if each.closed):
        inside = {address for address in places if address in closed.subnets[0]}
        for at, state, port, to in product(interfaces, State, (1, 4, 101), places):
            if (at == closed.bridge) == (to in inside):
                continue
            verdict = scene.goes(interfaces[at], at, to, port, state=state)
            if verdict.fate is not Fate.FORWARDED:
                continue
            # An address of the host may lead to a container of another, open network.
            assert at != closed.bridge
            assert verdict.address not in inside


@enough
@given(scenes())
def test_i11_a_forged_neighbour_never_arrives(scene: Scene) -> None:
    """With any options, a packet with a source of our networks from another interface reaches no
    container, neither by the container's address nor by a host port."""
    places = [ASKED, IPv6Address("2001:db8::2"), *(address for _, address in scene.containers())]
    interfaces = (EXT, *(each.bridge for each in scene.want.networks))
    for victim, at, to in product(scene.want.networks, interfaces, places):
        if at == victim.bridge:
            continue
        for net, port, protocol in product(victim.subnets, NUMBERS, Protocol):
            verdict = scene.goes(net[9], at, to, port, protocol=protocol)
            if verdict.fate is Fate.FORWARDED:
                # Within its own bridge a container may use any source: such packets are not routed.
                assert verdict.address in (to, None)
                assert scene.host.output_interface(to) == at


@enough
@given(scenes())
def test_i11_nothing_begins_with_a_source_that_is_somebody_elses(scene: Scene) -> None:
    """With any options and protocol, a first packet or an error with a source of a network leaves
    only if it came in by this network; a container's packet leaves only with a source of its own
    network, and never with one of the host."""
    assume(scene.want.networks)
    bridges = {network.bridge: network for network in scene.want.networks}
    hosts = [ASKED, *(net[1] for each in scene.want.networks for net in each.subnets)]
    sources = [*hosts, *(net[9] for each in scene.want.networks for net in each.subnets)]
    strangers = [OUTSIDER, IPv6Address("fd00:ee::1")]
    places = [OUTSIDER, IPv6Address("2001:db8:ff::1")]
    states, protocols = (State.NEW, State.RELATED, State.INVALID), ("tcp", "udp", "icmp6", "gre")
    for source, at, to in product([*sources, *strangers], (EXT, *bridges), places):
        own = any(source in net for net in bridges[at].subnets) if at in bridges else False
        forged = source in sources and not own and (source != ASKED or at in bridges)
        if forged or (at in bridges and not own):
            for state, protocol in product(states, protocols):
                verdict = scene.goes(source, at, to, 1, state=state, protocol=protocol)
                assert verdict.fate is not Fate.FORWARDED, (source, at, to, state, protocol)
