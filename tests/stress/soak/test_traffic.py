"""The traffic: its counters, and the detection of wrong results."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import Failure, Sandbox, need, serve, until
from tests.harness.sandbox import CLIENT, HOST, ROGUE
from tests.stress.soak.traffic import Target, Traffic

OPEN = Target(HOST, 80, server="host", peer=CLIENT)
OPEN_UDP = Target(HOST, 53, "udp", server="host", peer=CLIENT)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    need("ip", "nsenter", "setpriv")
    with Sandbox() as made:
        yield made


def test_right_answers_are_counted_and_closed_ports_are_probed(sandbox: Sandbox) -> None:
    with (
        serve(sandbox.host, "host", tcp=[80], udp=[53]),
        Traffic(sandbox.client, rate=200, probes=200) as traffic,
    ):
        traffic.ask(OPEN, OPEN_UDP)
        traffic.probe(Target(HOST, 81), Target(HOST, 54, "udp"))
        flows = [traffic.hold(each) for each in (OPEN, OPEN_UDP)]
        tally = traffic.tally
        assert until(lambda: min(tally.attempted, tally.probed) > 20, True)
        assert until(lambda: min(flow.answered for flow in flows) > 3, True)
    assert tally.failed == tally.answered_closed == []
    assert [flow.cut for flow in flows] == [None, None]


def test_answer_of_a_wrong_server_or_peer_is_a_failure(sandbox: Sandbox) -> None:
    wanted = (Target(HOST, 80, server="other"), Target(HOST, 80, peer=ROGUE), Target(HOST, 81))
    with serve(sandbox.host, "host", tcp=[80]), Traffic(sandbox.client, rate=200) as traffic:
        traffic.ask(*wanted)
        assert until(lambda: len(traffic.tally.failed) > 5, True)
    assert {each.target for each in traffic.tally.failed} == set(wanted)
    assert len(traffic.tally.failed) == traffic.tally.attempted
    assert Failure.REFUSED in [each.answer for each in traffic.tally.failed]


@pytest.mark.parametrize("target", [OPEN, OPEN_UDP], ids=str)
def test_answer_of_a_closed_port_is_recorded(sandbox: Sandbox, target: Target) -> None:
    with (
        serve(sandbox.host, "host", tcp=[80], udp=[53]),
        Traffic(sandbox.client, probes=200) as traffic,
    ):
        traffic.probe(target)
        assert until(lambda: traffic.tally.answered_closed != [], True)


def test_flow_without_server_is_cut(sandbox: Sandbox) -> None:
    with Traffic(sandbox.client) as traffic:
        with serve(sandbox.host, "host", tcp=[80]):
            flow = traffic.hold(OPEN)
            assert until(lambda: flow.answered > 0, True)
        assert until(lambda: flow.cut is not None, True)
        traffic.release(flow)
    assert traffic.flows == []
