"""The attackers: their forged packets, and the detection of a host without rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from random import Random

import pytest

from tests.harness import Sandbox, need, serve, until
from tests.harness.sandbox import CLIENT, HOST, HOST_TOO, ROGUE
from tests.stress.soak.attackers import SEGMENT, Attackers, inside, of_each_kind
from tests.stress.soak.forgery import UNPUBLISHED, Aim, Forged, Known, Place, answers, drawn, known
from tests.stress.soak.model import Box, Mode, Net, Publish, World, asks

A = Net(name="a", subnet=IPv6Network("fd00:a::/64"))
B = Net(name="b", subnet=IPv6Network("fd00:b::/64"))
AT_A, AT_B = A.subnet[2], B.subnet[2]
PORT = Publish(protocol="udp", inside=53, port=9000)
ONE = Box(name="one", ends={"a": AT_A}, publish=(PORT,))
TWO = Box(name="two", ends={"b": AT_B}, publish=(replace(PORT, port=9001),))
WORLD = World(proxy=True).holding(A, B).having(ONE, TWO)
CONTAINER = inside(A, AT_A)


def known_parts(
    world: World, new: World | None = None, touched: frozenset[str] = frozenset()
) -> Known:
    found = known(world, new or world, touched, asks(world))
    assert found is not None
    return found


def forged(place: Place, told: Known, count: int = 2000) -> list[Forged]:
    rng = Random(1)
    return [drawn(rng, place, told, [place.address]) for _ in range(count)]


def test_known_has_only_parts_that_a_step_does_not_change() -> None:
    told = known_parts(WORLD, WORLD.without_net("b").without("two"), frozenset({"two"}))
    assert (told.containers, told.gateways, told.ports) == ((AT_A,), (A.gateway,), (9000,))
    assert known_parts(replace(WORLD, late=True), WORLD).outside == (HOST, HOST_TOO)
    assert known_parts(WORLD, touched=frozenset({"one"})).ports == (9001,)
    assert known(World(proxy=True), WORLD, (), {}) is None


def test_network_with_open_ports_is_not_in_closed() -> None:
    opened = WORLD.holding(replace(A, mode=Mode.UNPROTECTED))
    assert sorted(known_parts(WORLD).closed) == [AT_A, AT_B]
    assert sorted(known_parts(opened).closed) == [AT_B]


@pytest.mark.parametrize(("place", "own"), [(SEGMENT, None), (CONTAINER, A)], ids=str)
def test_forged_sources_are_never_legal_for_the_attacker(place: Place, own: Net | None) -> None:
    told = known_parts(WORLD)
    sources = {each.source for each in forged(place, told) if each.aim is not Aim.GROUP}
    assert {A.gateway, B.gateway, HOST, HOST_TOO, AT_B} <= sources
    assert {AT_A, ROGUE, CLIENT} & sources == ({AT_A} if own is None else set())


def test_forged_packets_cover_every_aim_destination_and_kind() -> None:
    drawn_ = forged(SEGMENT, known_parts(WORLD))
    assert {each.aim for each in drawn_} == set(Aim)
    assert {each.destination for each in drawn_} >= {ROGUE, HOST, A.gateway, AT_A, AT_B}
    assert {each.kind for each in drawn_} >= {"udp", "tcp", "echo", "gre", "fragments"}


def test_forged_answers_go_to_every_possible_source() -> None:
    told = known_parts(WORLD)
    back = next(a for a in forged(CONTAINER, told) if a.aim is Aim.BACK and a.source == AT_B)
    back = replace(back, kind="udp", ports=(UNPUBLISHED["udp"], 6600))
    to = {IPv6Address(each[24:40]) for each in answers(back, CONTAINER, told)}
    assert to == {AT_B, HOST, HOST_TOO, A.gateway}
    assert answers(replace(back, source=HOST), CONTAINER, told) == []


def test_findings_that_differ_only_in_addresses_are_reported_once() -> None:
    found = ["came: forged udp to rogue: [fd00::1]:54", "came: forged udp to rogue: [fd00::2]:54"]
    assert of_each_kind(found) == [f"{found[0]} (and 1 more)"]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    need("ip", "nsenter", "setpriv")
    with Sandbox() as made:
        yield made


def test_attackers_detect_a_host_without_rules(sandbox: Sandbox) -> None:
    told = Known(
        containers=(CLIENT,),
        free=(A.subnet[0x66],),
        closed=frozenset({CLIENT}),
        gateways=(A.gateway,),
        outside=(HOST,),
        ports=(9000,),
    )
    attackers = Attackers(sandbox)
    seen: set[str] = set()
    try:
        with serve(sandbox.client, "client", udp=[54, 9000]) as server:
            attackers.aim(told)

            def enough() -> bool:
                attackers.round()
                found = (*attackers.back(), *attackers.through("client", server.received))
                seen.update(each.split(":")[1].partition(",")[0].strip() for each in found)
                return wanted <= seen

            wanted = {f"forged {each} to rogue" for each in ("tcp", "icmp6", "47", "253")}
            wanted.add(f"forged by rogue as a container to {Aim.BACK}")
            wanted.add(f"forged by rogue as the host to {Aim.CONTAINER}")
            wanted |= {"forged by rogue as itself to groups", "forged answer by rogue"}
            assert until(enough, True, timeout=20), wanted - seen
            attackers.aim(None)
            sent = attackers.forged.total()
            attackers.round()
            assert attackers.forged.total() == sent
    finally:
        attackers.close()
