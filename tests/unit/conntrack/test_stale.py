"""Which conntrack entries are stale after a change of mappings."""

from __future__ import annotations

import weakref
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from typing import Any

import pytest

from ipv6natd.conntrack import stale as conntrack
from ipv6natd.conntrack.entries import Entry
from ipv6natd.conntrack.stale import (
    Change,
    Exposure,
    added_endpoints,
    affects_entries,
    changes_ports,
    newly_protected,
    removed_addresses,
)
from ipv6natd.model import Container, Desired, ManagedBy, Network, OtherSource, Policy, Protocol
from ipv6natd.netfilter.diff import rewrite_tables
from ipv6natd.policy.desired import desired
from ipv6natd.policy.ruleset import ruleset
from ipv6natd.sync.saved_rules import past_exposure
from tests.harness.build import container, endpoint, network, snapshot
from tests.harness.conntrack import entries
from tests.harness.fake_firewall import FakeFirewall

HOST, OTHER = "2001:db8:1::1", "2001:db8:1::10"
CLIENT, BRIDGE = "2001:db8:1::2", "fd00:a::1"
NEIGHBOUR, LOCKED = "fd00:a::9", "fd00:c::9"
HOST_ADDRESSES = frozenset(map(IPv6Address, (HOST, OTHER, BRIDGE, "::1", "fe80::1", "fd00:c::1")))

NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}

X = network(name="x", subnet="fd00:a::/64")
Y = network(name="y", subnet="fd00:b::/64")
INNER = network(name="i", subnet="fd00:c::/64", internal=True)


def web(*ports: str, address: str = "fd00:a::2", name: str = "web", on: Network = X) -> Container:
    return container(name=name, on=[endpoint(on=on, address=address)], ports=ports)


def want(*containers: Container, proxy: bool = False) -> Desired:
    return desired(snapshot(X, Y, INNER, *containers, userland_proxy=proxy), Policy())


NOTHING = want()
UDP = want(web("5353:53/udp"))


def flow(words: str, protocol: Protocol = Protocol.UDP, port: int = 40000) -> Entry:
    """ "CLIENT HOST 5353 -> REPLY 53" in words; without an arrow nothing is translated. `port` is
    the client's."""
    asked, _, reply = words.partition(" -> ")
    source, destination, asked_port = asked.split()
    answers, answers_port = reply.split() if reply else (destination, asked_port)
    (entry,) = entries(
        f"{protocol} {NUMBERS[protocol]} 29 "
        f"src={source} dst={destination} sport={port} dport={asked_port} "
        f"src={answers} dst={source} sport={answers_port} dport={port}"
    )
    return entry


def stale(
    flows: list[Entry],
    old: Desired | None,
    new: Desired,
    exposure: Exposure = Exposure.NONE,
    deleted_replies: set[bytes] | None = None,
) -> list[Entry]:
    change = Change(old, new, HOST_ADDRESSES, exposure)
    return [flow for flow in flows if conntrack.is_stale(flow, change, deleted_replies)]


def is_stale(entry: Entry, old: Desired | None, new: Desired) -> bool:
    return stale([entry], old, new) == [entry]


SEEN = flow(f"{CLIENT} {HOST} 5353 -> fd00:a::2 53")


# Which entries can be stale.


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        (None, NOTHING, True),
        (None, replace(NOTHING, networks=()), False),
        (None, want(web("5353:53/tcp")), True),
        (None, UDP, True),
        (UDP, UDP, False),
        (UDP, want(web("5353:53/udp", name="again")), False),
        (UDP, NOTHING, True),
        (UDP, want(web("5353:53/udp", address="fd00:a::3")), True),
        (UDP, want(web("5353:54/udp")), True),
        (UDP, want(web("5353:53/udp"), proxy=True), True),
        (NOTHING, want(proxy=True), False),
        (UDP, want(web("5353:53/udp", "5:5/sctp")), True),
        (None, want(web("5353:53/udp", "5:5/sctp")), True),
    ],
)
def test_changed_ports_of_udp_and_sctp_affect_entries(
    old: Desired | None, new: Desired, changed: bool
) -> None:
    assert changes_ports(old, new) is changed
    assert affects_entries(old, new, Exposure.NONE) is changed


