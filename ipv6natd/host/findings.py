"""Finds faults of the host, each with a command that repairs it: HostFacts -> findings.

Pure: `facts` reads the host, and the loop shows the findings.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Mapping as Map
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv6Network
from itertools import permutations

from ipv6natd.host.nft import BaseChain, ForwardedPacket, blocks, has_rpfilter
from ipv6natd.model import ManagedBy, Network, Protocol, is_plain_interface
from ipv6natd.netfilter.docker_rules import DOCKER_BRIDGE_NAME, is_engine_jump
from ipv6natd.netfilter.order import (
    bans_sources,
    drops_only_by_source,
    effect_in_forward,
    interfaces,
    target_chain,
    verdict_on_new,
)
from ipv6natd.netfilter.rules import DOCKER_USER, PREFIX

_MAX_INTERFACES = 8
"""Maximum number of interfaces of which all pairs are checked."""
_MAX_NAMED = 3
"""Maximum number of interfaces that a text names."""
_NAT_RULE = re.compile(r"-A \S+ (?P<matches>.*)-[jg] (?P<target>\S+).*")
SOURCE_NAT = frozenset({"MASQUERADE", "SNAT", "NETMAP"})
"""Targets in nat POSTROUTING that change the source of a packet."""
_OPTION = re.compile(r"(?<!! )(-[so]) (\S+)")
_GOTO = re.compile(r"(?<!\S)-g(?= \S+$)")
_NOT_OUT = re.compile(r"! -o (\S+)")
_ULA = IPv6Network("fc00::/7")
STATE_FOLDER, XTABLES_LOCK = "/var/lib/ipv6natd", "/run/xtables.lock"
"""Paths that the container of ipv6natd should have on volumes; the lock with legacy only."""
FIREWALLD = "firewalld"
"""The nft table of firewalld. It is not evaluated: the zones of firewalld are checked instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaDefaultRoute:
    """An interface with a default route from router advertisements."""

    interface: str
    accept_ra: int
    forwarding: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """All that `evaluate` knows of the host: one field for each fact, so there are many.

    The defaults are a host without faults.
    """

    ipv6: bool = True
    """True if the kernel supports IPv6."""
    disabled: bool = False
    """net.ipv6.conf.all.disable_ipv6."""
    forwarding: bool = True
    forced_interfaces: frozenset[str] = frozenset()
    """Interfaces whose packets the kernel forwards also while forwarding is off: those with
    force_forwarding=1, in Linux 6.17 and newer."""
    ra_default_routes: tuple[RaDefaultRoute, ...] = ()
    client_interfaces: tuple[str, ...] = ()
    """Interfaces from which clients come: those with a default route. If no interface has one,
    those with a global IPv6 address, lo left out."""
    interfaces: tuple[str, ...] = ()
    """Interfaces that receive and send IPv6 packets, without lo and the ports of bridges."""
    global_interfaces: frozenset[str] = frozenset()
    """Interfaces with a global or unique local IPv6 address."""
    backend: str = "nft"
    """The variant of ip6tables that ipv6natd uses."""
    forward_policy: str = "ACCEPT"
    """"" if it is unknown."""
    forward_rules: tuple[str, ...] = ()
    """The chain FORWARD of this variant, as `ip6tables -S` prints it."""
    forward_chains: Map[str, tuple[str, ...]] = field(default_factory=dict)
    """The chains of others that FORWARD jumps to -> their rules, without "-A" and the name."""
    docker_user_rules: tuple[str, ...] = ()
    """The chain DOCKER-USER, without "-A" and the name."""
    postrouting_rules: tuple[str, ...] = ()
    """The chain POSTROUTING of the nat table, as `ip6tables -S` prints it."""
    postrouting_chains: Map[str, tuple[str, ...]] = field(default_factory=dict)
    """The chains of others that POSTROUTING jumps to, like `forward_chains`."""
    nft_chains: tuple[BaseChain, ...] = ()
    """Base chains of nft on the hooks prerouting and forward, without those of this variant."""
    rpfilter_tables: tuple[str, ...] = ()
    """Tables of ip6tables that contain `-m rpfilter`."""
    raw_table: bool = True
    """False if the kernel has no raw table for legacy ip6tables: the rules of ipv6natd are in
    force without it."""
    docker_ipv4_variants: frozenset[str] = frozenset()
    """The variants that contain Docker's IPv4 chains."""
    stale_rules: bool = False
    """True if the other variant contains chains of ipv6natd."""
    docker_ipv6nat: str = ""
    """The command that stops docker-ipv6nat; "" if it does not run."""
    docker_ipv6_rules: frozenset[str] = frozenset()
    """The places with IPv6 rules of Docker or docker-ipv6nat, such as "ip6tables-nft"."""
    zones: Map[str, str] | None = None
    """Interface -> zone of firewalld; None if firewalld does not run."""
    br_netfilter: bool = True
    """True if ip6tables can filter the frames between the ports of a bridge."""
    unfiltered_bridges: frozenset[str] = frozenset()
    """The bridges of networks with enable_icc=false whose frames it does not filter."""
    bridges_without_address: frozenset[str] = frozenset()
    """The bridges of open networks without an address in their subnets."""
    missing_volumes: frozenset[str] = frozenset()
    """Paths that should be on a volume, if ipv6natd runs in a container."""
    guest_ports: Map[str, tuple[str, ...]] = field(default_factory=dict)
    """Bridge of a network -> its ports that belong to no container, if it has any."""


