"""The repetitions of one fault, with the results of the traffic and the time to heal."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from tests.harness import until
from tests.stress.soak.faults import Cost, Fault
from tests.stress.soak.scene import Scene, Talk
from tests.stress.soak.traffic import Wrong

CALM = 0.5
"""Seconds of traffic before a fault and after it has healed."""


@dataclass(slots=True, kw_only=True)
class Row:
    """The results of one fault in one variant; JSON can encode it."""

    fault: str
    variant: str
    why: str = ""
    tried: int = 0
    attempted: int = 0
    """New connections to published ports and to the outside."""
    lost: int = 0
    """Connections without the right server, with the right peer, within a second."""
    flows: int = 0
    cut: int = 0
    probed: int = 0
    exposed: int = 0
    """Answered probes of closed ports, during a fault that removes rules."""
    exposure: list[float] = field(default_factory=list)
    """For each repetition, the seconds from the fault to the last of these answers."""
    healed: list[float] = field(default_factory=list)
    """For each repetition, the seconds from the end of the fault to the expected tables."""
    wrong: list[str] = field(default_factory=list)
    """Wrong results, one sentence each."""

    @property
    def median(self) -> float:
        return median(self.healed) if self.healed else 0.0

    @property
    def worst(self) -> float:
        return max(self.healed, default=0.0)


def tried(fault: Fault, scene: Scene, rng: random.Random, *, times: int, fresh: bool) -> Row:
    """Repeat a fault; with `fresh`, compare the last tables with those of a fresh start."""
    row = Row(fault=fault.name, variant=scene.variant, why=fault.why)
    with fault.stage(scene):
        for _ in range(times):
            _try(fault, scene, rng, row)
        if fresh:
            stands, written = without_places(scene.rules()), without_places(scene.fresh())
            if written != stands:
                row.wrong.append(f"a fresh start writes other rules: {apart(stands, written)}")
    return row


def without_places(text: str) -> str:
    """The tables, with the rules of others behind ours: whether their rules come before our jumps
    depends on which program wrote first."""
    ours: list[str] = []
    others: list[str] = []
    for line in text.splitlines():
        own = not line.startswith("-A ") or "ipv6natd" in line or line.startswith("-A IPV6NAT-")
        (ours if own else others).append(line)
    return "\n".join([*ours, *sorted(others)])


def _try(fault: Fault, scene: Scene, rng: random.Random, row: Row) -> None:
    before, extra = scene.rules(), scene.extra
    row.tried += 1
    with scene.talk() as talk:
        time.sleep(CALM)
        struck = time.monotonic()
        with fault.strike(scene, rng):
            pass
        wanted = before if scene.extra == extra else scene.texts[scene.extra]
        took = scene.await_text(wanted, timeout=fault.heals)
        healed = time.monotonic()
        if took is None:
            row.wrong.append(f"not healed in {fault.heals:.0f} s: {_apart(scene, wanted)}")
        else:
            row.healed.append(took)
        if not until(scene.extra_is_right, True):
            row.wrong.append("the start or end of the fifth container had no effect")
        time.sleep(CALM)
    count(fault.costs, row, talk, struck, healed)


def count(
    costs: frozenset[Cost],
    row: Row,
    talk: Talk,
    struck: float,
    healed: float,
    *,
    closed: Sequence[tuple[float, float]] = (),
) -> None:
    """Add the results to the row. Effects outside the fault's `costs` are wrong, and so is each
    answer of another container. While the ports are `closed`, connections may be lost."""
    row.attempted += talk.attempted
    row.probed += talk.probed
    row.lost += len(talk.failed)
    row.flows += len(talk.flows)
    row.cut += len(talk.cut)
    exposed = [each.ended for each in talk.answered_closed]
    row.exposed += len(exposed)
    row.exposure.append(max(exposed) - struck if exposed else 0.0)

    def during(wrong: Wrong) -> bool:
        return wrong.began >= struck - 1 and wrong.began <= healed

    def while_closed(wrong: Wrong) -> bool:
        return any(start <= wrong.began <= end for start, end in closed)

    judge: tuple[tuple[Cost, list[Wrong], Callable[[Wrong], bool]], ...] = (
        ("lost", talk.failed, while_closed),
        ("exposed", talk.answered_closed, lambda _: False),
    )
    for cost, found, excused in judge:
        allowed = cost in costs
        bad = [
            wrong
            for wrong in found
            if wrong.stranger or not ((allowed and during(wrong)) or excused(wrong))
        ]
        row.wrong += [f"{wrong} ({wrong.began - struck:+.2f} s)" for wrong in bad[:5]]
    if "cut" not in costs:
        row.wrong += [f"open flow to {each.target} was cut: {each.cut}" for each in talk.cut]


def _apart(scene: Scene, wanted: str) -> str:
    said = "" if scene.daemon.status.startswith("synced") else f"{scene.daemon.status}; "
    return said + apart(scene.rules(), wanted)


def apart(stands: str, wanted: str) -> str:
    """Up to three different lines."""
    have, want = stands.splitlines(), wanted.splitlines()
    lines = [f"+ {each}" for each in have if each not in want]
    lines += [f"- {each}" for each in want if each not in have]
    return "; ".join(lines[:3]) or (
        "the same lines in another order" if have != want else "nothing"
    )