def test_added_endpoints_are_known_only_if_the_old_mappings_are() -> None:
    both = want(web("5353:53/udp"), web("80:80", name="late", on=Y, address="fd00:b::9"))
    assert added_endpoints(UDP, both) == ((Y.bridge, IPv6Address("fd00:b::9")),)
    # Two ports of one container are one endpoint; in the other cases no endpoint was added.
    assert len(added_endpoints(NOTHING, want(web("5353:53/udp", "80:80")))) == 1
    for old, new in ((None, both), (both, UDP), (UDP, UDP), (UDP, want(web("5354:53/udp")))):
        assert added_endpoints(old, new) == ()
    theirs = (replace(network, managed_by=ManagedBy.ENGINE) for network in both.networks)
    assert added_endpoints(UDP, replace(both, networks=tuple(theirs))) == ()


def test_newly_protected_has_a_network_once_and_none_if_old_is_unknown() -> None:
    both = desired(snapshot(X, Y), Policy())
    theirs = (replace(network, managed_by=ManagedBy.ENGINE) for network in both.networks)
    engines = replace(both, networks=tuple(theirs))
    one = desired(snapshot(X), Policy())
    assert newly_protected(one, both, Exposure.NONE) == {Y: Y.subnets}
    assert newly_protected(engines, one, Exposure.NONE) == {X: X.subnets}
    assert affects_entries(one, both, Exposure.NONE)
    for old, new in ((both, both), (None, both), (both, one), (both, engines)):
        assert newly_protected(old, new, Exposure.NONE) == {}


FAR = IPv6Network("fd00:77::/64")


@pytest.mark.parametrize(
    "now", [{"subnets": (FAR,)}, {"routed_prefixes": (FAR,)}], ids=["another subnet", "a route"]
)
def test_forged_source_in_a_prefix_that_a_known_bridge_gets_is_stale(now: dict[str, Any]) -> None:
    """I11: its entry would lead to a container that gets the address."""
    ours = replace(X, **now)
    old, new = (replace(NOTHING, networks=(network,)) for network in (X, ours))
    assert newly_protected(old, new, Exposure.NONE) == {ours: (FAR,)}
    forged = f"{FAR[9]} 2001:db8:9::9 5353"
    for protocol in (Protocol.UDP, Protocol.TCP):
        assert is_stale(flow(forged, protocol), old, new)
    for words in (forged, f"{CLIENT} 2001:db8:9::9 5353"):
        assert not is_stale(flow(words), new, new)
    assert not is_stale(flow(f"{CLIENT} 2001:db8:9::9 5353"), old, new)


@pytest.mark.parametrize("prefix", ["fd00::/8", "2000::/3", "::/0"])
@pytest.mark.parametrize("source", ["fd00:a::5", "fd00:b::5", BRIDGE, HOST])
def test_route_to_a_wide_prefix_by_a_container_keeps_flows_of_others(
    prefix: str, source: str
) -> None:
    """Flows of other networks and of the host; with 2000::/3 those of clients too."""
    router = replace(Y, routed_prefixes=(IPv6Network(prefix),))
    old, new = (replace(NOTHING, networks=(X, network)) for network in (Y, router))
    for words in (f"{source} 2001:db8:9::9 5353", f"2001:db8:9::9 {source} 5353"):
        assert not is_stale(flow(words, Protocol.TCP), old, new)
    if prefix != "fd00::/8":
        assert not is_stale(flow(f"{CLIENT} {HOST} 80 -> fd00:a::2 80", Protocol.TCP), old, new)


def test_forged_source_from_before_the_first_network_of_ours_is_stale() -> None:
    """I11: without one, ipv6natd does not check the sources of the engine's networks."""
    engines = replace(NOTHING, networks=(replace(X, managed_by=ManagedBy.ENGINE),))
    forged = flow("fd00:a::2 2001:db8:9::9 7900", port=54)
    assert is_stale(forged, engines, replace(NOTHING, networks=(X,)))
    beside = replace(engines, networks=(*engines.networks, Y))
    assert not is_stale(forged, beside, replace(NOTHING, networks=(X, Y)))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (f"{CLIENT} {HOST} 53 -> fd00:a::9 53", True),
        (f"{CLIENT} {OTHER} 53 -> fd00:b::9 53", True),
        (f"{CLIENT} {HOST} 53", False),
        # To a port of the host by a foreign REDIRECT; to another target; through the host.
        (f"{NEIGHBOUR} {HOST} 53 -> {BRIDGE} 53", False),
        (f"{CLIENT} {HOST} 53 -> fd00:77::2 53", False),
        (f"{CLIENT} 2001:db8:5::5 53 -> fd00:a::9 53", False),
    ],
)
def test_u8_flow_without_a_mapping_is_stale_after_a_start(words: str, expected: bool) -> None:
    assert is_stale(flow(words), None, NOTHING) is expected
    assert is_stale(flow(words), None, UDP) is expected
    assert is_stale(flow(words), NOTHING, NOTHING) is False


