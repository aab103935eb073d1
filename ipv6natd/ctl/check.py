"""`check`: reads the host itself, so that it also works if the daemon does not run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

from ipv6natd.ctl.client import (
    EXIT_FAILED,
    DaemonClient,
    Options,
    Result,
    Row,
    is_not_running,
    listing,
    painted,
)
from ipv6natd.dbus.connection import BusError
from ipv6natd.dbus.firewalld import Firewalld
from ipv6natd.firewall.backend import FirewallError
from ipv6natd.firewall.restore import probe_kernel
from ipv6natd.host.facts import container_ports, read_host
from ipv6natd.host.findings import Finding, evaluate, kernel_fault
from ipv6natd.model import GatewayMode, ManagedBy, Network
from ipv6natd.netfilter.docker_rules import DOCKER_BRIDGE_NAME
from ipv6natd.netfilter.rules import Backend
from ipv6natd.report.checks import INSTALLERS, TOOLS, Check, CheckInputs, CheckVerdict, checks
from ipv6natd.report.status import State, counted
from ipv6natd.sync.variant import chosen_backend
from ipv6natd.system import process
from ipv6natd.system.terminal import printable

POLKIT = ("org.freedesktop.PolicyKit1", "/", "org.freedesktop.DBus.Peer", "Ping")
_NET = Path("/sys/class/net")
_UFW = Path("/etc/ufw/ufw.conf")


async def check(daemon: DaemonClient, options: Options) -> Result:
    """One line for each condition of IPv6 NAT; exit code 1 if the host has a fault."""
    properties, rows, bus_error = await _query_daemon(daemon)
    zones = None if bus_error else await _zones(daemon)
    networks = tuple(_bridges() if rows is None else map(_network, rows))
    managed = [network.managed_by is ManagedBy.ENGINE for network in networks]
    native = None if rows is None else sum(managed)
    host, kernel_checked, fault = _probe()
    backend = properties.get("Backend") or host or Backend.NFT.value
    facts = read_host(networks, Backend(backend), zones)
    inputs = CheckInputs(
        root=os.geteuid() == 0,
        bus=bus_error,
        daemon=properties,
        failure="" if properties or bus_error else await daemon.unit_failure(),
        native_networks=native,
        host_backend=host,
        kernel_checked=kernel_checked,
        kernel_fault=fault,
        missing=tuple(name for name in TOOLS if process.which(name) is None),
        installer=next((INSTALLERS[name] for name in INSTALLERS if process.which(name)), ""),
        ufw=_ufw(),
        polkit=None if bus_error else await _polkit(daemon),
    )
    # Only the daemon knows whether the engine manages networks, and which of its rules are stale;
    # without the daemon, assume that they are in use.
    engine_writes = native != 0
    if facts.docker_ipv6_rules and not engine_writes and not await _has_leftovers(daemon):
        facts = replace(facts, docker_ipv6_rules=frozenset())
    bridges = frozenset(_engine_bridges(properties))
    report = evaluate(facts, networks, bridges, engine_writes=engine_writes)
    return _result(checks(facts, report, inputs), options)


async def _query_daemon(daemon: DaemonClient) -> tuple[Row, list[Row] | None, str]:
    """The daemon's properties, {} if it does not run; its networks, None if it does not run or the
    caller may not list them; and the error of the bus, empty if there is none."""
    try:
        properties = await daemon.properties()
    except BusError as error:
        return {}, None, "" if is_not_running(error) else error.text
    try:
        return properties, await daemon.call("ListNetworks"), ""
    except BusError:
        return properties, None, ""  # polkit may deny the lists


async def _has_leftovers(daemon: DaemonClient) -> bool:
    try:
        return bool(await daemon.call("ListLeftovers"))
    except BusError:
        return False


async def _zones(daemon: DaemonClient) -> Mapping[str, str] | None:
    firewalld = Firewalld(lambda: None)
    try:
        await firewalld.subscribe(await daemon.connection())
    except BusError:
        return None
    return await firewalld.zones()


async def _polkit(daemon: DaemonClient) -> bool:
    """True if polkit answers. The bus daemon may start it, as for the daemon's own checks."""
    connection = await daemon.connection()
    try:
        await connection.call(*POLKIT, autostart=True)
    except BusError:
        return False
    return True


def _network(row: Row) -> Network:
    """The network of a row. The row has no trusted interfaces: see ONLY_REPORTED."""
    source = row["SourceAddress"]
    mode = GatewayMode.NAT if row["Mode"] == "internal" else row["Mode"]
    return Network(
        id=row["Id"],
        name=row["Name"],
        driver="bridge",
        bridge=row["Bridge"],
        enable_ipv6=True,
        subnets=tuple(map(IPv6Network, row["Subnets"])),
        gateway=IPv6Address(row["Gateway"]) if row["Gateway"] else None,
        internal=row["Internal"],
        icc=row["Icc"],
        masquerade=row["Masquerade"],
        gateway_mode=GatewayMode(mode),
        source_address=IPv6Address(source) if source else None,
        managed_by=ManagedBy(row["ManagedBy"]),
    )


def _bridges() -> Iterable[Network]:
    """Docker's bridges by their names, for a caller without a list of networks."""
    for path in sorted(_NET.glob("*")):
        if DOCKER_BRIDGE_NAME.fullmatch(path.name):
            yield Network(id=path.name, name=path.name, driver="bridge", bridge=path.name)


def _engine_bridges(properties: Row) -> Iterator[str]:
    """The bridges of networks without IPv6 too, which no list on the bus has.

    A bridge with the port of a container is one. The daemon knows all of them: while it reports no
    fault, no bridge makes this host a router.
    """
    for path in _NET.glob("*/bridge"):
        name = path.parent.name
        if properties.get("State") == State.SYNCED or container_ports([name]):
            yield name


def _probe() -> tuple[str, bool, Finding | None]:
    """The variant of the host's ip6tables, empty if there is none; whether the kernel was checked,
    and what it lacks."""
    try:
        variant = chosen_backend("auto")
    except FirewallError:
        return "", False, None
    if os.geteuid() != 0 or variant is not Backend.NFT:
        return variant, False, None
    try:
        probe_kernel()
    except FirewallError as error:
        reason = str(error).splitlines()[0]
        fault = kernel_fault(reason) or Finding(problem=reason, command="journalctl -k")
        return variant, True, fault
    return variant, True, None


def _ufw() -> bool:
    try:
        return "ENABLED=yes" in _UFW.read_text().splitlines()
    except OSError:
        return False


def _result(results: Sequence[Check], options: Options) -> Result:
    rows = [
        {
            "VERDICT": painted(line.verdict, options.screen),
            "ABOUT": line.about,
            "WHAT": printable(f"{line.text}: {line.fix}" if line.fix else line.text),
        }
        for line in results
    ]
    bad = sum(line.verdict is CheckVerdict.BAD for line in results)
    summary = "No fault found."
    if bad:
        summary = f"{counted(bad, 'fault')} found."
    elif any(line.verdict is CheckVerdict.UNKNOWN for line in results):
        summary = "No fault found, but not everything could be checked."
    value = [
        {"About": line.about, "Verdict": line.verdict, "Text": line.text, "Fix": line.fix}
        for line in results
    ]
    code = EXIT_FAILED if bad else 0
    return Result(value=value, text=listing(rows, options, summary), code=code)
