"""The shared lab with the daemon: the basis of all packet tests."""

from __future__ import annotations

import pytest

from ipv6natd.model import Policy
from ipv6natd.netfilter.render import format_ruleset
from ipv6natd.policy.desired import desired
from ipv6natd.policy.ruleset import ruleset
from tests.harness import Answer, Failure, Regime, tcp, until
from tests.harness.build import container, network, snapshot
from tests.harness.sandbox import CLIENT, HOST

pytestmark = pytest.mark.depends_on("variant", "proxy", "engine", combined=True)

FACTS = (
    network(name="bridge", subnet="fd00:d::/64", bridge="docker0"),
    X := network(name="X", subnet="fd00:a::/64", bridge="brX"),
    network(name="Y", subnet="fd00:b::/64", bridge="brY"),
    network(name="I", subnet="fd00:c::/64", bridge="brI", internal=True),
    container(name="x1", on=[X], ports=["8080:80", "8443:443", "5353:53/udp"]),
)
"""The parts of the lab that decide about the rules."""


def test_containers_of_the_lab_answer_and_x1_sees_the_client(regime: Regime) -> None:
    for name in ("x1", "x2", "y1", "i1", "i2"):
        container = getattr(regime, name)
        answer = tcp(regime.host, container.address, 80)
        assert isinstance(answer, Answer)
        assert answer.server == name
    answer = tcp(regime.client, HOST, 8080)
    assert isinstance(answer, Answer)
    assert (answer.server, answer.peer) == ("x1", CLIENT)


def test_regime_creates_a_network_and_a_container_and_removes_them(regime: Regime) -> None:
    port = regime.port()
    with (
        regime.network() as network,
        regime.container(network=network, publish=[f"{port}:80"]) as web,
    ):
        answer = until(lambda: tcp(regime.client, HOST, port), sees_client)
        assert isinstance(answer, Answer)
        assert (answer.server, answer.peer) == (web.name, CLIENT)
        assert [each.peer for each in web.server.received][-1:] == [CLIENT]
    gone = until(lambda: tcp(regime.client, HOST, port, timeout=0.2), Failure.REFUSED)
    assert gone is Failure.REFUSED


def test_daemon_sends_ready_and_shows_its_status_and_mappings(regime: Regime) -> None:
    assert "READY=1" in regime.daemon.notices
    assert regime.daemon.status.startswith("synced")
    assert "8080" in regime.daemon.ctl("mappings")


def test_t14_each_engine_version_gets_the_same_rules(
    regime: Regime,
) -> None:
    words = ("org.ipv6natd1", "/org/ipv6natd1", "org.ipv6natd1.Manager", "EngineVersion")
    assert regime.engine.version in regime.bus.busctl("get-property", *words)
    wanted = desired(snapshot(*FACTS, userland_proxy=regime.proxy), Policy())
    assert regime.daemon.ctl("rules").strip() == format_ruleset(ruleset(wanted)).strip()


def sees_client(answer: Answer | Failure) -> bool:
    return isinstance(answer, Answer) and answer.peer == CLIENT
