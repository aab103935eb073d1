"""The lines of `ipv6natctl check`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ipv6natd.host.findings import Finding, HostFacts, HostReport, RaDefaultRoute, Topic, evaluate
from ipv6natd.model import Network, Protocol
from ipv6natd.report.checks import Check, CheckInputs, CheckVerdict, checks
from ipv6natd.report.status import reason_summary
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
RUNNING = CheckInputs(daemon=PROPERTIES, host_backend="nft", kernel_checked=True, polkit=True)
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
    lines = check_lines(NO_FAULT, replace(RUNNING, root=False))
    unknown = [line.about for line in lines if line.verdict is CheckVerdict.UNKNOWN]
    assert unknown == ["ip6tables", "firewall", "docker-ipv6nat"]
    assert {line.fix for line in lines if line.verdict is CheckVerdict.UNKNOWN} == {
        "sudo ipv6natctl check"
    }


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


def test_host_notes_are_note_lines() -> None:
    lines = checks(NO_FAULT, HostReport(notes=("a filter stands there",)), RUNNING)
    assert lines[-1] == Check(
        about="firewall", verdict=CheckVerdict.NOTE, text="a filter stands there"
    )


def test_refused_reload_is_a_fault_although_the_rules_are_in_sync() -> None:
    reason = "reload refused: /etc/ipv6natd/ipv6natd.toml: unknown key 'x'"
    lines = check_lines(NO_FAULT, running(StateReason=reason))
    line = line_about("ipv6natd", *lines)
    assert (line.verdict, line.fix) == (CheckVerdict.BAD, "ipv6natctl reload")
    assert line.text.startswith(reason)
    assert line_about("kernel", *lines).verdict is CheckVerdict.OK


@pytest.mark.parametrize("topic", Topic)
def test_a_finding_of_any_topic_is_a_line(topic: Topic) -> None:
    finding = Finding(topic=topic, problem="it is broken", command="repair it")
    lines = checks(NO_FAULT, HostReport(findings=(finding,)), RUNNING)
    assert Check(topic, CheckVerdict.BAD, "it is broken", "repair it") in lines


def test_a_missing_rule_of_the_engine_is_listed_as_the_daemon_reports_it() -> None:
    report = evaluate(
        replace(NO_FAULT, forwarding=False, stale_rules=True),
        [X],
        missing_engine_rules=((Protocol.TCP, 8080),),
    )
    texts = [finding.text for finding in report.findings]
    for shown in (texts[:1], texts):
        inputs = running(State="degraded", StateReason=reason_summary(shown))
        line = line_about("engine", *check_lines(NO_FAULT, inputs))
        assert (line.verdict, line.fix) == (CheckVerdict.BAD, "systemctl restart docker")
        assert line.text.startswith("Docker's own IPv6 rule of port 8080/tcp is missing")
        assert "more" not in line.text


def test_addresses_of_bridges_are_unknown_without_the_list_of_networks() -> None:
    line = line_about("bridge", *check_lines(NO_FAULT, replace(RUNNING, native_networks=None)))
    assert line.verdict is CheckVerdict.UNKNOWN


@pytest.mark.parametrize(
    ("state", "reasons", "hidden"),
    [
        ("degraded", ["off"], 0),
        ("degraded", ["off: a", "stale: b", "of a kind that only the daemon knows"], 1),
        ("degraded", ["reload refused: x", "off: a", "stale: b", "c", "d"], 2),
        ("waiting-for-docker", ["no engine", "off: a", "stale: b"], 0),
        ("waiting-for-docker", ["reload refused: x", "no engine", "off: a", "stale: b"], 0),
    ],
)
def test_reasons_of_the_daemon_without_a_line_are_counted(
    state: str, reasons: list[str], hidden: int
) -> None:
    texts = (Finding(problem="off", command="a"), Finding(problem="stale", command="b"))
    inputs = running(State=state, StateReason=reason_summary(reasons))
    lines = checks(NO_FAULT, HostReport(findings=texts), inputs)
    counted = [line.text for line in lines if "not listed" in line.text]
    assert len(counted) == bool(hidden)
    assert all(text.startswith(f"it reports {hidden} more") for text in counted)
