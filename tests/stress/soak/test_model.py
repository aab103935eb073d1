"""The model: its answers for small worlds, and the detection of wrong answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from random import Random

import pytest

from tests.harness import Answer, Failure
from tests.harness.sandbox import CLIENT, HOST, HOST_TOO, ROGUE
from tests.stress.soak import leaks
from tests.stress.soak.model import (
    CLOSED,
    HIDDEN,
    OUTSIDE,
    Ask,
    Box,
    Mode,
    Net,
    Publish,
    Reached,
    Want,
    World,
    asks,
)
from tests.stress.soak.steps import Step, chosen, first
from tests.stress.soak.volley import right

A = Net(name="a", subnet=IPv6Network("fd00:a::/64"))
B = Net(name="b", subnet=IPv6Network("fd00:b::/64"))
AT_A, AT_B = A.subnet[2], B.subnet[2]
ONE = Box(
    name="one",
    ends={"a": AT_A},
    publish=(
        Publish(protocol="tcp", inside=80, port=9000),
        Publish(protocol="udp", inside=53, port=9001, host=str(HOST_TOO)),
        Publish(protocol="tcp", inside=81, port=9002, host="127.0.0.1"),
    ),
)
TWO = Box(name="two", ends={"b": AT_B})
WORLD = World(proxy=True).holding(A, B).having(ONE, TWO)


def reached(server: str, peer: IPv6Address | None = None) -> Reached:
    return Reached(server, None if peer is None else frozenset({peer}))


@pytest.mark.parametrize(
    ("ask", "want"),
    [
        (Ask("client", "tcp", HOST, 9000), reached("one", CLIENT)),
        (Ask("rogue", "tcp", HOST_TOO, 9000), reached("one", ROGUE)),
        (Ask("client", "udp", HOST_TOO, 9001), reached("one", CLIENT)),
        (Ask("client", "udp", HOST, 9001), CLOSED),
        (Ask("client", "tcp", HOST, 9002), CLOSED),
        (Ask("host", "tcp", HOST, 9000), reached("one", HOST)),
        (Ask("two", "tcp", HOST, 9000), reached("one", A.gateway)),
        (Ask("one", "tcp", HOST, 9000), reached("one")),
        (Ask("rogue", "tcp", AT_A, 80), CLOSED),
        (Ask("rogue", "udp", AT_B, 53), CLOSED),
        (Ask("two", "tcp", AT_A, 80), CLOSED),
    ],
    ids=str,
)
def test_expected_answers_without_network_options(ask: Ask, want: Want) -> None:
    assert asks(WORLD)[ask] == want


@pytest.mark.parametrize(
    ("net", "ask", "want"),
    [
        (replace(A, mode=Mode.ROUTED), Ask("rogue", "tcp", AT_A, 80), reached("one", ROGUE)),
        (replace(A, mode=Mode.ROUTED), Ask("rogue", "tcp", AT_A, 443), CLOSED),
        (replace(A, mode=Mode.ROUTED), Ask("client", "tcp", HOST, 9000), HIDDEN),
        (replace(A, mode=Mode.ROUTED), Ask("two", "tcp", AT_A, 80), reached("one", A.gateway)),
        (replace(A, mode=Mode.UNPROTECTED), Ask("rogue", "tcp", AT_A, 443), reached("one", ROGUE)),
        (replace(A, trusted=True), Ask("rogue", "tcp", AT_A, 80), reached("one", ROGUE)),
        (replace(A, trusted=True), Ask("two", "tcp", AT_A, 80), CLOSED),
        (replace(A, internal=True), Ask("client", "tcp", HOST, 9000), HIDDEN),
        (replace(A, internal=True), Ask("one", "tcp", ROGUE, OUTSIDE), CLOSED),
        (replace(A, binding=HOST_TOO), Ask("client", "tcp", HOST, 9000), HIDDEN),
        (
            replace(A, binding=HOST_TOO),
            Ask("client", "tcp", HOST_TOO, 9000),
            reached("one", CLIENT),
        ),
        (
            replace(A, source=HOST_TOO),
            Ask("one", "udp", ROGUE, OUTSIDE),
            reached("rogue", HOST_TOO),
        ),
        (replace(A, masquerade=False), Ask("one", "udp", ROGUE, OUTSIDE), reached("rogue", AT_A)),
    ],
)
def test_expected_answers_with_a_network_option(net: Net, ask: Ask, want: Want) -> None:
    assert asks(WORLD.holding(net))[ask] == want


def test_expected_answers_of_neighbours_with_a_container_on_two_networks() -> None:
    both = replace(ONE, ends={"b": B.subnet[3], "a": AT_A})
    said = asks(WORLD.having(both))
    assert said[Ask("two", "tcp", B.subnet[3], 80)] == reached("one", AT_B)
    assert said[Ask("two", "tcp", HOST, 9000)] == reached("one", A.gateway)
    said = asks(WORLD.having(both).holding(replace(B, icc=False)))
    assert said[Ask("two", "tcp", B.subnet[3], 80)] is CLOSED


def test_stopped_container_is_closed_and_paused_container_is_reached() -> None:
    ask = Ask("client", "tcp", HOST, 9000)
    assert asks(WORLD.having(ONE.stopped()))[ask] is CLOSED
    assert asks(WORLD.having(replace(ONE, state="paused")))[ask] == reached("one", CLIENT)


def answer(server: str, peer: IPv6Address) -> Answer:
    return Answer(server=server, peer=peer, peer_port=1, local=AT_A, port=80)


@pytest.mark.parametrize(
    ("want", "told", "expected"),
    [
        (reached("one", CLIENT), answer("one", CLIENT), True),
        (reached("one", CLIENT), answer("one", A.gateway), False),
        (reached("one", CLIENT), answer("two", CLIENT), False),
        (reached("one", CLIENT), Failure.REFUSED, False),
        (CLOSED, Failure.TIMEOUT, True),
        (CLOSED, answer("one", CLIENT), False),
        (HIDDEN, answer("one", A.gateway), True),
        (HIDDEN, answer("one", CLIENT), False),
    ],
)
def test_right_compares_an_answer_with_the_expected_one(
    want: Want, told: Answer | Failure, expected: bool
) -> None:
    assert right(Ask("client", "tcp", HOST, 9000), want, told) is expected


def steps(seed: int, count: int) -> list[Step]:
    rng = Random(seed)
    done = list(first(rng, proxy=True))
    while len(done) < count:
        done.append(chosen(done[-1].after, rng, nft=True, ending=True))
    return done


def test_seed_determines_the_steps_and_all_kinds_occur() -> None:
    assert [each.text for each in steps(7, 300)] == [each.text for each in steps(7, 300)]
    assert [each.text for each in steps(7, 300)] != [each.text for each in steps(8, 300)]
    assert len({each.kind for each in steps(7, 600)}) >= 28


def test_model_has_answers_for_every_generated_world() -> None:
    for step in steps(3, 300):
        assert asks(step.after) or not step.after.boxes


def test_stopped_container_does_not_close_the_proxied_port_of_another() -> None:
    net = replace(A, mode=Mode.ROUTED)
    port = (Publish(protocol="tcp", inside=7000, port=7000),)
    up = Box(name="up", ends={"a": AT_A}, publish=port)
    down = Box(name="down", ends={"a": None}, publish=port, state="stopped")
    for boxes in ((up, down), (down, up)):
        world = World(proxy=True).holding(net).having(*boxes)
        assert asks(world)[Ask("rogue", "tcp", HOST, 7000)] is HIDDEN
        world = world.without("up")
        assert asks(world)[Ask("rogue", "tcp", HOST, 7000)] is CLOSED


def samples(name: str, values: Iterable[int]) -> list[leaks.Sample]:
    kept = dict.fromkeys((*leaks.BOUNDS, "pid"), 1)
    return [leaks.Sample(**kept | {name: value}) for value in values]


def test_only_a_lasting_increase_is_growth() -> None:
    assert leaks.beyond(leaks.growth(samples("fds", [10, 16] * 20))) == []
    assert leaks.beyond(leaks.growth(samples("fds", range(10, 90, 2)))) != []
    assert leaks.lives(samples("fds", [1] * 5)) == []


def test_memory_is_judged_in_a_long_life() -> None:
    step = [30_000] * 20 + [36_000] * 20
    assert leaks.MEMORY not in leaks.growth(samples(leaks.MEMORY, step))
    assert leaks.beyond(leaks.growth(samples(leaks.MEMORY, step * 5))) == []
    assert leaks.beyond(leaks.growth(samples(leaks.MEMORY, range(30_000, 42_000, 100)))) != []
