"""One line for each thing that IPv6 NAT hangs on: what `ipv6natctl check` says of this host.

Pure. What is wrong is host_checks' word; here stands what is well, and what nobody could see.
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
    "conntrack": "conntrack",
    "ip": "iproute2",
}
"""Program -> the package of Debian's that has it."""
ARCH_PACKAGES = {"conntrack": "conntrack-tools"}


class CheckVerdict(StrEnum):
    """What a check came to."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line; `fix` is a command, empty where nothing is to be done."""

    about: str
    verdict: CheckVerdict
    text: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckInputs:
    """What is checked beside the facts of the host."""

    root: bool = True
    """Whether rules could be read."""
    bus: str = ""
    """Why the bus cannot be reached; empty if it can."""
    state: str = ""
    """Of the daemon; empty if it does not run."""
    state_reason: str = ""
    docker_connected: bool = False
    engine_version: str = ""
    native_networks: int | None = 0
    """Networks that the engine manages itself; None where nobody may tell."""
    backend: str = ""
    """The variant that the daemon writes."""
    host_backend: str = ""
    """The variant that this host's ip6tables is; empty where there is none."""
    kernel_problem: str | None = None
    """What the kernel lacks, with what helps; empty if nothing, None where it was not asked."""
    missing: tuple[str, ...] = ()
    """Of TOOLS."""
    ufw: bool = False
    firewalld: bool = False
    polkit: bool | None = None
    """None where the bus cannot say."""
    docker_networks: int = 0
    has_apt: bool = True


@dataclass(frozen=True, slots=True)
class _Passed:
    """What is said where nothing is found."""

    about: Topic
    text: str
    needs_root: bool = False
    """Whether one has to be root to see it."""


def checks(facts: HostFacts, found: HostReport, inputs: CheckInputs) -> tuple[Check, ...]:
    """All of it, in the order in which one would put it right."""
    return (
        _daemon(inputs),
        *_engine(inputs),
        *_tools(inputs),
        *_host_checks(facts, found.findings, inputs),
        _kernel(inputs),
        *_ufw_and_polkit(inputs),
        *(Check(about="firewall", verdict=CheckVerdict.NOTE, text=note) for note in found.notes),
    )


def _daemon(inputs: CheckInputs) -> Check:
    if inputs.bus:
        fix = "systemctl start dbus.socket"
        return Check(about="ipv6natd", verdict=CheckVerdict.BAD, text=inputs.bus, fix=fix)
    if not inputs.state:
        fix = "systemctl enable --now ipv6natd"
        return Check(about="ipv6natd", verdict=CheckVerdict.BAD, text="it is not running", fix=fix)
    if inputs.state == State.SYNCED:
        return Check(about="ipv6natd", verdict=CheckVerdict.OK, text="it runs, and is in step")
    text = f"{inputs.state}: {inputs.state_reason}" if inputs.state_reason else inputs.state
    return Check(about="ipv6natd", verdict=CheckVerdict.BAD, text=text, fix="ipv6natctl status")


def _engine(inputs: CheckInputs) -> Iterator[Check]:
    if not inputs.state:
        text = "what engine there is only ipv6natd tells, which is not running"
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
            text = "no network has a ULA subnet yet; this makes a prefix and shows how to use it"
            yield Check(
                about="networks", verdict=CheckVerdict.NOTE, text=text, fix="ipv6natctl ula"
            )


def _tools(inputs: CheckInputs) -> Iterator[Check]:
    if not inputs.missing:
        yield Check(about="tools", verdict=CheckVerdict.OK, text=f"{', '.join(TOOLS)} are here")
        return
    packages = dict.fromkeys(TOOLS[tool] for tool in inputs.missing)
    fix = f"apt install {' '.join(packages)}"
    if not inputs.has_apt:
        fix = f"pacman -S {' '.join(ARCH_PACKAGES.get(package, package) for package in packages)}"
    iptables_missing = any(TOOLS[tool] == "iptables" for tool in inputs.missing)
    text = f"missing: {', '.join(inputs.missing)}; none is run from /usr/local"
    yield Check(
        about="tools",
        verdict=CheckVerdict.BAD if iptables_missing else CheckVerdict.NOTE,
        text=text,
        fix=fix,
    )


