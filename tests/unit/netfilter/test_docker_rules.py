"""The engine's own rules in the kernel, and which networks they make the engine's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ipv6natd.engine import dockerd as engine_flags
from ipv6natd.model import Engine, EngineRules, ManagedBy, Policy, Protocol
from ipv6natd.netfilter.docker_rules import engine_rules
from ipv6natd.netfilter.render import format_ruleset
from ipv6natd.policy.desired import desired
from ipv6natd.policy.ruleset import ruleset
from tests.harness.build import container, network, snapshot

X = network(name="x", subnet="fd00:a::/64", bridge="br-a")
Y = network(name="y", subnet="fd00:b::/64", bridge="br-b")


def dport(right: object, protocol: str = "tcp") -> dict[str, object]:
    left = {"payload": {"protocol": protocol, "field": "dport"}}
    return {"match": {"op": "==", "left": left, "right": right}}


DOCKER_28 = """\
*filter
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER-USER -i br-user -j DROP
-A DOCKER -d fd00:a::2/128 ! -i br-a -o br-a -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER ! -i br-a -o br-a -j DROP
-A DOCKER-BRIDGE -o br-a -j DOCKER
-A DOCKER-FORWARD -i br-int -o br-int -j ACCEPT
COMMIT
*nat
-A DOCKER ! -i br-a -p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00:a::2]:80
COMMIT
"""
DOCKER_20 = """\
*filter
-A FORWARD -o br-a -j DOCKER
-A FORWARD -o vmbr0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i br-b ! -o br-b -j DOCKER-ISOLATION-STAGE-2
COMMIT
"""
DOCKER_29 = json.dumps(
    {
        "nftables": [
            {"rule": {"expr": [{"jump": {"target": "filter-forward-in__br-a"}}]}},
            {"rule": {"expr": [dport(8080), {"dnat": {"addr": "fd00:a::2", "port": 80}}]}},
        ]
    }
)
IN_FORCE = EngineRules(bridges=frozenset({"br-a"}), ports=frozenset({(Protocol.TCP, 8080)}))
WEB = container(name="web", on=[X], ports=["8080:80"])


def test_engine_rules_have_the_bridges_and_ports_of_each_engine() -> None:
    assert engine_rules([DOCKER_28], "") == EngineRules(
        bridges=frozenset({"br-a", "br-int"}), ports=frozenset({(Protocol.TCP, 8080)})
    )
    assert engine_rules([DOCKER_20], "").bridges == {"br-a", "br-b"}
    assert engine_rules([], DOCKER_29) == IN_FORCE
    assert engine_rules([DOCKER_20, DOCKER_28], DOCKER_29) == EngineRules(
        bridges=frozenset({"br-a", "br-b", "br-int"}), ports=IN_FORCE.ports
    )


@pytest.mark.parametrize(
    "text", ["", "garbage\n-A\n", "*nat\n-A IPV6NAT-DNAT -i br-a -j RETURN\nCOMMIT\n"]
)
def test_foreign_rules_are_no_engine_rules(text: str) -> None:
    assert engine_rules([text], "") == EngineRules()


def test_rules_in_a_chain_that_is_named_like_the_engines_are_the_users() -> None:
    """Q8, through a proxy that refuses /info: no rule of the engine is missing."""
    text = (
        "*filter\n-A DOCKER-USER -j DOCKER-LAN\n"
        "-A DOCKER-LAN -s 2001:db8:1::3/128 -i ext0 -o br-a -j DROP\nCOMMIT\n"
        "*nat\n-A DOCKER-PORTS -p tcp -m tcp --dport 81 -j DNAT --to-destination [fd00:a::2]:81\n"
        "COMMIT\n"
    )
    rules = engine_rules([text], "")
    assert rules == EngineRules()
    facts = replace(snapshot(X, WEB), engine=Engine(version="28.5.2"), engine_rules=rules)
    want = desired(facts, Policy())
    assert want.missing_engine_rules == ()
    assert [network.managed_by for network in want.networks] == [ManagedBy.IPV6NATD]


@pytest.mark.parametrize(
    ("version", "experimental", "option", "rules", "by"),
    [
        pytest.param("28.5.2", False, None, IN_FORCE, ManagedBy.ENGINE, id="c1"),
        pytest.param(
            "28.5.2", False, True, IN_FORCE, ManagedBy.ENGINE, id="c1 with the option set"
        ),
        pytest.param("28.5.2", False, False, IN_FORCE, ManagedBy.IPV6NATD, id="c4 left over"),
        pytest.param("28.5.2", False, None, EngineRules(), ManagedBy.IPV6NATD, id="none there"),
        pytest.param(
            "28.5.2",
            False,
            None,
            replace(IN_FORCE, ports=frozenset()),
            ManagedBy.IPV6NATD,
            id="a port without its rule: left over",
        ),
        pytest.param("26.1.5", False, None, IN_FORCE, ManagedBy.IPV6NATD, id="cannot"),
        pytest.param("26.1.5", True, None, IN_FORCE, ManagedBy.ENGINE, id="experimental"),
    ],
)
def test_who_manages_a_network(
    version: str, experimental: bool, option: bool | None, rules: EngineRules, by: ManagedBy
) -> None:
    engine = Engine(version=version, experimental=experimental, ip6tables=option)
    facts = replace(snapshot(X, WEB), engine=engine, engine_rules=rules)
    want = desired(facts, Policy())
    assert [network.managed_by for network in want.networks] == [by]
    assert [mapping.managed_by for mapping in want.mappings] == [by]
    written = format_ruleset(ruleset(want))
    assert ("br-a" in written) == (by is ManagedBy.IPV6NATD)


@pytest.mark.parametrize(
    ("version", "option", "writes"),
    [("28.5.2", None, True), ("28.5.2", True, True), ("28.5.2", False, False), ("26", None, False)],
)
def test_missing_rules_of_an_engine_that_may_write_them_are_reported(
    version: str, option: bool | None, writes: bool
) -> None:
    """Q8."""
    flushed = replace(IN_FORCE, ports=frozenset())
    engine = Engine(version=version, ip6tables=option)
    want = desired(replace(snapshot(X, WEB), engine=engine, engine_rules=flushed), Policy())
    assert want.engine_writes is writes
    assert want.missing_engine_rules == (((Protocol.TCP, 8080),) if writes else ())
    by = ManagedBy.ENGINE if option else ManagedBy.IPV6NATD
    assert [network.managed_by for network in want.networks] == [by]


@pytest.mark.parametrize(
    ("option", "ports", "by"),
    [
        (None, {8080, 9090}, ManagedBy.ENGINE),
        (True, {8080}, ManagedBy.ENGINE),
        (None, {8080}, None),
        (False, {8080, 9090}, None),
    ],
)
def test_engine_manages_its_networks_outside_of_nat_prefixes_unless_its_rules_are_stale(
    option: bool | None, ports: set[int], by: ManagedBy | None
) -> None:
    """Q8. Such a network is never ours, whatever happens to the engine's rules."""
    public = network(name="public", subnet="2001:db8:e::/64", bridge="br-p")
    other = container(name="other", on=[public], ports=["9090:80"])
    rules = EngineRules(
        bridges=frozenset({"br-a", "br-p"}),
        ports=frozenset((Protocol.TCP, port) for port in ports),
    )
    engine = Engine(version="28.5.2", ip6tables=option)
    facts = replace(snapshot(X, public, WEB, other), engine=engine, engine_rules=rules)
    want = desired(facts, Policy())
    assert {net.name: net.managed_by for net in want.networks}.get("public") is by
    skipped = [row.network for row in want.skipped if "nat_prefixes" in row.reason]
    assert skipped == ([] if by else ["public"])
    assert any(mapping.host_port == 9090 for mapping in want.mappings) is bool(by)


