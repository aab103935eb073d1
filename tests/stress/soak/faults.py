"""The faults: each with its cause, its end, and its permitted effects.

A fault is a context manager. The fault happens when the context is entered or left, and ends when
the context is left. `stage` is the preparation, which is not measured.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.harness import until
from tests.harness.process import LabError, end, run, spawn
from tests.harness.rivals import firewalld, ufw
from tests.harness.sandbox import Variant
from tests.stress.soak.scene import Scene

Strike = Callable[[Scene, random.Random], AbstractContextManager[None]]
Stage = Callable[[Scene], AbstractContextManager[None]]
Cost = Literal["lost", "cut", "exposed"]

DISABLED = "net.ipv6.conf.all.disable_ipv6"


def as_it_is(_: Scene) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of fault; `why` explains its permitted effects in a sentence."""

    name: str
    strike: Strike
    stage: Stage = as_it_is
    variants: tuple[Variant, ...] = ("nft", "legacy")
    times: int = 3
    on_legacy: int | None = None
    """Repetitions on legacy, where a change that keeps all sizes is detected within a minute."""
    costs: frozenset[Cost] = frozenset()
    why: str = ""
    apart: bool = False
    """True if the next fault needs a new lab."""
    heals: float = 15
    """Maximum seconds to heal."""

    def __str__(self) -> str:
        return self.name


def costs(*what: Cost) -> frozenset[Cost]:
    return frozenset(what)


# The engine.


@contextmanager
def engine_killed(scene: Scene, _: random.Random) -> Iterator[None]:
    scene.engine.kill()
    scene.daemon.wait_state("waiting-for-docker")
    yield
    scene.engine.start()
    scene.toggle()


@contextmanager
def engine_stopped(scene: Scene, _: random.Random) -> Iterator[None]:
    scene.engine.stop()
    scene.daemon.wait_state("waiting-for-docker")
    yield
    scene.engine.start()
    scene.toggle()


@contextmanager
def engine_hung(scene: Scene, _: random.Random) -> Iterator[None]:
    scene.engine.freeze()
    failed: list[BaseException] = []

    def change() -> None:
        try:
            scene.toggle()
        except LabError as error:
            failed.append(error)

    asks = threading.Thread(target=change)  # the answer comes after the engine continues
    asks.start()
    try:
        time.sleep(4)
        yield
    finally:
        scene.engine.thaw()
        asks.join()
    if failed:
        raise failed[0]


@contextmanager
def without_live_restore(scene: Scene) -> Iterator[None]:
    """Run the engine without live-restore: its start ends running containers and restarts them."""
    args = scene.engine.args
    try:
        scene.engine.args = tuple(each for each in args if each != "--live-restore")
        restarted(scene)
        yield
    finally:
        scene.engine.args = args
        restarted(scene)


def restarted(scene: Scene) -> None:
    scene.engine.stop()
    scene.extra_died()
    scene.engine.start()
    scene.came_back()
    if scene.await_text(scene.texts[False], timeout=20) is None:
        raise LabError(f"not synced after a restart of the engine: {scene.daemon.status}")


@contextmanager
def engine_restarted(scene: Scene, _: random.Random) -> Iterator[None]:
    scene.engine.stop()
    yield
    scene.engine.start()
    scene.came_back()


@contextmanager
def behind_a_relay(scene: Scene) -> Iterator[None]:
    """Connect the daemon to the engine through the relay."""
    direct = scene.daemon.endpoint
    scene.daemon.stop()
    scene.daemon.endpoint = scene.relay.endpoint
    scene.daemon.start()
    try:
        yield
    finally:
        scene.daemon.endpoint = direct
        scene.daemon.stop()
        scene.daemon.start()


@contextmanager
def slow_answers(scene: Scene, _: random.Random) -> Iterator[None]:
    scene.relay.delay = 0.4
    try:
        scene.toggle()
        time.sleep(2)
        yield
    finally:
        scene.relay.delay = 0.0


@contextmanager
def answers_of_500(scene: Scene, _: random.Random) -> Iterator[None]:
    scene.relay.broken = True
    try:
        scene.toggle()
        time.sleep(3)
        yield
    finally:
        scene.relay.broken = False


