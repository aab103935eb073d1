"""What the host itself says: facts from /proc and /sys that no engine tells.

Of the calling thread's network namespace. What other firewalls say is read in firewalls.
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

from ipv6natd.host import firewalls
from ipv6natd.host.findings import (
    HostFacts,
    HostReport,
    RaDefaultRoute,
    evaluate,
    unfiltered_bridges,
)
from ipv6natd.host.firewalls import Tool, tool_output
from ipv6natd.model import Network, Route, is_interface, is_plain_interface
from ipv6natd.netfilter.rules import Backend

log = logging.getLogger(__name__)

_NET = Path("/sys/class/net")
_MAX_SAMPLED_PORTS = 8
_IFF_UP = 1
_PROC = Path("/proc")
_SYSCTL = Path("/proc/sys/net")
_THREAD = Path("/proc/thread-self")
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
_DOCKER_IPV6NAT = "docker-ipv6nat"
_LINK_SCOPE_PREFIXES = ("fe8", "fe9", "fea", "feb", "ff")
# The words are those of linux/ipv6_route.h and linux/route.h: RTF_REJECT, RTF_ADDRCONF,
# RTF_DYNAMIC (a redirect), RTF_ANYCAST, RTF_ROUTEINFO, RTF_CACHE and RTF_LOCAL.
_NOT_ROUTED = 0x200 | 0x40000 | 0x10 | 0x100000 | 0x800000 | 0x1000000 | 0x80000000


def userland_proxy(bridges: Iterable[str]) -> bool:
    """Whether the engine that made these bridges runs its userland proxy.

    dockerd sets hairpin_mode on a container's bridge port exactly when it runs without the proxy.
    A few ports tell, on whichever bridges: all of one engine are alike. With no port at all there
    is no container, and so nothing that depends on the answer.
    """
    ports = (port for bridge in bridges for port in _bridge_ports(bridge))
    return not any(
        _read_word(port / "hairpin_mode") == "1" for port in islice(ports, _MAX_SAMPLED_PORTS)
    )


def _bridge_ports(bridge: str) -> Iterator[Path]:
    with suppress(OSError), os.scandir(_NET / bridge / "brif") as found:
        for port in found:
            yield Path(port)


def tracks_sctp() -> bool:
    """Whether conntrack knows SCTP; while it is not loaded nobody can tell, and it is taken to."""
    known = _SYSCTL / "netfilter"
    timeouts = (known / f"nf_conntrack_{each}_timeout_established" for each in ("tcp", "sctp"))
    tcp, sctp = (each.exists() for each in timeouts)
    return sctp or not tcp


def addresses() -> frozenset[IPv6Address]:
    """Every IPv6 address of the host, whatever its scope; none where IPv6 is switched off."""
    return frozenset(IPv6Address(int(line[0], 16)) for line in _address_lines())


def routes() -> Iterator[Route]:
    """The host's routes, in whatever table, without those of single links, of its own addresses,
    of what the kernel has from others (see advertised), and of interfaces whose names no rule can
    hold."""
    for line in _read_text(_THREAD / "net/ipv6_route").splitlines():
        prefix, length, *_, flags, interface = line.split()
        if prefix.startswith(_LINK_SCOPE_PREFIXES) or int(flags, 16) & _NOT_ROUTED:
            continue
        if is_plain_interface(interface):
            net = IPv6Network((int(prefix, 16), int(length, 16)))
            yield Route(prefix=net, interface=interface)


def advertised_routes() -> frozenset[Route]:
    """The routes that a router advertisement brought, by the kernel or by a program that reads them
    in its place. Whoever is on the link may send one: it proves nothing about who is where."""
    text = tool_output(Tool.IP, "-json", "-6", "route", "show", "table", "all", "proto", "ra")
    found = set()
    for row in ip_json_rows(text):
        destination = str(row.get("dst", "")).replace("default", "::/0")
        with suppress(ValueError):
            net = IPv6Network(destination)
            found |= {Route(prefix=net, interface=device) for device in _devices(row)}
    return frozenset(found)


def check_host(
    networks: tuple[Network, ...],
    backend: Backend,
    zones: Map[str, str] | None,
    bridges: frozenset[str] = frozenset(),
    *,
    engine_writes: bool,
) -> HostReport:
    """Read the host, put right what is ours to put right, and say what is left: see found().

    `bridges` are those of all networks of the engine.
    Blocks for some tens of milliseconds: not for the way of an event.
    """
    facts = read_host(networks, backend, zones)
    cut = unfiltered_bridges(facts, networks)
    for bridge in cut:
        # This one bridge; the sysctl would send every bridge of the host through FORWARD.
        tool_output(Tool.IP, "link", "set", bridge, "type", "bridge", "nf_call_ip6tables", "1")
    if cut:
        facts = replace(facts, bridges_filtered=_bridges_filtered(networks))
        left = unfiltered_bridges(facts, networks)
        for bridge in set(cut) - set(left):
            log.info("bridge %s now passes ip6tables, so that its containers can be cut", bridge)
    return evaluate(facts, networks, bridges, engine_writes=engine_writes)


def read_host(
    networks: Iterable[Network], backend: Backend, zones: Map[str, str] | None
) -> HostFacts:
    """Everything that host_checks asks for. Blocks."""
    conf = _SYSCTL / "ipv6/conf"
    facts = HostFacts(
        ipv6=conf.exists(),
        disabled=_read_word(conf / "all/disable_ipv6") == "1",
        forwarding=_read_word(conf / "all/forwarding") != "0",
        backend=backend.value,
        zones=zones,
    )
    if not facts.ipv6 or facts.disabled:
        return facts
    return replace(
        firewalls.add_firewall_facts(facts),
        ra_default_routes=ra_default_routes(),
        global_interfaces=_global_interfaces(),
        interfaces=tuple(_forwarding_interfaces(conf)),
        docker_ipv6nat=docker_ipv6nat(),
        bridges_filtered=_bridges_filtered(networks),
    )


def ra_default_routes() -> tuple[RaDefaultRoute, ...]:
    """Interfaces with a default route from router advertisements. Blocks."""
    return tuple(_ra_default_routes(_SYSCTL / "ipv6/conf"))


def _ra_default_routes(conf: Path) -> Iterator[RaDefaultRoute]:
    # /proc/net/ipv6_route flags only what the kernel itself learned; the protocol is always there.
    text = tool_output(Tool.IP, "-json", "-6", "route", "show", "default", "proto", "ra")
    for interface in dict.fromkeys(_devices(ip_json_rows(text))):
        accept = _read_word(conf / interface / "accept_ra")
        yield RaDefaultRoute(
            interface=interface,
            accept_ra=int(accept) if accept.isdecimal() else 0,
            forwarding=_read_word(conf / interface / "forwarding") == "1",
        )


def ip_json_rows(text: str) -> list[dict[str, object]]:
    """What `ip -json` lists; nothing where it says something else."""
    try:
        found = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return []
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def _devices(routes: object) -> Iterator[str]:
    """Those of routes as `ip -json` words them, and of their next hops."""
    match routes:
        case list():
            for each in routes:
                yield from _devices(each)
        case dict():
            if isinstance(device := routes.get("dev"), str) and is_interface(device):
                yield device
            yield from _devices(routes.get("nexthops"))


def _global_interfaces() -> tuple[str, ...]:
    """Interfaces with a global address."""
    lines = _address_lines()
    return tuple(sorted({line[5] for line in lines if line[3] == "00" and line[5] != "lo"}))


def _forwarding_interfaces(conf: Path) -> Iterator[str]:
    """Interfaces by which IPv6 packets come and go, whatever their addresses; lo left out."""
    for path in sorted(_NET.glob("*")):
        flags = _read_word(path / "flags")
        # The packets of a port belong to its bridge or bond. lo forwards nothing.
        port = (path / "brport").exists() or (path / "bonding_slave").exists()
        if not flags.startswith("0x") or not int(flags, 16) & _IFF_UP or port:
            continue
        if path.name != "lo" and _read_word(conf / path.name / "disable_ipv6") == "0":
            yield path.name


def _address_lines() -> list[list[str]]:
    """Address, index, prefix length, scope, flags, interface of each."""
    return [line.split() for line in _read_text(_THREAD / "net/if_inet6").splitlines()]


def _bridges_filtered(networks: Iterable[Network]) -> dict[str, bool] | None:
    """None without br_netfilter, which alone brings the sysctl."""
    everywhere = _read_word(_SYSCTL / "bridge/bridge-nf-call-ip6tables")
    if not everywhere:
        return None
    return {
        each.bridge: everywhere == "1"
        or _read_word(_NET / each.bridge / "bridge/nf_call_ip6tables") != "0"
        for each in networks
        if each.bridge and not each.icc
    }


def docker_ipv6nat() -> str:
    """The command that stops a docker-ipv6nat in this network namespace; "" where none runs."""
    here = _read_link(_THREAD / "ns/net")
    for process in _PROC.glob("[0-9]*"):
        if (
            _read_word(process / "comm") == _DOCKER_IPV6NAT
            and _read_link(process / "ns/net") == here
        ):
            for line in _read_text(process / "cgroup").splitlines():
                name = line.rpartition("/")[2].removeprefix("docker-").removesuffix(".scope")
                # Anybody may name his processes so, and a group of them as he likes.
                if _CONTAINER_ID.fullmatch(name):
                    return f"docker rm -f {name[:12]}"
            return f"kill {process.name}"
    return ""


def _read_link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:  # another user's, or gone
        return ""


def _read_word(path: Path) -> str:
    return _read_text(path).strip()


def _read_text(path: Path) -> str:
    """The file's text; "" where it is not there: no IPv6, no br_netfilter, or gone meanwhile."""
    try:
        return path.read_text(errors="replace")
    except (OSError, ValueError):  # a name that no path can have
        return ""
