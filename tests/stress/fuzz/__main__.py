"""`make fuzz`: runs every fuzzer for a fixed time, guided by the coverage of the package.

Needs atheris, which is libFuzzer for Python. A crash is a file in .fuzz/. Minimize the crash, and
add the file to tests/stress/fuzz/corpus/TARGET/: CI runs the corpus.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORK = Path(".fuzz")
LONGEST = 4096
"""Bytes of one input. Larger inputs take longer and find no more."""
_DONE = re.compile(r"stat::number_of_executed_units: *(\d+)")
_FOUND = re.compile(r"Test unit written to (\S+)")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help="names of fuzzers (default: all)")
    parser.add_argument("--seconds", type=int, default=600, help="for each fuzzer (default: 600)")
    parser.add_argument("--seed", type=int, default=0, help="0 takes a random seed and prints it")
    parser.add_argument(
        "--keep", action="store_true", help="add inputs that reached new lines to the corpus"
    )
    options = parser.parse_args(argv)
    from tests.stress.fuzz.targets import TARGETS

    unknown = set(options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(TARGETS)}")
    names = options.targets or list(TARGETS)
    failed = [each for each in names if not _run(each, options.seconds, options.seed)]
    if options.keep:
        for each in names:
            _keep(each)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


def _command(name: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "tests.stress.fuzz", "--inside", name, *words]


def _run(name: str, seconds: int, seed: int) -> bool:
    """Run one fuzzer; True if it found no failure."""
    from tests.stress.fuzz.targets import TARGETS

    target = TARGETS[name]
    seed = seed or random.SystemRandom().randrange(1, 1 << 31)
    corpus = WORK / name
    corpus.mkdir(parents=True, exist_ok=True)
    words = WORK / f"{name}.words"
    lines = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words)
    words.write_text("".join(f'"{line}"\n' for line in lines))
    print(f"{name}: {target.about}\n  seed {seed}, {seconds} s", flush=True)
    done = subprocess.run(
        _command(
            name,
            str(corpus),
            *([str(target.kept()[0].parent)] if target.kept() else []),
            f"-max_total_time={seconds}",
            f"-seed={seed}",
            f"-max_len={LONGEST if not target.structured else 8 * LONGEST}",
            *([f"-dict={words}"] if target.words else []),
            f"-artifact_prefix={WORK}/{name}-",
            "-timeout=25",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    count = _DONE.search(done.stdout)
    print(f"  {count[1] if count else '?'} inputs, exit {done.returncode}", flush=True)
    if done.returncode != 0:
        print("\n".join(f"  {line}" for line in done.stdout.splitlines()[-40:]), flush=True)
    return done.returncode == 0


def _keep(name: str) -> None:
    """Add the smallest set of inputs with the same coverage to the corpus."""
    from tests.stress.fuzz.target import CORPUS
    from tests.stress.fuzz.targets import TARGETS

    folder = CORPUS / name
    folder.mkdir(exist_ok=True)
    before = len(TARGETS[name].kept())
    command = _command(name, "-merge=1", f"-max_len={2 * LONGEST}", str(folder), str(WORK / name))
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    print(f"{name}: {len(TARGETS[name].kept()) - before} new inputs in the corpus")


def _inside(name: str, words: list[str]) -> None:
    """Run libFuzzer in this process; never returns."""
    import atheris

    with atheris.instrument_imports(include=["ipv6natd"]):
        from tests.stress.fuzz.targets import TARGETS
    from tests.stress.fuzz.target import changed_json

    target = TARGETS[name]
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (folder / f"seed-{number}").write_bytes(seed)
    more: dict[str, Any] = {}
    if target.structured:

        def changed(data: bytes, most: int, seed: int) -> bytes:
            return changed_json(data, most, seed, atheris.Mutate)

        more["custom_mutator"] = changed
    atheris.Setup([sys.argv[0], *words], target.check, **more)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        _inside(sys.argv[2], sys.argv[3:])
    sys.exit(main(sys.argv[1:]))
