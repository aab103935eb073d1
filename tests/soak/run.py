"""All faults, one after the other, in one lab a variant."""

from __future__ import annotations

import random
import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.lab.process import LabError
from tests.lab.sandbox import Variant
from tests.soak.faults import FAULTS, Fault
from tests.soak.scene import Scene, scene
from tests.soak.trial import Row, tried

Say = Callable[[str], None]


def run_faults(
    variant: Variant, seed: int, *, say: Say, only: str = "", times: int | None = None
) -> Iterator[Row]:
    """Each fault whose name `only` is found in, `times` over or as often as it says itself.

    What the lab itself cannot do any more is in the row, and the next fault gets another lab.
    """
    left = [each for each in FAULTS if variant in each.variants and re.search(only, each.name)]
    while left:
        with scene(variant) as lab:
            while left:
                fault = left.pop(0)
                row = one(fault, lab, seed, times)
                say(line(row))
                yield row
                if row.wrong or fault.apart:
                    break


def one(fault: Fault, lab: Scene, seed: int, times: int | None) -> Row:
    """One fault in a lab of its own luck, the same in each run of a seed."""
    rng = random.Random(f"{seed} {lab.variant} {fault.name}")
    try:
        return tried(fault, lab, rng, times=min(times or fault.times, fault.times), fresh=True)
    except (LabError, OSError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"the lab failed in {where.name}: {error}"
        return Row(fault=fault.name, variant=lab.variant, why=fault.why, wrong=[said])


def line(row: Row) -> str:
    """A row for somebody who watches."""
    text = (
        f"{row.variant:6} {row.fault}: {row.tried} times, {row.attempted} connections,"
        f" {row.lost} lost, {row.cut} of {row.flows} flows cut, {row.probed} probes,"
        f" {row.exposed} answered, healed in {row.median:.2f} s, at worst {row.worst:.2f} s"
    )
    return "\n    WRONG ".join([text, *row.wrong])


@contextmanager
def timed(say: Say, what: str) -> Iterator[None]:
    """Say how long something took."""
    began = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - began:.0f} s")
