"""`make soak`: all faults, then long random runs, on nf_tables and legacy; writes the page.

Both variants run at once, each in its own process and lab, because they mostly wait.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.harness.needs import need
from tests.harness.sandbox import Variant
from tests.stress.soak.report import Result, page
from tests.stress.soak.soak import Soaked
from tests.stress.soak.trial import Row

PAGE = ROOT / "docs" / "reliability.md"
VARIANTS: tuple[Variant, ...] = ("nft", "legacy")
SHORT = 10
"""With fewer minutes for the random steps, the faults are shorter too."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument(
        "--minutes", type=float, default=30, help="for the random steps (%(default)s)"
    )
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    need("dockerd", "strace", "ufw", "firewall-cmd", "conntrack", "nft")
    print(f"seed {args.seed}", flush=True)
    short = ["--times=1", "--every=12"] if args.minutes < SHORT else []
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        seed = f"--seed={args.seed}"
        faults = together(
            {v: ["tests.stress.soak.run", f"--variant={v}", seed, *short] for v in VARIANTS},
            Path(folder),
            failures,
        )
        minutes = f"--minutes={args.minutes}"
        proxies = {"nft": "--proxy", "legacy": "--no-proxy"}
        soaks = together(
            {
                v: ["tests.stress.soak.soak", f"--variant={v}", proxies[v], seed, minutes]
                for v in (VARIANTS if args.minutes else ())
            },
            Path(folder),
            failures,
        )
    result = Result(
        command=f"make soak SEED={args.seed} MINUTES={args.minutes:g}",
        seed=args.seed,
        engine=next((each["engine"] for each in faults), "of an unknown version"),
        rows=[Row(**row) for each in faults for row in each["rows"]],
        soaks=[Soaked(**each) for each in soaks],
        failures=failures,
    )
    args.page.write_text(page(result))
    for each in result.wrong:
        print(f"WRONG {each}")
    print(f"{len(result.wrong)} wrong results; {args.page}")
    return 1 if result.wrong else 0


def together(modules: dict[Variant, Sequence[str]], folder: Path, failures: list[str]) -> list[Any]:
    """Run modules in parallel until all have ended, and return their results."""
    running = {}
    for variant, (module, *words) in modules.items():
        file = folder / f"{module}-{variant}.json"
        argv = [sys.executable, "-m", module, *words, f"--result={file}"]
        running[file] = subprocess.Popen(argv, cwd=ROOT)
    try:
        for process in running.values():
            process.wait()
    finally:
        for process in running.values():
            if process.poll() is None:  # interrupted: each process removes its lab
                process.terminate()
                process.wait(60)
    for file, process in running.items():
        if not file.exists():
            failures.append(f"{file.stem} ended with {process.returncode} and no result")
    return [json.loads(file.read_text()) for file in running if file.exists()]


if __name__ == "__main__":
    sys.exit(main())
