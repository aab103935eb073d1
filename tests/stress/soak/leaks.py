"""Leaks: resources of the daemon that grow, and stale rules and entries in the kernel."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from tests.harness import exchange, until
from tests.stress.soak.ground import Ground, file_count
from tests.stress.soak.model import World

MEMORY = "rss_kib"
BOUNDS = {"fds": 10, "threads": 4, "children": 0, "files": 1, "namespaces": 0, MEMORY: 4096}
"""The maximum growth between the warm-up and the end of a daemon's life. The client of the engine
keeps up to ten connections, as many as it ever needed at once, until a restart of the engine."""
WARM = 10
"""The number of samples of the warm-up. A life needs twice as many to show growth."""
LONG = 100
"""The samples, without the warm-up, that a life needs to show growth of memory. A single large
listing raises the memory of the process for good, and a short life would show that as growth."""
FLOW = re.compile(
    r"\bsrc=(\S+) dst=(\S+) sport=\d+ dport=\d+.*? src=(\S+) dst=\S+ sport=\d+ dport=\d+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The resources of the idle daemon at one moment."""

    pid: int
    fds: int
    threads: int
    children: int
    files: int
    """Files in its state and runtime directories."""
    namespaces: int
    """Named network namespaces of this lab."""
    rss_kib: int


def sample(ground: Ground) -> Sample:
    process = ground.daemon.process
    assert process is not None
    folder = Path(f"/proc/{process.pid}")
    status = dict(
        line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
    )
    children = [pid for task in (folder / "task").iterdir() for pid in children_of(task)]
    return Sample(
        pid=process.pid,
        fds=len(list((folder / "fd").iterdir())),
        threads=int(status["Threads"]),
        children=len(children),
        files=sum(file_count(ground.daemon.dir / name) for name in ("state", "runtime")),
        namespaces=len(list(Path("/run/netns").glob(f"{ground.sandbox.name}-*"))),
        rss_kib=int(status["VmRSS"].split()[0]),
    )


def children_of(task: Path) -> list[str]:
    """The children of one thread, which may have ended meanwhile."""
    try:
        return (task / "children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def lives(samples: Iterable[Sample]) -> list[list[Sample]]:
    """The samples of each process, without its warm-up."""
    found: dict[int, list[Sample]] = {}
    for each in samples:
        found.setdefault(each.pid, []).append(each)
    return [life[WARM:] for life in found.values() if len(life) >= 2 * WARM]


def growth(samples: Iterable[Sample]) -> dict[str, int]:
    """The maximum growth of each resource within one life: the minimum of the last samples, minus
    the maximum of the first samples. So fluctuation is not growth. Memory is missing without a long
    life."""
    grown: dict[str, int] = {}
    for life in lives(samples):
        few = max(len(life) // 5, 3)
        for name in BOUNDS if len(life) >= LONG else BOUNDS.keys() - {MEMORY}:
            values = [getattr(each, name) for each in life]
            grown[name] = max(grown.get(name, 0), min(values[-few:]) - max(values[:few]))
    return grown


def beyond(grown: dict[str, int]) -> list[str]:
    return [
        f"{name} grew by {by}, limit {BOUNDS[name]}"
        for name, by in grown.items()
        if by > BOUNDS[name]
    ]


def left(ground: Ground, world: World) -> list[str]:
    """Rules and conntrack entries of removed networks and containers."""
    wrong = []
    for what, seek in (("rules", in_rules), ("flows", in_conntrack)):
        found = until(lambda seek=seek: seek(ground, world), [], timeout=10)  # type: ignore[misc]
        wrong += [f"left in {what}, one of {len(found)}: {each}" for each in found[:3]]
    return wrong


def in_rules(ground: Ground, world: World) -> list[str]:
    bridges = {net.bridge for net in world.nets.values()}
    there = addresses(world)
    found = []
    for line in ground.sandbox.rules().splitlines():
        named = set(re.findall(r" -[io] (br\S+)", line)) - bridges
        to = {IPv6Address(each) for each in re.findall(r"--to-destination \[?([0-9a-f:]+)", line)}
        if named or any(each not in exchange.SUBNET for each in to - there):
            found.append(line)
    return found


def in_conntrack(ground: Ground, world: World) -> list[str]:
    """UDP entries to the host whose reply source is an unused container address."""
    text = ground.sandbox.host.flows("-p", "udp")
    there = addresses(world) | {net.gateway for net in world.nets.values()}
    found = []
    for line in text.splitlines():
        match = FLOW.search(line)
        if match is None:
            continue
        asked, answers = ip_address(match[2]), ip_address(match[3])
        if asked in world.addresses and answers != asked and answers not in there:
            found.append(line)
    return found


def addresses(world: World) -> set[IPv6Address]:
    return {at for box in world.boxes.values() if box.up for at in box.ends.values() if at}