@contextmanager
def events_cut(scene: Scene, rng: random.Random) -> Iterator[None]:
    """Cut the stream at a random byte of one change's events."""
    scene.relay.left = rng.randrange(1500)
    scene.toggle()
    yield
    scene.relay.left = None


@contextmanager
def events_dropped(scene: Scene, _: random.Random) -> Iterator[None]:
    scene.relay.deaf = True
    try:
        scene.toggle()
        yield
    finally:
        scene.relay.deaf = False


@contextmanager
def events_doubled(scene: Scene, _: random.Random) -> Iterator[None]:
    scene.relay.doubled = True
    try:
        for _again in range(3):
            scene.toggle()
        time.sleep(0.5)
        yield
    finally:
        scene.relay.doubled = False


# The daemon.


@contextmanager
def daemon_killed(scene: Scene, rng: random.Random) -> Iterator[None]:
    """Kill the daemon at a random moment of a change, and start it again as systemd does."""
    change = threading.Thread(target=scene.toggle)
    change.start()
    time.sleep(rng.uniform(0, 0.8))
    scene.daemon.kill9()
    change.join()
    yield
    scene.daemon.start()


@contextmanager
def daemon_hung(scene: Scene, _: random.Random) -> Iterator[None]:
    scene.daemon.signal(signal.SIGSTOP)
    try:
        scene.toggle()
        time.sleep(2)
        yield
    finally:
        scene.daemon.signal(signal.SIGCONT)


@contextmanager
def daemon_restarted(scene: Scene, _: random.Random) -> Iterator[None]:
    scene.daemon.stop()
    scene.toggle()
    yield
    scene.daemon.start()


@contextmanager
def no_descriptors(scene: Scene, _: random.Random) -> Iterator[None]:
    """Set the limit so that the daemon cannot open another descriptor."""
    pid = scene.daemon.pid
    taken = {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}
    free = next(number for number in range(4096) if number not in taken)
    limits = run("prlimit", "--noheadings", "--output=SOFT", "--nofile", f"--pid={pid}").strip()
    run("prlimit", f"--nofile={free}:", f"--pid={pid}")
    try:
        scene.toggle()
        time.sleep(3)
        yield
    finally:
        run("prlimit", f"--nofile={limits}:", f"--pid={pid}")


@contextmanager
def no_fork(scene: Scene, _: random.Random) -> Iterator[None]:
    """Make every start of a process or thread fail."""
    calls = "clone,clone3,fork,vfork"
    tracer = spawn(
        (
            "strace",
            "--follow-forks",
            "--quiet=all",
            "--output=/dev/null",
            f"--trace={calls}",
            f"--inject={calls}:error=ENOMEM",
            f"--attach={scene.daemon.pid}",
        ),
        log=os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC),
    )
    try:
        until(lambda: traced(scene.daemon.pid), True)
        scene.toggle()
        time.sleep(3)
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        end(tracer)


def traced(pid: int) -> bool:
    """True if each thread of the process has a tracer."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    return all("TracerPid:\t0\n" not in (task / "status").read_text() for task in tasks)


@contextmanager
def disk_full(scene: Scene, _: random.Random) -> Iterator[None]:
    """Fill the state directory, in the daemon's mount namespace only."""
    state = scene.daemon.dir / "state"
    here = ("nsenter", f"--mount=/proc/{scene.daemon.pid}/ns/mnt")
    run(*here, "mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(state))
    try:
        run(*here, "sh", "-c", f"head -c 4096 /dev/zero >{state}/full")
        scene.toggle()
        time.sleep(1)
        yield
    finally:
        run(*here, "umount", "--lazy", str(state))


SHIFTED = """\
import time

real, real_ns = time.time, time.time_ns


def shift():
    with open({file!r}) as file:
        return int(file.read())


time.time = lambda: real() + shift()
time.time_ns = lambda: real_ns() + shift() * 10**9
"""
"""A sitecustomize module, which Python imports first. libfaketime is no alternative: with it, calls
that wait for a process fail sometimes."""
DAY = 86400


@contextmanager
def with_a_clock_of_its_own(scene: Scene) -> Iterator[None]:
    """Run the daemon with a time of day that a file shifts. The monotonic clock does not jump."""
    folder = scene.sandbox.dir / "shifted"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SHIFTED.format(file=f"{scene.sandbox.dir}/clock"))
    scene.daemon.stop()
    clock_set(scene, 0)
    scene.daemon.env = {"PYTHONPATH": str(folder)}
    try:
        scene.daemon.start()
        yield
    finally:
        scene.daemon.env = {}
        scene.daemon.stop()
        scene.daemon.start()
        shutil.rmtree(folder)


