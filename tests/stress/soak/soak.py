"""Random steps under traffic, each checked against the model; the same for the same seed.

python -m tests.stress.soak.soak --variant=legacy --no-proxy --minutes=3 --seed=7

"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import median

from tests.harness import exchange, until
from tests.harness.exchange import Answers
from tests.harness.leftovers import leftovers
from tests.harness.process import LabError
from tests.harness.sandbox import Variant
from tests.stress.soak import leaks
from tests.stress.soak.crowd import Crowd, Wants
from tests.stress.soak.ground import Ground, ground
from tests.stress.soak.model import Ask, World, asks
from tests.stress.soak.steps import RESIDENT, Step, chosen, first
from tests.stress.soak.volley import Told, right, volley

PATIENCE = 30.0
"""Maximum seconds until all answers are right after a step; the result has the real time."""
SILENCE = 0.5
"""Seconds without an answer. After a wrong result the question is repeated."""
HOST_KNOWS = {
    "flows": ("conntrack", "-L", "-f", "ipv6"),
    "neighbours": ("ip", "-6", "neigh", "show"),
    "forwarding": ("bridge", "fdb", "show"),
    "links": ("ip", "-details", "link", "show"),
}
"""The commands whose output is saved after a wrong result, besides the rules."""
BOX_KNOWS = ("address", "route show table all", "neigh")
"""The same for each container: what `ip -6` shows."""
ENDING = 0.4
"""The part of a run in which steps restart the daemon. The rest is one life."""
NEIGHBOURS = 0.4
"""The part of the questions between containers that is asked after each step."""
ENOUGH = 5
"""A run ends after so many wrong results."""

Say = Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class Soaked:
    """The result of a run; JSON can encode it."""

    variant: Variant
    proxy: bool
    seed: int
    engine: str = ""
    seconds: float = 0
    steps: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    """The number of steps of each kind."""
    questions: int = 0
    """Answers compared with the model after steps."""
    connections: int = 0
    """New connections at a steady rate during the run."""
    excused: int = 0
    """The connections that failed while our rules were removed."""
    probes: int = 0
    """Probes of closed ports during the run."""
    forged: dict[str, int] = field(default_factory=dict)
    """Forged packets, by attacker and by aim."""
    answers: int = 0
    """Answers of attackers to forged sources."""
    flows: int = 0
    """Open flows."""
    exchanges: int = 0
    """Steps in which containers with a published port got other addresses."""
    exchange_answers: int = 0
    """Answers of these containers, each with the container's name."""
    settled: list[float] = field(default_factory=list)
    """Seconds from the end of each step until all answers were right; 0 for at once."""
    grown: dict[str, int] = field(default_factory=dict)
    """The growth of each resource; empty without a long life of the daemon."""
    lives: int = 0
    """Daemons that lived long enough to show growth."""
    refused: list[str] = field(default_factory=list)
    """Commands that the engine refused, for reasons unrelated to ipv6natd."""
    restarted: list[str] = field(default_factory=list)
    """Containers that the engine restarted without a step."""
    left_behind: int = 0
    """Links of removed containers that the engine left, and the lab removed."""
    unrouted: int = 0
    """Addresses of containers without a local route in the container, which the lab added."""
    wrong: list[str] = field(default_factory=list)

    @property
    def median(self) -> float:
        return median(self.settled) if self.settled else 0.0

    @property
    def worst(self) -> float:
        return max(self.settled, default=0.0)


