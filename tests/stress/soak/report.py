"""docs/reliability.md: the results of a run of `make soak`."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests import ROOT
from tests.harness.process import run
from tests.stress.soak import leaks
from tests.stress.soak.attackers import INSIDE, SEGMENT
from tests.stress.soak.forgery import Aim
from tests.stress.soak.soak import ENDING, Soaked
from tests.stress.soak.trial import Row

VARIES = re.compile(r"[\w:.+-]*\d[\w:.+-]*")
"""Matches names, addresses, ports and times, by which errors of the same kind differ."""

INTRODUCTION = """\
# Reliability

ipv6natd runs as root and decides which ports the network can reach. This page shows faults and
random steps, and their effects. `make soak` measures them and writes this page: first each fault,
then random steps for a long time. The figures hold for the machine below. Two results fail a run
on any machine: a fault with more effects than its row permits, and a single wrong result.
"""

FAULTS = """\
## Faults

Each fault happens in a lab with a real engine, three networks (one of them internal) and four
containers. A fifth container starts or is killed during the fault, if the fault permits this.
Meanwhile there is this traffic:

- A client opens 25 new connections per second, TCP and UDP, to six published ports. A connection
  is *lost* if no answer comes within a second, or if the container does not see the client's
  address. An answer of another container is a wrong result in every row. A container opens five
  outgoing connections per second.
- Five flows are open, incoming and outgoing, with ten messages per second. A flow is *cut* if it
  breaks, if another peer answers, or if it is silent for 20 seconds.
- 70 probes per second go to closed ports. A rogue on the host's link, with a route to the
  container networks, sends to containers' own addresses, also to their published ports. A
  container of another network sends too. The column *answered* counts the answers.

After each fault the tables must become the same as before, byte for byte, or the tables that
belong to the fifth container's state. *Healed* is the time for this, median and worst, from the
end of the fault; for a tool that changed our rules, from the change. After the last repetition the
daemon is stopped, all rules are flushed, and a daemon without saved state must write the same
bytes.
"""

KILLED = """\
The last row of each table is a sweep. A container starts and is killed. Meanwhile ipv6natd runs
under a tracer. The tracer counts the system calls that can change something outside the process
(writes, sockets, files, processes). It kills ipv6natd before the first such call, then before the
second, and so on to the last: {points} kills in total. With every second kill the child processes
are killed too, as systemd does. In this row *healed* is the time since the restart.
"""

SOAK = """\
## Long random runs

The steps are random, and the same for the same seed: containers start, stop, restart, pause and
are renamed; networks are created and removed, with all options; the engine and the bus restart;
rules are flushed; the daemon is stopped, killed and reloaded. After each step a model, which
shares no code with ipv6natd, computes the reachable ports and the source addresses that containers
see, and packets check the result. Meanwhile new connections, open flows and probes of closed ports
continue.

Seven more containers restart with the engine, and each runs a server that answers with the
container's name. Two of them publish a port, which a client asks 20 times a second. In some steps
they stop, start in another order, and get each other's addresses; when the engine restarts without
live-restore, this happens to all containers. An answer of another container is a wrong result at
any time, also where lost connections are permitted.

Two attackers forge packets as well, ten per tenth of a second: the rogue on the host's link, and a
container. The forged sources are containers of other networks, unused addresses of these networks,
gateways, and addresses of the host; the container also uses the address of an outside host. The
attackers send UDP, fragmented UDP and UDP behind an extension header to published ports, to
containers' own addresses, and to multicast and anycast groups of the host. No container may
receive such a packet. The attackers also send these, TCP, ICMPv6, GRE and an unknown protocol to
their own addresses. No such packet may come back, and no answer to it may reach a container. The
attackers pause while our rules are removed.

While another program has removed our rules, new connections are not checked. Closed ports are then
probed only if the policy of FORWARD is DROP. Open flows may end if both tables, or all of
nf_tables, were flushed: without a rule that needs conntrack, the kernel tracks no connection.

*Growth* is the difference between the resources of the daemon at the end of its life and after its
warm-up. Memory is judged where a daemon lived for {steps} steps or more. After {part} of a run the
daemon is not restarted any more. The limits are
{bounds}.
At the end all containers and networks are removed, and the rules must be the same as at the
beginning.
"""

NOT_TRIED = """\
## Not tested

- Engines other than the one above, swarm, and more than a few dozen containers. Other tests cover
  them, without faults.
- Faults of the hardware and of the kernel, and a power failure. ipv6natd writes its files as a
  whole and syncs them, and ignores a file that it cannot read.
- Failures of single threads of the daemon: the lack of memory for a fork or a thread affected all
  of them.
- The kernel's clock: only the time of day that the daemon's Python reads jumps. The monotonic
  clock does not jump, as on a real host.
- Two faults at once, except those that coincide in the long run.
"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The results of one run."""

    command: str
    seed: int
    engine: str
    rows: Sequence[Row]
    soaks: Sequence[Soaked]
    failures: Sequence[str]
    """Parts of the run that ended without a result."""

    @property
    def wrong(self) -> list[str]:
        found = [f"{row.fault}, {row.variant}: {each}" for row in self.rows for each in row.wrong]
        found += [f"long run, {each.variant}: {what}" for each in self.soaks for what in each.wrong]
        return [*found, *self.failures]