# A new mapping.


@pytest.mark.parametrize("old", [None, NOTHING])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (f"{CLIENT} {HOST} 5353", True),
        (f"{CLIENT} {OTHER} 5353", True),
        (f"{CLIENT} {HOST} 5353 -> fd00:a::7 53", True),
        (f"{CLIENT} {HOST} 5353 -> fd00:a::2 54", True),
        (f"{CLIENT} {HOST} 5353 -> fd00:a::2 53", False),
        # The host, from each of its addresses.
        (f"{HOST} {HOST} 5353", True),
        (f"{BRIDGE} {BRIDGE} 5353", True),
        # Neighbours: the reply comes from the container, whatever its source is masqueraded to.
        (f"{NEIGHBOUR} {HOST} 5353", True),
        (f"{NEIGHBOUR} {HOST} 5353 -> fd00:a::2 53", False),
        # DNAT leads to a rule that drops.
        (f"{LOCKED} fd00:c::1 5353", True),
        # Never forwarded.
        ("::1 ::1 5353", False),
        ("fe80::2 fe80::1 5353", False),
        (f"fe80::2 {HOST} 5353", False),
        # To another host, or to another port of this host.
        (f"{CLIENT} 2001:db8:5::5 5353", False),
        (f"{CLIENT} 2001:db8:5::5 53", False),
        (f"{CLIENT} {HOST} 53", False),
        (f"{CLIENT} {HOST} 53 -> fd00:77::2 53", False),
        ("fd00:a::2 2001:db8:5::5 5353", False),
    ],
)
def test_u3_u5_flow_to_a_new_port_is_stale_unless_it_reaches_the_target(
    old: Desired | None, words: str, expected: bool
) -> None:
    assert is_stale(flow(words), old, UDP) is expected


def test_flow_of_another_network_within_the_default_one_is_stale_once_this_route_ends() -> None:
    """A neighbour on the default route forged the container's address on another network. The
    container's own flows are older than its default route, and not to this network."""
    left = OtherSource(IPv6Address("fd00:c::2"), "br-c", X.bridge)
    connected = replace(UDP, other_sources=(left,))
    moved = replace(UDP, other_sources=(left._replace(default_bridge="br-b"),))
    forged = flow("fd00:c::2 fd00:a::9 54 -> fd00:a::9 54")
    own = flow(f"fd00:c::2 {CLIENT} 54"), flow("fd00:c::2 fd00:c::9 54")
    for old, new in ((None, connected), (connected, UDP), (connected, moved)):
        assert affects_entries(old, new, Exposure.NONE)
        assert is_stale(forged, old, new)
        assert not any(is_stale(each, old, new) for each in own)
    assert not affects_entries(UDP, connected, Exposure.NONE)
    assert not affects_entries(connected, connected, Exposure.NONE)
    assert not is_stale(forged, None, UDP)


def test_a_change_is_freed_without_a_search_for_cycles() -> None:
    """With 10,000 mappings it has 2 MB, and the garbage of a start is never searched."""
    change = weakref.ref(Change(None, UDP, HOST_ADDRESSES, Exposure.UNGUARDED))
    assert change() is None


def test_u6_a_mapping_affects_its_own_protocol_only() -> None:
    new = want(web("5353:53/udp"), web("5353:54/sctp", name="s", address="fd00:a::3"))
    to_udp, to_sctp = (
        f"{CLIENT} {HOST} 5353 -> fd00:a::2 53",
        f"{CLIENT} {HOST} 5353 -> fd00:a::3 54",
    )
    assert not is_stale(flow(to_udp), None, new)
    assert is_stale(flow(to_sctp), None, new)
    assert is_stale(flow(to_udp, Protocol.SCTP), None, new)
    assert not is_stale(flow(to_sctp, Protocol.SCTP), None, new)
    assert not is_stale(flow(f"{CLIENT} {HOST} 5353", Protocol.SCTP), None, UDP)


def test_translated_tcp_flow_is_stale_only_if_its_container_address_is_removed() -> None:
    """A client that reuses its source port would reach an address without a host."""
    old = want(web("80:80"))
    assert not changes_ports(old, NOTHING)
    assert removed_addresses(old, NOTHING) == {IPv6Address("fd00:a::2")}
    assert affects_entries(old, NOTHING, Exposure.NONE)
    begun = flow(f"{CLIENT} {HOST} 80 -> fd00:a::2 80", Protocol.TCP)
    assert is_stale(begun, old, NOTHING)
    for new in (want(web("80:81")), want(web("81:80"))):
        assert not is_stale(begun, old, new)
    assert not is_stale(begun, None, NOTHING)


