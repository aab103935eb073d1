"""`check`: the findings, and what is correct. Without the daemon, it reads the host itself."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
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
from ipv6natd.host.facts import read_host, read_settings
from ipv6natd.host.findings import Finding, Severity, Topic, evaluate, kernel_fault
from ipv6natd.model import ManagedBy, Network
from ipv6natd.netfilter.docker_rules import DOCKER_BRIDGE_NAME
from ipv6natd.netfilter.rules import Backend
from ipv6natd.report.checks import INSTALLERS, TOOLS, Check, CheckInputs, CheckVerdict, checks
from ipv6natd.report.status import counted
from ipv6natd.sync.variant import chosen_backend
from ipv6natd.system import process
from ipv6natd.system.terminal import printable

POLKIT = ("org.freedesktop.PolicyKit1", "/", "org.freedesktop.DBus.Peer", "Ping")
_NET = Path("/sys/class/net")
_UFW = Path("/etc/ufw/ufw.conf")


async def check(daemon: DaemonClient, options: Options) -> Result:
    """One line for each condition of IPv6 NAT; exit code 1 if the host has a fault."""
    properties, rows, bus_error = await _query_daemon(daemon)
    native = await _native_networks(daemon) if properties else None
    zones = None if bus_error else await _zones(daemon)
    host, kernel_checked, fault = _probe()
    backend = properties.get("Backend") or host or Backend.NFT.value
    networks = tuple(_bridges())
    if rows is None:
        facts = read_host(networks, Backend(backend), zones)
        # The engine may write IPv6 rules itself: only the daemon knows.
        findings = evaluate(facts, networks, engine_writes=True)
    else:
        facts = read_settings(networks, Backend(backend), zones)
        findings = tuple(map(_finding, rows))
    inputs = CheckInputs(
        root=os.geteuid() == 0,
        bus=bus_error,
        daemon=properties,
        reported=rows is not None,
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
    return _result(checks(facts, findings, inputs), options)


async def _query_daemon(daemon: DaemonClient) -> tuple[Row, list[Row] | None, str]:
    """The daemon's properties, {} if it does not run; its findings, None if it does not run or the
    caller may not list them; and the error of the bus, empty if there is none."""
    try:
        # This order: the check for the findings may have changed the properties.
        rows = await daemon.call("ListFindings")
        return await daemon.properties(), rows, ""
    except BusError as error:
        if is_not_running(error):
            return {}, None, ""
    try:
        return await daemon.properties(), None, ""  # polkit may deny the lists
    except BusError as error:
        return {}, None, "" if is_not_running(error) else error.text


async def _native_networks(daemon: DaemonClient) -> int | None:
    """Number of networks that the engine manages itself; None if unknown."""
    try:
        rows = await daemon.call("ListNetworks")
    except BusError:
        return None
    return [row["ManagedBy"] for row in rows].count(ManagedBy.ENGINE)


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


def _finding(row: Row) -> Finding:
    return Finding(
        topic=Topic(row["About"]),
        severity=Severity(row["Severity"]),
        problem=row["Text"],
        command=row["Command"],
        network=row["Network"],
    )


def _bridges() -> Iterable[Network]:
    """Docker's bridges by their names: their subnets are unknown."""
    for path in sorted(_NET.glob("*")):
        if DOCKER_BRIDGE_NAME.fullmatch(path.name):
            yield Network(id=path.name, name=path.name, driver="bridge", bridge=path.name)


def _probe() -> tuple[str, bool, Finding | None]:
    """The variant that the daemon would use, empty if there is no ip6tables; whether the kernel was
    checked, and what it lacks."""
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