class Topic(StrEnum):
    """The part of the host that a finding is about, in the order in which `check` lists them."""

    SERVICE = "ipv6natd"
    IPV6 = "ipv6"
    FORWARDING = "forwarding"
    ACCEPT_RA = "accept_ra"
    VARIANT = "ip6tables"
    FIREWALL = "firewall"
    FIREWALLD = "firewalld"
    BR_NETFILTER = "br_netfilter"
    BRIDGE = "bridge"
    DOCKER_IPV6NAT = "docker-ipv6nat"
    ENGINE = "engine"
    CONTAINER = "container"
    NETWORK = "network"


class Severity(StrEnum):
    """How much a finding matters."""

    ERROR = "error"
    """A fault that has to be corrected: the state is not synced."""
    WARNING = "warning"
    """The rules are in force, but not with the settings that were asked for."""
    NOTE = "note"
    """It may be meant so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is wrong with the host, or with one network."""

    problem: str
    """What is wrong, and how the command is meant."""
    command: str = ""
    """The command that corrects it; "" if there is none."""
    topic: Topic = Topic.IPV6
    severity: Severity = Severity.ERROR
    network: str = ""
    """The name of the network; "" for the whole host."""
    bridge: str = ""
    """The bridge of this network."""

    @property
    def text(self) -> str:
        """The problem and the command in one line."""
        return f"{self.problem}: {self.command}" if self.command else self.problem


def evaluate(
    facts: HostFacts,
    networks: Sequence[Network],
    bridges: frozenset[str] = frozenset(),
    *,
    engine_writes: bool = False,
    missing_engine_rules: Sequence[tuple[Protocol, int]] = (),
) -> tuple[Finding, ...]:
    """The errors, then the notes. `bridges` are those of all networks of the engine, also without
    IPv6.

    `engine_writes`: the engine may write IPv6 rules itself. Then its rules are not stale, and there
    is no check for an open router: such an engine protects the interfaces of the host, or it is
    unknown yet, and its bridges too. `missing_engine_rules`: see Desired.
    """
    if engine_writes:
        facts = replace(facts, docker_ipv6_rules=frozenset())
    managed = tuple(net for net in networks if net.managed_by is ManagedBy.IPV6NATD)
    faults = [*_flushed_engine_rules(missing_engine_rules), *_findings(facts, managed)]
    notes = [*_notes(facts, managed)]
    bridges = bridges.union(net.bridge for net in networks)
    unguarded = () if engine_writes else _unguarded_interfaces(facts, bridges)
    if unguarded:
        unmanaged = bridges & facts.global_interfaces - {net.bridge for net in managed}
        finding = _open_router(facts, unguarded, sorted(unmanaged))
        (notes if finding.severity is Severity.NOTE else faults).append(finding)
    return (*faults, *notes)


