"""What is wrong with the host, and the command that puts it right: HostFacts -> findings.

Pure: host_facts reads, the loop shows. Every text is a sentence that ends with the command.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Map
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import permutations

from ipv6natd.host.nft import BaseChain, ForwardedPacket, blocks, has_rpfilter
from ipv6natd.model import ManagedBy, Network, is_plain_interface
from ipv6natd.netfilter.docker_rules import DOCKER_BRIDGE_NAME
from ipv6natd.netfilter.rules import DOCKER_USER, PREFIX

_MAX_INTERFACES = 8
"""Interfaces of which each is looked at with each other."""
_DROP_ALL = re.compile(
    r"-A FORWARD (-m comment --comment (\"[^\"]*\"|\S+) )?-j (DROP|REJECT( --.*)?)"
)
"""A rule without a condition that ends everything."""
FIREWALLD = "firewalld"
"""The table of firewalld, which is asked by its own tool and not by nft."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaDefaultRoute:
    """An interface with a default route from router advertisements."""

    interface: str
    accept_ra: int
    forwarding: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What the host says about itself; each default is what is well."""

    ipv6: bool = True
    """Whether the kernel has IPv6 at all."""
    disabled: bool = False
    """net.ipv6.conf.all.disable_ipv6."""
    forwarding: bool = True
    ra_default_routes: tuple[RaDefaultRoute, ...] = ()
    global_interfaces: tuple[str, ...] = ()
    """Interfaces with a global IPv6 address, lo left out."""
    interfaces: tuple[str, ...] = ()
    """Interfaces by which IPv6 packets come and go; lo and the ports of bridges left out."""
    backend: str = "nft"
    """The variant that we write."""
    forward_policy: str = "ACCEPT"
    forward_rules: tuple[str, ...] = ()
    """FORWARD of our variant, in the words of `ip6tables -S`."""
    nft_chains: tuple[BaseChain, ...] = ()
    """Base chains of nft on the hooks prerouting and forward, those of our own variant left out."""
    rpfilter_tables: tuple[str, ...] = ()
    """Tables of ip6tables with `-m rpfilter` in them."""
    docker_ipv4_variants: frozenset[str] = frozenset()
    """The variants in which Docker's IPv4 chains stand."""
    stale_rules: bool = False
    """Whether chains of ours stand in the variant that we do not write."""
    docker_ipv6nat: str = ""
    """The command that stops one that runs."""
    docker_ipv6_rules: frozenset[str] = frozenset()
    """Where IPv6 rules of Docker or docker-ipv6nat stand, such as "ip6tables-nft"."""
    zones: Map[str, str] | None = None
    """Interface -> zone of firewalld; None where no firewalld runs."""
    bridges_filtered: Map[str, bool] | None = field(default_factory=dict)
    """Bridge -> whether its frames pass ip6tables; None without br_netfilter."""