def page(result: Result) -> str:
    """The text of docs/reliability.md."""
    points = sum(row.tried for row in result.rows if "between two" in row.fault)
    parts = [INTRODUCTION, conditions(result), wrongs(result.wrong), FAULTS]
    for variant in ("nft", "legacy"):
        rows = [row for row in result.rows if row.variant == variant]
        if rows:
            parts += [f"### {'nf_tables' if variant == 'nft' else 'legacy'}\n", table(rows)]
    parts += [KILLED.format(points=points), of_soak(), *map(soaked, result.soaks), NOT_TRIED]
    return "\n".join(parts)


def of_soak() -> str:
    bounds = ", ".join(f"{name} {most:,}" for name, most in leaks.BOUNDS.items())
    steps = leaks.WARM + leaks.LONG
    return SOAK.format(part=f"{ENDING:.0%}", bounds=bounds, steps=steps)


def conditions(result: Result) -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = [
        f"- `{result.command}`, seed {result.seed}, {datetime.date.today().isoformat()}",
        f"- ipv6natd at commit {commit()}",
        f"- {os.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}, kernel"
        f" {platform.release()}, Python {platform.python_version()}",
        f"- Docker {result.engine}, {version('ip6tables-nft', '--version')},"
        f" {version('nft', '--version')}; userland proxy on in the faults",
    ]
    return "\n".join(lines) + "\n"


def version(*command: str) -> str:
    return run(*command, check=False).splitlines()[0].partition("(")[0].strip()


def commit() -> str:
    here = ("git", "-C", str(ROOT))
    dirty = run(*here, "status", "--porcelain", "--untracked-files=no", check=False).strip()
    return run(*here, "rev-parse", "--short=12", "HEAD", check=False).strip() + (
        ", with changes" if dirty else ""
    )


def wrongs(found: Sequence[str]) -> str:
    if not found:
        return "There was no wrong result in this run.\n"
    kinds: dict[str, list[str]] = {}
    for each in found:
        kinds.setdefault(VARIES.sub("", each), []).append(each)
    lines = [
        f"- {first}" + (f"; {len(more):,} more of this kind" if more else "")
        for first, *more in kinds.values()
    ]
    return "\n".join(["**This run failed:**\n", *lines, ""])


def table(rows: Iterable[Row]) -> str:
    """The faults of one variant. Notes below it explain the permitted effects that occurred."""
    notes: list[str] = []
    lines = [
        "| fault | times | connections | lost | flows | cut | probes | answered | healed, s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        mark = ""
        if row.why and (row.lost or row.cut or row.exposed):
            if row.why not in notes:
                notes.append(row.why)
            mark = f" ({notes.index(row.why) + 1})"
        exposed = f"{row.exposed}"
        if row.exposed:
            exposed += f" in {max(row.exposure):.2f} s"
        cells = (
            f"{row.fault}{mark}",
            row.tried,
            f"{row.attempted:,}",
            row.lost,
            row.flows,
            row.cut,
            f"{row.probed:,}",
            exposed,
            f"{row.median:.2f}, {row.worst:.2f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines.append("")
    lines += [f"({number}) {note[:1].upper()}{note[1:]}.\n" for number, note in enumerate(notes, 1)]
    return "\n".join(lines)


def soaked(soak: Soaked) -> str:
    variant = "nf_tables" if soak.variant == "nft" else "legacy"
    grown = ", ".join(f"{name} {value:+,}" for name, value in soak.grown.items()) or "not measured"
    kinds = ", ".join(f"{count} {kind}" for kind, count in soak.kinds.items())
    cells = {
        "minutes": f"{soak.seconds / 60:.0f}",
        "seed": soak.seed,
        "steps": f"{soak.steps:,}",
        "checks against the model": f"{soak.questions:,}",
        "new connections": f"{soak.connections:,}",
        "of these, failed while our rules were removed": f"{soak.excused:,}",
        "containers that the engine restarted by itself": len(soak.restarted),
        "links of removed containers that the engine left": soak.left_behind,
        "addresses without a local route in their container": soak.unrouted,
        "probes of closed ports": f"{soak.probes:,}",
        "packets forged by the rogue, by the container": counts(soak.forged, SEGMENT.name, INSIDE),
        f"of these, to {', '.join(Aim)}": counts(soak.forged, *Aim),
        "answers to the forged sources": f"{soak.answers:,}",
        "open flows": f"{soak.flows:,}",
        "exchanges of addresses": soak.exchanges,
        "answers of the containers that exchange addresses": f"{soak.exchange_answers:,}",
        "wrong results": len(soak.wrong),
        "all checks right after a step, s: median, worst": f"{soak.median:.2f}, {soak.worst:.2f}",
        "growth": grown,
    }
    proxy = "with" if soak.proxy else "without"
    lines = [f"### {variant}, {proxy} the userland proxy\n", "| | |", "|---|--:|"]
    lines += [f"| {name} | {value} |" for name, value in cells.items()]
    return "\n".join([*lines, "", f"Steps: {kinds}.", ""])


def counts(of: Mapping[str, int], *names: str) -> str:
    return ", ".join(f"{of.get(name, 0):,}" for name in names)