def _findings(facts: HostFacts, networks: Sequence[Network]) -> Iterator[Finding]:
    """The faults that affect managed networks, in the order of their importance."""
    if not facts.ipv6:
        problem = (
            "this kernel runs without IPv6; remove ipv6.disable=1 from its command line "
            "(GRUB_CMDLINE_LINUX in /etc/default/grub), then"
        )
        yield Finding(problem=problem, command="update-grub && reboot")
    elif facts.disabled:
        setting = "net.ipv6.conf.all.disable_ipv6=0"
        problem = f"IPv6 is switched off on this host; set {setting} in /etc/sysctl.d, and now"
        yield Finding(problem=problem, command=f"sysctl -w {setting}")
    else:
        yield from _forwarding_off(facts, networks)
        yield from _missing_raw_table(facts, networks)
        yield from _blocking_chains(facts, networks)
        yield from _bridges_without_address(facts, networks)
        yield from _bridges_without_zone(facts, networks)
        yield from _icc_not_enforced(facts, networks)
        yield from _expiring_ra_routes(facts)
        yield from _competing_daemons(facts)
        yield from _variant_mismatch(facts)


def kernel_fault(message: str) -> Finding | None:
    """The missing kernel feature that causes an error of ip6tables; None for other errors."""
    for pattern, problem, command in _KERNEL_ERRORS:
        if match := re.search(pattern, message):
            names = match.groups()
            return Finding(problem=problem.format(*names), command=command.format(*names))
    return None


_LOAD_MODULE = "echo {0} > /etc/modules-load.d/{0}.conf && modprobe {0}"
_KERNEL_ERRORS = (
    (
        r"Address family not supported",
        "this kernel runs without IPv6; remove ipv6.disable=1 from its command line, then",
        "reboot",
    ),
    (
        r"can't initialize ip6tables table `?(\w+)'",
        "the kernel lacks the table {0}",
        _LOAD_MODULE.format("ip6table_{0}"),
    ),
    (
        r"Extension (\w+) revision \d+ not supported",
        "the kernel lacks the extension {0}",
        _LOAD_MODULE.format("ip6t_{0}"),
    ),
    (
        r"No chain/target/match by that name",
        "the kernel lacks a target or match",
        "modprobe -a ip6table_raw ip6table_filter ip6table_nat nf_conntrack xt_conntrack "
        "xt_addrtype xt_comment xt_pkttype xt_MASQUERADE ip6t_frag ip6t_REJECT",
    ),
    (
        r"(?:Failed to initialize nft|Protocol not supported)",
        "the kernel lacks nf_tables",
        "modprobe nf_tables",
    ),
)


def _missing_raw_table(facts: HostFacts, networks: Sequence[Network]) -> Iterator[Finding]:
    if networks and not facts.raw_table:
        yield Finding(
            topic=Topic.VARIANT,
            problem="the kernel lacks the table raw, so sources are checked after conntrack, and a "
            "container can forge replies between other containers; use the nft variant of "
            "ip6tables, or",
            command="modprobe ip6table_raw && systemctl restart ipv6natd",
        )


def _forwarding_off(facts: HostFacts, networks: Sequence[Network]) -> Iterator[Finding]:
    unforced = {*facts.client_interfaces} - facts.forced_interfaces
    if not facts.forwarding and any(
        not network.internal and (unforced or network.bridge not in facts.forced_interfaces)
        for network in networks
    ):
        yield Finding(
            topic=Topic.FORWARDING,
            problem="IPv6 forwarding is off, so no packet reaches a container; put "
            "net.ipv6.conf.all.forwarding=1 into /etc/sysctl.d/60-ipv6natd.conf, and now",
            command="sysctl -w net.ipv6.conf.all.forwarding=1",
        )


def _expiring_ra_routes(facts: HostFacts) -> Iterator[Finding]:
    for route in facts.ra_default_routes:
        # With forwarding on, the kernel accepts advertisements only if accept_ra is 2.
        if not route.forwarding or route.accept_ra != 1:
            continue
        if is_plain_interface(route.interface):
            key = f"net.ipv6.conf.{route.interface.replace('.', '/')}.accept_ra=2"
            # Not 60-ipv6natd.conf: that file without forwarding=1 switches forwarding off.
            file = "/etc/sysctl.d/60-ipv6natd-accept-ra.conf"
            advice, command = f"put {key} into {file}, and now", f"sysctl -w {key}"
        else:
            # In sysctl.d, the name could be a pattern, and in a shell a command.
            path = shlex.quote(f"/proc/sys/net/ipv6/conf/{route.interface}/accept_ra")
            advice, command = "rename it, or at every boot", f"echo 2 > {path}"
        yield Finding(
            topic=Topic.ACCEPT_RA,
            problem=f"the default route of {route.interface} comes from router advertisements; "
            "while forwarding is on, the kernel ignores them, and the route will expire; "
            f"{advice}",
            command=command,
        )