OPENED = [
    (NOTHING, want(web("80:80")), True),
    (None, want(web("80:80")), True),
    (want(web("80:80")), want(web("80:81")), True),
    (want(web("80:80")), want(web("80:80", address="fd00:a::3")), True),
    (NOTHING, want(web(f"[{HOST}]:80:80")), True),
    (NOTHING, want(web("79-81:79-81")), True),
    (want(web("80:80")), want(web("80:80"), web("81:80", name="other")), False),
    (want(web("80:80")), NOTHING, False),
    (None, NOTHING, False),
    (NOTHING, want(web("81:80")), False),
    (NOTHING, want(web(f"[{OTHER}]:80:80")), False),
    (NOTHING, want(web("80:80/udp")), False),
]
"""Decisions before and after, and whether that opens TCP port 80 of HOST."""


@pytest.mark.parametrize(("old", "new", "opened"), OPENED)
@pytest.mark.parametrize("proxy", [False, True])
def test_untranslated_tcp_flow_to_a_new_port_is_stale(
    old: Desired | None, new: Desired, opened: bool, proxy: bool
) -> None:
    """Unless the proxy serves it. Without the proxy, it hangs on a socket that nobody reads."""
    old = old and replace(old, userland_proxy=proxy)
    new = replace(new, userland_proxy=proxy)
    for source in (CLIENT, HOST, NEIGHBOUR, LOCKED, "fe80::9"):
        answered = flow(f"{source} {HOST} 80", Protocol.TCP)
        served = proxy and source != LOCKED
        assert is_stale(answered, old, new) is (opened and not served), source
        assert is_stale(answered._replace(answered=False), old, new) is opened, source
        if opened:
            assert affects_entries(old, new, Exposure.NONE)


@pytest.mark.parametrize(
    "words",
    [
        f"{CLIENT} {OTHER[:-1]}9 80",  # another host
        f"{CLIENT} {HOST} 81",
        f"{HOST} {CLIENT} 80",
        "::1 ::1 80",
        f"{CLIENT} fd00:a::2 80",
        f"{CLIENT} {HOST} 80 -> fd00:a::2 80",
        f"{CLIENT} {HOST} 80 -> fd00:b::7 80",  # the redirection of another program
    ],
)
def test_tcp_flow_that_is_not_for_the_new_port_is_not_stale(words: str) -> None:
    begun = flow(words, Protocol.TCP)._replace(answered=False)
    assert not is_stale(begun, NOTHING, want(web("80:80")))


def test_first_container_shows_whether_the_engine_runs_its_proxy() -> None:
    """Its bridge port says it, so the decisions before it may be wrong about the proxy."""
    old, new = want(proxy=True), want(web("80:80"))
    assert affects_entries(old, new, Exposure.NONE)
    assert is_stale(flow(f"{CLIENT} {HOST} 80", Protocol.TCP), old, new)


def test_tcp_flow_to_a_new_port_of_the_engine_is_not_stale() -> None:
    new = want(web("80:80"))
    mappings = tuple(replace(m, managed_by=ManagedBy.ENGINE) for m in new.mappings)
    engines = replace(new, mappings=mappings)
    begun = flow(f"{CLIENT} {HOST} 80", Protocol.TCP)
    assert not is_stale(begun, NOTHING, engines)
    assert not affects_entries(NOTHING, engines, Exposure.NONE)


@pytest.mark.parametrize(
    ("words", "protocol", "expected"),
    [
        (f"{NEIGHBOUR} {BRIDGE} 5353", Protocol.UDP, False),
        (f"{NEIGHBOUR} {BRIDGE} 5353", Protocol.SCTP, False),
        (f"{NEIGHBOUR} {HOST} 5353", Protocol.SCTP, False),
        # The proxy answers datagrams from the bridge's address: rules redirect the neighbour to it.
        (f"{NEIGHBOUR} {HOST} 5353 -> {BRIDGE} 5353", Protocol.UDP, False),
        (f"{NEIGHBOUR} {HOST} 5353", Protocol.UDP, True),
        (f"{NEIGHBOUR} {HOST} 5353 -> fd00:a::2 53", Protocol.UDP, True),
        (f"{NEIGHBOUR} {HOST} 5353 -> {BRIDGE} 53", Protocol.UDP, True),
        # The bridge's own address is the host's, and flows of the host are forwarded.
        (f"{BRIDGE} {BRIDGE} 5353", Protocol.UDP, True),
        # A neighbour on another network is forwarded.
        (f"fd00:b::9 {HOST} 5353", Protocol.UDP, True),
        (f"{CLIENT} {HOST} 5353", Protocol.UDP, True),
    ],
)
def test_with_the_proxy_a_neighbours_flow_must_end_at_the_proxy(
    words: str, protocol: Protocol, expected: bool
) -> None:
    new = want(web("5353:53/udp", "5353:53/sctp"), proxy=True)
    assert is_stale(flow(words, protocol), None, new) is expected


