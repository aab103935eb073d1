"""A fuzzer: a check of any bytes, the first inputs, and tokens for the mutations.

Checks are plain functions, so CI can run the corpus through them without a fuzzer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.outputs import at_end as at_end
from tests.unit.policy.test_properties import HOSTILE, places

CORPUS = Path(__file__).parent / "corpus"
Mutate = Callable[[bytes, int], bytes]
"""Takes bytes and a maximum size, returns mutated bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One fuzzer. The docstring of its check is its invariant, in one sentence."""

    name: str
    check: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = field(default=())
    """Tokens that random mutations would not find."""
    structured: bool = False
    """True if the input is JSON, and mutations change values instead of bytes."""

    @property
    def about(self) -> str:
        """The invariant in one line."""
        return " ".join((self.check.__doc__ or "").split())

    def kept(self) -> list[Path]:
        """The files of the corpus."""
        folder = CORPUS / self.name
        return sorted(folder.iterdir()) if folder.is_dir() else []


def read_json(data: bytes) -> Any:
    """The decoded value; None for invalid JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def changed_json(data: bytes, most: int, seed: int, mutate: Mutate) -> bytes:
    """JSON with one to four values replaced, removed, duplicated or moved."""
    chance = random.Random(seed)
    value = read_json(data)
    for _ in range(chance.randint(1, 4)):
        value = _once(value, chance, mutate)
    made = json.dumps(value).encode()
    return made if len(made) <= most else data


def _once(value: Any, chance: random.Random, mutate: Mutate) -> Any:
    ways = list(places(value))
    if not ways:
        return _fresh(None, chance, mutate)
    *way, last = chance.choice(ways)
    place = _at(value, way)
    match chance.randrange(8):
        case 0 if isinstance(place, dict):
            del place[last]
        case 1 if isinstance(place, dict):
            place[_text(str(last), chance, mutate)] = place[last]
        case 2 if isinstance(place, list):
            place.insert(last, place[last])
        case 3:
            place[last] = json.loads(json.dumps(_at(value, list(chance.choice(ways)))))
        case _:
            place[last] = _fresh(place[last], chance, mutate)
    return value


def _at(value: Any, way: list[Any]) -> Any:
    for step in way:
        value = value[step]
    return value


def _fresh(old: Any, chance: random.Random, mutate: Mutate) -> Any:
    match chance.randrange(6):
        case 0:
            return chance.choice([None, True, False, [], {}, "", 0, -1, 1 << 64, 1e400])
        case 1:
            return chance.choice(HOSTILE)
        case 2 if isinstance(old, int):
            return old + chance.choice([-1, 1, 256, 65535])
        case 3:
            return chance.choice([[old], {"": old}, [old, old]])
    return _text(old if isinstance(old, str) else "", chance, mutate)


def _text(old: str, chance: random.Random, mutate: Mutate) -> str:
    if chance.random() < 0.3:
        at = chance.randint(0, len(old))
        return old[:at] + chance.choice(HOSTILE)[:200] + old[at:]
    return mutate(old.encode("utf-8", "surrogatepass"), 200).decode("utf-8", "replace")


def pieces(data: bytes, separator: bytes = b"\n---\n", count: int = 0) -> Iterator[bytes]:
    """The parts between separators. With `count`, exactly so many: the missing parts are empty."""
    found = data.split(separator, count - 1 if count else -1)
    yield from found
    yield from [b""] * max(0, count - len(found))
