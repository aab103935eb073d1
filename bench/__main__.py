"""`make bench`: measures everything on both variants, prints the table, writes docs/performance."""

from __future__ import annotations

import argparse
import platform
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

from bench import control, networks, packets, plots, real, starts, table
from bench.control import Control, Load
from bench.networks import Many
from bench.packets import Cost, mapped, wanted
from bench.starts import Starts
from bench.table import Line
from ipv6natd.model import Protocol
from ipv6natd.netfilter.rules import Dnat
from tests.harness.process import run
from tests.harness.sandbox import Variant
from tests.harness.starting import EARLY, End

VARIANTS: tuple[Variant, ...] = ("nft", "legacy")
SIZES = (10, 1000, 10_000)
MAX_LOST = 13
"""A tenth of the client addresses that were lost per start before facts of a start were used."""
FEW, MANY = 1000, 10_000
IDLE = 20.0
EVENTS = 10_000
PAGE = Path(__file__).parent.parent / "docs" / "performance"


def main() -> None:
    """Run all measurements. The exit status is 1 if a figure exceeds its limit."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--starts", type=int, default=100, help="of a real container, per variant")
    parser.add_argument("--clients", type=int, default=20, help="starts while clients connect")
    parser.add_argument("--networks", type=int, default=0, help="of the simulated engine, 1 to 200")
    parser.add_argument(
        "--churn", type=float, default=10, help="containers that start, and that stop, per second"
    )
    parser.add_argument(
        "--only-clients", action="store_true", help="only the starts with clients, and no page"
    )
    given = parser.parse_args()
    if given.only_clients:
        clients = clients_of_starts(given.clients, given.starts)
        print("\n".join(table_of_clients(clients)))
        finish(list(of_clients(clients)))
        return
    began = time.monotonic()
    lines: list[Line] = []
    controls: list[Control] = []
    costs: list[Cost] = []
    for variant in VARIANTS:
        for size in SIZES:
            load = Load(networks=given.networks)
            if size == MANY:
                load = replace(load, idle=IDLE, events=EVENTS, churn=given.churn)
            say(f"{variant}: the daemon with {size} mappings")
            controls.append(control.measured(variant, size, load))
        say(f"{variant}: one write of all rules, and the saved filter table")
        controls[-1].write, controls[-1].restore = control.writing(variant, MANY)
        controls[-1].kept = control.kept(variant, FEW)
        say(f"{variant}: packets")
        costs += packets.connections(variant, (1, *SIZES))
        opened = packets.established(variant, (1, 200))
        say(f"{variant}: {networks.MANY} networks of each gateway mode")
        crowded = list(networks.measured(variant))
        say(f"{variant}: {given.starts} starts of a real container")
        real_starts = real.starts(variant, given.starts, mappings=FEW)
        few, many = (
            next(each for each in controls if (each.variant, each.mappings) == (variant, size))
            for size in (FEW, MANY)
        )
        lines += of_starts(variant, real_starts)
        lines += of_control(few, many)
        lines += of_packets(variant, costs, opened)
        lines += of_networks(variant, crowded)
    clients = clients_of_starts(given.clients, given.starts)
    lines += of_clients(clients)
    lines.append(of_a_run())
    for each in controls:
        if each.churn:
            say(churn(each, given.churn))
    write(lines, controls, costs, clients, given.churn, time.monotonic() - began)
    finish(lines)


def clients_of_starts(count: int, returns: int) -> list[Starts]:
    """The starts with clients. The engine's own NAT is measured in one variant."""
    clients = []
    for variant in VARIANTS:
        for found in starts.measured(variant, count, returns, with_native=variant == "nft"):
            say(f"{variant}: Docker {found.engine}: {count} starts while clients connect")
            clients.append(found)
    return clients


def finish(lines: list[Line]) -> None:
    """Print the table. The exit status is 1 if a figure exceeds its limit."""
    print(table.text(lines))
    if not all(line.met for line in lines):
        raise SystemExit(1)


def say(what: str) -> None:
    """Print the progress."""
    print(what, flush=True)


def of_starts(variant: Variant, starts: list[float]) -> Iterator[Line]:
    """A real container: the time from the return of its start until a client reaches it."""
    what = f"container start to reachable, {FEW} mappings, "
    beside = f"of {len(starts)}"
    for word, must, found in (("median", 0.05, median(starts)), ("worst", 0.1, max(starts))):
        yield Line(
            what=what + word, variant=variant, must=must, found=found, unit="ms", beside=beside
        )


