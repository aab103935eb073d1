"""One line for each condition of IPv6 NAT: what `ipv6natctl check` prints about this host.

Pure. The faults come from `host.findings`; this module adds what is correct and what is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from ipv6natd.host.findings import Finding, HostFacts, HostReport, Topic
from ipv6natd.report.status import State, counted

TOOLS = {
    "ip6tables": "iptables",
    "ip6tables-restore": "iptables",
    "ip6tables-save": "iptables",
    "nft": "nftables",
    "ip": "iproute2",
}
"""Program -> its Debian package."""


class CheckVerdict(StrEnum):
    """The result of a check."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line; `fix` is a command, empty if nothing has to be done."""

    about: str
    verdict: CheckVerdict
    text: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckInputs:
    """What is checked besides the facts of the host."""

    root: bool = True
    """True if rules could be read."""
    bus: str = ""
    """Why the bus cannot be reached; empty if it can be."""
    state: str = ""
    """The state of the daemon; empty if it does not run."""
    state_reason: str = ""
    docker_connected: bool = False
    engine_version: str = ""
    native_networks: int | None = 0
    """Number of networks that the engine manages itself; None if unknown."""
    backend: str = ""
    """The variant of ip6tables that the daemon uses."""
    host_backend: str = ""
    """The variant of the host's ip6tables; empty if there is none."""
    kernel_checked: bool = False
    kernel_fault: Finding | None = None
    """What the kernel lacks; None if nothing, and if it was not checked."""
    missing: tuple[str, ...] = ()
    """Those of TOOLS that are not installed."""
    ufw: bool = False
    firewalld: bool = False
    polkit: bool | None = None
    """True if polkit answers; None if the bus cannot be reached."""
    docker_networks: int = 0
    has_apt: bool = True


@dataclass(frozen=True, slots=True)
class _Passed:
    """The text of a topic without findings."""

    about: Topic
    text: str
    needs_root: bool = False
    """True if only root can check it."""


def checks(facts: HostFacts, report: HostReport, inputs: CheckInputs) -> tuple[Check, ...]:
    """All lines, in the order in which faults should be corrected."""
    return (
        _daemon(inputs),
        *_engine(inputs),
        *_tools(inputs),
        *_host_checks(facts, report.findings, inputs),
        _kernel(inputs),
        *_ufw_and_polkit(inputs),
        *(Check(about="firewall", verdict=CheckVerdict.NOTE, text=note) for note in report.notes),
    )


def _daemon(inputs: CheckInputs) -> Check:
    if inputs.bus:
        fix = "systemctl start dbus.socket"
        return Check(about="ipv6natd", verdict=CheckVerdict.BAD, text=inputs.bus, fix=fix)
    if not inputs.state:
        fix = "systemctl enable --now ipv6natd"
        return Check(about="ipv6natd", verdict=CheckVerdict.BAD, text="it is not running", fix=fix)
    if inputs.state == State.SYNCED:
        return Check(
            about="ipv6natd",
            verdict=CheckVerdict.OK,
            text="it is running, and the rules are in sync",
        )
    text = f"{inputs.state}: {inputs.state_reason}" if inputs.state_reason else inputs.state
    return Check(about="ipv6natd", verdict=CheckVerdict.BAD, text=text, fix="ipv6natctl status")


def _engine(inputs: CheckInputs) -> Iterator[Check]:
    if not inputs.state:
        text = "engine unknown: ipv6natd is not running"
        yield Check(about="docker", verdict=CheckVerdict.UNKNOWN, text=text)
    elif not inputs.docker_connected:
        text = "the engine does not answer"
        yield Check(
            about="docker", verdict=CheckVerdict.BAD, text=text, fix="systemctl start docker"
        )
    else:
        text = f"engine {inputs.engine_version}"
        if inputs.native_networks:
            text += (
                f"; it writes the IPv6 rules of {counted(inputs.native_networks, 'network')} itself"
            )
        elif inputs.native_networks == 0:
            text += "; it writes no IPv6 rules itself"
        yield Check(about="docker", verdict=CheckVerdict.OK, text=text)
        if not inputs.docker_networks:
            text = "no network has a ULA subnet; this creates a prefix and shows how to use it"
            yield Check(
                about="networks", verdict=CheckVerdict.NOTE, text=text, fix="ipv6natctl ula"
            )