def test_a_neighbours_flow_is_stale_after_the_proxy_is_switched() -> None:
    with_it = want(web("5353:53/udp"), proxy=True)
    by_proxy, by_nat = (
        flow(f"{NEIGHBOUR} {HOST} 5353 -> {where}") for where in (f"{BRIDGE} 5353", "fd00:a::2 53")
    )
    assert is_stale(by_proxy, with_it, UDP)
    assert not is_stale(by_nat, with_it, UDP)
    assert is_stale(by_nat, UDP, with_it)
    assert not is_stale(by_proxy, UDP, with_it)
    # The same port number of another protocol has no mapping.
    over_sctp = flow(f"{NEIGHBOUR} {HOST} 5353 -> fd00:a::2 53", Protocol.SCTP)
    assert not is_stale(over_sctp, UDP, with_it)


@pytest.mark.parametrize(
    ("source", "client", "expected"),
    [
        (HOST, CLIENT, True),
        (OTHER, CLIENT, True),
        (BRIDGE, NEIGHBOUR, False),
        ("fe80::1", "fe80::2", False),
        # Not an address of the host, so not the proxy.
        ("fd00:a::7", CLIENT, False),
    ],
)
def test_reversed_entry_of_a_proxys_reply_is_stale_like_the_flow(
    source: str, client: str, expected: bool
) -> None:
    answer = flow(f"{source} {client} 40000", port=5353)
    assert is_stale(answer, None, want(web("5353:53/udp"), proxy=True)) is expected
    assert not is_stale(flow(f"{source} {client} 40000", port=53), None, UDP)


def masqueraded(container: str, port: int) -> Entry:
    """A container's flow from port 7000 to CLIENT, with its source rewritten to the host and this
    port."""
    (entry,) = entries(
        f"udp 17 29 src={container} dst={CLIENT} sport=7000 dport=40000 "
        f"src={CLIENT} dst={HOST} sport=40000 dport={port}"
    )
    return entry


@pytest.mark.parametrize(
    ("container", "changed", "expected"),
    [
        ("fd00:a::2", "fd00:a::3", True),
        ("fd00:a::2", None, True),
        # It goes to the current target, or does not belong to the port.
        ("fd00:a::3", "fd00:a::3", False),
        ("fd00:a::2", "fd00:a::2", False),
    ],
)
def test_reversed_entry_of_a_containers_reply_is_stale_like_the_flow(
    container: str, changed: str | None, expected: bool
) -> None:
    # Masqueraded to the same port, so that the client cannot distinguish it from the mapping.
    answer = masqueraded(container, 7000)
    old = want(web("7000:7000/udp"))
    new = want(web("7000:7000/udp", address=changed)) if changed else NOTHING
    assert is_stale(answer, old, new) is expected
    assert not is_stale(masqueraded(container, 7001), old, new)
    assert not is_stale(answer, None, NOTHING)  # the container may have opened it


# A changed or removed mapping.


def test_u2_flow_to_the_old_address_of_a_container_is_stale() -> None:
    new = want(web("5353:53/udp", address="fd00:a::3"))
    assert removed_addresses(UDP, new) == {IPv6Address("fd00:a::2")}
    assert is_stale(flow(f"{CLIENT} {HOST} 5353 -> fd00:a::2 53"), UDP, new)
    assert not is_stale(flow(f"{CLIENT} {HOST} 5353 -> fd00:a::3 53"), UDP, new)


def test_u2_address_of_another_container_is_not_a_removed_address() -> None:
    new = want(web("7000:53/udp", name="other"), web("5353:53/udp", address="fd00:a::3"))
    assert removed_addresses(UDP, new) == frozenset()
    assert is_stale(flow(f"{CLIENT} {HOST} 5353 -> fd00:a::2 53"), UDP, new)
    assert not is_stale(flow(f"{CLIENT} {HOST} 7000 -> fd00:a::2 53"), UDP, new)


