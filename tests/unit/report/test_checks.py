"""What `ipv6natctl check` says of a host."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipv6natd.host.findings import HostFacts, HostReport, RaDefaultRoute, evaluate
from ipv6natd.model import Network
from ipv6natd.report.checks import Check, Seen, Verdict, checks
from tests.harness.build import network

X = network(name="x", bridge="br-x")
WELL = HostFacts()
RUNNING = Seen(
    state="synced",
    connected=True,
    engine_version="20.10",
    backend="nft",
    host_backend="nft",
    kernel="",
    polkit=True,
    docker_networks=1,
)
ABOUT = [
    *("ipv6natd", "docker", "tools", "ipv6", "forwarding", "accept_ra", "ip6tables", "firewall"),
    *("firewalld", "br_netfilter", "docker-ipv6nat", "kernel", "polkit"),
]


def said(facts: HostFacts = WELL, seen: Seen = RUNNING, *networks: Network) -> list[Check]:
    return list(checks(facts, evaluate(facts, networks or (X,)), seen))


def of(about: str, *checked: Check) -> Check:
    (one,) = (each for each in checked if each.about == about)
    return one


def test_a_host_that_is_well_has_one_good_line_for_each_thing() -> None:
    assert [each.about for each in said()] == ABOUT
    assert {each.verdict for each in said()} == {Verdict.OK}
    assert not any(each.fix for each in said())


def test_who_writes_the_engines_rules_is_left_open_where_nobody_tells() -> None:
    docker = of("docker", *said(WELL, replace(RUNNING, native=None)))
    assert (docker.verdict, docker.text) == (Verdict.OK, "engine 20.10")


@pytest.mark.parametrize(
    ("facts", "about", "fix"),
    [
        (
            replace(WELL, forwarding=False),
            "forwarding",
            "sysctl -w net.ipv6.conf.all.forwarding=1",
        ),
        (
            replace(
                WELL,
                ra_default_routes=(RaDefaultRoute(interface="eth0", accept_ra=1, forwarding=True),),
            ),
            "accept_ra",
            "sysctl -w net.ipv6.conf.eth0.accept_ra=2",
        ),
        (replace(WELL, docker_ipv6nat="kill 7"), "docker-ipv6nat", "kill 7"),
        (replace(WELL, stale_rules=True), "ip6tables", "ipv6natd -flush"),
        (replace(WELL, interfaces=("eth0", "wg0")), "firewall", "ip6tables -P FORWARD DROP"),
        (
            replace(WELL, zones={}),
            "firewalld",
            "firewall-cmd --permanent --zone=trusted --add-interface=br-x && "
            "firewall-cmd --zone=trusted --add-interface=br-x",
        ),
    ],
)
def test_a_fault_has_its_command_apart_and_leaves_the_other_lines(
    facts: HostFacts, about: str, fix: str
) -> None:
    lines = said(facts)
    bad = of(about, *lines)
    assert (bad.verdict, bad.fix) == (Verdict.BAD, fix)
    assert fix not in bad.text
    assert [each.about for each in lines] == ABOUT
    assert sum(each.verdict is Verdict.BAD for each in lines) == 1


def test_without_ipv6_nothing_else_is_said_of_the_host() -> None:
    lines = said(replace(WELL, disabled=True))
    assert of("ipv6", *lines).verdict is Verdict.BAD
    assert not {"forwarding", "firewall", "accept_ra"} & {each.about for each in lines}


def test_who_cannot_see_rules_is_told_so_and_not_that_all_is_well() -> None:
    lines = said(WELL, replace(RUNNING, root=False))
    unknown = [each.about for each in lines if each.verdict is Verdict.UNKNOWN]
    assert unknown == ["ip6tables", "firewall", "docker-ipv6nat"]
    assert {each.fix for each in lines if each.verdict is Verdict.UNKNOWN} == {
        "sudo ipv6natctl check"
    }


@pytest.mark.parametrize(
    ("seen", "about", "verdict", "fix"),
    [
        (Seen(bus="cannot reach it"), "ipv6natd", Verdict.BAD, "systemctl start dbus.socket"),
        (Seen(), "ipv6natd", Verdict.BAD, "systemctl enable --now ipv6natd"),
        (Seen(), "docker", Verdict.UNKNOWN, ""),
        (Seen(), "kernel", Verdict.UNKNOWN, ""),
        (Seen(kernel="it lacks x: modprobe x"), "kernel", Verdict.BAD, "modprobe x"),
        (replace(RUNNING, state="degraded"), "ipv6natd", Verdict.BAD, "ipv6natctl status"),
        (replace(RUNNING, connected=False), "docker", Verdict.BAD, "systemctl start docker"),
        (replace(RUNNING, docker_networks=0), "networks", Verdict.NOTE, "ipv6natctl ula"),
        (replace(RUNNING, native=1), "docker", Verdict.OK, ""),
        (
            replace(RUNNING, missing=("conntrack", "nft")),
            "tools",
            Verdict.NOTE,
            "apt install conntrack nftables",
        ),
        (
            replace(RUNNING, missing=("conntrack",), apt=False),
            "tools",
            Verdict.NOTE,
            "pacman -S conntrack-tools",
        ),
        (
            replace(RUNNING, missing=("ip6tables", "ip6tables-save")),
            "tools",
            Verdict.BAD,
            "apt install iptables",
        ),
        (replace(RUNNING, ufw=True), "ufw", Verdict.NOTE, ""),
        (replace(RUNNING, polkit=False), "polkit", Verdict.NOTE, ""),
    ],
)
def test_what_is_seen_beside_the_host(seen: Seen, about: str, verdict: Verdict, fix: str) -> None:
    line = of(about, *said(WELL, seen))
    assert (line.verdict, line.fix) == (verdict, fix)


def test_without_nft_nobody_knows_of_other_firewalls() -> None:
    line = of("firewall", *said(WELL, replace(RUNNING, missing=("nft",))))
    assert line.verdict is Verdict.UNKNOWN


def test_notes_of_the_host_are_shown_as_notes() -> None:
    lines = checks(WELL, HostReport(notes=("a filter stands there",)), RUNNING)
    assert lines[-1] == Check(about="firewall", verdict=Verdict.NOTE, text="a filter stands there")