def _blocking_chains(facts: HostFacts, networks: Sequence[Network]) -> Iterator[Finding]:
    bridges = {network.bridge for network in networks}
    uplinks = [name for name in facts.client_interfaces if name not in bridges]
    for chain in facts.nft_chains:
        if chain.hook != "forward" or chain.table == FIREWALLD:
            continue
        rules = dict.fromkeys(
            rule
            for network in networks
            if not network.internal
            for uplink in (*uplinks, *network.trusted_interfaces)
            for packet, rule in _required_packets(network.bridge, uplink)
            if blocks(chain, packet)
        )
        if rules:
            # `insert` puts a rule first. So the rule that matches most packets comes last.
            place = shlex.join((chain.family, chain.table, chain.name))
            yield Finding(
                topic=Topic.FIREWALL,
                problem=f"nft chain {chain.name} of table {chain.family} {chain.table} drops "
                "packets of containers that ipv6natd accepts; accept them in the file that loads "
                "this table (for example /etc/nftables.conf), and now",
                command=" && ".join(f"nft insert rule {place} {rule}" for rule in rules),
            )


def _required_packets(bridge: str, uplink: str) -> Iterator[tuple[ForwardedPacket, str]]:
    """The packets that must pass, each with a rule that accepts it."""
    out = ForwardedPacket(bridge=bridge, incoming=bridge, outgoing=uplink)
    yield out, f"iifname {bridge} accept"
    into = ForwardedPacket(bridge=bridge, incoming=uplink, outgoing=bridge, dnat=True)
    yield into, "ct status dnat accept"
    back = ForwardedPacket(bridge=bridge, incoming=uplink, outgoing=bridge, state="established")
    yield back, "ct state established,related accept"


def _bridges_without_address(facts: HostFacts, networks: Sequence[Network]) -> Iterator[Finding]:
    for network in networks:
        if network.bridge in facts.bridges_without_address:
            yield Finding(
                topic=Topic.BRIDGE,
                network=network.name,
                bridge=network.bridge,
                problem=f"bridge {network.bridge} has lost its IPv6 address, so no packet reaches "
                f"the containers of network {network.name}; run",
                command=_address_command(network),
            )


def _address_command(network: Network) -> str:
    """Another address than the bridge had could be that of a container."""
    gateway = network.gateway
    lengths = [net.prefixlen for net in network.subnets if gateway is not None and gateway in net]
    if not lengths:
        return "systemctl restart docker"  # dockerd gives each bridge its addresses
    enable = f"sysctl -w net/ipv6/conf/{network.bridge}/disable_ipv6=0"
    return f"{enable} && ip address replace {gateway}/{lengths[0]} dev {network.bridge} nodad"


def _bridges_without_zone(facts: HostFacts, networks: Sequence[Network]) -> Iterator[Finding]:
    if facts.zones is None:
        return
    for network in networks:
        if network.bridge not in facts.zones and not network.internal:
            zone = f"--zone=trusted --add-interface={network.bridge}"
            yield Finding(
                topic=Topic.FIREWALLD,
                network=network.name,
                bridge=network.bridge,
                problem=f"firewalld has bridge {network.bridge} in no zone and rejects packets of "
                "its containers; run",
                command=f"firewall-cmd --permanent {zone} && firewall-cmd {zone}",
            )


def _icc_not_enforced(facts: HostFacts, networks: Sequence[Network]) -> Iterator[Finding]:
    for network in networks:
        if network.icc:
            continue
        if not facts.br_netfilter:
            command = _LOAD_MODULE.format("br_netfilter")
        elif network.bridge in facts.unfiltered_bridges:
            command = f"ip link set {network.bridge} type bridge nf_call_ip6tables 1"
        else:
            continue
        yield Finding(
            topic=Topic.BR_NETFILTER,
            network=network.name,
            bridge=network.bridge,
            problem=f"containers on {network.bridge} reach each other in spite of "
            "enable_icc=false: ip6tables does not filter packets between ports of this bridge; run",
            command=command,
        )


