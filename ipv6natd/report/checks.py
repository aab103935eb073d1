"""One line for each condition of IPv6 NAT: what `ipv6natctl check` prints about this host.

Pure. The findings are those of the daemon or, without it, of `host.findings`; this module adds what
is correct and what is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Mapping as Map
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ipv6natd.host.findings import Finding, HostFacts, Severity, Topic
from ipv6natd.report.status import State, counted

TOOLS = {
    "ip6tables": "iptables",
    "ip6tables-restore": "iptables",
    "ip6tables-save": "iptables",
    "nft": "nftables",
    "ip": "iproute2",
}
"""Program -> its package in Debian, Arch Linux, openSUSE and Alpine Linux."""
INSTALLERS = {
    "apt-get": "apt install",
    "pacman": "pacman -S",
    "zypper": "zypper install",
    "apk": "apk add",
}
"""Package manager -> the command that installs a package."""


class CheckVerdict(StrEnum):
    """The result of a check."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    BAD = "bad"
    UNKNOWN = "unknown"


OK, NOTE, WARNING, BAD, UNKNOWN = CheckVerdict
_VERDICTS = {Severity.ERROR: BAD, Severity.WARNING: WARNING, Severity.NOTE: NOTE}


@dataclass(frozen=True, slots=True)
class Check:
    """One line; `fix` is a command, empty if nothing has to be done."""

    about: str
    verdict: CheckVerdict
    text: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckInputs:
    """What is checked besides the facts of the host; one field for each fact."""

    root: bool = True
    """True if rules could be read."""
    bus: str = ""
    """Why the bus cannot be reached; empty if it can be."""
    daemon: Map[str, Any] = field(default_factory=dict)
    """The properties of the daemon by their names on the bus; empty if it does not run."""
    reported: bool = False
    """True if the findings are those of the daemon, which can read all of the host."""
    failure: str = ""
    """Why the unit failed; empty if it did not."""
    native_networks: int | None = 0
    """Number of networks that the engine manages itself; None if unknown."""
    host_backend: str = ""
    """The variant of the host's ip6tables; empty if there is none."""
    kernel_checked: bool = False
    kernel_fault: Finding | None = None
    """What the kernel lacks; None if nothing, and if it was not checked."""
    missing: tuple[str, ...] = ()
    """Those of TOOLS that are not installed."""
    ufw: bool = False
    polkit: bool | None = None
    """True if polkit answers; None if the bus cannot be reached."""
    installer: str = "apt install"
    """The command that installs a package; empty if no known one is there."""


_NEEDS_ROOT = (Topic.VARIANT, Topic.FIREWALL, Topic.DOCKER_IPV6NAT)
"""The topics that only root can check."""


def checks(facts: HostFacts, findings: Sequence[Finding], inputs: CheckInputs) -> tuple[Check, ...]:
    """All lines, in the order in which faults should be corrected; notes come last."""
    own = [finding for finding in findings if finding.topic is Topic.SERVICE]
    others = [finding for finding in findings if finding.topic is not Topic.SERVICE]
    return (
        *_daemon(own, inputs),
        *_engine(inputs),
        _tools(inputs),
        *_host_checks(facts, others, inputs),
        _kernel(inputs),
        *_ufw_and_polkit(inputs),
        *(_line(finding) for finding in others if finding.severity is not Severity.ERROR),
    )


def _line(finding: Finding) -> Check:
    text = finding.problem
    if finding.topic is Topic.NETWORK:
        text = f"network {finding.network}: {text}"
    return Check(finding.topic, _VERDICTS[finding.severity], text, finding.command)


def _daemon(own: Sequence[Finding], inputs: CheckInputs) -> Iterator[Check]:
    """`own` are the findings of the daemon about itself and its connection to the engine."""
    if inputs.bus:
        yield Check("ipv6natd", BAD, inputs.bus, "systemctl start dbus.socket")
    elif inputs.failure:
        text = f"it has failed: {inputs.failure}; correct this, then"
        yield Check("ipv6natd", BAD, text, "systemctl start ipv6natd")
    elif not inputs.daemon:
        yield Check("ipv6natd", BAD, "it is not running", "systemctl enable --now ipv6natd")
    elif own:
        for finding in own:
            state = inputs.daemon["State"]
            text = finding.problem if state == State.SYNCED else f"{state}: {finding.problem}"
            yield Check("ipv6natd", BAD, text, finding.command)
    elif reason := inputs.daemon["StateReason"]:
        text = f"{inputs.daemon['State']}: {reason}"
        yield Check("ipv6natd", BAD, text, "ipv6natctl status")
    elif inputs.daemon["State"] == State.SYNCED:
        yield Check("ipv6natd", OK, "it is running, and the rules are in sync")
    else:
        yield Check("ipv6natd", BAD, inputs.daemon["State"], "ipv6natctl status")


