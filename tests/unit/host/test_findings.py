"""The findings about a host, each with its command."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from ipv6natd.host import facts as host_facts
from ipv6natd.host.findings import (
    STATE_FOLDER,
    XTABLES_LOCK,
    Finding,
    HostFacts,
    RaDefaultRoute,
    Severity,
    evaluate,
    kernel_fault,
)
from ipv6natd.host.nft import ForwardedPacket, base_chains, blocks
from ipv6natd.model import ManagedBy, Protocol
from ipv6natd.netfilter.rules import Backend
from tests.harness.build import network

X = network(name="x", bridge="br-x", gateway=IPv6Address("fd00:a::1"))
CUT = network(name="cut", subnet="fd00:c::/64", bridge="br-cut", icc=False)
INNER = network(name="inner", subnet="fd00:d::/64", bridge="br-inner", internal=True)
NATIVE = network(name="n", bridge="br-n", icc=False, managed_by=ManagedBy.ENGINE)
PROGRAMS = {"docker", "ip6tables", "ipv6natctl", "ipv6natd", "modprobe", "sysctl", "update-grub"}
WELL = HostFacts(client_interfaces=("br-x", "eth0"))
ADVERTISED = RaDefaultRoute(interface="eth0.7", accept_ra=1, forwarding=True)


def chain(*rules: list[dict[str, Any]], policy: str = "drop", **fields: Any) -> HostFacts:
    """A host with one more base chain, by default on the hook forward."""
    facts = {"family": "inet", "table": "mine", "name": "forward", "hook": "forward"} | fields
    head = {"chain": facts | {"policy": policy}}
    place = {"family": facts["family"], "table": facts["table"], "chain": facts["name"]}
    listed: list[dict[str, Any]] = [head]
    for rule in rules:
        listed.append({"rule": place | {"expr": rule}})
    return replace(WELL, nft_chains=base_chains(listed))


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


ACCEPT: dict[str, Any] = {"accept": None}
DROP: dict[str, Any] = {"drop": None}
STATUS, STATE = {"ct": {"key": "status"}}, {"ct": {"key": "state"}}
IIF, OIF = {"meta": {"key": "iifname"}}, {"meta": {"key": "oifname"}}
DNATED = [match(STATUS, "dnat", "in"), ACCEPT]
OPEN_CONNECTIONS = [match(STATE, ["established", "related"], "in"), ACCEPT]
OUT = [match(IIF, "br-*"), ACCEPT]
SOURCE = {"payload": {"protocol": "ip6", "field": "saddr"}}
JUMPS = ("-A FORWARD -j DOCKER-USER", "-A FORWARD -m comment --comment x -j IPV6NAT-FORWARD")
SOURCES = {"fib": {"result": "oif", "flags": ["saddr", "mark", "iif"]}}


def errors(*args: Any, **options: Any) -> tuple[Finding, ...]:
    """The findings that have to be corrected."""
    found = evaluate(*args, **options)
    return tuple(finding for finding in found if finding.severity is Severity.ERROR)


def noted(*args: Any) -> list[str]:
    """The texts of the notes."""
    found = evaluate(*args)
    return [finding.text for finding in found if finding.severity is Severity.NOTE]


def test_open_router_is_not_reported_before_the_bridges_are_known() -> None:
    """These bridges are interfaces too: the first start would report a false finding."""
    facts = replace(WELL, interfaces=("br-x", "eth0"))
    assert errors(facts, [], engine_writes=True) == ()
    assert errors(facts, [X]) == ()
    assert len(errors(facts, [])) == 1


def test_flushed_rules_of_the_engine_are_reported_with_the_restart() -> None:
    """Q8."""
    for ports, text in (
        ([(Protocol.TCP, 80)], "rule of port 80/tcp is missing"),
        ([(Protocol.UDP, 53), (Protocol.TCP, 80)], "rule of port 53/udp and of 1 more is missing"),
    ):
        (finding,) = errors(WELL, [NATIVE], engine_writes=True, missing_engine_rules=ports)
        assert text in finding.text
        assert finding.command == "systemctl restart docker"


@pytest.mark.parametrize(
    ("facts", "words", "command"),
    [
        (replace(WELL, ipv6=False), "runs without IPv6", "update-grub && reboot"),
        (
            replace(WELL, disabled=True, forwarding=False),
            "IPv6 is switched off",
            "sysctl -w net.ipv6.conf.all.disable_ipv6=0",
        ),
        (
            replace(WELL, forwarding=False),
            "forwarding is off",
            "sysctl -w net.ipv6.conf.all.forwarding=1",
        ),
        (
            replace(WELL, ra_default_routes=(ADVERTISED,)),
            "eth0/7.accept_ra=2 into /etc/sysctl.d/60-ipv6natd-accept-ra.conf",
            "sysctl -w net.ipv6.conf.eth0/7.accept_ra=2",
        ),
        (
            replace(WELL, docker_ipv6nat="docker rm -f 0123456789ab"),
            "docker-ipv6nat runs",
            "docker rm -f 0123456789ab",
        ),
        (
            replace(WELL, docker_ipv6_rules=frozenset({"ip6tables-nft", "ip6tables-legacy"})),
            "docker-ipv6nat are in ip6tables-legacy and ip6tables-nft",
            "ipv6natctl cleanup --leftovers",
        ),
        (replace(WELL, stale_rules=True), "are in the legacy variant", "ipv6natd -flush"),
        (
            replace(WELL, raw_table=False),
            "the kernel lacks the table raw",
            "modprobe ip6table_raw && systemctl restart ipv6natd",
        ),
        (
            replace(WELL, docker_ipv4_variants=frozenset({"legacy"})),
            'backend = "legacy"',
            "systemctl restart ipv6natd",
        ),
        (
            replace(WELL, backend="legacy", docker_ipv4_variants=frozenset({"nft"})),
            'backend = "nft"',
            "systemctl restart ipv6natd",
        ),
        (
            replace(WELL, interfaces=("br-x", "eth0", "wg0")),
            "for everyone between eth0 and wg0",
            "ip6tables -P FORWARD DROP",
        ),
    ],
)
def test_finding_has_the_fault_and_ends_with_the_command(
    facts: HostFacts, words: str, command: str
) -> None:
    (finding,) = errors(facts, [X])
    assert words in finding.text
    assert finding.command.endswith(command)
    assert finding.command.split()[0] in PROGRAMS
    assert finding.bridge == ""


@pytest.mark.parametrize(
    "facts",
    [
        WELL,
        HostFacts(),
        replace(WELL, ra_default_routes=(replace(ADVERTISED, accept_ra=2),)),
        replace(WELL, ra_default_routes=(replace(ADVERTISED, forwarding=False),)),
        # A network manager that reads advertisements itself sets accept_ra to 0.
        replace(WELL, ra_default_routes=(replace(ADVERTISED, accept_ra=0),)),
        replace(WELL, docker_ipv4_variants=frozenset({"nft"})),
        replace(WELL, docker_ipv4_variants=frozenset({"nft", "legacy"})),
        replace(WELL, interfaces=("br-x", "eth0")),
        replace(WELL, interfaces=("eth0", "wg0"), forward_policy="DROP"),
        replace(WELL, interfaces=("eth0", "wg0"), forward_rules=("-A FORWARD -j DROP",)),
        replace(WELL, zones={"br-x": "trusted"}),
        replace(chain(DNATED, OPEN_CONNECTIONS, OUT), interfaces=("eth0", "wg0")),
    ],
)
def test_host_without_faults_has_no_finding(facts: HostFacts) -> None:
    assert errors(facts, [X]) == ()


def test_open_router_is_reported_with_our_jumps_and_an_empty_chain() -> None:
    facts = replace(chain(policy="accept"), interfaces=("eth0", "wg0"), forward_rules=JUMPS)
    assert len(errors(facts, [X])) == 1


@pytest.mark.parametrize(
    ("rules", "open_"),
    [
        (("-A FORWARD -j DROP",), False),
        (("-A FORWARD -i wg0 -j ACCEPT", "-A FORWARD -j REJECT --reject-with x"), False),
        (('-A FORWARD -m comment --comment "no more" -j DROP',), False),
        (("-A FORWARD -i wlan0 -j DROP",), True),
        (("-A FORWARD -s 2001:db8::/64 -j REJECT",), True),
        (("-A FORWARD -j theirs",), True),
        (("-A FORWARD -j LOG",), True),
    ],
)
def test_open_router_is_not_reported_if_a_forward_rule_drops_everything(
    rules: tuple[str, ...], open_: bool
) -> None:
    facts = replace(WELL, interfaces=("eth0", "wg0"), forward_rules=(*JUMPS, *rules))
    assert bool(errors(facts, [X])) is open_


OLD = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"


@pytest.mark.parametrize(
    ("rule", "chains", "open_"),
    [
        ("-j FW", {"FW": (OLD, "-j DROP")}, False),
        ("-g FW", {"FW": (OLD, "-j REJECT --reject-with icmp6-port-unreachable")}, False),
        ('-m comment --comment "my own" -j FW', {"FW": (OLD, "-j DROP")}, False),
        ("-j FW", {"FW": (OLD, "-m conntrack --ctstate INVALID,NEW -j DROP")}, False),
        ("-j FW", {"FW": ("-m state --state INVALID,NEW -j DROP",)}, False),
        ("-j FW", {"FW": ("-m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP",)}, False),
        ("-m conntrack --ctstate NEW -j FW", {"FW": ("-j DROP",)}, False),
        ("-j FW", {"FW": ("-i wg0 -j RETURN", "-j END"), "END": ("-j DROP",)}, False),
        ("-j FW", {"FW": ("-m conntrack --ctstate INVALID -j DROP",)}, True),
        ("-j FW", {"FW": (OLD, "-j RETURN", "-j DROP")}, True),
        ("-j FW", {"FW": ("-j ACCEPT", "-j DROP")}, True),
        ("-j FW", {"FW": ("-g END", "-j DROP"), "END": (OLD,)}, True),
        ("-j FW", {"FW": ("-i wg0 -j DROP",)}, True),
        ("-i wg0 -j FW", {"FW": ("-j DROP",)}, True),
        ("-j FW", {"FW": ("-j FW",)}, True),
    ],
)
def test_open_router_is_not_reported_if_a_chain_drops_every_new_packet(
    rule: str, chains: dict[str, tuple[str, ...]], open_: bool
) -> None:
    """The chains that FORWARD leads to without a condition."""
    facts = replace(
        WELL,
        interfaces=("eth0", "wg0"),
        forward_rules=(*JUMPS, f"-A FORWARD {rule}"),
        forward_chains=chains,
    )
    found = errors(facts, [X])
    assert bool(found) is open_


@pytest.mark.parametrize(
    ("rules", "policy", "open_"),
    [
        ([], "drop", False),
        ([[DROP]], "accept", False),
        ([[match(SOURCE, "2001:db8::1"), ACCEPT]], "drop", False),
        ([[match(IIF, "wg0"), match(SOURCE, "2001:db8::1"), DROP]], "accept", True),
        ([[match(IIF, "wlan0"), DROP]], "accept", True),
        ([OPEN_CONNECTIONS], "accept", True),
        # One direction of two is open.
        ([[match(IIF, "wg0"), ACCEPT]], "drop", True),
    ],
)
def test_open_router_is_not_reported_if_an_nft_chain_drops_other_packets(
    rules: list[list[dict[str, Any]]], policy: str, open_: bool
) -> None:
    facts = replace(chain(*rules, policy=policy), interfaces=("eth0", "wg0"), client_interfaces=())
    assert bool(errors(facts, [X])) is open_


def test_policy_counts_after_a_jump_with_an_unknown_match() -> None:
    place = {"family": "inet", "table": "mine"}
    jump = [match(SOURCE, "2001:db8::1"), {"jump": {"target": "more"}}]
    listed: list[dict[str, Any]] = [
        {"chain": place | {"name": "forward", "hook": "forward", "policy": "drop"}},
        {"rule": place | {"chain": "forward", "expr": jump}},
        {"rule": place | {"chain": "more", "expr": [ACCEPT]}},
    ]
    facts = replace(
        WELL, nft_chains=base_chains(listed), interfaces=("eth0", "wg0"), client_interfaces=()
    )
    assert errors(facts, [X]) == ()


def test_open_router_with_one_interface_is_a_note() -> None:
    """Every host with an engine that sets no policy for IPv6 routes within its own segment."""
    facts = replace(WELL, interfaces=("br-x", "docker0", "br-0123456789ab", "eth0"))
    assert errors(facts, [X]) == ()
    (note,) = noted(facts, [X])
    assert note.startswith("this host routes IPv6 for everyone in and out by eth0: ")
    assert note.endswith(": ip6tables -P FORWARD DROP")
    assert noted(replace(facts, forward_policy="DROP"), [X]) == []
    # Q28: the policy would cut off the containers of other networks.
    public = replace(facts, global_interfaces=frozenset({"br-x", "br-0123456789ab", "eth0"}))
    (note,) = noted(public, [X], frozenset({"br-0123456789ab", "docker0"}))
    assert "must route, also for the containers on br-0123456789ab; then" in note
    named = replace(facts, interfaces=(*facts.interfaces, "ipv4only"))
    assert evaluate(named, [X], frozenset({"ipv4only"})) == evaluate(facts, [X])
    assert len(errors(named, [X])) == 1


def test_open_router_with_many_interfaces_names_some() -> None:
    facts = replace(WELL, interfaces=tuple(f"vlan{number}" for number in range(300)))
    (finding,) = errors(facts, [X])
    assert len(finding.text) < 500


FORCED = replace(
    WELL,
    forwarding=False,
    interfaces=("br-x", "eth0", "wg0"),
    forced_interfaces=frozenset({"br-x", "eth0", "wg0"}),
)


def test_open_router_by_force_forwarding_is_reported_while_forwarding_is_off() -> None:
    (finding,) = errors(FORCED, [X])
    head = "this host routes IPv6 for everyone between eth0 and wg0: force_forwarding is 1 on "
    assert finding.text.startswith(f"{head}eth0, wg0, and FORWARD does not drop packets")
    assert finding.command == "ip6tables -P FORWARD DROP"
    assert evaluate(replace(FORCED, forward_policy="DROP"), [X]) == ()
    # Only the interface by which a packet comes in decides.
    one = replace(FORCED, forced_interfaces=frozenset({"wg0"}))
    (finding,) = errors(one, [], frozenset({"br-x"}))
    assert "between wg0 and eth0: force_forwarding is 1 on wg0, and" in finding.text
    many = tuple(f"vlan{number}" for number in range(300))
    (finding,) = errors(replace(one, interfaces=(*many, "wg0")), [])
    assert "force_forwarding is 1 on wg0, and" in finding.text
    # While forwarding is on, it has no effect.
    (finding,) = errors(replace(one, forwarding=True), [X])
    assert "between eth0 and wg0: forwarding is on, and" in finding.text


def test_force_forwarding_only_on_bridges_of_the_engine_is_no_open_router() -> None:
    facts = replace(FORCED, forced_interfaces=frozenset({"br-x", "docker0"}))
    (finding,) = evaluate(facts, [X])
    assert "IPv6 forwarding is off" in finding.text


def test_containers_that_force_forwarding_serves_need_no_forwarding() -> None:
    facts = replace(FORCED, forward_policy="DROP")
    assert errors(facts, [X]) == ()
    for missing in ("br-x", "eth0"):
        (finding,) = errors(
            replace(facts, forced_interfaces=facts.forced_interfaces - {missing}), [X]
        )
        assert "IPv6 forwarding is off" in finding.text


def test_forwarding_is_not_checked_without_a_managed_network_that_needs_it() -> None:
    assert errors(replace(WELL, forwarding=False), [INNER]) == ()
    assert errors(replace(WELL, forwarding=False), [NATIVE]) == ()


def test_most_important_finding_comes_first() -> None:
    facts = replace(WELL, stale_rules=True, ra_default_routes=(ADVERTISED,), forwarding=False)
    texts = [finding.text for finding in errors(facts, [X])]
    assert [text.split()[0] for text in texts] == ["IPv6", "the", "stale"]


# Chains of nft.


def commands(facts: HostFacts) -> list[str]:
    """The rules that the finding inserts."""
    findings = errors(facts, [X, INNER])
    assert len(findings) < 2
    start = "nft insert rule inet mine forward "
    return [
        command.removeprefix(start)
        for finding in findings
        for command in finding.text[finding.text.index("nft insert") :].split(" && ")
    ]


IN_WORDS = "ct status dnat accept"
OUT_WORDS = "iifname br-x accept"
BACK_WORDS = "ct state established,related accept"


@pytest.mark.parametrize(
    ("facts", "missing"),
    [
        (chain(), [OUT_WORDS, IN_WORDS, BACK_WORDS]),
        (chain([DROP], policy="accept"), [OUT_WORDS, IN_WORDS, BACK_WORDS]),
        (chain([{"counter": {}}, {"log": {}}, {"reject": {}}], policy="accept"),
         [OUT_WORDS, IN_WORDS, BACK_WORDS]),
        (chain(policy="accept"), []),
        (chain(OPEN_CONNECTIONS), [OUT_WORDS, IN_WORDS]),
        (chain(OPEN_CONNECTIONS, OUT), [IN_WORDS]),
        (chain(OPEN_CONNECTIONS, OUT, DNATED), []),
        (chain([match({"&": [STATUS, "dnat"]}, "dnat"), ACCEPT], OPEN_CONNECTIONS, OUT), []),
        (chain([match({"&": [STATUS, "dnat"]}, 0, "!="), ACCEPT], OPEN_CONNECTIONS, OUT), []),
        # Accepts only some packets, but is for containers: its author has handled them.
        (chain([match(STATUS, "dnat", "in"), match({"payload": {"protocol": "tcp",
         "field": "dport"}}, 80), ACCEPT], OPEN_CONNECTIONS, OUT), []),
        # A drop for another reason is not a fault.
        (chain([match(STATE, "invalid", "in"), DROP], policy="accept"), []),
        (chain([match({"payload": {"protocol": "ip6", "field": "saddr"}}, "2001:db8::1"), DROP],
               policy="accept"), []),
        (chain([match(IIF, "eth0"), DROP], policy="accept"), [IN_WORDS, BACK_WORDS]),
        (chain([match(IIF, "wlan0"), DROP], policy="accept"), []),
        (chain([match(OIF, {"set": ["eth0", "wlan*"]}), DROP], policy="accept"), [OUT_WORDS]),
        (chain([match({"meta": {"key": "nfproto"}}, "ipv4"), DROP], policy="accept"), []),
        (chain([match({"meta": {"key": "nfproto"}}, "ipv4", "!="), DROP], policy="accept"),
         [OUT_WORDS, IN_WORDS, BACK_WORDS]),
        (chain([match({"meta": {"key": "nfproto"}}, "ipv6"), DROP], policy="accept"),
         [OUT_WORDS, IN_WORDS, BACK_WORDS]),
        (chain([{"limit": {"rate": 1}}, DROP], policy="accept"), []),
        (chain([match({"meta": {"key": "l4proto"}}, "ipv6-icmp"), ACCEPT]),
         [OUT_WORDS, IN_WORDS, BACK_WORDS]),
        (chain(hook="prerouting"), []),
        (chain(table="firewalld"), []),
    ],
)  # fmt: skip
def test_blocking_nft_chain_is_reported_with_the_missing_rules(
    facts: HostFacts, missing: list[str]
) -> None:
    assert commands(facts) == missing


def test_nft_jumps_are_followed_and_a_loop_ends() -> None:
    place = {"family": "inet", "table": "mine"}
    listed: list[dict[str, Any]] = [
        {"chain": place | {"name": "forward", "hook": "forward", "policy": "accept"}},
        {"rule": place | {"chain": "forward", "expr": [{"jump": {"target": "more"}}]}},
        {"rule": place | {"chain": "more", "expr": [match(IIF, "br-x"), {"return": None}]}},
        {"rule": place | {"chain": "more", "expr": [DROP]}},
    ]
    facts = replace(WELL, nft_chains=base_chains(listed))
    assert commands(facts) == [IN_WORDS, BACK_WORDS]
    listed.insert(2, {"rule": place | {"chain": "more", "expr": [{"jump": {"target": "more"}}]}})
    assert commands(replace(WELL, nft_chains=base_chains(listed))) == [IN_WORDS, BACK_WORDS]


# Findings about one network.


@pytest.mark.parametrize(
    "rules",
    [
        [[match(OIF, "virbr0"), {"reject": {}}]],
        [[match(IIF, "virbr0"), match(OIF, "virbr0"), ACCEPT], [match(IIF, "virbr0"), DROP]],
        [[match(OIF, {"set": ["virbr*", "tun0"]}), DROP]],
    ],
)
def test_block_of_an_interface_without_clients_is_not_reported(
    rules: list[list[dict[str, Any]]],
) -> None:
    """Q4: libvirt rejects new connections into its network, which is its purpose."""
    facts = replace(chain(*rules, policy="accept"), client_interfaces=("br-x", "eth0", "wlan0"))
    assert errors(facts, [X]) == ()
    trusting = network(name="x", bridge="br-x", trusted_interfaces=("virbr0",))
    assert len(errors(facts, [trusting])) == 1
    everywhere = replace(facts, client_interfaces=("virbr0",))
    assert len(errors(everywhere, [X])) == 1


BOTH = {"concat": [IIF, OIF]}
PAIRS = {"set": [{"concat": ["eth0", "br-x"]}, {"concat": ["br-x", "eth0"]}]}
ORIGINAL = match({"ct": {"key": "direction"}}, "original")


def verdict_map(key: Any, *elements: list[Any]) -> dict[str, Any]:
    return {"vmap": {"key": key, "data": {"set": [*elements]}}}


@pytest.mark.parametrize(
    "rules",
    [
        [
            [verdict_map(STATE, ["established", ACCEPT], ["related", ACCEPT], ["invalid", DROP])],
            DNATED,
            OUT,
        ],
        [[match(IIF, "@inner"), ACCEPT], DNATED, OPEN_CONNECTIONS],
        [[match(BOTH, PAIRS), ACCEPT]],
        [[verdict_map(IIF, ["eth0", ACCEPT], ["br-x", ACCEPT])]],
        [[match({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]}), ACCEPT]],
        [[ORIGINAL, match(STATE, "new", "in"), ACCEPT], OPEN_CONNECTIONS],
    ],
)
def test_firewall_that_passes_packets_of_containers_is_not_reported(
    rules: list[list[dict[str, Any]]],
) -> None:
    """Verdict maps, concatenations and sets, as `nft -j` lists them."""
    assert errors(chain(*rules), [X]) == ()


@pytest.mark.parametrize(
    ("rules", "policy", "reported"),
    [
        ([[match(IIF, "@known", "!="), DROP]], "accept", False),
        ([[match(IIF, {"set": ["eth1"]}, "!="), DROP]], "accept", True),
        ([[verdict_map(IIF, ["eth0", DROP], ["eth1", ACCEPT])]], "accept", True),
        ([[verdict_map(STATE, ["established", ACCEPT], ["new", DROP])]], "accept", True),
        ([[match(BOTH, {"set": [{"concat": ["eth0", "br-other"]}]}), ACCEPT]], "drop", True),
        ([[match({"meta": {"key": "l4proto"}}, "icmp"), ACCEPT]], "drop", True),
    ],
)
def test_firewall_that_drops_packets_of_containers_is_reported(
    rules: list[list[dict[str, Any]]], policy: str, reported: bool
) -> None:
    """If it is certain: the elements of a named set are not read."""
    assert bool(errors(chain(*rules, policy=policy), [X])) is reported


def test_chain_with_many_jumps_is_evaluated_once() -> None:
    # Ten jumps in each of sixteen chains: 10^16 paths.
    place = {"family": "inet", "table": "t"}
    head = {"chain": place | {"name": "c0", "hook": "forward"}}

    def evaluated(*last: dict[str, Any]) -> bool:
        rules = [
            {
                "rule": place
                | {"chain": f"c{depth}", "expr": [{"jump": {"target": f"c{depth + 1}"}}]}
            }
            for depth in range(16)
        ]
        (chain,) = base_chains(
            [head, *rules * 10, {"rule": place | {"chain": "c16", "expr": [*last, DROP]}}]
        )
        return blocks(chain, ForwardedPacket(bridge="br-x", incoming="br-x", outgoing="eth0"))

    assert evaluated()
    assert not evaluated(match({"payload": {"protocol": "ip", "field": "ttl"}}, 1))


def test_bridge_in_no_zone_of_firewalld_is_reported() -> None:
    (finding,) = errors(replace(WELL, zones={"eth0": "public"}), [X, INNER])
    assert finding.bridge == "br-x"
    zone = "--zone=trusted --add-interface=br-x"
    assert finding.text.endswith(f"firewall-cmd --permanent {zone} && firewall-cmd {zone}")


@pytest.mark.parametrize(
    ("facts", "command"),
    [
        (
            replace(WELL, br_netfilter=False),
            "echo br_netfilter > /etc/modules-load.d/br_netfilter.conf && modprobe br_netfilter",
        ),
        (
            replace(WELL, unfiltered_bridges=frozenset({"br-cut"})),
            "ip link set br-cut type bridge nf_call_ip6tables 1",
        ),
        (replace(WELL, unfiltered_bridges=frozenset({"br-n"})), None),
        (WELL, None),
    ],
)
def test_icc_that_is_not_enforced_is_reported(facts: HostFacts, command: str | None) -> None:
    findings = errors(facts, [X, CUT, NATIVE])
    assert [finding.bridge for finding in findings] == ([] if command is None else ["br-cut"])
    assert all(finding.text.endswith(command or "") for finding in findings)


@pytest.mark.parametrize(
    ("sysctl", "flags", "found"),
    [
        ("0", {"br-cut": "0", "br-x": "0", "br-n": "0"}, {"br-cut"}),
        ("0", {"br-cut": "1"}, set()),
        ("0", {}, set()),
        ("1", {"br-cut": "0"}, set()),
        (None, {"br-cut": "0"}, set()),
    ],
)
def test_unfiltered_bridges_are_those_of_managed_networks_without_icc(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sysctl: str | None,
    flags: dict[str, str],
    found: set[str],
) -> None:
    monkeypatch.setattr(host_facts, "_NET", tmp_path)
    monkeypatch.setattr(host_facts, "_BRIDGE_SYSCTL", tmp_path / "sysctl")
    if sysctl is not None:
        (tmp_path / "sysctl").write_text(f"{sysctl}\n")
    for bridge, flag in flags.items():
        (tmp_path / bridge / "bridge").mkdir(parents=True)
        (tmp_path / bridge / "bridge/nf_call_ip6tables").write_text(f"{flag}\n")
    assert host_facts._unfiltered_bridges([X, CUT, NATIVE]) == found


# Notes, and errors of tools.


def test_reverse_path_filter_is_a_note() -> None:
    strict = chain([match(SOURCES, False), DROP], policy="accept", hook="prerouting")
    facts = replace(strict, rpfilter_tables=("the raw table of ip6tables",))
    assert errors(facts, [X]) == ()
    assert [note.split(":")[0] for note in noted(facts, [X])] == [
        "a reverse-path filter is in the raw table of ip6tables",
        "a reverse-path filter is in inet mine forward",
    ]


def test_bridge_without_its_address_is_a_fault_of_its_network() -> None:
    """Q16: by `ip address flush`, or by a VPN that sets disable_ipv6 and clears it."""
    facts = replace(WELL, forward_policy="DROP", bridges_without_address=frozenset({"br-x"}))
    (finding,) = errors(facts, [X, INNER])
    assert finding.bridge == "br-x"
    assert finding.command == (
        "sysctl -w net/ipv6/conf/br-x/disable_ipv6=0 && "
        "ip address replace fd00:a::1/64 dev br-x nodad"
    )


@pytest.mark.parametrize(
    ("gateway", "command"),
    [
        ("fd00:a::ff", "ip address replace fd00:a::ff/64 dev br-x nodad"),
        ("fd00:b::1", "systemctl restart docker"),
        (None, "systemctl restart docker"),
    ],
)
def test_bridge_gets_its_own_address_again_and_not_that_of_a_container(
    gateway: str | None, command: str
) -> None:
    """Q16: with another gateway, the first address of the subnet can be that of a container."""
    net = replace(X, gateway=None if gateway is None else IPv6Address(gateway))
    facts = replace(WELL, bridges_without_address=frozenset({"br-x"}))
    (finding,) = errors(facts, [net])
    assert finding.command.split(" && ")[-1] == command


def notes(**facts: Any) -> list[str]:
    return noted(replace(WELL, forward_policy="DROP", **facts), [X])


@pytest.mark.parametrize("backend", Backend)
def test_missing_volume_of_the_container_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(host_facts, "_MOUNTS", mounts)
    root = "731 573 0:61 / / rw,relatime - overlay overlay rw\n"
    mounts.write_text(root)
    monkeypatch.delenv("IPV6NATD_CONTAINER", raising=False)
    assert host_facts._missing_volumes(backend) == frozenset()
    monkeypatch.setenv("IPV6NATD_CONTAINER", "1")
    missing = host_facts._missing_volumes(backend)
    wanted = {STATE_FOLDER} if backend is Backend.NFT else {STATE_FOLDER, XTABLES_LOCK}
    assert missing == wanted
    (first, *others) = notes(missing_volumes=missing)
    assert first.endswith("--volume ipv6natd:/var/lib/ipv6natd")
    assert len(others) == len(missing) - 1
    for path in missing:
        root += f"731 573 0:61 /x {path} rw,relatime - ext4 /dev/vda rw\n"
    mounts.write_text(root)
    assert host_facts._missing_volumes(backend) == frozenset()


OURS = "-A FORWARD -m comment --comment ipv6natd -j IPV6NAT-FORWARD"
MAILCOW = {"MAILCOW": ("-s 2001:db8::/64 -j DROP",)}


def test_ban_list_behind_our_rules_is_noted_with_docker_user() -> None:
    """Q2: its effect is lost. A rule that accepts or ends is no ban list."""
    rules = (OURS, "-A FORWARD -j MAILCOW", "-A FORWARD -i vmbr0 -j ACCEPT", "-A FORWARD -j DROP")
    (note,) = notes(forward_rules=rules, forward_chains=MAILCOW)
    assert "`-A FORWARD -j MAILCOW` does not see packets of containers" in note
    assert note.endswith("ip6tables -I DOCKER-USER -j MAILCOW")
    assert notes(forward_rules=("-A FORWARD -j MAILCOW", OURS), forward_chains=MAILCOW) == []
    assert notes(forward_rules=("-A FORWARD -j MAILCOW",), forward_chains=MAILCOW) == []


@pytest.mark.parametrize(
    ("rule", "noted"),
    [
        ("-j MAILCOW", True),
        ("-j WHITELIST", True),
        ("-i br-x -o br-x -j DROP", True),
        ("-i br-x -o br-x -j ACCEPT", False),
        ("-j DOCKER-BANS", True),
        ("-j DOCKER-ISOLATION-STAGE-1", False),
        ("-j ROUTER", False),
        ("-s 2001:db8::/64 -g MAILCOW", True),
    ],
)
def test_rule_that_bans_behind_ours_is_noted_unless_it_only_routes(rule: str, noted: bool) -> None:
    """Q2: a whitelist before the bans does not make it less of a ban list."""
    chains = MAILCOW | {
        "WHITELIST": ("-s 2001:db8:1::4/128 -j ACCEPT", "-s 2001:db8::/64 -j DROP"),
        "ROUTER": ("-i vmbr0 -j ACCEPT", "-o vmbr0 -j REJECT"),
        # Of the user, and of the engine.
        "DOCKER-BANS": ("-s 2001:db8::/64 -j DROP",),
        "DOCKER-ISOLATION-STAGE-1": ("! -s fd00:a::/64 -o br-x -j DROP",),
    }
    found = notes(forward_rules=(OURS, f"-A FORWARD {rule}"), forward_chains=chains)
    assert len(found) == noted


COMMAND = "to apply it to them too: ip6tables -I DOCKER-USER "
CUTS_OFF = "it would drop all packets of containers that it matches"
OPENS = "all that it accepts would also reach ports that are not published"


@pytest.mark.parametrize(
    ("rule", "chains", "advice"),
    [
        ("-s 2001:db8::/64 -j DROP", {}, f"{COMMAND}-s 2001:db8::/64 -j DROP"),
        ("-j MAILCOW", MAILCOW, f"{COMMAND}-j MAILCOW"),
        ("-s 2001:db8::/64 -g MAILCOW", MAILCOW, f"{COMMAND}-s 2001:db8::/64 -j MAILCOW"),
        ("-s 2001:db8::/64 -j END", {"END": ("-j DROP",)}, f"{COMMAND}-s 2001:db8::/64 -j END"),
        (
            "-m set --match-set bans src -j DROP",
            {},
            f"{COMMAND}-m set --match-set bans src -j DROP",
        ),
        ("-i eth0 -j DROP", {}, CUTS_OFF),
        ("! -s 2001:db8::/64 -j DROP", {}, CUTS_OFF),
        ("-m set ! --match-set friends src -j DROP", {}, CUTS_OFF),
        ("-j FW", {"FW": ("-s 2001:db8::/64 -j DROP", "-i eth0 -j DROP")}, CUTS_OFF),
        ("-j FW", {"FW": ("-s 2001:db8::/64 -j DROP", "-p tcp -j ACCEPT")}, OPENS),
        ("-j UFW", {"UFW": ("-j IN",), "IN": ("-p tcp -j ACCEPT", "-s fd77::1 -j DROP")}, OPENS),
    ],
)
def test_docker_user_is_advised_only_if_it_opens_and_cuts_off_nothing_else(
    rule: str, chains: dict[str, tuple[str, ...]], advice: str
) -> None:
    """Q2 and Q28."""
    (note,) = notes(forward_rules=(OURS, f"-A FORWARD {rule}"), forward_chains=chains)
    assert "does not see packets of containers" in note
    assert advice in note
    assert ("ip6tables" in note) == advice.startswith(COMMAND)
    assert not advice.startswith(COMMAND) or note.endswith(advice)


@pytest.mark.parametrize(
    ("rule", "noted"),
    [
        ("-i wg0 -o wg0 -j DROP", False),
        ("-i eth0 -o wg0 -j DROP", False),
        ("-s fd77::1 -i eth0 -o wg0 -j DROP", False),
        ("-i eth0 -o br-x -j DROP", True),
        ("-i eth0 -o br-+ -j DROP", True),
        ("-i eth0 ! -o wg0 -j DROP", True),
    ],
)
def test_rule_that_bans_behind_ours_is_not_noted_if_it_cannot_concern_containers(
    rule: str, noted: bool
) -> None:
    assert bool(notes(forward_rules=(OURS, f"-A FORWARD {rule}"))) is noted


@pytest.mark.parametrize(
    ("rule", "added"),
    [
        ("-j MAILCOW", "-j MAILCOW"),
        ('-m comment --comment "the bans" -j MAILCOW', "-i eth0 -j MAILCOW"),
        ("-s 2001:db8::/64 -g MAILCOW", "-s 2001:db8::/64 -j MAILCOW"),
        ("-s 2001:db8::/64 -j DROP", "-s 2001:db8::/64 -j DROP"),
    ],
)
def test_note_about_a_ban_list_ends_when_docker_user_has_it(rule: str, added: str) -> None:
    facts: dict[str, Any] = {
        "forward_rules": (OURS, f"-A FORWARD {rule}"),
        "forward_chains": MAILCOW,
    }
    assert len(notes(**facts, docker_user_rules=("-s fd77::1 -j DROP", "-j RETURN"))) == 1
    assert notes(**facts, docker_user_rules=(added, "-j RETURN")) == []


def test_rule_that_accepts_before_ours_is_noted() -> None:
    rules = ("-A FORWARD -i vmbr0 -j ACCEPT", "-A FORWARD -j DOCKER-USER", OURS)
    (note,) = notes(forward_rules=rules)
    assert "`-A FORWARD -i vmbr0 -j ACCEPT`" in note


@pytest.mark.parametrize(
    ("rule", "noted"),
    [
        ("-j MASQUERADE", "hides the addresses of clients"),
        ("-o br-x -j MASQUERADE", "hides the addresses of clients"),
        ("-m mark --mark 0x1 -j SNAT --to-source 2001:db8::1", "hides the addresses of clients"),
        ("-o eth0 -j MASQUERADE", ""),
        ("! -o br-x -j MASQUERADE", ""),
        ("! -o br-+ -j MASQUERADE", ""),
        ("! -o wg0 -j MASQUERADE", "hides the addresses of clients"),
        ("! -o docker0 -j MASQUERADE", "hides the addresses of clients"),
        ("-o br-+ -j MASQUERADE", "hides the addresses of clients"),
        ("-s 2001:db8::/32 -j MASQUERADE", "hides the addresses of clients"),
        ("-j WGNAT", "`-A WGNAT -m mark --mark 0x1 -j MASQUERADE`"),
        ("-o eth0 -j WGNAT", ""),
        ("-j LOOP", ""),
        ("-s fd4d::/64 -j SNAT --to-source 2001:db8::1", ""),
        ("-o wg0 -j RETURN", ""),
    ],
)
def test_wider_source_nat_before_ours_is_noted(rule: str, noted: str) -> None:
    """Q2, nat POSTROUTING."""
    ours = "-A POSTROUTING -m comment --comment ipv6natd -j IPV6NAT-POST"
    chains = {
        "WGNAT": ("-d fd00::/8 -j RETURN", "-m mark --mark 0x1 -j MASQUERADE"),
        "LOOP": ("-j LOOP",),
    }
    found = notes(postrouting_rules=(f"-A POSTROUTING {rule}", ours), postrouting_chains=chains)
    assert bool(found) is bool(noted)
    assert noted in "".join(found)
    assert notes(postrouting_rules=(ours, f"-A POSTROUTING {rule}")) == []


def test_q18_guests_on_a_bridge_are_named_with_the_rule_that_accepts_more() -> None:
    (note,) = notes(guest_ports={"br-x": ("tap0", "tap1", "tap2", "vnet0", "vnet1")})
    assert "br-x of network x has ports that belong to no container" in note
    assert "(tap0, tap1, tap2 and 2 more)" in note
    assert note.endswith(": ip6tables -I DOCKER-USER -o br-x -d ADDRESS -j ACCEPT")
    assert notes(guest_ports={"br-y": ("tap0",)}) == []


def test_source_nat_before_ours_is_noted_if_it_overrides_host_ipv6() -> None:
    named = replace(X, source_address=IPv6Address("2001:db8:1::10"))
    facts = replace(
        WELL, forward_policy="DROP", postrouting_rules=("-A POSTROUTING -o eth0 -j MASQUERADE",)
    )
    (note,) = noted(facts, [named])
    assert "host_ipv6 of x has no effect" in note


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("can't initialize ip6tables table `nat': Table does not exist", "modprobe ip6table_nat"),
        (
            "Extension MASQUERADE revision 0 not supported, missing kernel module?",
            "modprobe ip6t_MASQUERADE",
        ),
        ("line 7 failed: No chain/target/match by that name.", "modprobe -a ip6table_raw"),
        ("socket: Address family not supported by protocol", "remove ipv6.disable=1 from"),
        ("Failed to initialize nft: Protocol not supported", "modprobe nf_tables"),
        ("Device or resource busy", ""),
    ],
)
def test_kernel_fault_gives_the_command(error: str, advice: str) -> None:
    fault = kernel_fault(f"ip6tables-restore refused: {error}")
    assert advice in (fault.text if fault else "")
    assert (fault is not None) == (kernel_fault(error) is not None) == bool(advice)


def test_finding_is_a_value() -> None:
    assert Finding(problem="a", command="b") == Finding(problem="a", command="b", bridge="")
