"""The short form of `make fuzz`: the whole corpus, and a few hundred mutated inputs.

This form needs no fuzzer, and the inputs are the same in every run.
"""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Iterator

import pytest

from tests.harness.outputs import close_all
from tests.stress.fuzz.target import CORPUS, changed_json
from tests.stress.fuzz.targets import TARGETS

# docker 5.0.3 of Debian 12 compares versions with distutils.
pytestmark = pytest.mark.filterwarnings("ignore:distutils:DeprecationWarning")

MANY = 300
FEW = 60
SLOW = {"engine-json", "engine-bytes"}
"""Targets of which a hundred inputs take seconds."""


@pytest.fixture(autouse=True)
def collect_garbage() -> Iterator[None]:
    # The library leaves the connection open after an invalid response; the collector closes it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


@pytest.fixture(scope="module", autouse=True)
def close_shared_targets() -> Iterator[None]:
    yield
    close_all()


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_corpus_keep_the_invariant(name: str) -> None:
    target = TARGETS[name]
    for data in (*target.seeds, *(path.read_bytes() for path in target.kept())):
        target.check(data)


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_keep_the_invariant(name: str) -> None:
    target = TARGETS[name]
    chance = random.Random(name)
    begun = [*target.seeds, *(path.read_bytes() for path in target.kept())]
    for _ in range(FEW if name in SLOW else MANY):
        data = chance.choice(begun)
        if target.structured:
            data = changed_json(data, 1 << 15, chance.getrandbits(32), scrambled)
        else:
            data = scrambled(data, 4096, (*target.words, b"\xff", b"\n", b"\0"))
        target.check(data)


def scrambled(data: bytes, most: int, words: tuple[bytes, ...] = (b"\xff", b"%", b"\n")) -> bytes:
    """Input with some bytes removed, replaced or duplicated; deterministic."""
    chance = random.Random(data)
    for _ in range(chance.randint(1, 4)):
        first, last = sorted(chance.choices(range(len(data) + 1), k=2))
        first = max(first, last - 16)
        middle = chance.choice((b"", data[first:last] * 2, chance.choice(words)))
        data = data[:first] + middle + data[last:]
    return data[:most]


def test_corpus_is_small_and_has_only_fuzzer_folders() -> None:
    assert {each.name for each in CORPUS.iterdir()} <= set(TARGETS)
    assert sum(each.stat().st_size for each in CORPUS.rglob("*") if each.is_file()) < 500_000


def test_every_fuzzer_has_its_invariant_in_one_sentence() -> None:
    for each in TARGETS.values():
        assert each.about.endswith(".")
        assert each.about.count(". ") == 0, each.name