def _competing_daemons(facts: HostFacts) -> Iterator[Finding]:
    if facts.docker_ipv6nat:
        yield Finding(
            topic=Topic.DOCKER_IPV6NAT,
            problem="docker-ipv6nat runs and writes rules for the same containers; remove it, or "
            "stop it now",
            command=facts.docker_ipv6nat,
        )
    elif facts.docker_ipv6_rules:
        yield Finding(
            topic=Topic.DOCKER_IPV6NAT,
            problem="stale IPv6 rules of the engine or of docker-ipv6nat are in "
            f"{' and '.join(sorted(facts.docker_ipv6_rules))} and can match packets before the "
            "rules of ipv6natd; stop docker-ipv6nat if it still runs; to list them: "
            "ipv6natctl cleanup --leftovers --dry-run; to remove them",
            command="ipv6natctl cleanup --leftovers",
        )


def _flushed_engine_rules(ports: Sequence[tuple[Protocol, int]]) -> Iterator[Finding]:
    if ports:
        protocol, number = ports[0]
        others = f" and of {len(ports) - 1} more" if ports[1:] else ""
        yield Finding(
            topic=Topic.ENGINE,
            problem=f"Docker's own IPv6 rule of port {number}/{protocol}{others} is missing, so "
            "another program removed rules of Docker; to have them written again",
            command="systemctl restart docker",
        )


def _variant_mismatch(facts: HostFacts) -> Iterator[Finding]:
    other = "legacy" if facts.backend == "nft" else "nft"
    if facts.stale_rules:
        yield Finding(
            topic=Topic.VARIANT,
            problem=f"stale rules of ipv6natd are in the {other} variant of ip6tables, from an "
            "earlier start; to remove them (the running service writes its own rules again)",
            command="ipv6natd -flush",
        )
    if facts.docker_ipv4_variants and facts.backend not in facts.docker_ipv4_variants:
        yield Finding(
            topic=Topic.VARIANT,
            problem=f"Docker writes its IPv4 rules with iptables-{other} and ipv6natd uses "
            f"ip6tables-{facts.backend}, so no tool shows the rules of both; put "
            f'backend = "{other}" into /etc/ipv6natd/ipv6natd.toml, then',
            command="ipv6natd -flush && systemctl restart ipv6natd",
        )


def _unguarded_interfaces(facts: HostFacts, bridges: frozenset[str]) -> tuple[str, ...]:
    """The interfaces between which all packets are forwarded; one if it is the only one."""
    if not facts.ipv6 or facts.disabled or _drops_by_default(facts):
        return ()
    others = [
        name
        for name in facts.interfaces
        if name not in bridges and not DOCKER_BRIDGE_NAME.fullmatch(name)
    ]
    # The interface by which a packet comes in decides.
    sources = frozenset(others) if facts.forwarding else facts.forced_interfaces
    others.sort(key=lambda name: name not in sources)
    pairs = list(permutations(others[:_MAX_INTERFACES], 2)) or [(name, name) for name in others]
    chains = [chain for chain in facts.nft_chains if chain.hook == "forward"]
    passing = [
        (incoming, outgoing)
        for incoming, outgoing in sorted(pairs)
        if incoming in sources
        if not any(
            blocks(chain, ForwardedPacket(bridge="", incoming=incoming, outgoing=outgoing))
            for chain in chains
        )
    ]
    return tuple(dict.fromkeys(name for pair in passing for name in pair))


def _drops_by_default(facts: HostFacts) -> bool:
    """True if FORWARD of this variant drops the packets that no rule accepts."""
    rules = [rule.removeprefix("-A FORWARD ") for rule in facts.forward_rules]
    chains = {**facts.forward_chains, "FORWARD": rules}
    return facts.forward_policy != "ACCEPT" or verdict_on_new("FORWARD", chains) == "DROP"