class Topic(StrEnum):
    """What a finding is about."""

    IPV6 = "ipv6"
    FORWARDING = "forwarding"
    ACCEPT_RA = "accept_ra"
    FIREWALL = "firewall"
    FIREWALLD = "firewalld"
    BR_NETFILTER = "br_netfilter"
    DOCKER_IPV6NAT = "docker-ipv6nat"
    VARIANT = "ip6tables"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something to put right. With `bridge` it is about that one network."""

    text: str
    bridge: str = ""
    topic: Topic = Topic.IPV6

    @property
    def command(self) -> str:
        """What to run, the end of the sentence."""
        return self.text.rpartition(": ")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReport:
    """What one look at the host gave."""

    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    """Worth a line in the journal, and no fault."""
    first_in_forward: str = ""
    """The rule that stands before our jumps in FORWARD, as `ip6tables -S` words it."""


def evaluate(
    facts: HostFacts,
    networks: Iterable[Network],
    bridges: frozenset[str] = frozenset(),
    *,
    engine_writes: bool = False,
) -> HostReport:
    """All of it. `bridges`: those of all networks of the engine, also of the ones without IPv6.

    `engine_writes`: whether the engine may keep IPv6 rules itself. Then its rules are no leftovers.
    Nor is it looked for an open router: such an engine guards the host's interfaces itself, or is
    not known yet and neither are its interfaces.
    """
    if engine_writes:
        facts = replace(facts, docker_ipv6_rules=frozenset())
    known = tuple(networks)
    managed = tuple(each for each in known if each.managed_by is ManagedBy.IPV6NATD)
    bridges = bridges.union(each.bridge for each in known)
    open_ = () if engine_writes else _unguarded_interfaces(facts, bridges)
    return HostReport(
        findings=(
            *findings(facts, managed),
            *([_open_router(open_)] if len(open_) > 1 else ()),
        ),
        notes=(
            *_notes(facts),
            *([_open_router(open_).text] if len(open_) == 1 else ()),
        ),
        first_in_forward=first_in_forward(facts.forward_rules),
    )


def findings(facts: HostFacts, networks: tuple[Network, ...]) -> tuple[Finding, ...]:
    """What keeps `networks`, the managed ones, from working, or others from being safe."""
    if not facts.ipv6:
        text = (
            "this kernel runs without IPv6: take ipv6.disable=1 off its command line "
            "(GRUB_CMDLINE_LINUX in /etc/default/grub), then: update-grub && reboot"
        )
        return (Finding(text=text),)
    if facts.disabled:
        text = (
            "IPv6 is switched off on this host; set it to 0 wherever /etc/sysctl.d does that, and "
            "now: sysctl -w net.ipv6.conf.all.disable_ipv6=0"
        )
        return (Finding(text=text),)
    return (
        *_forwarding_off(facts, networks),
        *_blocking_chains(facts, networks),
        *_bridges_without_zone(facts, networks),
        *_icc_not_enforced(facts, networks),
        *_expiring_ra_routes(facts),
        *_competing_daemons(facts),
        *_variant_mismatch(facts),
    )


def unfiltered_bridges(facts: HostFacts, networks: Iterable[Network]) -> tuple[str, ...]:
    """Bridges whose frames have to pass ip6tables so that neighbours are cut, and do not yet."""
    if facts.bridges_filtered is None:
        return ()
    return tuple(
        each.bridge
        for each in networks
        if not each.icc
        and each.managed_by is ManagedBy.IPV6NATD
        and facts.bridges_filtered.get(each.bridge) is False
    )


def first_in_forward(rules: Iterable[str]) -> str:
    """The first rule of FORWARD, if it is nobody's jump to our chains or to DOCKER-USER."""
    first = next(iter(rules), "")
    words = first.split()
    ours = words[-1:] and (words[-1] == DOCKER_USER or words[-1].startswith(PREFIX))
    return "" if ours else first


def missing_module_hint(said: str) -> str:
    """What to do about a message of ip6tables that names something the kernel lacks; "" if none."""
    for pattern, advice in _KERNEL_ERRORS:
        if hit := re.search(pattern, said):
            return advice.format(*hit.groups())
    return ""


_LOAD_MODULE = "echo {0} > /etc/modules-load.d/{0}.conf && modprobe {0}"
_KERNEL_ERRORS = (
    (
        r"Address family not supported",
        "this kernel runs without IPv6: take ipv6.disable=1 off its command line, then: reboot",
    ),
    (
        r"can't initialize ip6tables table `?(\w+)'",
        "the kernel lacks the table {0}: " + _LOAD_MODULE.format("ip6table_{0}"),
    ),
    (
        r"Extension (\w+) revision \d+ not supported",
        "the kernel lacks it: " + _LOAD_MODULE.format("ip6t_{0}"),
    ),
    (
        r"No chain/target/match by that name",
        "the kernel lacks a target or match: modprobe -a ip6table_filter ip6table_nat nf_conntrack "
        "xt_conntrack xt_addrtype xt_comment xt_MASQUERADE ip6t_REJECT",
    ),
    (
        r"(?:Failed to initialize nft|Protocol not supported)",
        "the kernel lacks nf_tables: modprobe nf_tables",
    ),
)


