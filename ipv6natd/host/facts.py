"""Reads the facts of the host from /proc and /sys, in the network namespace of the calling thread.

`firewalls` reads the rules of other programs.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Map
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ipv6natd.host import firewalls
from ipv6natd.host.findings import (
    STATE_FOLDER,
    XTABLES_LOCK,
    Finding,
    HostFacts,
    RaDefaultRoute,
    evaluate,
)
from ipv6natd.host.firewalls import tool_output
from ipv6natd.model import (
    Desired,
    ManagedBy,
    Network,
    Route,
    is_container_port,
    is_interface,
    is_plain_interface,
)
from ipv6natd.netfilter import trace
from ipv6natd.netfilter.prefixes import MIN_PREFIX_LENGTH, PrefixIndex
from ipv6natd.netfilter.rules import Backend
from ipv6natd.system.files import read_link, read_rows, read_text, read_word
from ipv6natd.system.process import in_image

log = logging.getLogger(__name__)

_NET = Path("/sys/class/net")
_MAX_SAMPLED_PORTS = 8
_IFF_UP = 1
_PROC = Path("/proc")
_SYSCTL = Path("/proc/sys/net")
_CONF = _SYSCTL / "ipv6/conf"
_BRIDGE_SYSCTL = _SYSCTL / "bridge/bridge-nf-call-ip6tables"
_THREAD = Path("/proc/thread-self")
_MOUNTS = Path("/proc/self/mountinfo")
_CONTAINER_CGROUP = re.compile(
    r"/(?:docker-)?([0-9a-f]{12})[0-9a-f]{52}(?:\.scope)?$", re.MULTILINE
)
"""Strict, because every user can choose the name of a cgroup."""
_OF_ROOT = re.compile(r"^Uid:\t0\t", re.MULTILINE)
_CAPABILITIES = re.compile(r"^CapEff:\t([0-9a-f]+)$", re.MULTILINE)
_CAP_NET_ADMIN = 1 << 12
_DEFAULT_ROUTE = IPv6Network("::/0")
_LINK_SCOPE_PREFIXES = ("fe8", "fe9", "fea", "feb", "ff")
# The names are from linux/ipv6_route.h and linux/route.h: RTF_REJECT, RTF_ADDRCONF,
# RTF_DYNAMIC (a redirect), RTF_ANYCAST, RTF_ROUTEINFO, RTF_CACHE and RTF_LOCAL.
_RTF_REJECT = 0x200
_RTF_LOCAL = 0x80000000
_RTF_ADDRCONF = 0x40000
_NOT_ROUTED = _RTF_REJECT | _RTF_ADDRCONF | 0x10 | 0x100000 | 0x800000 | 0x1000000 | _RTF_LOCAL


def userland_proxy(bridges: Iterable[str]) -> bool | None:
    """True if the engine of these bridges runs its userland proxy; None if no port shows it.

    dockerd sets hairpin_mode on the bridge port of a container if and only if it runs without the
    proxy. A few ports on any bridges are enough, because all ports of one engine are equal.
    """
    ports = (port for bridge in bridges for port in _container_ports(bridge))
    modes = [read_word(port / "hairpin_mode") for port in islice(ports, _MAX_SAMPLED_PORTS)]
    return "1" not in modes if any(modes) else None


def _bridge_ports(bridge: str) -> Iterator[Path]:
    with suppress(OSError), os.scandir(_NET / bridge / "brif") as ports:
        for port in ports:
            yield Path(port)


def container_ports(bridges: Iterable[str]) -> frozenset[str]:
    """The ports of containers on these bridges, as "BRIDGE/PORT"."""
    return frozenset(
        f"{bridge}/{port.name}" for bridge in bridges for port in _container_ports(bridge)
    )


def guest_ports(bridge: str) -> tuple[str, ...]:
    """The ports of a bridge that are not those of containers."""
    names = {port.name for port in _bridge_ports(bridge)}
    return tuple(sorted(name for name in names if not is_container_port(name)))


def _container_ports(bridge: str) -> Iterator[Path]:
    return (port for port in _bridge_ports(bridge) if is_container_port(port.name))


def tracks_sctp() -> bool:
    """True if conntrack supports SCTP, also if the module is not loaded and this is unknown."""
    folder = _SYSCTL / "netfilter"
    tcp = (folder / "nf_conntrack_tcp_timeout_established").exists()
    sctp = (folder / "nf_conntrack_sctp_timeout_established").exists()
    return sctp or not tcp


def addresses() -> frozenset[IPv6Address]:
    """All IPv6 addresses of the host, of any scope; none if IPv6 is switched off."""
    return frozenset(IPv6Address(int(line[0], 16)) for line in _address_lines())


def routes() -> Iterator[Route]:
    """The routes of the host in all tables.

    Left out are link-local routes, routes to its own addresses, routes that the kernel learned from
    other hosts (see `advertised_routes`), and interfaces with names that no rule can have.
    """
    for line in _route_lines():
        if line.has_link_scope or line.flags & _NOT_ROUTED:
            continue
        if is_plain_interface(line.interface):
            yield Route(prefix=line.network, interface=line.interface)


def trace_host() -> trace.Host:
    """The interfaces of the host with their routes and addresses, for the tracer. Rules of routing
    policies are not seen."""
    prefixes: dict[str, list[IPv6Network]] = {}
    for line in _route_lines():
        if not line.flags & (_RTF_REJECT | _RTF_LOCAL):
            prefixes.setdefault(line.interface, []).append(line.network)
    found: dict[str, list[IPv6Address]] = {}
    # Global addresses first. The kernel lists them in no fixed order.
    for address in sorted(_address_lines(), key=lambda each: (each[3], each[0])):
        found.setdefault(address[5], []).append(IPv6Address(int(address[0], 16)))
    return trace.Host(
        links=tuple(
            trace.Link(interface=name, subnets=tuple(prefixes.get(name, ())), addresses=tuple(own))
            for name, own in found.items()
        )
    )


def interfaces_with_learned_routes() -> frozenset[str]:
    """The interfaces with a route that the kernel learned from router advertisements."""
    return frozenset(
        line.interface
        for line in _route_lines()
        if line.flags & _RTF_ADDRCONF and not line.has_link_scope
    )


def routed_elsewhere(addresses: Iterable[IPv6Address]) -> frozenset[IPv6Address]:
    """The addresses inside a prefix that is on a link of the host, or that the host routes on.

    A router can send other addresses to this host, even if no interface has them. A default route,
    or a wide part of one as VPN clients write it, says nothing about an address.
    """
    prefixes = PrefixIndex(
        line.network
        for line in _route_lines()
        if line.length >= MIN_PREFIX_LENGTH and line.interface != "lo"
        if not line.flags & (_RTF_REJECT | _RTF_LOCAL)
    )
    return frozenset(address for address in addresses if prefixes.find(address))


def advertised_routes() -> frozenset[Route]:
    """The routes from router advertisements, set by the kernel or by a program in its place.

    Every host on the link can send one: such a route does not prove the location of an address.
    """
    return frozenset(_ra_routes("table", "all"))


def check_host(
    desired: Desired,
    backend: Backend,
    zones: Map[str, str] | None,
    bridges: frozenset[str],
) -> tuple[Finding, ...]:
    """Read the host, set the filter flag of bridges, and return what is left to do.

    `bridges` are the bridges of all networks of the engine; see `evaluate`. Blocks for some tens of
    milliseconds: do not call it between an event and its rules.
    """
    networks = desired.networks
    facts = read_host(networks, backend, zones)
    for bridge in facts.unfiltered_bridges:
        # Only this bridge: the sysctl would send the frames of every bridge through FORWARD.
        tool_output("ip", "link", "set", bridge, "type", "bridge", "nf_call_ip6tables", "1")
    remaining = facts.unfiltered_bridges & _unfiltered_bridges(networks)
    for bridge in facts.unfiltered_bridges - remaining:
        log.info("ip6tables now filters the frames of bridge %s, for enable_icc=false", bridge)
    facts = replace(facts, unfiltered_bridges=remaining)
    return evaluate(
        facts,
        networks,
        bridges,
        engine_writes=desired.engine_writes,
        missing_engine_rules=desired.missing_engine_rules,
    )


def read_host(
    networks: Iterable[Network], backend: Backend, zones: Map[str, str] | None
) -> HostFacts:
    """Read all facts for `findings`. Blocks."""
    facts = read_settings(networks, backend, zones)
    return firewalls.add_firewall_facts(facts) if facts.ipv6 and not facts.disabled else facts


def read_settings(
    networks: Iterable[Network], backend: Backend, zones: Map[str, str] | None
) -> HostFacts:
    """Read the facts for `findings` that are no rules. Blocks."""
    facts = HostFacts(
        ipv6=_CONF.exists(),
        disabled=read_word(_CONF / "all/disable_ipv6") == "1",
        forwarding=read_word(_CONF / "all/forwarding") != "0",
        backend=backend.value,
        zones=zones,
    )
    if not facts.ipv6 or facts.disabled:
        return facts
    interfaces = tuple(_forwarding_interfaces())
    return replace(
        facts,
        forced_interfaces=frozenset(filter(_is_forced, interfaces)),
        ra_default_routes=ra_default_routes(),
        client_interfaces=tuple(sorted(_client_interfaces())),
        interfaces=interfaces,
        global_interfaces=frozenset(_global_interfaces()),
        docker_ipv6nat=docker_ipv6nat(),
        br_netfilter=_BRIDGE_SYSCTL.exists(),
        unfiltered_bridges=_unfiltered_bridges(networks),
        bridges_without_address=_bridges_without_address(networks),
        guest_ports=_guest_ports(networks),
        missing_volumes=_missing_volumes(backend),
    )


def _missing_volumes(backend: Backend) -> frozenset[str]:
    """The paths that should be on a volume and are not; none outside of the image."""
    if not in_image():
        return frozenset()
    # The fifth field is the place of the mount.
    mounted = {columns[4] for columns in read_rows(_MOUNTS)}
    wanted = {STATE_FOLDER} if backend is Backend.NFT else {STATE_FOLDER, XTABLES_LOCK}
    return frozenset(path for path in wanted if mounted.isdisjoint({path, str(Path(path).parent)}))


def is_bridge_port(interface: str) -> bool:
    """True if the interface is a port of a bridge. Packets come in by the bridge, except those in
    frames that bridges do not forward."""
    return (_NET / interface / "brport").exists()


def ra_default_routes() -> tuple[RaDefaultRoute, ...]:
    """The interfaces with a default route from router advertisements. Blocks.

    Ports of bridges are left out: an advertisement that comes in there is from a container or a
    guest, in a frame that bridges do not forward.
    """
    return tuple(
        RaDefaultRoute(
            interface=name,
            accept_ra=int(read_word(_CONF / name / "accept_ra") or 0),
            forwarding=read_word(_CONF / name / "forwarding") == "1",
        )
        for name in dict.fromkeys(route.interface for route in _ra_routes("default"))
        if not is_bridge_port(name)
    )


def _ra_routes(*selector: str) -> Iterator[Route]:
    # /proc/net/ipv6_route marks only routes that the kernel itself learned; `ip` has the protocol.
    text = tool_output("ip", "-json", "-6", "route", "show", *selector, "proto", "ra")
    for row in ip_json_rows(text):
        with suppress(ValueError):
            prefix = IPv6Network(str(row.get("dst", "")).replace("default", "::/0"))
            yield from (Route(prefix=prefix, interface=name) for name in _devices(row))


def ip_json_rows(text: str) -> list[dict[str, object]]:
    """The rows in the output of `ip -json`; none if the output is something else."""
    try:
        # Not strict: `ip` writes control characters in the name of an interface as they are.
        parsed = json.loads(text or "[]", strict=False)
    except (ValueError, RecursionError):
        return []
    return [row for row in parsed if isinstance(row, dict)] if isinstance(parsed, list) else []


def _devices(routes: object) -> Iterator[str]:
    """The devices of routes of `ip -json`, and of their next hops."""
    match routes:
        case list():
            for route in routes:
                yield from _devices(route)
        case dict():
            if isinstance(device := routes.get("dev"), str) and is_interface(device):
                yield device
            yield from _devices(routes.get("nexthops"))


def _client_interfaces() -> set[str]:
    """See HostFacts."""
    default = {
        line.interface
        for line in _route_lines()
        if line.network == _DEFAULT_ROUTE and not line.flags & _RTF_REJECT
    }
    return default or _global_interfaces() - {"lo"}


def _global_interfaces() -> set[str]:
    return {line[5] for line in _address_lines() if line[3] == "00"}


def _forwarding_interfaces() -> Iterator[str]:
    """The interfaces that receive and send IPv6 packets, with any addresses; without lo."""
    for path in sorted(_NET.glob("*")):
        flags = read_word(path / "flags")
        # Netfilter sees the packets of a port on its bridge or bond. lo forwards nothing.
        port = is_bridge_port(path.name) or (path / "bonding_slave").exists()
        if not flags.startswith("0x") or not int(flags, 16) & _IFF_UP or port:
            continue
        if path.name != "lo" and read_word(_CONF / path.name / "disable_ipv6") == "0":
            yield path.name


def _is_forced(interface: str) -> bool:
    """See HostFacts. A write to all/force_forwarding sets the file of every interface."""
    return read_word(_CONF / interface / "force_forwarding") == "1"


class _RouteLine(NamedTuple):
    """A route as the kernel lists it."""

    prefix: str
    """32 hexadecimal digits."""
    length: int
    flags: int
    interface: str

    @property
    def has_link_scope(self) -> bool:
        return self.prefix.startswith(_LINK_SCOPE_PREFIXES)

    @property
    def network(self) -> IPv6Network:
        return IPv6Network((int(self.prefix, 16), self.length))


def _route_lines() -> Iterator[_RouteLine]:
    for prefix, length, *_, flags, interface in read_rows(_THREAD / "net/ipv6_route"):
        yield _RouteLine(prefix, int(length, 16), int(flags, 16), interface)


def _address_lines() -> list[list[str]]:
    """(address, index, prefix length, scope, flags, interface) of each address."""
    return list(read_rows(_THREAD / "net/if_inet6"))


def _bridges_without_address(networks: Iterable[Network]) -> frozenset[str]:
    """The bridges of open networks that have none of the addresses that the engine gave them."""
    found: dict[str, list[IPv6Address]] = {}
    for address, *_, interface in _address_lines():
        found.setdefault(interface, []).append(IPv6Address(int(address, 16)))
    return frozenset(
        network.bridge
        for network in networks
        if network.managed_by is ManagedBy.IPV6NATD and not network.closed and network.subnets
        if (_NET / network.bridge).exists()
        and not any(a in s for a in found.get(network.bridge, ()) for s in network.subnets)
    )


def _guest_ports(networks: Iterable[Network]) -> dict[str, tuple[str, ...]]:
    """See HostFacts."""
    return {
        network.bridge: guests
        for network in networks
        if network.managed_by is ManagedBy.IPV6NATD and (guests := guest_ports(network.bridge))
    }


def _unfiltered_bridges(networks: Iterable[Network]) -> frozenset[str]:
    """See HostFacts; without br_netfilter there is none."""
    if read_word(_BRIDGE_SYSCTL) != "0":
        return frozenset()
    return frozenset(
        network.bridge
        for network in networks
        if network.managed_by is ManagedBy.IPV6NATD
        and not network.icc
        and read_word(_NET / network.bridge / "bridge/nf_call_ip6tables") == "0"
    )


def docker_ipv6nat() -> str:
    """The command that stops docker-ipv6nat in this network namespace; "" if none runs.

    Every user, and every container, can name a process so, but only one with CAP_NET_ADMIN in this
    namespace can write rules.
    """
    for process in _PROC.glob("[0-9]*"):
        if (
            read_word(process / "comm") == "docker-ipv6nat"
            and _administers_networks(read_text(process / "status"))
            and _is_in_our_network(process)
        ):
            container = _CONTAINER_CGROUP.search(read_text(process / "cgroup"))
            return f"docker rm -f {container[1]}" if container else f"kill {process.name}"
    return ""


def _administers_networks(status: str) -> bool:
    capabilities = _CAPABILITIES.search(status)
    return bool(
        _OF_ROOT.search(status) and capabilities and int(capabilities[1], 16) & _CAP_NET_ADMIN
    )


def _is_in_our_network(process: Path) -> bool:
    if namespace := read_link(process / "ns/net"):
        return namespace == read_link(_THREAD / "ns/net")
    # Without CAP_SYS_PTRACE, as in the unit, the link of a process with more capabilities cannot be
    # read. The addresses can.
    return read_text(process / "net/if_inet6") == read_text(_THREAD / "net/if_inet6")