def _open_router(
    facts: HostFacts, interfaces: tuple[str, ...], unmanaged: Sequence[str]
) -> Finding:
    """`unmanaged` are the bridges of other networks of the engine, as of those with public
    addresses: no rule of ipv6natd accepts their packets."""
    *most, last = interfaces
    path = f"between {', '.join(most)} and {last}" if most else f"in and out by {last}"
    forced = [name for name in interfaces if name in facts.forced_interfaces]
    on = "forwarding is on" if facts.forwarding else f"force_forwarding is 1 on {_some(forced)}"
    also = f", also for the containers on {_some(unmanaged)}" if unmanaged else ""
    return Finding(
        topic=Topic.FIREWALL,
        severity=Severity.ERROR if most else Severity.NOTE,
        problem=f"this host routes IPv6 for everyone {path}: {on}, and FORWARD does "
        "not drop packets that are not for containers; accept there what else this host must "
        f"route{also}; then, in the configuration of your firewall, and now",
        command="ip6tables -P FORWARD DROP",
    )


def _notes(facts: HostFacts, networks: Sequence[Network]) -> Iterator[Finding]:
    chains = [
        f"{chain.family} {chain.table} {chain.name}"
        for chain in facts.nft_chains
        if has_rpfilter(chain)
    ]
    for place in (*facts.rpfilter_tables, *chains):
        yield _note(
            f"a reverse-path filter is in {place}: it drops the replies of a container that gets "
            "a packet on one network and replies on another"
        )
    for network in networks:
        if guests := facts.guest_ports.get(network.bridge):
            yield _shared_bridge(network, guests)
    yield from _missing_volumes(facts)
    if networks:
        yield from _rules_without_effect(facts, networks)
        yield from _rules_that_accept_first(facts)
        yield from _foreign_source_nat(facts, networks)


def _missing_volumes(facts: HostFacts) -> Iterator[Finding]:
    for path, volume, effect in (
        (
            STATE_FOLDER,
            "ipv6natd",
            "the rules that protect containers before the engine answers are lost "
            "with the container of ipv6natd",
        ),
        (
            XTABLES_LOCK,
            XTABLES_LOCK,
            "other programs of the host do not see the lock, and can write at the same time",
        ),
    ):
        if path in facts.missing_volumes:
            yield Finding(
                topic=Topic.CONTAINER,
                severity=Severity.NOTE,
                problem=f"{path} is on no volume: {effect}; start the container with "
                f"--volume {volume}:{path}",
            )


def _note(problem: str, command: str = "") -> Finding:
    return Finding(topic=Topic.FIREWALL, severity=Severity.NOTE, problem=problem, command=command)