def test_u8_translated_flow_to_a_removed_port_is_stale() -> None:
    still = want(web("80:80"))
    for new in (NOTHING, still):
        assert is_stale(flow(f"{CLIENT} {HOST} 5353 -> fd00:a::2 53"), UDP, new)
        # A flow that ends at the host is not stale: the host refuses or serves it.
        assert not is_stale(flow(f"{CLIENT} {HOST} 5353"), UDP, new)
    # All flows with replies from a removed address are stale.
    assert is_stale(flow(f"{CLIENT} {HOST} 6000 -> fd00:a::2 60"), UDP, NOTHING)
    assert not is_stale(flow(f"{CLIENT} {HOST} 6000 -> fd00:a::2 60"), UDP, still)


def test_flow_of_an_unchanged_mapping_is_not_stale() -> None:
    new = want(web("5353:53/udp", "6000:60/udp"))
    assert not is_stale(flow(f"{CLIENT} {HOST} 5353"), UDP, new)
    assert is_stale(flow(f"{CLIENT} {HOST} 6000"), UDP, new)


def test_u4_binding_to_an_address_affects_only_its_flows() -> None:
    new = want(web(f"[{OTHER}]:5353:53/udp"))
    for old in (None, NOTHING):
        assert is_stale(flow(f"{CLIENT} {OTHER} 5353"), old, new)
        assert not is_stale(flow(f"{CLIENT} {HOST} 5353"), old, new)
    # An address that the host does not have belongs to another host.
    absent = want(web("[2001:db8:5::5]:5353:53/udp"))
    assert not is_stale(flow(f"{CLIENT} 2001:db8:5::5 5353"), None, absent)


def test_u4_binding_to_an_address_precedes_a_wildcard() -> None:
    special = web(f"[{OTHER}]:5353:53/udp", name="special", address="fd00:b::2", on=Y)
    both = want(web("5353:53/udp"), special)
    to_web, to_special = "-> fd00:a::2 53", "-> fd00:b::2 53"
    assert is_stale(flow(f"{CLIENT} {OTHER} 5353 {to_web}"), UDP, both)
    assert not is_stale(flow(f"{CLIENT} {HOST} 5353 {to_web}"), UDP, both)
    assert is_stale(flow(f"{CLIENT} {OTHER} 5353 {to_special}"), both, UDP)
    assert not is_stale(flow(f"{CLIENT} {OTHER} 5353 {to_web}"), both, UDP)
    # Removal of the wildcard changes nothing for flows to the address.
    assert not is_stale(flow(f"{CLIENT} {OTHER} 5353"), both, want(special))


def native(wish: Desired) -> Desired:
    mappings = (replace(mapping, managed_by=ManagedBy.ENGINE) for mapping in wish.mappings)
    return replace(wish, mappings=tuple(mappings))


def test_flow_of_an_engines_mapping_is_not_stale() -> None:
    for old in (None, NOTHING, UDP):
        assert not is_stale(flow(f"{CLIENT} {HOST} 5353"), old, native(UDP))
    assert removed_addresses(native(UDP), NOTHING) == frozenset()
    assert not is_stale(SEEN, native(UDP), NOTHING)
    # A mapping of the engine that becomes ours makes its flows stale.
    assert is_stale(flow(f"{CLIENT} {HOST} 5353"), native(UDP), UDP)
    assert not is_stale(SEEN, native(UDP), UDP)


def test_each_port_of_a_shifted_range_has_its_own_target() -> None:
    new = want(web("6000-6009:7000-7009/udp"))
    for i in range(10):
        for j in range(10):
            entry = flow(f"{CLIENT} {HOST} {6000 + i} -> fd00:a::2 {7000 + j}")
            assert is_stale(entry, None, new) is (i != j)
    assert not is_stale(flow(f"{CLIENT} {HOST} 6010"), None, new)


def test_ten_thousand_ports_and_ten_thousand_flows() -> None:
    """R8: by look-ups. To compare all pairs would take minutes."""
    old = want(web("10000-19999:20000-29999/udp"))
    new = want(
        web("10000-14999:20000-24999/udp"),
        web("15000-19999:20000-24999/udp", name="other", address="fd00:a::3"),
    )
    flows = [flow(f"{CLIENT} {HOST} {10000 + i} -> fd00:a::2 {20000 + i}") for i in range(10000)]
    found = stale(flows, old, new)
    assert found == flows[5000:]
    assert stale(flows, None, new) == found
    assert stale(flows, old, old) == []


# Flows that began without rules.