def of_control(few: Control, many: Control) -> Iterator[Line]:
    """The figures of the daemon."""

    def line(what: str, must: float, found: float, unit: str, beside: str = "") -> Line:
        return Line(
            what=what, variant=few.variant, must=must, found=found, unit=unit, beside=beside
        )

    one = median(many.changes)
    for size, must, found in ((FEW, 0.03, median(few.changes)), (MANY, 0.07, one)):
        what = f"one more container among {size}, until its rule is in the kernel"
        yield line(what, must, found, "ms")
    yield line(f"exec to READY, {FEW} mappings", 1.5, few.ready, "s")
    yield line(f"exec to READY, {MANY} mappings", 4.0, many.ready, "s")
    yield line("exec to the saved filter table in force", 0.7, many.kept, "s")
    beside = f"{many.write * 1000:.0f} ms, restore alone {many.restore * 1000:.0f} ms"
    yield line(f"writing {MANY} mappings", 1.5, many.write / many.restore, "ratio", beside)
    beside = f"{one * 1000:.0f} ms, restore alone {many.restore_change * 1000:.0f} ms"
    yield line(f"one change among {MANY}", 3.0, one / many.restore_change, "ratio", beside)
    yield line(f"clean-up of {MANY}", 1.0, many.cleanup, "s")
    beside = f"above {control.baseline(few.variant):.0f} MB of libraries"
    yield line(f"memory with {FEW} mappings", 12, few.memory, "MB", beside)
    yield line(f"memory with {MANY} mappings in {MANY} containers", 40, many.memory, "MB", beside)
    yield line("peak memory", 120, many.peak, "MB", "resident, with the libraries")
    yield line(f"growth of memory by {EVENTS} events", 1, many.growth, "MB")
    yield line("idle", 0.001 if few.variant == "nft" else 0.005, many.idle, "%", "of a core")


def of_packets(
    variant: Variant, costs: list[Cost], opened: dict[tuple[int, str], float]
) -> Iterator[Line]:
    """The cost of a packet with many other mappings and networks."""
    for protocol in ("tcp", "udp"):
        one, last = (
            next(
                each.seconds
                for each in costs
                if (each.variant, each.protocol, each.mappings, each.at)
                == (variant, protocol, size, "last")
            )
            for size in (1, MANY)
        )
        yield Line(
            what=f"a new connection to mapping {MANY} of {MANY}, {protocol}",
            variant=variant,
            must=1.1,
            found=last / one,
            unit="ratio",
            beside=f"{last * 1e6:.0f} µs, to 1 of 1 {one * 1e6:.0f} µs",
        )
    for direction in ("in", "out"):
        one, many = (opened[count, direction] for count in (1, 200))
        yield Line(
            what=f"a packet of an open flow, {direction}, 200 networks",
            variant=variant,
            must=1.3,
            found=many / one,
            unit="ratio",
            beside=f"{many * 1e6:.1f} µs, 1 network {one * 1e6:.1f} µs",
        )


def of_networks(variant: Variant, crowded: list[Many]) -> Iterator[Line]:
    """The figures of a host with many networks."""
    for many in crowded:
        what = f"{networks.MANY} networks, {many.mode}: "
        beside = (
            f"{many.many_first * 1e6:.0f} µs, {networks.FEW} networks {many.few_first * 1e6:.0f} µs"
        )
        ratio = many.many_first / many.few_first
        for word, must, found, unit, compared in (
            ("filter rules per network", 12, many.rules, "each", ""),
            ("a new connection", 1.3, ratio, "ratio", beside),
            ("exec to READY", 2.0, many.ready, "s", ""),
        ):
            yield Line(
                what=what + word,
                variant=variant,
                must=must,
                found=found,
                unit=unit,
                beside=compared,
            )


def of_clients(clients: list[Starts]) -> Iterator[Line]:
    """What becomes of connections that clients open while a container starts."""
    for found in clients:
        if found.native:
            continue
        early = sum(found.first[end] for end in EARLY)
        lost = found.ends[End.LOST] / len(found.connections)
        for word, must, value, unit, beside in (
            ("connections during a start that hang", 0, found.ends[End.HUNG], "", ""),
            ("client addresses lost per start", MAX_LOST, lost, "each", ""),
            ("starts that return before the rule", 0, early, "", f"of {found.first.total()}"),
            ("open port to rule, median", 0.04, median(found.waits), "ms", ""),
            ("open port to rule, worst", 0.08, max(found.waits), "ms", ""),
        ):
            yield Line(
                what=f"Docker {found.engine}, proxy {'on' if found.proxy else 'off'}: {word}",
                variant=found.variant,
                must=must,
                found=value,
                unit=unit,
                beside=beside or f"{len(found.connections)} starts",
            )


def of_a_run() -> Line:
    """The number of rules for a range of ten thousand equal host and container ports."""
    bindings = mapped(list(range(10_000, 20_000)), keep=True, protocols=(Protocol.UDP,))
    nat = wanted([bindings]).nat
    count = sum(isinstance(r.target, Dnat) for rules in nat.chains.values() for r in rules)
    return Line(
        what="DNAT rules for -p 10000-19999:10000-19999/udp",
        variant="both",
        must=1,
        found=count,
        unit="",
    )