def _shared_bridge(network: Network, guests: Sequence[str]) -> Finding:
    """The engine drops such connections too, with `ip6tables` on."""
    return Finding(
        topic=Topic.BRIDGE,
        severity=Severity.NOTE,
        network=network.name,
        bridge=network.bridge,
        problem=f"bridge {network.bridge} of network {network.name} has ports that belong to no "
        f"container ({_some(guests)}): new connections from other interfaces to the machines "
        "behind them are dropped, as those to containers without a published port; to accept "
        f"those to one machine: ip6tables -I {DOCKER_USER} -o {network.bridge} -d ADDRESS "
        "-j ACCEPT",
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if names[_MAX_NAMED:] else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _forward_rules(facts: HostFacts) -> tuple[list[str], list[str]]:
    """The rules of others in FORWARD before and behind the jump of ipv6natd."""
    rules = [rule.removeprefix("-A FORWARD ") for rule in facts.forward_rules]
    ours = [i for i, rule in enumerate(rules) if rule.endswith(f"-j {PREFIX}FORWARD")]
    if not ours:
        return [], []
    before, behind = rules[: ours[0]], rules[ours[0] + 1 :]
    return [rule for rule in before if not rule.endswith(f"-j {DOCKER_USER}")], behind


def _rules_without_effect(facts: HostFacts, networks: Sequence[Network]) -> Iterator[Finding]:
    _, behind = _forward_rules(facts)
    for rule in behind:
        one = effect_in_forward(rule, facts.forward_chains)
        bans = one.only_drops or (bans_sources(rule, facts.forward_chains) and not one.ends)
        foreign = rule.endswith("-j DROP") or not is_engine_jump(rule)
        if bans and foreign and _concerns(rule, networks) and not _in_docker_user(rule, facts):
            advice, command = _advice(rule, facts)
            yield _note(
                f"the rule `-A FORWARD {rule}` does not see packets of containers, because the "
                f"rules of ipv6natd come before it; {advice}",
                command,
            )


def _concerns(rule: str, networks: Sequence[Network]) -> bool:
    """False for a rule about packets between two interfaces that are no bridges of containers."""
    bridges = [network.bridge for network in networks]
    return any(not name or _is_for(name, bridge) for name in interfaces(rule) for bridge in bridges)


def _is_for(name: str, interface: str) -> bool:
    """True if the name in a rule is that of the interface; "+" at its end matches any suffix."""
    return name == interface or (name.endswith("+") and interface.startswith(name[:-1]))


def _in_docker_user(rule: str, facts: HostFacts) -> bool:
    """True if the rule, or a jump to its chain, is in DOCKER-USER too."""
    chain = target_chain(rule, facts.forward_chains)
    return any(
        theirs == rule or (chain and target_chain(theirs, facts.forward_chains) == chain)
        for theirs in facts.docker_user_rules
    )


def _advice(rule: str, facts: HostFacts) -> tuple[str, str]:
    """Advice, and a command if it cannot open or cut off anything that the rule does not name."""
    rule = _GOTO.sub("-j", rule)  # after a goto, the rest of DOCKER-USER would be skipped
    if drops_only_by_source(rule, facts.forward_chains):
        return "to apply it to them too", f"ip6tables -I {DOCKER_USER} {rule}"
    if not effect_in_forward(rule, facts.forward_chains).accepts:
        return (
            f"in {DOCKER_USER} it would drop all packets of containers that it matches, also those "
            "for published ports; to ban some hosts, put rules with their addresses there"
        ), ""
    return (
        f"in {DOCKER_USER}, all that it accepts would also reach ports that are not published; put "
        "only those of its rules there that drop some sources"
    ), ""


def _rules_that_accept_first(facts: HostFacts) -> Iterator[Finding]:
    before, _ = _forward_rules(facts)
    for rule in before:
        if effect_in_forward(rule, facts.forward_chains).accepts:
            yield _note(
                f"packets that the rule `-A FORWARD {rule}` accepts skip the rules of ipv6natd, "
                "and reach containers without a published port; if this is not meant, put it "
                "behind them"
            )


def _source_nat_rules(facts: HostFacts) -> Iterator[tuple[str, str]]:
    """(rule, its matches with those of the jumps to it) of each source NAT before ours."""
    for rule in facts.postrouting_rules:
        if rule.endswith(f"-j {PREFIX}POST"):
            return
        yield from _source_nat_in(rule, "", facts.postrouting_chains)


def _source_nat_in(
    rule: str, outer: str, chains: Map[str, tuple[str, ...]]
) -> Iterator[tuple[str, str]]:
    found = _NAT_RULE.fullmatch(rule)
    if found is None:
        return
    target, matches = found["target"], outer + found["matches"]
    if target in SOURCE_NAT:
        yield rule, matches
    # Without this chain, so that a loop ends.
    others = {name: rules for name, rules in chains.items() if name != target}
    for inner in chains.get(target, ()):
        yield from _source_nat_in(f"-A {target} {inner}", matches, others)


def _hides_clients(matches: str, bridges: Iterable[str]) -> bool:
    """True if a source NAT can match a packet from an outside client to a container."""
    options, excluded = dict(_OPTION.findall(matches)), _NOT_OUT.findall(matches)
    with suppress(ValueError):
        if IPv6Network(options.get("-s", "")).subnet_of(_ULA):
            return False  # the containers or guests of a network of its own
    out = options.get("-o", "+")
    return any(
        _is_for(out, bridge) and not any(_is_for(name, bridge) for name in excluded)
        for bridge in bridges
    )


def _foreign_source_nat(facts: HostFacts, networks: Sequence[Network]) -> Iterator[Finding]:
    """A rule before ours in nat POSTROUTING that translates packets to or of containers."""
    bridges = {network.bridge for network in networks}
    sources = [network for network in networks if network.source_address]
    for rule, matches in _source_nat_rules(facts):
        options = dict(_OPTION.findall(matches))
        if _hides_clients(matches, bridges):
            yield _note(
                f"the rule `{rule}` in the nat table hides the addresses of clients from "
                "containers; limit it to its own interfaces, for example with ! -o BRIDGE"
            )
        elif sources and options.get("-o") not in bridges and "-s" not in options:
            names = ", ".join(network.name for network in sources)
            yield _note(
                f"the rule `{rule}` in the nat table comes before the rules of ipv6natd, so "
                f"host_ipv6 of {names} has no effect on packets that it matches"
            )