def _forwarding_off(facts: HostFacts, networks: tuple[Network, ...]) -> Iterator[Finding]:
    if not facts.forwarding and any(not each.internal for each in networks):
        yield Finding(
            topic=Topic.FORWARDING,
            text="IPv6 forwarding is off, so no packet reaches a container; put "
            "net.ipv6.conf.all.forwarding=1 into /etc/sysctl.d/60-ipv6natd.conf, and now: "
            "sysctl -w net.ipv6.conf.all.forwarding=1",
        )


def _expiring_ra_routes(facts: HostFacts) -> Iterator[Finding]:
    for each in facts.ra_default_routes:
        # With forwarding on, the kernel heeds advertisements only where it is 2.
        if each.forwarding and each.accept_ra == 1:
            yield Finding(
                topic=Topic.ACCEPT_RA,
                text=f"the default route of {each.interface} comes from router advertisements, "
                "which are not heeded while forwarding is on, so it goes when its lifetime ends; "
                f"{_accept_ra_advice(each.interface)}",
            )


def _accept_ra_advice(interface: str) -> str:
    """What makes an interface listen to router advertisements in spite of forwarding."""
    if is_plain_interface(interface):
        key = f"net.ipv6.conf.{interface.replace('.', '/')}.accept_ra=2"
        # A file of the package's own name would take the place of that, and of forwarding.
        place = "/etc/sysctl.d/60-ipv6natd-accept-ra.conf"
        return f"put {key} into {place}, and now: sysctl -w {key}"
    # sysctl.d would take it for a pattern, and a shell for a command.
    path = shlex.quote(f"/proc/sys/net/ipv6/conf/{interface}/accept_ra")
    return f"rename it, or at every boot: echo 2 > {path}"


def _blocking_chains(facts: HostFacts, networks: tuple[Network, ...]) -> Iterator[Finding]:
    ours = {each.bridge for each in networks}
    uplinks = [each for each in facts.global_interfaces if each not in ours]
    for chain in facts.nft_chains:
        if chain.hook != "forward" or chain.table == FIREWALLD:
            continue
        rules = dict.fromkeys(
            rule
            for network in networks
            if not network.internal
            for uplink in uplinks
            for flow, rule in _required_packets(network.bridge, uplink)
            if blocks(chain, flow)
        )
        if rules:
            # Each is put first, so the one that is to be hit most comes last.
            place = shlex.join((chain.family, chain.table, chain.name))
            commands = " && ".join(f"nft insert rule {place} {each}" for each in rules)
            yield Finding(
                topic=Topic.FIREWALL,
                text=f"nft chain {chain.name} of table {chain.family} {chain.table} drops what is "
                "forwarded for containers, whatever our rules accept; let it through, in the file "
                f"that loads that table (/etc/nftables.conf, say), and now: {commands}",
            )


def _required_packets(bridge: str, uplink: str) -> Iterator[tuple[ForwardedPacket, str]]:
    """What has to pass, and the rule that lets it."""
    out = ForwardedPacket(bridge=bridge, incoming=bridge, outgoing=uplink)
    yield out, f"iifname {bridge} accept"
    into = ForwardedPacket(bridge=bridge, incoming=uplink, outgoing=bridge, dnat=True)
    yield into, "ct status dnat accept"
    back = ForwardedPacket(bridge=bridge, incoming=uplink, outgoing=bridge, state="established")
    yield back, "ct state established,related accept"


def _bridges_without_zone(facts: HostFacts, networks: tuple[Network, ...]) -> Iterator[Finding]:
    if facts.zones is None:
        return
    for each in networks:
        if each.bridge not in facts.zones and not each.internal:
            zone = f"--zone=trusted --add-interface={each.bridge}"
            yield Finding(
                topic=Topic.FIREWALLD,
                bridge=each.bridge,
                text=f"firewalld has bridge {each.bridge} in no zone and rejects what its "
                f"containers send; run: firewall-cmd --permanent {zone} && firewall-cmd {zone}",
            )


def _icc_not_enforced(facts: HostFacts, networks: tuple[Network, ...]) -> Iterator[Finding]:
    for each in networks:
        if each.icc:
            continue
        if facts.bridges_filtered is None:
            command = _LOAD_MODULE.format("br_netfilter")
        elif facts.bridges_filtered.get(each.bridge) is False:
            command = f"ip link set {each.bridge} type bridge nf_call_ip6tables 1"
        else:
            continue
        yield Finding(
            topic=Topic.BR_NETFILTER,
            bridge=each.bridge,
            text=f"containers on {each.bridge} reach each other in spite of enable_icc=false: what "
            f"stays on that bridge does not pass ip6tables; run: {command}",
        )


