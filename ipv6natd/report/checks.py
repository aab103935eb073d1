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
PACKAGES_OF_ARCH = {"conntrack": "conntrack-tools"}


class Verdict(StrEnum):
    """What a check came to."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line; `fix` is a command, empty where nothing is to be done."""

    about: str
    verdict: Verdict
    text: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was seen beside the facts about the host."""

    root: bool = True
    """Whether rules could be read."""
    bus: str = ""
    """Why the bus cannot be reached; empty if it can."""
    state: str = ""
    """Of the daemon; empty if it does not run."""
    reason: str = ""
    connected: bool = False
    engine_version: str = ""
    native: int | None = 0
    """Networks that the engine manages itself; None where nobody may tell."""
    backend: str = ""
    """The variant that the daemon writes."""
    host_backend: str = ""
    """The variant that this host's ip6tables is; empty where there is none."""
    kernel: str | None = None
    """What the kernel lacks, with what helps; empty if nothing, None where it was not asked."""
    missing: tuple[str, ...] = ()
    """Of TOOLS."""
    ufw: bool = False
    firewalld: bool = False
    polkit: bool | None = None
    """None where the bus cannot say."""
    docker_networks: int = 0
    apt: bool = True


@dataclass(frozen=True, slots=True)
class _Well:
    """What is said where nothing is found."""

    about: Topic
    text: str
    rules: bool = False
    """Whether one has to be root to see it."""


def checks(facts: HostFacts, found: HostReport, seen: Seen) -> tuple[Check, ...]:
    """All of it, in the order in which one would put it right."""
    return (
        _daemon(seen),
        *_engine(seen),
        *_tools(seen),
        *_of_host(facts, found.findings, seen),
        _kernel(seen),
        *_others(seen),
        *(Check(about="firewall", verdict=Verdict.NOTE, text=note) for note in found.notes),
    )


def _daemon(seen: Seen) -> Check:
    if seen.bus:
        fix = "systemctl start dbus.socket"
        return Check(about="ipv6natd", verdict=Verdict.BAD, text=seen.bus, fix=fix)
    if not seen.state:
        fix = "systemctl enable --now ipv6natd"
        return Check(about="ipv6natd", verdict=Verdict.BAD, text="it is not running", fix=fix)
    if seen.state == State.SYNCED:
        return Check(about="ipv6natd", verdict=Verdict.OK, text="it runs, and is in step")
    text = f"{seen.state}: {seen.reason}" if seen.reason else seen.state
    return Check(about="ipv6natd", verdict=Verdict.BAD, text=text, fix="ipv6natctl status")


def _engine(seen: Seen) -> Iterator[Check]:
    if not seen.state:
        text = "what engine there is only ipv6natd tells, which is not running"
        yield Check(about="docker", verdict=Verdict.UNKNOWN, text=text)
    elif not seen.connected:
        text = "the engine does not answer"
        yield Check(about="docker", verdict=Verdict.BAD, text=text, fix="systemctl start docker")
    else:
        text = f"engine {seen.engine_version}"
        if seen.native:
            text += f"; it writes the IPv6 rules of {counted(seen.native, 'network')} itself"
        elif seen.native == 0:
            text += "; it writes no IPv6 rules itself"
        yield Check(about="docker", verdict=Verdict.OK, text=text)
        if not seen.docker_networks:
            text = "no network has a ULA subnet yet; this makes a prefix and shows how to use it"
            yield Check(about="networks", verdict=Verdict.NOTE, text=text, fix="ipv6natctl ula")


def _tools(seen: Seen) -> Iterator[Check]:
    if not seen.missing:
        yield Check(about="tools", verdict=Verdict.OK, text=f"{', '.join(TOOLS)} are here")
        return
    packages = dict.fromkeys(TOOLS[each] for each in seen.missing)
    fix = f"apt install {' '.join(packages)}"
    if not seen.apt:
        fix = f"pacman -S {' '.join(PACKAGES_OF_ARCH.get(each, each) for each in packages)}"
    vital = any(TOOLS[each] == "iptables" for each in seen.missing)
    text = f"missing: {', '.join(seen.missing)}; none is run from /usr/local"
    yield Check(about="tools", verdict=Verdict.BAD if vital else Verdict.NOTE, text=text, fix=fix)


