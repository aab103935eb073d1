"""The daemon: the time of a change from the engine's answer to the kernel, CPU and memory."""

from __future__ import annotations

import re
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from threading import Event, Thread

from bench.engine import Simulated, scattered
from bench.packets import mapped, wanted
from ipv6natd.firewall import xtables
from ipv6natd.firewall.restore import RestoreFirewall
from ipv6natd.model import Protocol
from ipv6natd.netfilter.diff import ObservedTable, rewrite_tables
from ipv6natd.netfilter.render import format_change
from ipv6natd.netfilter.rules import Backend, Table
from tests.harness import Daemon, Namespace, Sandbox
from tests.harness.process import run
from tests.harness.sandbox import Variant

CHANGES = 11
CHURN_SECONDS, CHURN_THERE = 10, 20
LIBRARIES = "docker, dbus_next, sdnotify, requests, asyncio, logging, argparse, tomllib"
ROOT = Path(__file__).parent.parent
PYTHON = "/usr/bin/python3"
"""The Python of the packaged daemon. Python of .venv would import other packages too."""


@dataclass
class Control:
    """The figures of one daemon with `mappings` mappings, in seconds and megabytes."""

    variant: Variant
    mappings: int
    ready: float = 0.0
    """From exec to READY, with a running engine and no rules in the kernel."""
    cpu: float = 0.0
    """Seconds of CPU up to READY."""
    write: float = 0.0
    """One write of the whole nat table, without computing the rules."""
    restore: float = 0.0
    """ip6tables-restore of the same text."""
    kept: float = 0.0
    """From exec until the saved filter table is in force."""
    changes: list[float] = field(default_factory=list)
    """From the inspect's answer until the rule is in the kernel."""
    restore_change: float = 0.0
    """ip6tables-restore of one such change."""
    cleanup: float = 0.0
    """From SIGTERM with -cleanup to the end of the process."""
    memory: float = 0.0
    peak: float = 0.0
    idle: float = 0.0
    """Share of a core without events."""
    growth: float = 0.0
    """Megabytes after some thousand events, with an earlier event for each container."""
    churn: float = 0.0
    """Share of a core while containers start and stop."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """Measurements besides the start, one change and the end; 0 skips the measurement."""

    networks: int = 0
    """Networks of the engine; 0 takes as many as the containers need."""
    idle: float = 0
    """Seconds."""
    events: int = 0
    churn: float = 0
    """Starts, and stops, of containers per second."""


def measured(variant: Variant, mappings: int, load: Load) -> Control:
    """Measure one daemon, from start to stop, with an engine of this size."""
    found = Control(variant=variant, mappings=mappings)
    with ExitStack() as stack:
        sandbox, engine, daemon, found.ready = started(
            stack, variant, mappings, networks=load.networks
        )
        assert f": {mappings} mappings" in daemon.status, daemon.status
        daemon.wait_state("synced", timeout=60)
        assert daemon.process is not None
        pid = daemon.process.pid
        found.cpu = cpu(pid)
        settle(pid)
        found.memory = status(pid, "VmRSS") - baseline(variant)
        found.peak = status(pid, "VmHWM")
        with watching(sandbox.host, variant) as changed:
            for number in range(CHANGES):
                found.changes.append(one_change(engine, changed, 5001 + 5 * number))
                settle(pid)
        found.restore_change = restore_of_change(sandbox)
        if load.idle:
            # First the daemon checks the tables after the write of the bench.
            time.sleep(2)
            settle(pid)
            before = cpu(pid)
            time.sleep(load.idle)
            found.idle = (cpu(pid) - before) / load.idle
        if load.churn:
            found.churn = churned(engine, pid, load.churn)
        if load.events:
            grown(engine, pid, mappings)
            found.growth = grown(engine, pid, load.events)
        began = time.monotonic()
        daemon.stop()
        found.cleanup = time.monotonic() - began
    return found


def started(
    stack: ExitStack,
    variant: Variant,
    mappings: int,
    *,
    networks: int,
    options: Mapping[str, str] | None = None,
) -> tuple[Sandbox, Simulated, Installed, float]:
    """A host, its engine and the daemon, with the seconds from exec to READY."""
    sandbox = stack.enter_context(Sandbox(variant))
    engine = Simulated(sandbox.dir / "engine.sock")
    engine.fill(mappings, networks=networks, options=options)
    engine.start()
    stack.callback(engine.stop)
    daemon = stack.enter_context(
        Installed(sandbox, engine.endpoint, args=("-cleanup",), start=False)
    )
    began = time.monotonic()
    daemon.start(wait=None)
    daemon.wait_for(lambda: "READY=1" in daemon.notices, "READY=1", timeout=60)
    seconds = time.monotonic() - began
    return sandbox, engine, daemon, seconds


def ready(variant: Variant, networks: int, options: Mapping[str, str]) -> float:
    """Median seconds from exec to READY with one published port on each network."""
    found = []
    for _ in range(3):
        with ExitStack() as stack:
            *_, daemon, seconds = started(
                stack, variant, networks, networks=networks, options=options
            )
            assert f", {networks} networks" in daemon.status, daemon.status
            found.append(seconds)
    return median(found)


def one_change(engine: Simulated, changed: Event, port: int) -> float:
    """Seconds from the inspect's answer about a new container until its rule is in the kernel."""
    changed.clear()
    one = engine.add(port)
    if not changed.wait(10):
        raise TimeoutError(f"no rule for port {port}")
    arrived = time.monotonic()
    return arrived - engine.answered[f"/containers/{one}/json"]


