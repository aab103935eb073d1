"""What a run of `make soak` came to, as docs/reliability.md shows it."""

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
"""What two that are wrong in the same way differ in: names, addresses, ports and times."""

INTRODUCTION = """\
# What it goes through

ipv6natd runs as root and decides what the world reaches. This page says what was done to it, and
what came of it. `make soak` measures and writes it: first the faults, one by one, then random
steps for a long time. Nothing here is promised for another machine, but the counts of what must
not be: a fault that costs more than its row says, or one wrong answer, fails the run.
"""

FAULTS = """\
## Faults

Each fault is brought about in a lab with a real engine, with three networks (one of them internal)
and four containers; a fifth starts or is killed meanwhile, where the fault lets that happen. All
the time

- a client makes 25 new connections a second, TCP and UDP, to six published ports. One is *lost* if
  the right container does not answer within a second, or does not see the client's own address. A
  container connects out five times a second;
- five flows are open, in and out, and talk ten times a second. One is *cut* when it breaks, when
  somebody else answers, or when it is silent for 20 seconds;
- closed ports are tried 70 times a second: by a rogue on the host's segment who has a route to the
  container networks, published ports' own addresses among them, and by a container of another
  network. The column says how many of these probes were *answered*.

After each fault the tables have to become again, byte for byte, what they were or what they are
with the other container; *healed* is the time for that, median and worst, from the moment at which
the fault was over (for a tool that changed our rules: at which it was done). After the last time
the daemon is stopped, all is flushed, and a daemon without memory of it has to write the same
bytes.
"""

KILLED = """\
The last row of each table is a sweep. A container starts, and then is killed; while ipv6natd
follows, it runs under a tracer that counts the system calls by which a process can change anything
outside of itself (writes, sockets, files, processes) and kills it before the first, then the
second, and so on up to the last, {points} kills in all; before every other one its children are
killed with it, as systemd does. *Healed* is there from the restart.
"""

SOAK = """\
## Long random runs

Random steps, the same for one seed: containers start, stop, restart, pause and are renamed;
networks come and go, with all options; the engine and the bus are restarted; rules are flushed;
the daemon is stopped, killed and reloaded. After each step a model, which shares no code with
ipv6natd, says who must reach whom and from which address, and packets are held against that.
Meanwhile connections, open flows and probes of closed ports go on.

Two attackers forge packets as well, ten each tenth of a second: the rogue on the host's segment,
and a container. Their sources are containers of other networks, addresses that nobody has there,
gateways, and the addresses of the host; the container also sends as a host outside. They send UDP,
fragments of it and UDP behind an extension header to published ports, to containers' own addresses,
and to multicast and anycast groups of the host. No container may receive one. They send these, TCP,
ICMPv6, GRE and an unknown protocol to themselves, too. None may come back, and none of their
answers may reach a container. While somebody has taken our rules away they rest.

While somebody has taken our rules away nothing is said of new connections; closed ports are probed
then only where the policy of FORWARD is DROP, and flows may end where both tables, or all of
nf_tables, were flushed: without any rule that asks for it the kernel tracks no connection.

*Grown* is what the daemon holds more at the end of its life than once it had warmed up: after
{part} of a run it is not ended any more. Allowed are
{bounds}.
In the end all is removed, and the rules have to be those of the beginning.
"""

NOT_TRIED = """\
## What was not tried

- Engines other than the one above, swarm, and more than a few dozen containers: other tests have
  them, without faults.
- Faults of hardware and of the kernel itself, and a machine that loses power. What is kept on disk
  is written whole and synced, and a file that cannot be read is left out.
- The daemon's own threads refused one by one: memory for a fork or a thread was refused as a
  whole.
- Clocks: the time of day that the daemon's Python reads jumps, not the kernel's; the monotonic
  clock does not jump, as on a real host.
- Two faults at once, but for those that chance brings together in the long run.
"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """All of a run."""

    command: str
    seed: int
    engine: str
    rows: Sequence[Row]
    soaks: Sequence[Soaked]
    failures: Sequence[str]
    """What ended without a result."""

    @property
    def wrong(self) -> list[str]:
        found = [f"{row.fault}, {row.variant}: {each}" for row in self.rows for each in row.wrong]
        found += [f"long run, {each.variant}: {what}" for each in self.soaks for what in each.wrong]
        return [*found, *self.failures]


def page(result: Result) -> str:
    """docs/reliability.md."""
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
    return SOAK.format(part=f"{ENDING:.0%}", bounds=bounds)


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
        return "Nothing was wrong in this run.\n"
    kinds: dict[str, list[str]] = {}
    for each in found:
        kinds.setdefault(VARIES.sub("", each), []).append(each)
    lines = [
        f"- {first}" + (f"; {len(more):,} more of the kind" if more else "")
        for first, *more in kinds.values()
    ]
    return "\n".join(["**This run failed:**\n", *lines, ""])


def table(rows: Iterable[Row]) -> str:
    """The faults of one variant; what a fault may cost, and did, stands below it in words."""
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
        "answers held against the model": f"{soak.questions:,}",
        "connections meanwhile": f"{soak.connections:,}",
        "of them failed while somebody had taken our rules out": f"{soak.excused:,}",
        "containers that the engine started anew by itself": len(soak.restarted),
        "links of former containers that the engine left behind": soak.left_behind,
        "probes of closed ports meanwhile": f"{soak.probes:,}",
        "forged by the rogue, by the container": counts(soak.forged, SEGMENT.name, INSIDE),
        f"of that to {', '.join(Aim)}": counts(soak.forged, *Aim),
        "answers to whom they had posed as": f"{soak.answers:,}",
        "flows held open": f"{soak.flows:,}",
        "wrong": len(soak.wrong),
        "every packet right after a step, s: median, worst": f"{soak.median:.2f}, {soak.worst:.2f}",
        "grown": grown,
    }
    proxy = "with" if soak.proxy else "without"
    lines = [f"### {variant}, {proxy} the userland proxy\n", "| | |", "|---|--:|"]
    lines += [f"| {name} | {value} |" for name, value in cells.items()]
    return "\n".join([*lines, "", f"Steps: {kinds}.", ""])


def counts(of: Mapping[str, int], *names: str) -> str:
    return ", ".join(f"{of.get(name, 0):,}" for name in names)
