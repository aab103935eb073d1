"""A few random steps in CI; `make soak` runs for half an hour."""

from __future__ import annotations

import pytest

from tests.harness import need
from tests.harness.sandbox import Variant
from tests.stress.soak.forgery import Aim
from tests.stress.soak.soak import soak

SEED = 20261123
STEPS = 14


@pytest.mark.parametrize(
    ("variant", "proxy"), [("nft", True), pytest.param("legacy", False, marks=pytest.mark.slow)]
)
def test_reachability_is_as_expected_after_each_random_step(variant: Variant, proxy: bool) -> None:
    need("dockerd", "docker", "ip", "nsenter", "setpriv", "busybox", "dbus-daemon", "conntrack")
    # The time limit is only for a very slow machine.
    result = soak(variant, proxy=proxy, seed=SEED, seconds=300, steps=STEPS, verbose=True)
    assert result.wrong == []
    assert result.questions > 500
    assert min(result.connections, result.probes, result.answers, result.flows) > 0
    assert result.forged.keys() >= {"rogue", "a container", *Aim}
