"""The shared lab with the daemon in it: the least that every packet test leans on."""

from __future__ import annotations

from tests.lab import Answer, Failure, Regime, tcp, until
from tests.lab.sandbox import CLIENT, HOST

RULES: dict[bool, str] = {}
"""What was in force in the first regime with a proxy, and in the first without."""


def test_the_residents_answer_and_x1_sees_the_client(regime: Regime) -> None:
    for name in ("x1", "x2", "y1", "i1", "i2"):
        container = getattr(regime, name)
        answer = tcp(regime.host, container.address, 80)
        assert isinstance(answer, Answer)
        assert answer.server == name
    answer = tcp(regime.client, HOST, 8080)
    assert isinstance(answer, Answer)
    assert (answer.server, answer.peer) == ("x1", CLIENT)


def test_a_test_gets_a_container_and_a_network_of_its_own(regime: Regime) -> None:
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


def test_the_daemon_is_seen_through_the_bus_and_its_notices(regime: Regime) -> None:
    assert "READY=1" in regime.daemon.notices
    assert regime.daemon.status.startswith("synced")
    assert "8080" in regime.daemon.ctl("mappings")


def test_t14_every_engine_is_spoken_to_in_its_own_words_and_gets_the_same_rules(
    regime: Regime,
) -> None:
    words = ("org.ipv6natd1", "/org/ipv6natd1", "org.ipv6natd1.Manager", "EngineVersion")
    assert regime.engine.version in regime.bus.busctl("get-property", *words)
    rules = regime.daemon.ctl("rules")
    assert "--dport 8080 -j DNAT" in rules
    assert rules == RULES.setdefault(regime.proxy, rules)


def sees_client(answer: Answer | Failure) -> bool:
    return isinstance(answer, Answer) and answer.peer == CLIENT