def _competing_daemons(facts: HostFacts) -> Iterator[Finding]:
    if facts.docker_ipv6nat:
        yield Finding(
            topic=Topic.DOCKER_IPV6NAT,
            text="docker-ipv6nat runs, and writes rules for the same containers; remove it, or at "
            f"least: {facts.docker_ipv6nat}",
        )
    elif facts.docker_ipv6_rules:
        yield Finding(
            topic=Topic.DOCKER_IPV6NAT,
            text="IPv6 rules that the engine or docker-ipv6nat left behind stand in "
            f"{' and '.join(sorted(facts.docker_ipv6_rules))} and may take packets that are meant "
            "for our rules; stop docker-ipv6nat if it still runs; this shows them: "
            "ipv6natctl cleanup --leftovers --dry-run; and this removes them: "
            "ipv6natctl cleanup --leftovers",
        )


def _variant_mismatch(facts: HostFacts) -> Iterator[Finding]:
    other = "legacy" if facts.backend == "nft" else "nft"
    if facts.stale_rules:
        yield Finding(
            topic=Topic.VARIANT,
            text=f"rules of ipv6natd stand in the {other} variant of ip6tables too, of an earlier "
            "start; this takes them out, and what is in use comes back at once: ipv6natd -flush",
        )
    if facts.docker_ipv4_variants and facts.backend not in facts.docker_ipv4_variants:
        yield Finding(
            topic=Topic.VARIANT,
            text=f"Docker writes its IPv4 rules with iptables-{other} and ipv6natd uses "
            f"ip6tables-{facts.backend}, so that no tool shows the whole; put "
            f'backend = "{other}" into /etc/ipv6natd/ipv6natd.toml, then: '
            "ipv6natd -flush && systemctl restart ipv6natd",
        )


def _unguarded_interfaces(facts: HostFacts, engine: frozenset[str]) -> tuple[str, ...]:
    """The interfaces between which anybody's packets are forwarded; one, if out by the same."""
    if not facts.ipv6 or facts.disabled or not facts.forwarding or _drops_by_default(facts):
        return ()
    others = [
        each
        for each in facts.interfaces
        if each not in engine and not DOCKER_BRIDGE_NAME.fullmatch(each)
    ]
    ways = list(permutations(others[:_MAX_INTERFACES], 2)) or [(each, each) for each in others]
    open_ = [way for way in ways if not _is_blocked(facts, *way)]
    return tuple(dict.fromkeys(each for way in sorted(open_) for each in way))


def _drops_by_default(facts: HostFacts) -> bool:
    """Whether FORWARD of our variant ends what no rule accepts."""
    return facts.forward_policy != "ACCEPT" or any(map(_DROP_ALL.fullmatch, facts.forward_rules))


def _is_blocked(facts: HostFacts, incoming: str, outgoing: str) -> bool:
    flow = ForwardedPacket(bridge="", incoming=incoming, outgoing=outgoing)
    return any(each.hook == "forward" and blocks(each, flow) for each in facts.nft_chains)


def _open_router(interfaces: tuple[str, ...]) -> Finding:
    *most, last = interfaces
    way = f"between {', '.join(most)} and {last}" if most else f"in and out by {last}"
    return Finding(
        topic=Topic.FIREWALL,
        text=f"this host routes IPv6 for everyone {way}: forwarding is on, and nothing in FORWARD "
        "ends what is not for containers; accept there what else this host is to route, then, in "
        "what keeps your firewall, or now: ip6tables -P FORWARD DROP",
    )


def _notes(facts: HostFacts) -> Iterator[str]:
    chains = [each.full_name for each in facts.nft_chains if has_rpfilter(each)]
    for place in (*facts.rpfilter_tables, *chains):
        yield (
            f"a reverse-path filter stands in {place}: a container on several networks that is "
            "asked on one and answers by another is cut off by it"
        )