def churn(found: Control, rate: float) -> str:
    """The CPU time of the daemon while containers start and stop."""
    return (
        f"{found.variant}: with {rate:g} starts and {rate:g} stops of containers per second, among "
        f"{found.mappings}, the daemon and its tools use {found.churn * 100:.0f} % of a core."
    )


def write(
    lines: list[Line],
    controls: list[Control],
    costs: list[Cost],
    clients: list[Starts],
    rate: float,
    seconds: float,
) -> None:
    """Write docs/performance: the table, the plots and the machine."""
    PAGE.mkdir(parents=True, exist_ok=True)
    pictures: list[tuple[str, str, str, Callable[[Control], float]]] = [
        ("sync", "exec to READY", "s", lambda each: each.ready),
        ("change", "one change: inspect to kernel", "ms", lambda each: median(each.changes) * 1e3),
        ("cleanup", "clean-up", "s", lambda each: each.cleanup),
        ("memory", "memory above the libraries", "MB", lambda each: each.memory),
    ]
    for name, title, unit, value in pictures:
        curves = {
            str(variant): {
                each.mappings: value(each) for each in controls if each.variant == variant
            }
            for variant in VARIANTS
        }
        plots.draw(PAGE / f"{name}.svg", title, unit, curves)
    connections = {
        f"{variant} {protocol}": {
            each.mappings: each.seconds * 1e6
            for each in costs
            if (each.variant, each.protocol, each.at) == (variant, protocol, "last")
        }
        for variant in VARIANTS
        for protocol in ("tcp", "udp")
    }
    plots.draw(
        PAGE / "connection.svg",
        "a new connection to the last mapping",
        "µs",
        connections,
        flat=True,
    )
    churning = [churn(each, rate) for each in controls if each.churn]
    (PAGE / "README.md").write_text(
        "\n".join(page(lines, churning, costs, clients, seconds)) + "\n"
    )


def page(
    lines: list[Line],
    churning: list[str],
    costs: list[Cost],
    clients: list[Starts],
    seconds: float,
) -> Iterator[str]:
    """The text of docs/performance/README.md."""
    yield INTRODUCTION.format(minutes=round(seconds / 60), machine=machine())
    yield from table.markdown(lines)
    yield ""
    yield from (f"- {each}" for each in churning)
    yield PLOTS
    yield (
        "| mappings | at | "
        + " | ".join(f"{v} {p}" for v in VARIANTS for p in ("tcp", "udp"))
        + " |"
    )
    yield "|---" * 6 + "|"
    by = {(c.variant, c.protocol, c.mappings, c.at): c.seconds for c in costs}
    for size in (1, *SIZES):
        for at in ("first", "middle", "last"):
            cells = [f"{by[v, p, size, at] * 1e6:.0f}" for v in VARIANTS for p in ("tcp", "udp")]
            yield f"| {size} | {at} | {' | '.join(cells)} |"
    yield CLIENTS
    yield from table_of_clients(clients)


def table_of_clients(clients: list[Starts]) -> Iterator[str]:
    """What became of the connections, a row for each engine."""
    yield f"| engine | its proxy | NAT by | {' | '.join(End)} |"
    yield f"|{'---|' * (3 + len(End))}"
    for found in clients:
        cells = [found.engine, "on" if found.proxy else "off"]
        cells += ["the engine" if found.native else f"ipv6natd, {found.variant}"]
        cells += [str(found.ends[end]) for end in End]
        yield f"| {' | '.join(cells)} |"


def machine() -> str:
    """The machine of the measurement."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    cores = len(re.findall(r"^processor", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    versions = [
        f"Linux {platform.release()}",
        f"Python {run(control.PYTHON, '--version').split()[1]}",
        run("ip6tables-nft", "--version").split("(")[0].strip(),
        run("nft", "--version").split("(")[0].strip(),
        re.sub(r", build.*", "", run("dockerd", "--version").strip()),
    ]
    return f"{cores} cores ({cpu[1] if cpu else 'unknown'}), {', '.join(versions)}"


INTRODUCTION = """\
# Performance

Written by `make bench` (as root, {minutes} minutes) on {machine}.

Each figure is the median of several measurements. Ratios compare figures of the same run. "Restore
alone" is `ip6tables-restore` of the same text. The engine is simulated, with answers recorded from
a real engine. Only "container start to reachable" uses a real engine, with {few} mappings. The time
of a new connection ends with the server's first byte; one thread has both sockets, so no thread has
to wake up. The time of a packet in an open flow is the time of the send call, which takes the
packet to the container.
""".replace("{few}", str(FEW))
PLOTS = """
![one change](change.svg) ![a new connection](connection.svg)
![exec to READY](sync.svg) ![clean-up](cleanup.svg) ![memory](memory.svg)

## A new connection, in µs
"""
CLIENTS = """
## Connections while a container starts

A client opens a connection every 2 ms, from 0.1 s before the start until 0.3 s after its return,
and asks at once. The counts are those of all starts.
"""

if __name__ == "__main__":
    main()