def _tools(inputs: CheckInputs) -> Iterator[Check]:
    if not inputs.missing:
        yield Check(
            about="tools", verdict=CheckVerdict.OK, text=f"{', '.join(TOOLS)} are installed"
        )
        return
    packages = dict.fromkeys(TOOLS[tool] for tool in inputs.missing)
    fix = f"apt install {' '.join(packages)}"
    if not inputs.has_apt:
        fix = f"pacman -S {' '.join(packages)}"
    iptables_missing = any(TOOLS[tool] == "iptables" for tool in inputs.missing)
    text = f"missing: {', '.join(inputs.missing)}; /usr/local is not searched"
    yield Check(
        about="tools",
        verdict=CheckVerdict.BAD if iptables_missing else CheckVerdict.NOTE,
        text=text,
        fix=fix,
    )


def _fault(about: str, finding: Finding) -> Check:
    return Check(about=about, verdict=CheckVerdict.BAD, text=finding.problem, fix=finding.command)


def _host_checks(
    facts: HostFacts, findings: Iterable[Finding], inputs: CheckInputs
) -> Iterator[Check]:
    by_about: dict[Topic, list[Finding]] = {}
    for finding in findings:
        by_about.setdefault(finding.topic, []).append(finding)
    for passed in _passed_checks(facts, inputs):
        faults = by_about.pop(passed.about, [])
        for finding in faults:
            yield _fault(passed.about, finding)
        if faults:
            continue
        if passed.needs_root and not inputs.root:
            text = "only root can read the rules of this host"
            fix = "sudo ipv6natctl check"
            yield Check(about=passed.about, verdict=CheckVerdict.UNKNOWN, text=text, fix=fix)
        elif passed.about is Topic.FIREWALL and "nft" in inputs.missing:
            text = "the chains of other programs cannot be read without nft"
            yield Check(about=passed.about, verdict=CheckVerdict.UNKNOWN, text=text)
        elif (facts.ipv6 and not facts.disabled) or passed.about is Topic.IPV6:
            yield Check(about=passed.about, verdict=CheckVerdict.OK, text=passed.text)


def _passed_checks(facts: HostFacts, inputs: CheckInputs) -> Iterator[_Passed]:
    yield _Passed(Topic.IPV6, "the kernel supports it, and it is on")
    yield _Passed(Topic.FORWARDING, "it is on" if facts.forwarding else "it is off, and not needed")
    interfaces = [route.interface for route in facts.ra_default_routes]
    text = f"accepted on {', '.join(interfaces)} although forwarding is on"
    yield _Passed(
        Topic.ACCEPT_RA, text if interfaces else "no default route needs router advertisements"
    )
    yield _Passed(
        Topic.VARIANT, f"only the {inputs.backend or inputs.host_backend} variant is in use", True
    )
    yield _Passed(
        Topic.FIREWALL, "no foreign chain drops packets that are forwarded to containers", True
    )
    text = "every bridge is in a zone" if inputs.firewalld else "it is not running"
    yield _Passed(Topic.FIREWALLD, text)
    text = "not loaded, and no network needs it"
    if facts.bridges_filtered is not None:
        text = "loaded, and on for every bridge that needs it"
    yield _Passed(Topic.BR_NETFILTER, text)
    yield _Passed(Topic.DOCKER_IPV6NAT, "it is not running, and no rules of it are left", True)


def _kernel(inputs: CheckInputs) -> Check:
    if inputs.state == State.SYNCED:
        text = "it supports all rules: they are in force"
        return Check(about="kernel", verdict=CheckVerdict.OK, text=text)
    if inputs.kernel_fault is not None:
        return _fault("kernel", inputs.kernel_fault)
    if not inputs.kernel_checked:
        text = "unknown until the rules are written"
        fix = "" if inputs.root else "sudo ipv6natctl check"
        return Check(about="kernel", verdict=CheckVerdict.UNKNOWN, text=text, fix=fix)
    return Check(about="kernel", verdict=CheckVerdict.OK, text="it supports every kind of rule")


def _ufw_and_polkit(inputs: CheckInputs) -> Iterator[Check]:
    if inputs.ufw:
        text = (
            "it is on; published ports bypass it, as they do for IPv4; "
            "put rules that block clients into DOCKER-USER"
        )
        yield Check(about="ufw", verdict=CheckVerdict.NOTE, text=text)
    if inputs.polkit:
        yield Check(about="polkit", verdict=CheckVerdict.OK, text="it decides who may make changes")
    elif inputs.polkit is not None:
        text = "it does not answer, so only root may make changes"
        yield Check(about="polkit", verdict=CheckVerdict.NOTE, text=text)