class Soak:
    """One run."""

    def __init__(
        self, there: Ground, crowd: Crowd, answers: Answers, result: Soaked, say: Say
    ) -> None:
        self.ground = there
        self.crowd = crowd
        self.answers = answers
        self.result = result
        self.say = say
        self.world = World(proxy=result.proxy)
        self.samples: list[leaks.Sample] = []
        self.verbose = False
        self.evidence: Path | None = None
        self._last: deque[str] = deque(maxlen=8)
        self._ends = exchange.addresses(there.engine)
        self._draw = Random(result.seed)
        """Draws the questions, separately from the steps, so that the steps stay the same."""

    def perform(self, step: Step) -> None:
        """Perform a step and check the results; saves the evidence of an exception."""
        try:
            self._perform(step)
        except Exception:
            # Report it here, because the removal of the lab may fail too.
            self._evidence([traceback.format_exc()])
            raise

    def _perform(self, step: Step) -> None:
        result, old = self.result, asks(self.world)
        before = self.world
        self._last.append(step.text)
        if self.verbose:
            self.say(f"{result.steps}: {step.text}")
        self.crowd.before(step, before, old, asks(step.after))
        try:
            step.do(self.ground)
            self.world = self.ground.learn(step.after)
            if self.world.nets.keys() != before.nets.keys():
                self.ground.await_networks(self.world)
        except LabError as error:
            if not str(error).startswith("docker"):
                raise
            self._refused(step, error)
        wants = asks(self.world)
        wrong = self._ask(wants)
        restarted = frozenset(self.ground.restarted) - step.touched
        self.ground.restarted.clear()
        if restarted:
            self._by_itself(step, restarted)
        wrong += self.crowd.after(step, self.world, restarted)
        wrong += self.ground.wrong
        self.ground.wrong.clear()
        wrong += self.crowd.settled(self.world, wants)
        wrong += self._exchanged()
        if result.steps % 5 == 0:
            wrong += leaks.left(self.ground, self.world)
        self.samples.append(leaks.sample(self.ground))
        result.steps += 1
        if wrong:
            self._evidence(wrong)

    def _ask(self, wants: Wants) -> list[str]:
        """Ask until all answers are right or the time is over; returns the wrong answers."""
        spaces = self.ground.spaces(self.world)
        open_ = {
            ask: want
            for ask, want in wants.items()
            if ask.origin in ("client", "rogue", "host") or self._draw.random() < NEIGHBOURS
        }
        told: dict[Ask, Told] = {}
        begun = done = time.monotonic()
        while open_:
            begun = time.monotonic()
            told = volley(open_, spaces, self.crowd.faithful, timeout=SILENCE)
            self.result.questions += len(told)
            open_ = {a: w for a, w in open_.items() if not right(a, w, told[a])}
            if time.monotonic() > done + PATIENCE:
                break
        self.result.settled.append(begun - done)
        return [f"{ask}: wanted {want}, got {shown(told[ask])}" for ask, want in open_.items()]

    def _exchanged(self) -> list[str]:
        """The wrong answers of the containers that exchange addresses."""
        answers, before = self.answers, self._ends
        there = answers.await_all(timeout=PATIENCE)
        wrong = [f"port {port} was answered by {name}" for port, name in answers.wrong]
        if not there:
            wrong.append("a port of a container that exchanges addresses does not answer")
        self.result.exchange_answers += answers.count
        answers.forget()
        self._ends = exchange.addresses(self.ground.engine)
        self.result.exchanges += self._ends != before
        return wrong

    def _by_itself(self, step: Step, restarted: frozenset[str]) -> None:
        """Record containers that the engine restarted without a step."""
        self.result.restarted += sorted(restarted)
        self.say(f"restarted by the engine itself, after {step.text}: {sorted(restarted)}")

    def _refused(self, step: Step, error: LabError) -> None:
        """Record a command that the engine refused, and remove the containers of the step."""
        self.result.refused.append(f"{step.text}: {error}")
        self.say(f"refused: {step.text}: {error}")
        gone = (step.touched | self.ground.astray(self.world)) - {RESIDENT}
        for name in gone:
            self.ground.engine.docker("rm", "--force", name, check=False)
        self.world = self.ground.learn(self.world.without(*gone))

    def _evidence(self, wrong: list[str]) -> None:
        self.result.wrong += wrong
        self.say("\n".join(["WRONG ANSWERS:", *wrong, "after:", *self._last]))
        if self.evidence is None:
            return
        self.evidence.mkdir(exist_ok=True)
        name = f"{self.result.variant}-{self.result.seed}-{self.result.steps}"
        (self.evidence / f"{name}.rules").write_text(self.ground.sandbox.rules())
        (self.evidence / f"{name}.log").write_text(self.ground.daemon.log[-200_000:])
        (self.evidence / f"{name}.world").write_text(f"{self.world}\n")
        for what, words in HOST_KNOWS.items():
            said = self.ground.sandbox.host.run(*words, check=False)
            (self.evidence / f"{name}.{what}").write_text(said)
        for box, ns in self.ground.spaces(self.world).items():
            said = "\n".join(ns.ip(f"-6 {what}") for what in BOX_KNOWS)
            (self.evidence / f"{name}.in-{box}").write_text(said)
        self.say(f"the rules, flows, neighbours, links, log and world are in {self.evidence}")

    def over(self, baseline: list[str]) -> None:
        """Remove all containers and networks, and compare the rules with the beginning."""
        self.crowd.attackers.aim(None)
        exchange.remove_all(self.ground.engine)
        for box in self.world.boxes.values():
            self.ground.engine.docker("rm", "--force", box.name, check=False)
        for net in self.world.nets.values():
            self.ground.engine.docker("network", "rm", net.name)
        if self.world.late:
            self.ground.late(False)
        self.ground.ip6tables("-P", "FORWARD", "ACCEPT")
        gone = World(proxy=self.result.proxy)
        wrong = leaks.left(self.ground, gone)
        after = until(lambda: own(self.ground), baseline, timeout=PATIENCE)
        if after != baseline:
            wrong.append(f"the rules at the end differ from the beginning: {after}")
        self.result.lives = len(leaks.lives(self.samples))
        if self.result.lives:
            self.result.grown = leaks.growth(self.samples)
            wrong += leaks.beyond(self.result.grown)
        if "Traceback" in self.ground.daemon.log:
            wrong.append("there is a traceback in the log")
        self.ground.daemon.stop()
        self.ground.daemon.flush()
        wrong += [f"left by -flush: {line}" for line in own(self.ground)]
        if wrong:
            self._evidence(wrong)