ENTRIES = """
tcp      6 299 ESTABLISHED src=2001:db8::2 dst=fd00:a::2 sport=1 dport=80 src=fd00:a::2 dst=2001:db8::2 sport=80 dport=1 [ASSURED] mark=0 use=1
udp      17 29 src=2001:db8::3 dst=fd00:a::2 sport=1 dport=53 [UNREPLIED] src=fd00:a::2 dst=2001:db8::3 sport=53 dport=1 mark=0 use=1
icmpv6   58 29 src=2001:db8::4 dst=fd00:a::2 type=128 code=0 id=3 packets=1 bytes=64 src=fd00:a::2 dst=2001:db8::4 type=129 code=0 id=3 packets=0 bytes=0 mark=0 use=1
unknown  4 599 src=2001:db8::5 dst=fd00:a::2 src=fd00:a::2 dst=2001:db8::5 mark=0 use=1
gre      47 29 src=2001:db8::6 dst=fd00:a::2 srckey=0x0 dstkey=0xff src=fd00:a::2 dst=2001:db8::6 srckey=0xff dstkey=0x0 mark=0 use=1
tcp      6 299 ESTABLISHED src=2001:db8::7 dst=fd00:a::2 sport=1 dport=80 zone=7 src=fd00:a::2 dst=2001:db8::7 sport=80 dport=1 [ASSURED] mark=0 use=1
tcp      6 299 ESTABLISHED src=2001:db8::8 dst=2001:db8:1::1 sport=1 dport=80 src=fd00:a::2 dst=2001:db8::8 sport=80 dport=1 [ASSURED] mark=0 use=1
tcp      6 299 ESTABLISHED src=2001:db8:1::1 dst=fd00:a::2 sport=1 dport=80 src=fd00:a::2 dst=2001:db8:1::1 sport=80 dport=1 [ASSURED] mark=0 use=1
tcp      6 299 ESTABLISHED src=fd00:a::3 dst=fd00:a::2 sport=1 dport=80 src=fd00:a::2 dst=fd00:a::3 sport=80 dport=1 [ASSURED] mark=0 use=1
"""  # noqa: E501


def test_flows_opened_from_outside_are_stale_with_any_protocol() -> None:
    here = desired(snapshot(X, Y), Policy())
    found = [entry.original[1:] for entry in stale(entries(ENTRIES), here, here, Exposure.OPEN)]
    to = IPv6Address("fd00:a::2")
    assert found == [
        (6, IPv6Address("2001:db8::2"), to, 1, 80),
        (17, IPv6Address("2001:db8::3"), to, 1, 53),
        (58, IPv6Address("2001:db8::4"), to, 0, 0),
        (4, IPv6Address("2001:db8::5"), to, 0, 0),
        (47, IPv6Address("2001:db8::6"), to, 0, 0xFF),
    ]
    assert stale(entries(ENTRIES), here, here) == []


def test_flow_with_a_source_in_an_added_network_is_stale() -> None:
    """Decision 18: a flow of another host to a published port, and the reversed reply entry."""
    forged = flow("fd00:b::66 2001:db8:1::1 5353 -> fd00:a::2 53")
    old = desired(snapshot(X, web("5353:53/udp")), Policy())
    new = desired(snapshot(X, Y, web("5353:53/udp")), Policy())
    assert affects_entries(old, new, Exposure.NONE)
    assert stale([forged], old, new) == [forged]
    assert stale([forged], new, new) == []
    # Flows of the network's containers continue when an engine's network becomes ours.
    engines = replace(new, networks=(X, replace(Y, managed_by=ManagedBy.ENGINE)))
    assert stale([forged], engines, new) == []


def test_reversed_entry_of_a_deleted_flow_is_stale_at_a_later_scan() -> None:
    """By its reply tuple: otherwise it looks like a flow that the container opened."""
    old, new = want(), want()
    asked = flow(f"{CLIENT} {HOST} 5353 -> fd00:a::2 53")
    turned = Entry(original=asked.reply, reply=asked.original)
    own = flow(f"fd00:a::2 {CLIENT} 40001", port=53)
    flows = [turned, own, asked]
    assert stale(flows, old, new) == []
    assert stale(flows, old, new, deleted_replies={asked.reply.packed}) == [turned]


def test_later_scans_do_not_check_exposure() -> None:
    here = desired(snapshot(X, Y), Policy())
    flows = entries(ENTRIES)
    assert stale(flows, here, here, Exposure.OPEN, deleted_replies=set()) == []