def _engine(inputs: CheckInputs) -> Iterator[Check]:
    if not inputs.daemon:
        yield Check("docker", UNKNOWN, "engine unknown: ipv6natd is not running")
    elif not inputs.daemon["DockerConnected"]:
        yield Check("docker", BAD, "the engine does not answer", "systemctl start docker")
    else:
        text = f"engine {inputs.daemon['EngineVersion']}"
        if inputs.native_networks:
            networks = counted(inputs.native_networks, "network")
            text += f"; it writes the IPv6 rules of {networks} itself"
        elif inputs.native_networks == 0:
            text += "; it writes no IPv6 rules itself"
        yield Check("docker", OK, text)
        if not inputs.daemon["NetworkCount"] and inputs.daemon["State"] != State.STOPPED:
            text = "no network has a ULA subnet; this creates a prefix and shows how to use it"
            yield Check("networks", NOTE, text, "ipv6natctl ula")


def _tools(inputs: CheckInputs) -> Check:
    if not inputs.missing:
        return Check("tools", OK, f"{', '.join(TOOLS)} are installed")
    packages = dict.fromkeys(TOOLS[tool] for tool in inputs.missing)
    text = f"missing: {', '.join(inputs.missing)}; /usr/local is not searched"
    fix = f"{inputs.installer} {' '.join(packages)}" if inputs.installer else ""
    if not fix:
        text += f"; install {' and '.join(packages)}"
    return Check("tools", BAD if "iptables" in packages else NOTE, text, fix)


def _host_checks(
    facts: HostFacts, findings: Sequence[Finding], inputs: CheckInputs
) -> Iterator[Check]:
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    passed = _passed_checks(facts, inputs)
    for topic in Topic:
        if faults := [finding for finding in errors if finding.topic is topic]:
            yield from map(_line, faults)
        elif topic in _NEEDS_ROOT and not (inputs.root or inputs.reported):
            text = "only root can read the rules of this host"
            yield Check(topic, UNKNOWN, text, "sudo ipv6natctl check")
        elif topic is Topic.FIREWALL and "nft" in inputs.missing:
            yield Check(topic, UNKNOWN, "the chains of other programs cannot be read without nft")
        elif topic is Topic.BRIDGE and not inputs.reported:
            yield Check(topic, UNKNOWN, "the subnets of the networks are unknown")
        elif topic in passed and ((facts.ipv6 and not facts.disabled) or topic is Topic.IPV6):
            yield Check(topic, OK, passed[topic])


def _passed_checks(facts: HostFacts, inputs: CheckInputs) -> dict[Topic, str]:
    """The texts of the topics without findings. Only the daemon knows whether the engine lacks a
    rule, so that topic has none."""
    interfaces = ", ".join(route.interface for route in facts.ra_default_routes)
    backend = inputs.daemon.get("Backend") or inputs.host_backend
    return {
        Topic.IPV6: "the kernel supports it, and it is on",
        Topic.FORWARDING: "it is on" if facts.forwarding else "it is off, and not needed",
        Topic.ACCEPT_RA: f"accepted on {interfaces} although forwarding is on"
        if interfaces
        else "no default route needs router advertisements",
        Topic.VARIANT: f"only the {backend} variant is in use",
        Topic.FIREWALL: "no foreign chain drops packets that are forwarded to containers",
        Topic.FIREWALLD: "it is not running"
        if facts.zones is None
        else "every bridge is in a zone",
        Topic.BR_NETFILTER: "not loaded, and no network needs it"
        if not facts.br_netfilter
        else "loaded, and on for every bridge that needs it",
        Topic.BRIDGE: "every bridge has its IPv6 address",
        Topic.DOCKER_IPV6NAT: "it is not running, and no rules of it are left",
    }


def _kernel(inputs: CheckInputs) -> Check:
    if inputs.daemon.get("State") == State.SYNCED:
        return Check("kernel", OK, "it supports all rules: they are in force")
    if inputs.kernel_fault is not None:
        return Check("kernel", BAD, inputs.kernel_fault.problem, inputs.kernel_fault.command)
    if not inputs.kernel_checked:
        fix = "" if inputs.root else "sudo ipv6natctl check"
        return Check("kernel", UNKNOWN, "unknown until the rules are written", fix)
    return Check("kernel", OK, "it supports every kind of rule")


def _ufw_and_polkit(inputs: CheckInputs) -> Iterator[Check]:
    if inputs.ufw:
        text = (
            "it is on; published ports bypass it, as they do for IPv4; "
            "put rules that block clients into DOCKER-USER"
        )
        yield Check("ufw", NOTE, text)
    if inputs.polkit:
        yield Check("polkit", OK, "it decides who may make changes")
    elif inputs.polkit is not None:
        yield Check("polkit", NOTE, "it does not answer, so only root may make changes")