def clock_set(scene: Scene, seconds: int) -> None:
    """Replace the file atomically, because half a number is another number."""
    new = scene.sandbox.dir / "clock.new"
    new.write_text(str(seconds))
    new.replace(scene.sandbox.dir / "clock")


@contextmanager
def clock_jumps(scene: Scene, rng: random.Random) -> Iterator[None]:
    for days in (*(rng.choice((-1, 1)) * rng.randrange(1, 400) for _ in range(2)), -9000):
        clock_set(scene, days * DAY)
        scene.toggle()
        # Two changes in one pass of the daemon cancel out, and nothing is logged.
        scene.await_text(scene.texts[scene.extra], timeout=10)
    then = time.strftime("%Y", time.localtime(time.time() - 9000 * DAY))
    # The daemon logs after it has written the rules.
    if not until(lambda: re.search(f"^{then}-", scene.daemon.log, re.MULTILINE), bool, timeout=10):
        raise LabError("the daemon did not see the clock jump")
    yield
    clock_set(scene, 0)


# The tables.


def lock_held(seconds: float) -> Strike:
    """Hold a lock that only the daemon sees instead of the machine's lock."""

    @contextmanager
    def strike(scene: Scene, _: random.Random) -> Iterator[None]:
        here = ("nsenter", f"--mount=/proc/{scene.daemon.pid}/ns/mnt")
        file = scene.sandbox.dir / "xtables.lock"
        file.touch()
        Path("/run/xtables.lock").touch()
        run(*here, "mount", "--bind", str(file), "/run/xtables.lock")
        with file.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = scene.rules()
            scene.toggle()
            time.sleep(seconds)
            if scene.rules() != before:
                raise LabError("the tables were written while the lock was held")
            yield
        run(*here, "umount", "--lazy", "/run/xtables.lock")

    return strike


@contextmanager
def dropping(scene: Scene) -> Iterator[None]:
    """A host with the policy DROP in FORWARD."""
    scene.ip6tables("-P", "FORWARD", "DROP")
    try:
        yield
    finally:
        scene.ip6tables("-P", "FORWARD", "ACCEPT")


def by_hand(*commands: str) -> Strike:
    """Run these commands on the host."""

    @contextmanager
    def strike(scene: Scene, _: random.Random) -> Iterator[None]:
        for command in commands:
            tool, *words = command.split()
            if tool == "ip6tables":
                scene.ip6tables(*words)
            else:
                scene.sandbox.host.run(tool, *words)
        yield

    return strike


@contextmanager
def engine_rules_back(scene: Scene) -> Iterator[None]:
    """Restart the engine afterwards, because its IPv4 rules were removed too."""
    yield
    scene.engine.stop()
    scene.daemon.wait_state("waiting-for-docker")
    scene.engine.start()
    scene.daemon.wait_state("synced")


def own_lines(scene: Scene) -> list[tuple[str, list[str]]]:
    """Table and words of each rule in our chains."""
    table, found = "", []
    for line in scene.rules().splitlines():
        if line.startswith("*"):
            table = line[1:]
        if line.startswith("-A IPV6NAT-"):
            found.append((table, line.split()))
    return found


@contextmanager
def rule_deleted(scene: Scene, rng: random.Random) -> Iterator[None]:
    table, words = rng.choice(own_lines(scene))
    scene.ip6tables("-t", table, "-D", *words[1:])
    yield


@contextmanager
def rule_moved(scene: Scene, rng: random.Random) -> Iterator[None]:
    """Move the last rule of a chain to the front."""
    lines = own_lines(scene)
    chains = sorted({(table, words[1]) for table, words in lines})
    many = [each for each in chains if sum((t, w[1]) == each for t, w in lines) > 1]
    table, chain = rng.choice(many)
    last = [words for t, words in lines if (t, words[1]) == (table, chain)][-1]
    commands = f"*{table}\n-D {' '.join(last[1:])}\n-I {chain} 1 {' '.join(last[2:])}\nCOMMIT\n"
    file = scene.sandbox.dir / "moved.rules"
    file.write_text(commands)
    scene.sandbox.host.run(f"ip6tables-{scene.variant}-restore", "--noflush", str(file))
    yield


