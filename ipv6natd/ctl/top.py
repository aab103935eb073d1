"""`top`: the mappings by their connections; live on a terminal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Self

from ipv6natd.ctl.client import (
    DaemonClient,
    Options,
    Result,
    Row,
    listing,
    painted,
    printable_cells,
)
from ipv6natd.ctl.monitor import EventReader, event_line, subscribe
from ipv6natd.ctl.show import finding_text, row_socket
from ipv6natd.report.status import counted
from ipv6natd.system.terminal import folded, printable

INTERVAL = 2.0
"""Seconds between two reads."""
MAX_CHANGES, MAX_FINDINGS = 4, 3
"""Lines of changes and of findings."""
MIN_LINES = 24
"""Lines of a terminal that does not know its size."""
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
"""The second screen of the terminal, without a cursor and without wrapped lines, and back."""
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


@dataclass(slots=True)
class View:
    """What is known: the last two reads, and the last changes."""

    properties: Mapping[str, Any] = field(default_factory=dict)
    mappings: Sequence[Row] = ()
    findings: Sequence[Row] = ()
    findings_changed: bool = True
    """True if they have to be read: for each read, the daemon examines the host."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Id of a mapping -> its connections."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Id of a mapping -> connections in a second, since the read before."""
    read_at: float = 0.0
    """0 before the first read."""
    changes: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_CHANGES))

    async def read(self, daemon: DaemonClient) -> None:
        """Read all from the daemon. Raises BusError."""
        now = time.monotonic()
        rows = await daemon.call("ListConnections")
        counts = {row["Id"]: row["Connections"] for row in rows}
        seconds = now - self.read_at
        self.rates = {
            # A rule that was written again counts from 0.
            id_: max(count - self.counts[id_], 0) / seconds
            for id_, count in counts.items()
            if id_ in self.counts
        }
        self.counts, self.read_at = counts, now
        self.mappings = await daemon.call("ListMappings")
        if self.findings_changed:
            self.findings_changed = False
            self.findings = await daemon.call("ListFindings")
        self.properties = await daemon.properties()

    def busiest(self) -> list[Row]:
        """The mappings, those with the highest rate first, then those with most connections."""

        def order(row: Row) -> tuple[float, int, str]:
            return -self.rates.get(row["Id"], 0), -self.counts.get(row["Id"], 0), row["Id"]

        return sorted(self.mappings, key=order)


async def top(daemon: DaemonClient, options: Options) -> Result:
    """The list once, or on a terminal until it is ended."""
    if options.json == "off" and options.screen.columns and sys.stdin.isatty():
        await _live(daemon, options)
        return Result()
    view = View()
    await view.read(daemon)
    rows = view.busiest()
    value = [{**row, "Connections": view.counts.get(row["Id"])} for row in rows]
    cells = [_cells(view, row) for row in rows]
    return Result(value=value, text=listing(cells, options, f"{counted(len(rows), 'mapping')}."))


def _cells(view: View, row: Row) -> dict[str, str]:
    id_ = row["Id"]
    cells = {"RATE": f"{view.rates[id_]:.1f}/s" if id_ in view.rates else ""}
    cells["CONNECTIONS"] = str(view.counts.get(id_, ""))
    cells["PROTOCOL"] = row["Protocol"]
    cells["HOST"] = row_socket(row, "Host")
    cells["CONTAINER"] = row["ContainerName"]
    cells["NETWORK"] = row["Network"]
    return printable_cells(cells)


async def _live(daemon: DaemonClient, options: Options) -> None:
    view, stop, redraw = View(), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    reader = EventReader()
    await subscribe(daemon, reader)
    await view.read(daemon)
    with _OwnScreen() as own:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGWINCH, redraw.set)
        loop.add_signal_handler(signal.SIGTSTP, own.suspend)
        loop.add_signal_handler(signal.SIGCONT, redraw.set)
        loop.add_reader(sys.stdin.fileno(), lambda: _read_key(stop))
        due = loop.time() + INTERVAL
        while not stop.is_set():
            # Not shutil: $LINES does not follow the terminal.
            size = os.get_terminal_size(sys.stdout.fileno())
            screen = replace(options.screen, columns=size.columns)
            sys.stdout.write(_page(view, replace(options, screen=screen), size.lines or MIN_LINES))
            sys.stdout.flush()
            await _wait(due, stop, redraw)
            redraw.clear()
            if loop.time() >= due:
                due = loop.time() + INTERVAL
                _note_changes(daemon, view, reader, options)
                await view.read(daemon)
        loop.remove_reader(sys.stdin.fileno())


async def _wait(due: float, *events: asyncio.Event) -> None:
    """Wait for one of the events, at most until `due`."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    with suppress(TimeoutError):
        async with asyncio.timeout_at(due):
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _note_changes(daemon: DaemonClient, view: View, reader: EventReader, options: Options) -> None:
    while not daemon.signals.empty():
        if (received := daemon.signals.get_nowait()) is not None:
            view.findings_changed |= received.member == "FindingsChanged"
            now = {"Time": time.time_ns() // 1000}
            events = reader.events(received)
            view.changes.extend(event_line(now | event, options.screen) for event in events)


def _page(view: View, options: Options, lines: int) -> str:
    """One screen: no line wraps, and none is below the last one."""
    state = painted(view.properties["State"], options.screen)
    total = f"{sum(view.rates.values()):.1f}"
    head = [f"{state}: {counted(len(view.mappings), 'mapping')}, {total} connections a second"]
    for row in view.findings[:MAX_FINDINGS]:
        text = f"{painted(row['Severity'], options.screen)}: {printable(finding_text(row))}"
        head += folded(text, 0, options.screen).splitlines()[:2]
    head += ["", *view.changes, ""] if view.changes else [""]
    room = max(lines - len(head) - 2, 1)
    cells = [_cells(view, row) for row in islice(view.busiest(), room)]
    # Long lines are cut off by the terminal.
    body = listing(cells, replace(options, screen=replace(options.screen, columns=0))).splitlines()
    page = [*head, *body][: lines - 1]
    return _HOME + "".join(f"{line}{_CLEAR_LINE}\n" for line in page) + _CLEAR_BELOW


class _OwnScreen:
    """The second screen, and keys without the Enter key; as before at the end."""

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(sys.stdin)
        self._enter()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _enter(self) -> None:
        tty.setcbreak(sys.stdin)
        sys.stdout.write(_ENTER)
        sys.stdout.flush()

    def _leave(self) -> None:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

    def suspend(self) -> None:
        """Give the terminal to the shell until this process continues."""
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._enter()


def _read_key(stop: asyncio.Event) -> None:
    if os.read(sys.stdin.fileno(), 64) in (b"", b"q", b"Q"):
        stop.set()
