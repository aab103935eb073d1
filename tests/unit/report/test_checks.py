"""The lines of `ipv6natctl check`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ipv6natd.host.findings import (
    Finding,
    HostFacts,
    RaDefaultRoute,
    Severity,
    Topic,
    evaluate,
)
from ipv6natd.model import Network
from ipv6natd.report.checks import Check, CheckInputs, CheckVerdict, checks
from tests.harness.build import network

X = network(name="x", bridge="br-x")
NO_FAULT = HostFacts()
PROPERTIES = {
    "State": "synced",
    "StateReason": "",
    "DockerConnected": True,
    "EngineVersion": "20.10",
    "Backend": "nft",
    "NetworkCount": 1,
}
RUNNING = CheckInputs(
    daemon=PROPERTIES, reported=True, host_backend="nft", kernel_checked=True, polkit=True
)
ABOUT = [
    *("ipv6natd", "docker", "tools", "ipv6", "forwarding", "accept_ra", "ip6tables", "firewall"),
    *("firewalld", "br_netfilter", "bridge", "docker-ipv6nat", "kernel", "polkit"),
]


def check_lines(
    facts: HostFacts = NO_FAULT, inputs: CheckInputs = RUNNING, *networks: Network
) -> list[Check]:
    return list(checks(facts, evaluate(facts, networks or (X,)), inputs))


def running(**changed: Any) -> CheckInputs:
    return replace(RUNNING, daemon=PROPERTIES | changed)


def line_about(about: str, *lines: Check) -> Check:
    (found_line,) = (line for line in lines if line.about == about)
    return found_line


def test_host_without_faults_has_one_ok_line_for_everything() -> None:
    assert [line.about for line in check_lines()] == ABOUT
    assert {line.verdict for line in check_lines()} == {CheckVerdict.OK}
    assert not any(line.fix for line in check_lines())


def test_docker_line_omits_native_networks_if_unknown() -> None:
    docker = line_about("docker", *check_lines(NO_FAULT, replace(RUNNING, native_networks=None)))
    assert (docker.verdict, docker.text) == (CheckVerdict.OK, "engine 20.10")


@pytest.mark.parametrize(
    ("facts", "about", "fix"),
    [
        (
            replace(NO_FAULT, forwarding=False),
            "forwarding",
            "sysctl -w net.ipv6.conf.all.forwarding=1",
        ),
        (
            replace(
                NO_FAULT,
                ra_default_routes=(RaDefaultRoute(interface="eth0", accept_ra=1, forwarding=True),),
            ),
            "accept_ra",
            "sysctl -w net.ipv6.conf.eth0.accept_ra=2",
        ),
        (replace(NO_FAULT, docker_ipv6nat="kill 7"), "docker-ipv6nat", "kill 7"),
        (replace(NO_FAULT, stale_rules=True), "ip6tables", "ipv6natd -flush"),
        (replace(NO_FAULT, interfaces=("eth0", "wg0")), "firewall", "ip6tables -P FORWARD DROP"),
        (
            replace(NO_FAULT, zones={}),
            "firewalld",
            "firewall-cmd --permanent --zone=trusted --add-interface=br-x && "
            "firewall-cmd --zone=trusted --add-interface=br-x",
        ),
    ],
)
def test_fault_has_its_command_as_fix_and_keeps_the_other_lines(
    facts: HostFacts, about: str, fix: str
) -> None:
    lines = check_lines(facts)
    bad = line_about(about, *lines)
    assert (bad.verdict, bad.fix) == (CheckVerdict.BAD, fix)
    assert fix not in bad.text
    assert [line.about for line in lines] == ABOUT
    assert sum(line.verdict is CheckVerdict.BAD for line in lines) == 1


def test_host_without_ipv6_has_no_other_host_lines() -> None:
    lines = check_lines(replace(NO_FAULT, disabled=True))
    assert line_about("ipv6", *lines).verdict is CheckVerdict.BAD
    assert not {"forwarding", "firewall", "accept_ra"} & {line.about for line in lines}


def test_rule_checks_without_root_are_unknown() -> None:
    lines = check_lines(NO_FAULT, replace(RUNNING, root=False, reported=False))
    unknown = {line.about: line.fix for line in lines if line.verdict is CheckVerdict.UNKNOWN}
    root = "sudo ipv6natctl check"
    assert unknown == {"ip6tables": root, "firewall": root, "bridge": "", "docker-ipv6nat": root}


def test_nothing_is_unknown_without_root_if_the_daemon_lists_its_findings() -> None:
    lines = check_lines(NO_FAULT, replace(RUNNING, root=False))
    assert not [line for line in lines if line.verdict is CheckVerdict.UNKNOWN]


@pytest.mark.parametrize(
    ("inputs", "about", "verdict", "fix"),
    [
        (
            CheckInputs(bus="cannot reach it"),
            "ipv6natd",
            CheckVerdict.BAD,
            "systemctl start dbus.socket",
        ),
        (CheckInputs(), "ipv6natd", CheckVerdict.BAD, "systemctl enable --now ipv6natd"),
        (CheckInputs(), "docker", CheckVerdict.UNKNOWN, ""),
        (CheckInputs(), "kernel", CheckVerdict.UNKNOWN, ""),
        (
            CheckInputs(kernel_fault=Finding(problem="it lacks x", command="modprobe x")),
            "kernel",
            CheckVerdict.BAD,
            "modprobe x",
        ),
        (running(State="degraded"), "ipv6natd", CheckVerdict.BAD, "ipv6natctl status"),
        (
            running(DockerConnected=False),
            "docker",
            CheckVerdict.BAD,
            "systemctl start docker",
        ),
        (running(NetworkCount=0), "networks", CheckVerdict.NOTE, "ipv6natctl ula"),
        (replace(RUNNING, native_networks=1), "docker", CheckVerdict.OK, ""),
        (
            replace(RUNNING, missing=("ip", "nft")),
            "tools",
            CheckVerdict.NOTE,
            "apt install iproute2 nftables",
        ),
        (
            replace(RUNNING, missing=("nft",), installer="pacman -S"),
            "tools",
            CheckVerdict.NOTE,
            "pacman -S nftables",
        ),
        # Q22.
        (replace(RUNNING, missing=("nft",), installer=""), "tools", CheckVerdict.NOTE, ""),
        (
            replace(RUNNING, missing=("ip6tables", "ip6tables-save")),
            "tools",
            CheckVerdict.BAD,
            "apt install iptables",
        ),
        (replace(RUNNING, ufw=True), "ufw", CheckVerdict.NOTE, ""),
        (replace(RUNNING, polkit=False), "polkit", CheckVerdict.NOTE, ""),
    ],
)
def test_check_inputs_give_verdict_and_fix(
    inputs: CheckInputs, about: str, verdict: CheckVerdict, fix: str
) -> None:
    line = line_about(about, *check_lines(NO_FAULT, inputs))
    assert (line.verdict, line.fix) == (verdict, fix)


def test_firewall_without_nft_is_unknown() -> None:
    line = line_about("firewall", *check_lines(NO_FAULT, replace(RUNNING, missing=("nft",))))
    assert line.verdict is CheckVerdict.UNKNOWN


def test_notes_and_warnings_come_last_and_keep_the_other_lines() -> None:
    note = Finding(topic=Topic.FIREWALL, severity=Severity.NOTE, problem="a filter stands there")
    warning = Finding(
        topic=Topic.NETWORK, severity=Severity.WARNING, problem="no effect", network="front"
    )
    lines = checks(NO_FAULT, (warning, note), RUNNING)
    assert [line.about for line in lines[:-2]] == ABOUT
    assert {line.verdict for line in lines[:-2]} == {CheckVerdict.OK}
    assert lines[-2:] == (
        Check("network", CheckVerdict.WARNING, "network front: no effect"),
        Check("firewall", CheckVerdict.NOTE, "a filter stands there"),
    )


def test_refused_reload_is_a_fault_although_the_rules_are_in_sync() -> None:
    refused = Finding(
        topic=Topic.SERVICE,
        severity=Severity.WARNING,
        problem="reload refused: unknown key 'x'; correct this, then",
        command="ipv6natctl reload",
    )
    lines = checks(NO_FAULT, (refused,), running(StateReason=refused.text))
    line = line_about("ipv6natd", *lines)
    assert line == Check("ipv6natd", CheckVerdict.BAD, refused.problem, "ipv6natctl reload")
    assert line_about("kernel", *lines).verdict is CheckVerdict.OK


def test_each_fault_of_the_daemon_itself_is_a_line() -> None:
    faults = [Finding(topic=Topic.SERVICE, problem=text) for text in ("no engine", "no table")]
    inputs = running(State="waiting-for-docker", StateReason="no engine (and 1 more)")
    lines = [line for line in checks(NO_FAULT, faults, inputs) if line.about == "ipv6natd"]
    assert [line.text for line in lines] == [
        "waiting-for-docker: no engine",
        "waiting-for-docker: no table",
    ]


@pytest.mark.parametrize("topic", Topic)
def test_a_finding_of_any_topic_is_a_line(topic: Topic) -> None:
    finding = Finding(topic=topic, problem="it is broken", command="repair it", network="front")
    text = "network front: it is broken" if topic is Topic.NETWORK else "it is broken"
    lines = checks(NO_FAULT, (finding,), RUNNING)
    assert Check(topic, CheckVerdict.BAD, text, "repair it") in lines


def test_addresses_of_bridges_are_unknown_without_the_daemon() -> None:
    line = line_about("bridge", *check_lines(NO_FAULT, replace(RUNNING, reported=False)))
    assert line.verdict is CheckVerdict.UNKNOWN