LEAVING = """
udp      17 29 src=fd00:a::2 dst=2001:db8::2 sport=54 dport=4444 src=2001:db8::2 dst=2001:db8:1::1 sport=4444 dport=54 mark=0 use=1
tcp      6 299 ESTABLISHED src=fd00:a::2 dst=2001:db8::2 sport=81 dport=4444 src=2001:db8::2 dst=2001:db8:1::1 sport=4444 dport=81 [ASSURED] mark=0 use=1
icmpv6   58 29 src=fd00:b::2 dst=2001:db8::4 type=128 code=0 id=3 src=2001:db8::4 dst=2001:db8:1::1 type=129 code=0 id=3 mark=0 use=1
udp      17 29 src=fd00:b::2 dst=fd00:a::9 sport=54 dport=4444 src=fd00:a::9 dst=fd00:a::1 sport=4444 dport=54 mark=0 use=1
udp      17 29 src=2001:db8:1::1 dst=2001:db8:1::1 sport=7 dport=5353 src=fd00:a::2 dst=2001:db8:1::1 sport=53 dport=7 mark=0 use=1
udp      17 29 src=fd00:a::3 dst=fd00:a::2 sport=1 dport=80 src=fd00:a::2 dst=fd00:a::3 sport=80 dport=1 mark=0 use=1
udp      17 29 src=2001:db8::2 dst=2001:db8:1::1 sport=9 dport=5353 src=fd00:a::2 dst=2001:db8::2 sport=53 dport=9 mark=0 use=1
udp      17 29 src=2001:db8:1::1 dst=2001:db8::2 sport=9 dport=53 src=2001:db8::2 dst=2001:db8:1::1 sport=53 dport=9 mark=0 use=1
"""  # noqa: E501
"""Flows of containers, or with their addresses as forged sources; the last three are not."""


@pytest.mark.parametrize(
    ("exposed", "found"),
    [
        (Exposure.NONE, []),
        (Exposure.OPEN, [0, 2, 3, 4]),
        (Exposure.UNGUARDED, [0, 1, 2, 3, 4]),
    ],
)
def test_flow_with_a_possibly_forged_source_is_stale_after_exposure(
    exposed: Exposure, found: list[int]
) -> None:
    """In the engine's networks as well. A TCP connection may end by that, so it stays unless
    sources were never checked."""
    here = desired(snapshot(X, Y), Policy())
    engines = replace(here, networks=(X, replace(Y, managed_by=ManagedBy.ENGINE)))
    flows = entries(LEAVING)
    for want in (here, engines):
        assert [flows.index(entry) for entry in stale(flows, want, want, exposed)] == found
    assert affects_entries(engines, engines, exposed) is bool(exposed)


@pytest.mark.parametrize("exposed", Exposure)
def test_flow_from_a_prefix_that_is_routed_to_a_container_is_stale_after_exposure(
    exposed: Exposure,
) -> None:
    routed = replace(X, routed_prefixes=(IPv6Network("fd00:ee::/64"),))
    here = desired(snapshot(routed, Y), Policy())
    forged = flow("fd00:ee::7 2001:db8::2 4446 -> 2001:db8::2 4446")
    elsewhere = flow("fd00:ef::7 2001:db8::2 4446 -> 2001:db8::2 4446")
    found = stale([forged, elsewhere], here, here, exposed)
    assert found == ([forged] if exposed else [])


def test_exposure_follows_from_the_chains_of_raw_and_filter() -> None:
    guard = ruleset(desired(snapshot(X), Policy())).guard
    firewall = FakeFirewall()
    assert past_exposure(guard, firewall.read(), None) is Exposure.OPEN
    for change in rewrite_tables(firewall.read(), guard):
        firewall.write(change)
    for saved in (None, guard):
        assert past_exposure(guard, firewall.read(), saved) is Exposure.NONE
    # As many rules, for a network on the same bridge with another subnet.
    other = replace(X, subnets=(IPv6Network("fd00:77::/64"),))
    saved = ruleset(desired(snapshot(other), Policy())).guard
    assert past_exposure(guard, firewall.read(), saved) is Exposure.OPEN
    firewall.load("*filter\n-D FORWARD -m comment --comment ipv6natd -j IPV6NAT-FORWARD\nCOMMIT\n")
    assert past_exposure(guard, firewall.read(), None) is Exposure.OPEN
    jump = "PREROUTING -m comment --comment ipv6natd -j IPV6NAT-SRC"
    firewall.load(f"*raw\n-D {jump}\n:IPV6NAT-SRC - [0:0]\n-X IPV6NAT-SRC\nCOMMIT\n")
    assert past_exposure(guard, firewall.read(), None) is Exposure.UNGUARDED
