"""Faults in CI: each once, without the slow ones. `make soak` repeats all faults."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from _pytest.mark.structures import ParameterSet

from tests.harness import need
from tests.stress.soak.faults import FAULTS, Fault
from tests.stress.soak.killpoints import counted, killed_at
from tests.stress.soak.run import one
from tests.stress.soak.scene import Scene, scene

SEED = int(os.environ.get("SOAK_SEED", "1"))
SLOW_FAULTS = (
    "firewalld",
    "ufw",
    "IPv6",
    "without live-restore",
    "xtables lock",
    "dropped",
    "hung",
)
"""Slow faults; tests/system/packets has shorter tests for them."""
TEST_ALL_FAULTS = ("answers 500", "answers slowly", "random byte", "events doubled")
"""Faults that unit tests of the engine's client cover in CI."""
KILLS = 2


def marked(fault: Fault) -> ParameterSet:
    left_out = any(word in fault.name for word in TEST_ALL_FAULTS)
    return pytest.param(fault, marks=[pytest.mark.slow] * left_out, id=str(fault))


def quick(fault: Fault) -> bool:
    return not any(word in fault.name for word in SLOW_FAULTS)


@pytest.fixture(scope="module")
def lab() -> Iterator[Scene]:
    need("dockerd", "docker", "conntrack", "nft", "ip6tables-nft", "dbus-daemon", "strace")
    with scene("nft") as made:
        yield made


@pytest.mark.parametrize("fault", [marked(each) for each in FAULTS if quick(each)])
def test_fault_causes_no_unexpected_failure(lab: Scene, fault: Fault) -> None:
    if lab.variant not in fault.variants:
        pytest.skip("of the other variant")
    assert one(fault, lab, SEED, 1, fresh=False).wrong == []


def test_daemon_killed_between_two_system_calls_starts_clean(lab: Scene) -> None:
    points = random.Random(SEED).sample(range(1, counted(lab) + 1), KILLS)
    row = killed_at(lab, points, say=print)
    assert row.wrong == [], f"seed {SEED}, points {points}"
    assert row.tried >= KILLS


def test_tables_after_all_faults_equal_those_of_a_fresh_start(lab: Scene) -> None:
    stands = lab.rules()
    assert lab.fresh() == stands