def test_command_line_that_is_hidden_is_asked_of_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Q8, in the sandbox of the service."""
    words = ["/usr/bin/dockerd", "-H", "fd://", "--ip6tables=false"]
    answers = {"MainPID": 1 << 30, "ExecStart": [["/usr/bin/dockerd", words, False, 0, 0]]}
    monkeypatch.setattr(engine_flags, "_listening_pid", lambda _: 1 << 30)
    monkeypatch.setattr(engine_flags, "_unit_property", lambda *names: answers[names[-1]])
    assert engine_flags.ip6tables_option("unix:///run/docker.sock") is False
    monkeypatch.setattr(engine_flags, "_listening_pid", lambda _: (1 << 30) + 1)
    assert engine_flags.ip6tables_option("unix:///run/docker.sock") is None


def test_our_network_beside_an_engines_network_has_rules_and_may_reach_it() -> None:
    """C7: ip6tables is on, but one network was created without it."""
    engine = Engine(version="28.5.2")
    other = container(name="other", on=[Y], ports=["9090:80"])
    facts = replace(snapshot(X, Y, WEB, other), engine=engine, engine_rules=IN_FORCE)
    want = desired(facts, Policy())
    assert {network.name: network.managed_by for network in want.networks} == {
        X.name: ManagedBy.ENGINE,
        Y.name: ManagedBy.IPV6NATD,
    }
    warned = {network.name: " ".join(network.warnings) for network in want.networks}
    assert not warned[X.name]
    assert "none for this one" in warned[Y.name]
    text = format_ruleset(ruleset(want))
    assert "-A IPV6NAT-FORWARD -o br-a -j RETURN" in text
    assert "--dport 9090" in text
    assert "--dport 8080" not in text


@pytest.mark.parametrize(
    ("words", "file", "option"),
    [
        (["dockerd"], None, None),
        (["dockerd", "--ip6tables"], None, True),
        (["dockerd", "--ip6tables=false"], {"ip6tables": True}, False),
        (["dockerd", "--ip6tables=false", "--ip6tables=true"], None, True),
        (["dockerd", "--ip6tables", "--debug", "--ip6tables=0"], None, False),
        (["dockerd"], {"ip6tables": False}, False),
        (["dockerd"], {"ip6tables": "no"}, None),
        (["dockerd"], [], None),
    ],
)
def test_ip6tables_option_is_read_from_command_line_and_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], file: object, option: object
) -> None:
    """Q14: dockerd takes the last of several."""
    config = tmp_path / "daemon.json"
    if file is not None:
        config.write_text(json.dumps(file))
    monkeypatch.setattr(engine_flags, "_listening_pid", lambda _: 0)
    monkeypatch.setattr(engine_flags, "_pid_from_file", lambda: 1 << 30)
    monkeypatch.setattr(engine_flags, "_command_line", lambda _: words)
    monkeypatch.setattr(engine_flags, "CONFIG_FILE", config)
    assert engine_flags.ip6tables_option("unix:///run/docker.sock") is option


@pytest.mark.parametrize(
    ("encoding", "option"), [("utf-8", False), ("utf-8-sig", False), ("utf-16", None)]
)
@pytest.mark.parametrize("hidden", [False, True])
def test_configuration_of_the_engine_may_begin_with_a_byte_order_mark(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hidden: bool, encoding: str, option: object
) -> None:
    """Q14: Docker 28 accepts it. UTF-16 is not read. The file of the host does not replace one that
    is there in the root directory of the engine."""
    config = tmp_path / "daemon.json"
    own = tmp_path / "7" / "root" / config.relative_to("/")
    own.parent.mkdir(parents=True)
    config.write_text('{"ip6tables": true}')
    file = config if hidden else own
    file.write_text('{"ip6tables": false}', encoding=encoding)
    monkeypatch.setattr(engine_flags, "_PROC", tmp_path)
    monkeypatch.setattr(engine_flags, "_listening_pid", lambda _: 7)
    monkeypatch.setattr(engine_flags, "CONFIG_FILE", config)
    assert engine_flags.ip6tables_option("unix:///run/docker.sock") is option


def test_ip6tables_option_is_read_from_the_file_that_dockerd_uses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, option in (("first", True), ("last", False)):
        (tmp_path / name).write_text(json.dumps({"ip6tables": option}))
    words = [f"--config-file={tmp_path}/first", "--config-file", f"{tmp_path}/last", "--debug"]
    monkeypatch.setattr(engine_flags, "_listening_pid", lambda _: 1 << 30)
    monkeypatch.setattr(engine_flags, "_command_line", lambda _: ["dockerd", *words])
    assert engine_flags.ip6tables_option("unix:///run/docker.sock") is False


def test_engine_with_a_tcp_endpoint_counts_as_local(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine_flags, "_pid_from_file", lambda: 4711)
    monkeypatch.setattr(engine_flags, "_command_line", lambda _: ["dockerd", "--ip6tables=0"])
    monkeypatch.setattr(engine_flags, "CONFIG_FILE", tmp_path / "none.json")
    assert engine_flags.ip6tables_option("tcp://127.0.0.1:2376") is False


def test_rootless_engine_is_skipped_with_a_reason() -> None:
    """C9."""
    engine = Engine(version="28.5.2", rootless=True)
    want = desired(replace(snapshot(X, WEB), engine=engine), Policy())
    assert not want.networks
    assert not want.mappings
    assert [skipped.reason for skipped in want.skipped] == [
        "the engine is rootless: its bridges are in a network namespace of its own; "
        "point -endpoint at the engine that runs as root"
    ]


def test_nothing_is_written_for_networks_while_the_rules_of_the_engine_are_unknown() -> None:
    """Q13."""
    unknown = EngineRules(bridges=frozenset({X.bridge}), complete=False)
    facts = replace(snapshot(X, WEB), engine=Engine(version="29.7.2"), engine_rules=unknown)
    want = desired(facts, Policy())
    assert [net.managed_by for net in want.networks] == [ManagedBy.ENGINE]
    assert [mapping.managed_by for mapping in want.mappings] == [ManagedBy.ENGINE]
    assert "IPV6NAT-DNAT" not in format_ruleset(ruleset(want))
    # An engine that writes no IPv6 rules has none that could be read.
    for engine in (Engine(version="20.10.24"), Engine(version="29.7.2", ip6tables=False)):
        ours = desired(replace(facts, engine=engine), Policy())
        assert [net.managed_by for net in ours.networks] == [ManagedBy.IPV6NATD]