@contextmanager
def watching(host: Namespace, variant: Variant, table: Table = Table.NAT) -> Iterator[Event]:
    """An event that is set after a write of rules: from `nft monitor` on nft, from the size of the
    table, read every half millisecond, on legacy."""
    changed, done = Event(), Event()
    if variant == "legacy":

        def poll() -> None:
            last = _size(table)
            while not done.wait(0.0005):
                now = _size(table)
                if now != last:
                    last = now
                    changed.set()

        watcher = Thread(target=lambda: host.within(poll), daemon=True)
        watcher.start()
        try:
            yield changed
        finally:
            done.set()
            watcher.join()
        return
    monitor = subprocess.Popen(
        ["nsenter", f"--net={host.path}", "nft", "monitor"], stdout=subprocess.PIPE
    )
    assert monitor.stdout is not None
    out = monitor.stdout

    def read() -> None:
        for line in out:
            if line.startswith(b"# new generation"):
                changed.set()

    reader = Thread(target=read, daemon=True)
    reader.start()
    # nft needs some time until it listens, and restarts its read of the rules after each change.
    # This table is of another family, so the daemon ignores it.
    while not changed.wait(1):
        host.run("nft", "add table ip bench; delete table ip bench")
    time.sleep(0.2)
    changed.clear()
    try:
        yield changed
    finally:
        monitor.terminate()
        monitor.wait()
        reader.join()


def _size(table: Table) -> tuple[int, int]:
    return xtables.table_size(table) if table in xtables.existing_tables() else (0, 0)


def restore_of_change(sandbox: Sandbox) -> float:
    """Seconds of the restore tool alone for the chain of a new port."""
    text = sandbox.host.run(f"ip6tables-{sandbox.variant}-save", "-t", "nat")
    (chain,) = {line.split()[1] for line in text.splitlines() if "--dport 5001 " in line}
    rules = [line for line in text.splitlines() if line.startswith(f"-A {chain} ")]
    path = sandbox.dir / "one"
    path.write_text("\n".join(["*nat", f":{chain} - [0:0]", *rules, "COMMIT", ""]))
    return median(timed(sandbox, path) for _ in range(CHANGES))