def _host_checks(
    facts: HostFacts, findings: Iterable[Finding], inputs: CheckInputs
) -> Iterator[Check]:
    by_about: dict[Topic, list[Finding]] = {}
    for finding in findings:
        by_about.setdefault(finding.topic, []).append(finding)
    for passed in _passed_checks(facts, inputs):
        faults = by_about.pop(passed.about, [])
        for finding in faults:
            text = finding.text.removesuffix(f": {finding.command}")
            yield Check(
                about=passed.about, verdict=CheckVerdict.BAD, text=text, fix=finding.command
            )
        if faults:
            continue
        if passed.needs_root and not inputs.root:
            text = "only root can see the rules of this host"
            fix = "sudo ipv6natctl check"
            yield Check(about=passed.about, verdict=CheckVerdict.UNKNOWN, text=text, fix=fix)
        elif passed.about is Topic.FIREWALL and "nft" in inputs.missing:
            text = "without nft nobody can see the chains of others"
            yield Check(about=passed.about, verdict=CheckVerdict.UNKNOWN, text=text)
        elif (facts.ipv6 and not facts.disabled) or passed.about is Topic.IPV6:
            yield Check(about=passed.about, verdict=CheckVerdict.OK, text=passed.text)


def _passed_checks(facts: HostFacts, inputs: CheckInputs) -> Iterator[_Passed]:
    yield _Passed(Topic.IPV6, "the kernel has it, and it is on")
    yield _Passed(Topic.FORWARDING, "it is on" if facts.forwarding else "it is off, and not needed")
    interfaces = [route.interface for route in facts.ra_default_routes]
    text = f"{', '.join(interfaces)} heeds advertisements in spite of forwarding"
    yield _Passed(
        Topic.ACCEPT_RA, text if interfaces else "no default route hangs on advertisements"
    )
    yield _Passed(
        Topic.VARIANT, f"the {inputs.backend or inputs.host_backend} variant, and no other", True
    )
    yield _Passed(Topic.FIREWALL, "nobody's chain drops what is forwarded to containers", True)
    text = "every bridge is in a zone" if inputs.firewalld else "it does not run"
    yield _Passed(Topic.FIREWALLD, text)
    text = "not loaded, and no network needs it"
    if facts.bridges_filtered is not None:
        text = "loaded, and passes ip6tables what has to"
    yield _Passed(Topic.BR_NETFILTER, text)
    yield _Passed(Topic.DOCKER_IPV6NAT, "it does not run, and has left no rules", True)


def _kernel(inputs: CheckInputs) -> Check:
    if inputs.state == State.SYNCED:
        text = "it has all that the rules need: they are in force"
        return Check(about="kernel", verdict=CheckVerdict.OK, text=text)
    if inputs.kernel_problem is None:
        text = "whether it has all that the rules need shows when they are written"
        fix = "" if inputs.root else "sudo ipv6natctl check"
        return Check(about="kernel", verdict=CheckVerdict.UNKNOWN, text=text, fix=fix)
    if inputs.kernel_problem:
        text, _, fix = inputs.kernel_problem.rpartition(": ")
        return Check(about="kernel", verdict=CheckVerdict.BAD, text=text, fix=fix)
    return Check(about="kernel", verdict=CheckVerdict.OK, text="it takes every kind of rule")


def _ufw_and_polkit(inputs: CheckInputs) -> Iterator[Check]:
    if inputs.ufw:
        text = (
            "it is on, and published ports pass it, as they do for IPv4; "
            "what is to be kept out goes into DOCKER-USER"
        )
        yield Check(about="ufw", verdict=CheckVerdict.NOTE, text=text)
    if inputs.polkit:
        yield Check(
            about="polkit", verdict=CheckVerdict.OK, text="it decides who may change things"
        )
    elif inputs.polkit is not None:
        text = "it does not answer, so only root may change things"
        yield Check(about="polkit", verdict=CheckVerdict.NOTE, text=text)