@contextmanager
def jumps_removed(scene: Scene, _: random.Random) -> Iterator[None]:
    table = ""
    for line in scene.rules().splitlines():
        if line.startswith("*"):
            table = line[1:]
        if line.startswith("-A ") and "-j IPV6NAT-" in line and "-A IPV6NAT-" not in line:
            scene.ip6tables("-t", table, "-D", *line.split()[1:])
    yield


@contextmanager
def chains_renamed(scene: Scene, _: random.Random) -> Iterator[None]:
    forget_renamed(scene)
    for table, chain in sorted({(table, words[1]) for table, words in own_lines(scene)}):
        scene.ip6tables("-t", table, "-E", chain, chain.replace("IPV6NAT", "MINE"))
    yield


@contextmanager
def without_renamed(scene: Scene) -> Iterator[None]:
    """Remove the renamed chains afterwards: the daemon removes only the jumps to them."""
    yield
    forget_renamed(scene)


def forget_renamed(scene: Scene) -> None:
    table, chains = "", []
    for line in scene.sandbox.rules().splitlines():
        if line.startswith("*"):
            table = line[1:]
        if line.startswith(":MINE-"):
            chains.append((table, line[1:].split()[0]))
    for verb in ("-F", "-X"):
        for table, chain in chains:
            scene.ip6tables("-t", table, verb, chain)


# Other programs on the host.


@contextmanager
def beside_firewalld(scene: Scene) -> Iterator[None]:
    with firewalld(scene.sandbox, scene.bus) as command:
        for bridge in ("brX", "brY", "brI"):
            command("--permanent", "--zone=trusted", f"--add-interface={bridge}")
        command("--reload")
        scene.reload_of_firewall = lambda: command("--reload")
        settle(scene)
        yield


@contextmanager
def beside_ufw(scene: Scene) -> Iterator[None]:
    with ufw(scene.sandbox) as command:
        command("--force", "enable")
        command("reload")  # the first enable writes fewer rules than a reload
        scene.reload_of_firewall = lambda: command("reload")
        settle(scene)
        try:
            yield
        finally:
            command("disable")


def settle(scene: Scene) -> None:
    """Wait until the daemon is synced after a change by another program."""
    scene.daemon.ctl("resync")
    scene.daemon.wait_state("synced")


@contextmanager
def firewall_reloaded(scene: Scene, _: random.Random) -> Iterator[None]:
    scene.reload_of_firewall()
    yield


@contextmanager
def bus_killed(scene: Scene, _: random.Random) -> Iterator[None]:
    scene.bus.kill()
    scene.toggle()
    time.sleep(1)
    yield
    scene.bus.start()


@contextmanager
def without_ipv6(scene: Scene, _: random.Random) -> Iterator[None]:
    """Disable IPv6, which removes all addresses; add them again after enabling IPv6.

    The daemon is started while IPv6 is disabled.
    """
    host = scene.sandbox.host
    links = json.loads(host.ip("-json -6 address show"))
    scene.daemon.stop()
    host.sysctl(DISABLED, 1)
    try:
        scene.daemon.start(wait="degraded")
        yield
    finally:
        host.sysctl(DISABLED, 0)
        for link in links:
            # The last address added is the preferred source, so keep the former order.
            for each in reversed(link["addr_info"]):
                word = f"address add {each['local']}/{each['prefixlen']} dev {link['ifname']} nodad"
                with suppress(LabError):  # the kernel has added link-local addresses already
                    host.ip(word)
    scene.daemon.ctl("resync")


DOWN = "the containers are down until the engine is back"
GONE = "until the rules are restored, the userland proxy answers and hides the client's address"
WAITING = (
    "after a repair the host refuses packets that wait for neighbour discovery, because they may "
    "have arrived without the rules"
)
LEFT = (
    "a container leaves its network while the engine reports no changes, so the ports of the "
    "network are closed until the engine has listed its containers"
)
ACCEPTED = "the policy of FORWARD is ACCEPT, so no port is protected until the rules are restored"
"""Reasons for lost connections and for open ports."""