def writing(variant: Variant, mappings: int) -> tuple[float, float]:
    """Seconds of one write of all mappings, and of the restore tool with the same text."""
    facts = [mapped(scattered(mappings), protocols=(Protocol.TCP,))]
    rules = wanted(facts)
    ours: list[float] = []
    theirs: list[float] = []
    with Sandbox(variant) as sandbox:
        change = next(
            step
            for step in rewrite_tables({table: ObservedTable() for table in Table}, rules)
            if step.table is Table.NAT
        )
        path = sandbox.dir / "all"
        path.write_text(format_change(change))
        firewall = RestoreFirewall(Backend(variant))
        for _ in range(CHANGES // 2):
            empty(sandbox)
            theirs.append(timed(sandbox, path))
            empty(sandbox)
            began = time.monotonic()
            sandbox.host.within(lambda: firewall.write(change))
            ours.append(time.monotonic() - began)
    return median(ours), median(theirs)


def empty(sandbox: Sandbox) -> None:
    """Delete all rules and chains of the nat table."""
    for verb in ("-F", "-X"):
        sandbox.host.run(f"ip6tables-{sandbox.variant}", "-t", "nat", verb)


def kept(variant: Variant, mappings: int) -> float:
    """Seconds from exec until the saved raw and filter tables are in force."""
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(variant))
        engine = Simulated(sandbox.dir / "engine.sock")
        engine.fill(mappings)
        engine.start()
        stack.callback(engine.stop)
        daemon = stack.enter_context(Installed(sandbox, engine.endpoint, args=()))
        daemon.stop()
        found = []
        for _ in range(5):
            for table in Table:
                for verb in ("-F", "-X"):
                    sandbox.host.run(f"ip6tables-{variant}", "-t", table, verb)
            with watching(sandbox.host, variant, Table.FILTER) as changed:
                began = time.monotonic()
                daemon.start(wait=None)
                changed.wait(10)
                found.append(time.monotonic() - began)
            daemon.wait_for(lambda: "READY=1" in daemon.notices, "READY=1")
            daemon.stop()
        return median(found)


class Installed(Daemon):
    """The daemon, started like that of an installed package."""

    @property
    def command(self) -> list[str]:
        """See Daemon."""
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); from ipv6natd.cli import main; main()"
        )
        unit = (ROOT / "systemd" / "ipv6natd.service").read_text()
        return ["env", *re.findall("^Environment=(.*)$", unit, re.MULTILINE), PYTHON, "-c", code]


def timed(sandbox: Sandbox, file: Path) -> float:
    """Seconds of one run of the restore tool."""
    words = ["nsenter", f"--net={sandbox.host.path}", f"ip6tables-{sandbox.variant}-restore"]
    began = time.monotonic()
    with file.open() as text:
        subprocess.run([*words, "--noflush", "--wait"], stdin=text, check=True)
    return time.monotonic() - began


def churned(engine: Simulated, pid: int, rate: float) -> float:
    """Share of a core with `rate` starts and stops of containers per second."""
    before, began = cpu(pid), time.monotonic()
    there: deque[str] = deque()
    for number in range(round(rate * CHURN_SECONDS)):
        there.append(engine.add(5002 + 5 * number % 50_000))
        if len(there) > CHURN_THERE:
            engine.remove(there.popleft())
        time.sleep(max(began + (number + 1) / rate - time.monotonic(), 0))
    for each in there:
        engine.remove(each)
    settle(pid)
    return (cpu(pid) - before) / CHURN_SECONDS


def grown(engine: Simulated, pid: int, events: int) -> float:
    """Megabytes by which memory grows with events about containers that did not change."""
    ids = engine.identities
    before = status(pid, "VmRSS")
    sent = 0
    while sent < events:
        some = [ids[(sent + number) % len(ids)] for number in range(40)]
        engine.touch(some)
        sent += len(some)
        path = f"/containers/{some[-1]}/json"
        until = time.monotonic() + 10
        asked = time.monotonic()
        while engine.answered.get(path, 0) < asked - 1 and time.monotonic() < until:
            time.sleep(0.005)
    settle(pid)
    return status(pid, "VmRSS") - before


def status(pid: int, key: str) -> float:
    """Megabytes, from /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def cpu(pid: int) -> float:
    """CPU seconds of all threads of a process, and of its ended children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = (int(fields[13]) + int(fields[14])) / 100
    # The CPU clock of a process, see clock_getcpuclockid(3); it includes ended threads.
    return time.clock_gettime(~pid << 3 | 2) + children


def settle(pid: int) -> None:
    """Wait until the process is idle."""
    last = cpu(pid)
    while True:
        time.sleep(0.15)
        now = cpu(pid)
        if now - last < 0.01:
            return
        last = now


@cache
def baseline(variant: Variant) -> float:
    """Megabytes of a process that only imports the libraries of this variant."""
    libraries = LIBRARIES + ", iptc" * (variant == "legacy")
    text = run(PYTHON, "-c", f"import {libraries}\nprint(open('/proc/self/status').read())")
    line = next(line for line in text.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024
