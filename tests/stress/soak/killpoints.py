"""ipv6natd, killed between two system calls of a sync, and started again as systemd does."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness import until
from tests.harness.process import LabError, end, spawn, tail
from tests.stress.soak.scene import Scene
from tests.stress.soak.trial import Row, apart, count

NAME = "ipv6natd killed between two system calls of a sync"
HEALS = 15.0
CLOSED = "the ports are closed until it answers"
"""The message of a start that closes the ports because a container has left its bridge and the
engine has not listed its containers in half a second (docs/limits.md), as on a busy machine."""
MAX_CLOSED = 0.05
"""The share of the starts that may be so slow."""


@contextmanager
def traced(scene: Scene, point: int, *, with_children: bool = False) -> Iterator[Path]:
    """Run the daemon under the tracer; yields the file with the tracer's output."""
    said = scene.sandbox.dir / "tracer"
    words = (str(scene.daemon.pid), str(point), *(["children"] if with_children else []))
    with said.open("wb") as log:
        tracer = spawn((sys.executable, "-m", "tests.stress.soak.tracer", *words), log=log)
    try:
        if not until(lambda: b"ready" in said.read_bytes(), True, timeout=10):
            raise LabError(f"no tracer:\n{tail(said)}")
        yield said
    finally:
        end(tracer)


def counted(scene: Scene) -> int:
    """The number of system calls with an effect during a sync that adds or removes a container."""
    most = 0
    for _ in range(2):
        with traced(scene, 0) as said:
            scene.toggle()
            if scene.await_text(scene.texts[scene.extra], timeout=HEALS) is None:
                raise LabError("not in step under the tracer")
            time.sleep(0.3)  # the read of the rules afterwards is a part of the sync
        most = max(most, int(said.read_text().split()[-1]))
    return most


def killed_at(scene: Scene, points: Iterable[int], *, say: Callable[[str], None]) -> Row:
    """Kill at each of these points, in a sync that adds and in one that removes a container."""
    row = Row(fault=NAME, variant=scene.variant)
    closed: list[tuple[float, float]] = []
    """The times between a start that closed the ports and its first list."""
    with scene.talk() as talk:
        struck = time.monotonic()
        for point in points:
            for _ in ("adds", "removes"):
                began, said = time.monotonic(), scene.daemon.log.count(CLOSED)
                _kill(scene, point, row)
                if scene.daemon.log.count(CLOSED) > said:
                    closed.append((began, time.monotonic()))
                    say(f"{row.variant:6} {NAME}: the start after {point} closed the ports")
            if row.tried % 40 == 0:
                say(f"{row.variant:6} {NAME}: {row.tried} times, {len(row.wrong)} wrong")
        healed = time.monotonic()
        time.sleep(0.5)
    count(frozenset(), row, talk, struck, healed, closed=closed)
    if len(closed) > MAX_CLOSED * max(row.tried, 20):
        row.wrong.append(f"{len(closed)} of {row.tried} starts closed the ports")
    stands = scene.rules()
    if (written := scene.fresh()) != stands:
        row.wrong.append(f"a fresh start writes other rules: {apart(stands, written)}")
    return row


def _kill(scene: Scene, point: int, row: Row) -> None:
    process = scene.daemon.process
    assert process is not None
    with traced(scene, point, with_children=point % 2 == 0) as said:
        scene.toggle()
        wanted = scene.texts[scene.extra]
        until(lambda: process.poll() is not None or scene.settled(wanted), True, timeout=HEALS)
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            return  # this sync had fewer system calls
    name = said.read_text().split()[-1]
    row.tried += 1
    began = time.monotonic()
    scene.daemon.start()
    took = scene.await_text(wanted, timeout=HEALS)
    if took is None:
        where = f"killed before its {point}th, {name}"
        row.wrong.append(f"{where}: not healed: {apart(scene.rules(), wanted)}")
    else:
        row.healed.append(time.monotonic() - began)
    if not until(scene.extra_is_right, True):
        row.wrong.append(f"killed before its {point}th, {name}: `extra` is not followed")
