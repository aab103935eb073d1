"""All faults, one after the other, in one lab per variant."""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from tests.harness.process import LabError
from tests.harness.sandbox import Variant
from tests.stress.soak.faults import FAULTS, Fault
from tests.stress.soak.killpoints import NAME, counted, killed_at
from tests.stress.soak.scene import Scene, scene
from tests.stress.soak.trial import Row, tried

Say = Callable[[str], None]


def run_faults(
    variant: Variant, seed: int, *, say: Say, only: str = "", times: int | None = None
) -> Iterator[Row]:
    """Run each fault whose name matches `only`, at most `times` times.

    After a wrong result the next fault gets a new lab.
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


def one(fault: Fault, lab: Scene, seed: int, times: int | None, *, fresh: bool = True) -> Row:
    """Run one fault, with a random generator that depends only on seed, variant and name."""
    rng = random.Random(f"{seed} {lab.variant} {fault.name}")
    most = fault.on_legacy if lab.variant == "legacy" and fault.on_legacy else fault.times
    try:
        return tried(fault, lab, rng, times=min(times or most, most), fresh=fresh)
    except (LabError, OSError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"the lab failed in {where.name}: {error}"
        return Row(fault=fault.name, variant=lab.variant, why=fault.why, wrong=[said])


def line(row: Row) -> str:
    """A row for the terminal."""
    text = (
        f"{row.variant:6} {row.fault}: {row.tried} times, {row.attempted} connections,"
        f" {row.lost} lost, {row.cut} of {row.flows} flows cut, {row.probed} probes,"
        f" {row.exposed} answered, healed in {row.median:.2f} s, at worst {row.worst:.2f} s"
    )
    return "\n    WRONG ".join([text, *row.wrong])


def main() -> None:
    """Run all faults of one variant; writes the rows as JSON into a file."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress.soak.run", description=__doc__)
    parser.add_argument("--variant", choices=("nft", "legacy"), default="nft")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="a pattern for the names of faults")
    parser.add_argument("--times", type=int, help="maximum repetitions of each fault")
    parser.add_argument("--every", type=int, default=1, help="use each Nth of the kill points")
    parser.add_argument("--result", type=Path, help="a file for the rows, as JSON")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def say(text: str) -> None:
        print(text, flush=True)

    began = time.monotonic()
    rows = list(run_faults(args.variant, args.seed, say=say, only=args.only, times=args.times))
    engine = "unknown"
    if re.search(args.only, NAME):
        with scene(args.variant) as lab:
            engine = lab.engine.version
            rows.append(sweep(lab, args.seed, args.every, say=say))
        say(line(rows[-1]))
    say(f"{args.variant:6} all faults: {time.monotonic() - began:.0f} s")
    if args.result:
        rows_ = [asdict(row) for row in rows]
        args.result.write_text(json.dumps({"engine": engine, "rows": rows_}, indent=1))
    if any(row.wrong for row in rows):
        raise SystemExit(1)


def sweep(lab: Scene, seed: int, every: int, *, say: Say) -> Row:
    """Kill at each point of a sync, or at each `every`-th, from a random first point."""
    first = 1 + random.Random(seed).randrange(every)
    try:
        return killed_at(lab, range(first, counted(lab) + 1, every), say=say)
    except (LabError, OSError) as error:
        return Row(fault=NAME, variant=lab.variant, wrong=[f"the lab failed: {error}"])


if __name__ == "__main__":
    main()