def shown(told: Told) -> str:
    return str(told) if isinstance(told, str) else f"{told.server}, which saw {told.peer}"


def own(there: Ground) -> list[str]:
    """Our rules and chains. Empty tables stay after their first use."""
    return [line for line in there.sandbox.rules().splitlines() if "IPV6NAT" in line]


def soak(
    variant: Variant,
    *,
    proxy: bool,
    seed: int,
    seconds: float,
    steps: int | None = None,
    say: Say = print,
    verbose: bool = False,
    evidence: Path | None = None,
) -> Soaked:
    """Run random steps for `seconds`, or `steps` steps if that is less; returns the result."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < (wanted := min(hard, 8192)):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    result = Soaked(variant=variant, proxy=proxy, seed=seed)
    rng, kinds = Random(seed), Counter[str]()
    began = time.monotonic()
    with ground(variant, proxy=proxy) as there, Crowd(there) as crowd:
        result.engine = there.engine.version
        baseline = own(there)
        exchange.run_all(there.engine)
        with exchange.asking(there.sandbox.client) as answers:
            run = Soak(there, crowd, answers, result, say)
            run.verbose, run.evidence = verbose, evidence
            for step in first(rng, proxy):
                run.perform(step)
            begun = told = time.monotonic()
            while len(result.wrong) < ENOUGH:
                gone = (time.monotonic() - begun) / seconds
                if steps is not None:
                    gone = max(gone, result.steps / steps)
                if gone >= 1:
                    break
                step = chosen(run.world, rng, nft=variant == "nft", ending=gone < ENDING)
                kinds[step.kind] += 1
                run.perform(step)
                if time.monotonic() - told > 30:
                    told = time.monotonic()
                    say(progress(result, crowd, step))
        run.over(baseline)
        result.kinds = dict(sorted(kinds.items()))
        result.left_behind, result.unrouted = there.left_behind, there.unrouted
        result.connections, result.excused = crowd.attempted, crowd.excused
        result.probes, result.flows = crowd.probed, crowd.held
        result.forged, result.answers = dict(crowd.attackers.forged), crowd.attackers.answered
    result.seconds = time.monotonic() - began
    return result


def progress(result: Soaked, crowd: Crowd, step: Step) -> str:
    return (
        f"{result.variant}: {result.steps} steps, {result.questions} answers,"
        f" {crowd.attempted} connections, {crowd.probed} probes, {len(result.wrong)} wrong;"
        f" settled in {result.median:.1f} s, at worst {result.worst:.1f} s; now: {step.text}"
    )


def main() -> None:
    """Run once; writes the result as JSON to a file and to the standard output."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress.soak.soak", description=__doc__)
    parser.add_argument("--variant", choices=("nft", "legacy"), default="nft")
    parser.add_argument("--proxy", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--steps", type=int, help="end after so many steps")
    parser.add_argument("--result", type=Path, help="a file for the result, as JSON")
    parser.add_argument("--verbose", action="store_true", help="a line for each step")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    result = soak(
        args.variant,
        proxy=args.proxy,
        seed=args.seed,
        seconds=60 * args.minutes,
        steps=args.steps,
        verbose=args.verbose,
        say=lambda line: print(line, flush=True),
        evidence=Path(tempfile.gettempdir()) / "ipv6natd-soak",
    )
    result.wrong += [f"left on the machine: {line}" for line in leftovers()]
    text = json.dumps(asdict(result), indent=1)
    if args.result:
        args.result.write_text(text)
    shown = replace(result, settled=[result.median, result.worst])
    print(json.dumps(asdict(shown), indent=1))
    if result.wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