FAULTS = (
    Fault(name="engine killed", strike=engine_killed),
    Fault(name="engine stopped and started, live-restore", strike=engine_stopped),
    Fault(
        name="engine restarted without live-restore",
        strike=engine_restarted,
        stage=without_live_restore,
        costs=costs("lost", "cut"),
        why=DOWN,
        times=2,
    ),
    Fault(name="engine hung (SIGSTOP)", strike=engine_hung, heals=30),
    Fault(name="engine answers slowly", strike=slow_answers, stage=behind_a_relay),
    Fault(name="engine answers 500", strike=answers_of_500, stage=behind_a_relay, heals=40),
    Fault(
        name="event stream cut at a random byte",
        strike=events_cut,
        stage=behind_a_relay,
        times=6,
        costs=costs("lost", "cut"),
        why=LEFT,
    ),
    Fault(name="events dropped", strike=events_dropped, stage=behind_a_relay, times=2, heals=25),
    Fault(name="events doubled", strike=events_doubled, stage=behind_a_relay),
    Fault(name="ipv6natd killed at a random moment", strike=daemon_killed, times=6),
    Fault(name="ipv6natd hung (SIGSTOP)", strike=daemon_hung),
    Fault(name="ipv6natd stopped and started", strike=daemon_restarted),
    Fault(name="ipv6natd out of file descriptors", strike=no_descriptors, heals=40),
    Fault(name="ipv6natd out of memory for a fork", strike=no_fork, heals=40),
    Fault(name="disk full", strike=disk_full),
    Fault(name="clock jumps by years", strike=clock_jumps, stage=with_a_clock_of_its_own, times=2),
    Fault(
        name="xtables lock held for 30 s",
        strike=lock_held(30),
        variants=("legacy",),
        times=1,
        heals=30,
    ),
    Fault(
        name="ip6tables -F",
        strike=by_hand("ip6tables -F"),
        costs=costs("lost", "exposed"),
        why=ACCEPTED,
    ),
    Fault(
        name="ip6tables -F, policy DROP",
        strike=by_hand("ip6tables -F"),
        stage=dropping,
        costs=costs("lost"),
        why="the policy of FORWARD is DROP, so no connection passes until the rules are restored",
    ),
    Fault(
        name="ip6tables -t nat -F",
        strike=by_hand("ip6tables -t nat -F"),
        costs=costs("lost"),
        why=GONE,
    ),
    Fault(
        name="nft flush ruleset",
        strike=by_hand("nft flush ruleset"),
        stage=engine_rules_back,
        variants=("nft",),
        costs=costs("lost", "cut", "exposed"),
        why=f"{ACCEPTED}; without a nat chain the kernel translates no flow, not even open ones",
    ),
    Fault(
        name="one rule deleted",
        strike=rule_deleted,
        times=8,
        costs=costs("lost", "exposed"),
        why="the rule is missing until it is restored",
    ),
    Fault(
        name="one rule moved to the front",
        strike=rule_moved,
        times=2,
        costs=costs("lost", "exposed"),
        on_legacy=1,
        why="an ACCEPT may come before its DROP until the repair, on legacy for up to a minute",
        heals=70,
    ),
    Fault(
        name="jumps to our chains removed",
        strike=jumps_removed,
        costs=costs("lost", "exposed"),
        why=ACCEPTED,
    ),
    Fault(
        name="our chains renamed",
        strike=chains_renamed,
        stage=without_renamed,
        costs=costs("lost"),
        why=WAITING,
        on_legacy=1,
        heals=70,
    ),
    Fault(name="bus killed", strike=bus_killed),
    Fault(
        name="IPv6 disabled and enabled",
        strike=without_ipv6,
        times=2,
        costs=costs("lost", "cut"),
        why="a host without IPv6 has no IPv6 address to reach",
    ),
    Fault(
        name="firewalld reloaded",
        apart=True,
        strike=firewall_reloaded,
        stage=beside_firewalld,
        costs=costs("lost", "exposed"),
        why="firewalld removes all rules and sets policies during a reload",
        times=2,
    ),
    Fault(
        name="ufw reloaded",
        apart=True,
        strike=firewall_reloaded,
        stage=beside_ufw,
        costs=costs("lost"),
        why="ufw drops incoming packets during a reload",
        times=2,
    ),
)
