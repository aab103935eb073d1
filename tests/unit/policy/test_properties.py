"""Properties for any input, with the same inputs on every run; a docstring states the property."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from itertools import product
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipv6natd.engine import parse as docker_facts
from ipv6natd.firewall.backend import FirewallError
from ipv6natd.model import (
    ANY,
    Container,
    Desired,
    Endpoint,
    Engine,
    Mapping,
    Network,
    Policy,
    PortBinding,
    Protocol,
    Snapshot,
)
from ipv6natd.netfilter.diff import TableChange, diff_chains, jumps_differ, matches, rewrite_tables
from ipv6natd.netfilter.render import format_change, format_rule, format_ruleset
from ipv6natd.netfilter.rules import EMPTY, Chains, Dnat, Jump, Match, Table, Verdict
from ipv6natd.policy.desired import desired, during_change
from ipv6natd.policy.ruleset import ruleset
from ipv6natd.sync.applier import remove_all
from tests.harness.build import identity, recorded
from tests.harness.fake_firewall import FakeFirewall

bounded = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# Mangled answers of an engine.

_ADDRESS = r"[0-9a-f:]{2,39}(?:\.[0-9]{1,3}){0,3}"
_NET = rf"{_ADDRESS}/[0-9]{{1,3}}"
_INTERFACE = r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,14}"
_PORTS = r"(?:TCP|UDP|SCTP)(?:-[0-9]{1,5}-[0-9]{1,5})?"
_BRIDGES = r"IPV6NAT-[ACDEFHILNOPSVX]?(?:IN|OUT)-[A-Za-z0-9_.@-]{1,14}"
_OWN = r"(?:FROM|NEW|OWN|SENT)-[A-Za-z0-9_.@-]{1,15}"
_PORTS_OF = rf"(?:AT-|REJ-|UP-)?{_PORTS}"
_SOURCES = r"[0-9a-f]{1,20}"
_FIXED = (
    r"SRC(?:-FRAMES|-OUT|(?:-TO)?-HOST)?|FORWARD|CT|INPUT|OUTPUT(?:-SRC)?|HOST|PROXY|PRE|DNAT|POST|REJ"
    rf"|{_SOURCES}|{_OWN}|{_PORTS_OF}"
)
_CHAIN = rf"(?:IPV6NAT-(?:{_FIXED})|{_BRIDGES})"
_MATCHES = (
    rf"(?:! )?-[sd] {_NET}",
    rf"(?:! )?-[io] {_INTERFACE}",
    r"-p (tcp|udp|sctp)(?: -m (?:tcp|udp|sctp) --dport [0-9]{1,5}(?::[0-9]{1,5})?)?",
    r"-m addrtype (?:! )?--(?:src|dst)-type LOCAL(?:,ANYCAST)?(?: --limit-iface-in)?",
    r"-m conntrack --ctstate (?:NEW,INVALID,UNTRACKED|RELATED|ESTABLISHED|DNAT|INVALID)",
    r"-m comment --comment ipv6natd",
    r"-m pkttype --pkt-type (?:broadcast|multicast)",
    r"-m frag",
    r"-m mark --mark 0x[0-9a-f]{1,8}/0x[0-9a-f]{1,8}",
    r"-p ipv6-icmp",
    r"-p ah",
    r"-m tcp --tcp-flags FIN,SYN,RST,ACK SYN",
    r"-m conntrack --ctdir REPLY",
    r"-m conntrack --ctproto (?:tcp|udp|sctp)",
    r"-m conntrack --ctorigdstport [0-9]{1,5}(?::[0-9]{1,5})?",
)
_TARGETS = (
    r"ACCEPT|DROP|RETURN|MASQUERADE|REDIRECT|DOCKER-USER",
    _CHAIN,
    rf"DNAT --to-destination (?:{_ADDRESS}|\[{_ADDRESS}\]:[0-9]{{1,5}})",
    rf"SNAT --to-source {_ADDRESS}",
    r"REJECT --reject-with (?:tcp-reset|icmp6-port-unreachable)",
)
GRAMMAR = re.compile(
    rf"\*(?:raw|filter|nat)|COMMIT|:{_CHAIN} - \[0:0\]"
    rf"|-A (?:FORWARD|INPUT|PREROUTING|OUTPUT|POSTROUTING|{_CHAIN})"
    rf"(?: (?:{'|'.join(_MATCHES)}))* -j (?:{'|'.join(_TARGETS)})"
    rf"|-A {_CHAIN} -i veth\+ -j DROP"
    rf"|-A {_CHAIN} -[io] [A-Za-z0-9_][A-Za-z0-9_.@-]{{0,13}}\+ -j {_BRIDGES}",
    re.ASCII,
)
RECORDED = {
    "networks": recorded("networks.json"),
    "list": recorded("list.json"),
    "inspects": [
        recorded(f"inspect-{name}.json") for name in ("web", "in", "def", "noip6", "ho", "sh")
    ],
}
HOSTILE = [
    "\n",
    "-A FORWARD -j ACCEPT",
    'x" -j ACCEPT',
    "x y",
    "br+",
    "!",
    "\0",
    "\ud800",
    "é" * 300,
    "x" * 10_000,
    "fd00:a::%\n-A FORWARD -j ACCEPT\n/64",
    "fd00:a::9%\n-j ACCEPT",
    "fd00:a::/64 -j ACCEPT",
    "::ffff:192.0.2.1",
    "65536",
    "0",
    "-1",
    ":",
    "fd00::/7",
    "::/0",
    "true ",
    "2001:db8::1",
    "routed",
    "80/tcp",
    "80/icmp",
]
KEYS = [
    "com.docker.network.bridge.name",
    "com.docker.network.bridge.enable_icc",
    "com.docker.network.bridge.host_binding_ipv6",
    "com.docker.network.bridge.trusted_host_interfaces",
    "com.docker.network.host_ipv6",
    "80/tcp",
    "\n",
]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(HOSTILE)
)
any_json = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else ()
    for key, inner in [*items, *(enumerate(value) if isinstance(value, list) else ())]:
        yield (*path, key)
        yield from places(inner, (*path, key))


PLACES = list(places(RECORDED))


@st.composite
def mangled(draw: st.DrawFn) -> Any:
    """The recorded answers with some values replaced, removed or added."""
    whole = deepcopy(RECORDED)
    for *way, last in draw(st.lists(st.sampled_from(PLACES), max_size=8)):
        place: Any = whole
        for key in way:
            inside = isinstance(place, dict) and key in place
            inside |= isinstance(place, list) and isinstance(key, int) and key < len(place)
            place = place[key] if inside else None
        if isinstance(place, dict):
            match draw(st.integers(0, 3)):
                case 0:
                    place.pop(last, None)
                case 1:
                    place[draw(st.sampled_from(KEYS))] = draw(any_json)
                case _:
                    place[last] = draw(any_json)
        elif isinstance(place, list) and isinstance(last, int) and last < len(place):
            place[last] = draw(any_json)
    return whole


VERSIONS = ["20.10.24", "20.10.5", "28.0.0", "", "x"]


@bounded
@given(mangled(), st.sampled_from(VERSIONS), st.booleans(), st.booleans())
def test_no_answer_of_an_engine_raises_or_reaches_rule_text(
    answers: dict[str, Any], version: str, any_means_ipv6: bool, userland_proxy: bool
) -> None:
    """For any JSON from an engine, nothing raises, and rule text contains only our chains,
    interface names, addresses, numbers and a few fixed words."""
    engine = Engine(version=version)
    rows = [answer for answer in answers.values() if isinstance(answer, list)]
    assert_harmless(rows, engine, any_means_ipv6=any_means_ipv6, proxy=userland_proxy)


def assert_harmless(
    rows: list[list[Any]], engine: Engine, *, any_means_ipv6: bool, proxy: bool
) -> tuple[Snapshot, Desired]:
    """Asserts that the rules for these lists and inspects are in the grammar."""
    networks = [docker_facts.network(answer) for row in rows for answer in row]
    containers = [docker_facts.container(answer, engine) for row in rows for answer in row]
    for known in filter(None, containers):
        docker_facts.needs_inspect(
            known, engine, {network.id: network for network in networks if network}
        )
        docker_facts.matches_inspect(known, containers[0])
    facts = Snapshot(
        networks=tuple({network.id: network for network in networks if network}.values()),
        containers=tuple(
            {container.id: container for container in containers if container}.values()
        ),
        userland_proxy=proxy,
    )
    policy = Policy(
        nat_prefixes=(IPv6Network("::/0"),),
        ipv4_any_means_ipv6=any_means_ipv6,
    )
    want = desired(facts, policy)
    rules = ruleset(want)
    for line in format_ruleset(rules).split("\n")[:-1]:
        assert GRAMMAR.fullmatch(line), line
    shown = [text for skip in want.skipped for text in (skip.network, skip.port, skip.reason)]
    assert all(len(text.encode()) < 5000 for text in shown)
    firewall = FakeFirewall()
    write(firewall, want, None)
    assert all(matches(rules.table(table), firewall.read()[table]) for table in Table)
    return facts, want


@bounded
@given(any_json)
def test_no_event_raises(event: object) -> None:
    """Any event names a container, a network or nothing, and never raises."""
    named = docker_facts.event_subjects(event)
    assert all(subject.id and isinstance(subject.id, str) for subject in named)
    assert docker_facts.engine(event, event).version.encode()
    assert docker_facts.quoted(event).isascii()


def test_the_grammar_rejects_foreign_words() -> None:
    """The grammar has no quote, no blank in a name and no second target."""
    for bad in (
        "-A IPV6NAT-FORWARD -i br+ -j ACCEPT",
        "-A IPV6NAT-FORWARD -i -j -j ACCEPT",
        '-A IPV6NAT-FORWARD -i "a" -j ACCEPT',
        "-A IPV6NAT-FORWARD -j ACCEPT -j DROP",
        "-A FORWARD -j SOMEBODY",
        "-A IPV6NAT-DNAT -s fd00::%x/64 -j RETURN",
        "",
    ):
        assert not GRAMMAR.fullmatch(bad)


# States of a host.

NAMES = ("a", "b", "c")
HOSTS = (ANY, ANY, ANY, IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2"))
ADDRESSES = (*HOSTS, IPv6Address("::1"), IPv6Address("fe80::1"), IPv4Address(0), None)


@st.composite
def network_facts(draw: st.DrawFn, name: str) -> Network:
    index = NAMES.index(name) + 10
    subnets = [IPv6Network(f"fd00:{index}::/64"), IPv6Network(f"fd00:{index}:1::/64")]
    return Network(
        id=identity(name),
        name=name,
        driver="bridge",
        bridge=f"br-{draw(st.sampled_from([name, name, name, 'shared']))}",
        enable_ipv6=True,
        subnets=tuple(subnets[: draw(st.integers(1, 2))]),
        internal=draw(st.booleans()) and draw(st.booleans()),
        icc=draw(st.booleans()),
        masquerade=draw(st.booleans()),
        source_address=draw(st.sampled_from([None, IPv6Address("2001:db8::1")])),
        host_binding_ipv6=draw(st.sampled_from([None, None, IPv6Address("2001:db8::2")])),
    )


@st.composite
def bindings(draw: st.DrawFn) -> list[PortBinding]:
    first, count = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    shift = draw(st.sampled_from([0, 0, 100]))
    protocol, address = draw(st.sampled_from(list(Protocol))), draw(st.sampled_from(ADDRESSES))
    return [
        PortBinding(
            protocol=protocol,
            container_port=port + shift,
            host_address=address,
            host_port=port,
        )
        for port in range(first, first + count)
    ]


# A list: the order of a set would differ from run to run.
names = st.lists(st.sampled_from(NAMES), unique=True)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    networks = [draw(network_facts(name)) for name in draw(names)]
    containers = []
    for index in range(draw(st.integers(0, 4)) if networks else 0):
        on = draw(st.lists(st.sampled_from(networks), min_size=1, unique=True))
        endpoints = tuple(
            Endpoint(
                network_id=network.id,
                address=network.subnets[0][index + 2],
                has_gateway6=True,
                gw_priority=draw(st.integers(0, 1)),
            )
            for network in on
        )
        ports = tuple(b for run in draw(st.lists(bindings(), max_size=3)) for b in run)
        name = f"c{index}"
        containers.append(
            Container(id=identity(name), name=name, endpoints=endpoints, bindings=ports)
        )
    return Snapshot(
        networks=tuple(networks),
        containers=tuple(containers),
        userland_proxy=draw(st.booleans()),
    )


POLICIES = st.builds(Policy, ipv4_any_means_ipv6=st.booleans())


def states() -> st.SearchStrategy[Desired]:
    return st.builds(desired, snapshots(), POLICIES)


FOREIGN = """\
*raw
-A PREROUTING -s 2001:db8::bad/128 -j DROP
COMMIT
*filter
:FORWARD ACCEPT [0:0]
:DOCKER - [0:0]
-A INPUT -i lo -j ACCEPT
-A FORWARD -i virbr0 -j ACCEPT
-A FORWARD -j DOCKER
-A DOCKER -m comment --comment "IPV6NAT-FORWARD" -j RETURN
COMMIT
*nat
:OTHER - [0:0]
-A PREROUTING -j OTHER
-A OUTPUT -j OTHER
-A OTHER -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 81
COMMIT
"""
USER = """\
*filter
:DOCKER-USER - [0:0]
-I FORWARD 1 -j DOCKER-USER
-A DOCKER-USER -s 2001:db8::bad -j DROP
COMMIT
"""


class WatchedFirewall(FakeFirewall):
    """Fails the test as soon as a write changes rules that are not ours."""

    def __init__(self, *loaded: str) -> None:
        super().__init__()
        for text in loaded:
            self.load(text)
        self.begin = self.dump()
        self.foreign = self._foreign()

    def write(self, change: TableChange) -> None:
        super().write(change)
        assert self._foreign() == self.foreign

    def _foreign(self) -> list[str]:
        ours = re.compile(
            r"(?::|-A )IPV6NAT-|:DOCKER-USER|-A \S+ (?:.* )?-j (?:IPV6NAT-\S+|DOCKER-USER)$"
        )
        return [line for line in self.dump().splitlines() if not ours.match(line)]


firewalls = st.sampled_from([(FOREIGN,), (FOREIGN, USER)])


def changes(firewall: FakeFirewall, want: Desired, before: Desired | None) -> list[TableChange]:
    rules = ruleset(want)
    if before is None:
        return rewrite_tables(firewall.read(), rules)
    old, interim = ruleset(before), ruleset(during_change(before, want))
    if jumps_differ(old, rules):
        return rewrite_tables(firewall.read(), rules, interim=interim)
    return diff_chains(old, rules, interim=interim)


def write(firewall: FakeFirewall, want: Desired, before: Desired | None) -> None:
    for change in changes(firewall, want, before):
        firewall.write(change)


def by_chain(firewall: FakeFirewall) -> dict[str, list[str]]:
    """The rules of the dump by chain, without the order in which chains were created."""
    found: dict[str, list[str]] = {}
    table = ""
    for line in firewall.dump().splitlines():
        if line.startswith("*"):
            table = line
        elif line.startswith(":"):
            found[f"{table} {line}"] = []
        elif line.startswith("-A"):
            found.setdefault(f"{table} {line.split()[1]}", []).append(line)
    return found


@bounded
@given(firewalls, st.lists(states(), min_size=1, max_size=5))
def test_writes_in_steps_end_like_one_full_write(
    loaded: tuple[str, ...], wants: list[Desired]
) -> None:
    """After any states the tables are as after one full write of the last state, a second pass
    writes nothing, foreign rules never change, and removal restores the first tables."""
    firewall, direct = WatchedFirewall(*loaded), WatchedFirewall(*loaded)
    before = None
    for want in wants:
        write(firewall, want, before)
        assert all(matches(ruleset(want).table(table), firewall.read()[table]) for table in Table)
        assert changes(firewall, want, want) == []
        before = want
    write(direct, wants[-1], None)
    assert by_chain(firewall) == by_chain(direct)
    remove_all(firewall)
    assert firewall.dump() == firewall.begin


@bounded
@given(firewalls, st.lists(st.tuples(states(), st.integers(0, 4)), min_size=1, max_size=5))
def test_a_full_pass_after_failed_writes_gives_the_wanted_state(
    loaded: tuple[str, ...], wants: list[tuple[Desired, int]]
) -> None:
    """After any failed writes, one full pass writes the wanted state."""
    firewall, direct = WatchedFirewall(*loaded), WatchedFirewall(*loaded)
    before: Desired | None = None
    for want, fails_at in wants:
        for number, change in enumerate(changes(firewall, want, before), 1):
            firewall.fail_next = "no room" * (number == fails_at)
            try:
                firewall.write(change)
            except FirewallError:
                before = None
                break
        else:
            before = want
    last = wants[-1][0]
    write(firewall, last, None)
    write(direct, last, None)
    assert by_chain(firewall) == by_chain(direct)
    remove_all(firewall)
    assert firewall.dump() == firewall.begin


@bounded
@given(states(), states())
def test_between_writes_the_filter_closes_every_target_of_dnat(old: Desired, new: Desired) -> None:
    """Between any two writes, the filter table closes the bridge of every DNAT target to all other
    packets."""
    firewall, both = FakeFirewall(), (*old.mappings, *new.mappings)
    write(firewall, old, None)
    for change in changes(firewall, new, old):
        firewall.write(change)
        dump = firewall.dump()
        for address in set(re.findall(r"--to-destination \[?([0-9a-f:]+)", dump)):
            # More than one if the network of the address moves to another bridge.
            mine = {mapping.bridge for mapping in both if str(mapping.container_address) == address}
            assert any(f"! -i {bridge} -o {bridge} -j DROP" in dump for bridge in mine)


@bounded
@given(states())
def test_a_formatted_change_is_one_transaction_in_the_grammar(want: Desired) -> None:
    """A change is one table, from its name to its COMMIT, and all its rules are in the grammar."""
    rules = ruleset(want)
    for change in diff_chains(EMPTY, rules):
        lines = format_change(change).splitlines()
        assert (lines[0], lines[-1]) == (f"*{change.table}", "COMMIT")
        assert lines.count("COMMIT") == 1
        assert all(GRAMMAR.fullmatch(line) for line in lines if line.startswith("-A"))


# No packet has two owners.


Packet = tuple[IPv6Address, Protocol, int, str]
"""Destination, protocol, port and input interface."""


def dnat_target(chains: Chains, name: str, packet: Packet) -> str:
    """The DNAT target of a packet from outside, as "address port", or empty."""
    address, protocol, port, in_interface = packet
    for rule in chains.get(name, ()):
        unknown = (rule.out_interface, rule.not_out_interface, rule.not_destination)
        assert not any(unknown), format_rule(rule)
        assert rule.matches in ((), (Match.SOURCE_LOCAL,)), format_rule(rule)
        # The client's source is in none of our subnets and not link-local.
        hit = (
            rule.source is None
            and not rule.matches
            and (rule.destination is None or address in rule.destination)
            and rule.in_interface in ("", in_interface)
            and rule.not_in_interface != in_interface
            and rule.protocol in (None, protocol)
            and (rule.ports is None or rule.ports[0] <= port <= rule.ports[1])
        )
        if hit and isinstance(rule.target, Jump):
            return dnat_target(chains, rule.target.chain, packet)
        if hit and isinstance(rule.target, Dnat):
            return f"{rule.target.address} {rule.target.port or port}"
        if hit:
            # The packet goes to the proxy or to the host.
            assert rule.target in (Verdict.RETURN, Verdict.REDIRECT)
            return ""
    return ""


def owner(want: Desired, packet: Packet) -> Mapping | None:
    """The mapping that owns the port: for this address first, else for all addresses."""
    address, protocol, port, _ = packet
    for host_address in (address, ANY):
        mine = [
            mapping
            for mapping in want.mappings
            if (mapping.protocol, mapping.host_address) == (protocol, host_address)
            and mapping.host_port <= port <= mapping.host_port_end
        ]
        assert len(mine) <= 1
        if mine:
            return mine[0]
    return None


@settings(bounded, max_examples=100)
@given(states())
def test_no_packet_has_two_owners(want: Desired) -> None:
    """For any address, protocol, port and interface the first DNAT that matches belongs to the
    mapping that owns the port. With the proxy on, packets from the owner's bridge match none."""
    nat = ruleset(want).nat.chains
    interfaces = ["eth0", *(network.bridge for network in want.networks)]
    others = [IPv6Address(f"2001:db8::{i}") for i in (1, 2, 3)]
    for packet in product(others, Protocol, range(14), interfaces):
        mine, in_interface = owner(want, packet), packet[3]
        expected = ""
        neighbours = mine and want.userland_proxy and mine.bridge == in_interface
        if mine and not neighbours:
            inside = mine.container_port + packet[2] - mine.host_port
            expected = f"{mine.container_address} {inside}"
        assert dnat_target(nat, "IPV6NAT-PRE", packet) == expected