def _of_host(facts: HostFacts, findings: Iterable[Finding], seen: Seen) -> Iterator[Check]:
    by_about: dict[Topic, list[Finding]] = {}
    for each in findings:
        by_about.setdefault(each.topic, []).append(each)
    for well in _well(facts, seen):
        wrong = by_about.pop(well.about, [])
        for each in wrong:
            text = each.text.removesuffix(f": {each.command}")
            yield Check(about=well.about, verdict=Verdict.BAD, text=text, fix=each.command)
        if wrong:
            continue
        if well.rules and not seen.root:
            text = "only root can see the rules of this host"
            fix = "sudo ipv6natctl check"
            yield Check(about=well.about, verdict=Verdict.UNKNOWN, text=text, fix=fix)
        elif well.about is Topic.FIREWALL and "nft" in seen.missing:
            text = "without nft nobody can see the chains of others"
            yield Check(about=well.about, verdict=Verdict.UNKNOWN, text=text)
        elif (facts.ipv6 and not facts.disabled) or well.about is Topic.IPV6:
            yield Check(about=well.about, verdict=Verdict.OK, text=well.text)


def _well(facts: HostFacts, seen: Seen) -> Iterator[_Well]:
    yield _Well(Topic.IPV6, "the kernel has it, and it is on")
    yield _Well(Topic.FORWARDING, "it is on" if facts.forwarding else "it is off, and not needed")
    learned = [each.interface for each in facts.ra_default_routes]
    text = f"{', '.join(learned)} heeds advertisements in spite of forwarding"
    yield _Well(Topic.ACCEPT_RA, text if learned else "no default route hangs on advertisements")
    yield _Well(
        Topic.VARIANT, f"the {seen.backend or seen.host_backend} variant, and no other", True
    )
    yield _Well(Topic.FIREWALL, "nobody's chain drops what is forwarded to containers", True)
    text = "every bridge is in a zone" if seen.firewalld else "it does not run"
    yield _Well(Topic.FIREWALLD, text)
    text = "not loaded, and no network needs it"
    if facts.bridges_filtered is not None:
        text = "loaded, and passes ip6tables what has to"
    yield _Well(Topic.BR_NETFILTER, text)
    yield _Well(Topic.DOCKER_IPV6NAT, "it does not run, and has left no rules", True)


def _kernel(seen: Seen) -> Check:
    if seen.state == State.SYNCED:
        text = "it has all that the rules need: they are in force"
        return Check(about="kernel", verdict=Verdict.OK, text=text)
    if seen.kernel is None:
        text = "whether it has all that the rules need shows when they are written"
        fix = "" if seen.root else "sudo ipv6natctl check"
        return Check(about="kernel", verdict=Verdict.UNKNOWN, text=text, fix=fix)
    if seen.kernel:
        text, _, fix = seen.kernel.rpartition(": ")
        return Check(about="kernel", verdict=Verdict.BAD, text=text, fix=fix)
    return Check(about="kernel", verdict=Verdict.OK, text="it takes every kind of rule")


def _others(seen: Seen) -> Iterator[Check]:
    if seen.ufw:
        text = (
            "it is on, and published ports pass it, as they do for IPv4; "
            "what is to be kept out goes into DOCKER-USER"
        )
        yield Check(about="ufw", verdict=Verdict.NOTE, text=text)
    if seen.polkit:
        yield Check(about="polkit", verdict=Verdict.OK, text="it decides who may change things")
    elif seen.polkit is not None:
        text = "it does not answer, so only root may change things"
        yield Check(about="polkit", verdict=Verdict.NOTE, text=text)
