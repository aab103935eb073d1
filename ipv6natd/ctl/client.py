"""The parts that all commands use: the daemon on the bus, the options, the result, its texts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipv6natd.dbus import connection as bus
from ipv6natd.dbus.connection import ERROR, BusError
from ipv6natd.dbus.objects import MANAGER, NAME, PATH, PROPERTIES
from ipv6natd.host.servers import tcp_answer
from ipv6natd.model import Outcome
from ipv6natd.report.checks import CheckVerdict
from ipv6natd.report.status import State
from ipv6natd.system.terminal import PIPE, Colour, Screen, printable, table

EXIT_FAILED, EXIT_NOT_RUNNING, EXIT_NO_PERMISSION = 1, 3, 4
INTERACTIVE_TIMEOUT = 180.0
"""Seconds for a change, which includes the engine, the kernel, and a password dialog."""
_GOOD = (State.SYNCED, CheckVerdict.OK, Outcome.FORWARDED, Outcome.NATIVE, Outcome.DIRECT)
_BAD = (State.DEGRADED, State.STOPPED, CheckVerdict.BAD, Outcome.SKIPPED)
COLOURS: Mapping[str, Colour] = {
    **dict.fromkeys((*_GOOD, "added", "started"), Colour.GOOD),
    **dict.fromkeys((*_BAD, "repaired"), Colour.BAD),
}
"""State, verdict, outcome or event -> its colour; the others are warnings."""

_SYSTEMD1 = "org.freedesktop.systemd1."
_UNIT_PATH = "/org/freedesktop/systemd1/unit/ipv6natd_2eservice"
_UNIT = ("org.freedesktop.systemd1", _UNIT_PATH, PROPERTIES, "GetAll")

Row = Mapping[str, Any]
"""A row of a list on the bus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of a command: the value for --json, the text for people, the exit code."""

    value: Any = None
    text: str = ""
    code: int = 0
    note: str = ""
    """A sentence for the error output: why there is no other output, or a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a command line."""

    argument: str = ""
    filters: Mapping[str, Any] = field(default_factory=dict)
    json: str = "off"
    legend: bool = True
    flags: frozenset[str] = frozenset()
    """Switches that only some commands have, without their dashes."""
    screen: Screen = PIPE


class DaemonClient:
    """The daemon on the bus. Connects at the first call: some commands need no bus."""

    def __init__(self) -> None:
        self._connection: bus.Connection | None = None
        self.signals: asyncio.Queue[bus.Signal | None] = asyncio.Queue()
        """The received signals. `monitor` adds None when the connection ends."""

    async def connection(self) -> bus.Connection:
        """The connection. Raises BusError."""
        if self._connection is None:
            self._connection = await bus.connect(on_signal=self.signals.put_nowait)
        return self._connection

    async def call(self, member: str, *args: str, interactive: bool = False) -> Any:
        """Call a method of the manager; return its value, None if it has none. Raises BusError.

        `interactive` permits a password dialog.
        """
        connection = await self.connection()
        timeout = INTERACTIVE_TIMEOUT if interactive else bus.CALL_TIMEOUT
        target = (NAME, PATH, MANAGER, member, "s" * len(args))
        values = await connection.call(*target, *args, timeout=timeout, interactive=interactive)
        return values[0] if values else None

    async def properties(self) -> dict[str, Any]:
        """All properties of the manager. Raises BusError."""
        connection = await self.connection()
        (values,) = await connection.call(NAME, PATH, PROPERTIES, "GetAll", "s", MANAGER)
        return dict(values)

    async def unit_failure(self) -> str:
        """Why the unit failed, the text of `systemctl status`; "" if it did not, or if unknown."""
        try:
            connection = await self.connection()
            (unit,) = await connection.call(*_UNIT, "s", _SYSTEMD1 + "Unit")
            (service,) = await connection.call(*_UNIT, "s", _SYSTEMD1 + "Service")
        except BusError:
            return ""
        failed = unit.get("ActiveState") == "failed"
        return str(service.get("StatusText", "")) if failed else ""

    async def tcp_answers(self, sockets: Sequence[tuple[str, int]]) -> dict[tuple[str, int], str]:
        """What a new connection gets at each address and port. The daemon's sandbox permits none,
        so the tool connects."""
        answers = await asyncio.gather(*(tcp_answer(*socket) for socket in sockets))
        return dict(zip(sockets, answers, strict=True))

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


CommandFunction = Callable[[DaemonClient, Options], Coroutine[Any, Any, Result]]
"""It may raise BusError."""


def is_not_running(error: BusError) -> bool:
    """True if the bus works and the daemon does not run."""
    return error.name in (ERROR + "ServiceUnknown", ERROR + "NameHasNoOwner")


def explain_error(error: BusError, command: str) -> tuple[int, str]:
    """The exit code for the error of `command`, and a sentence with a remedy."""
    if is_not_running(error):
        return EXIT_NOT_RUNNING, "ipv6natd is not running: systemctl start ipv6natd"
    match error.name.removeprefix(ERROR):
        case "AccessDenied" | "AuthFailed" | "InteractiveAuthorizationRequired":
            # The daemon names a command for the member; here the typed command is known.
            reason = error.text.partition(": sudo ")[0]
            return EXIT_NO_PERMISSION, f"not permitted: {reason}: sudo {command}"
        case "NoServer":
            text = f"{error.text}: systemctl status dbus.socket"
        case "NoReply" | "Timeout" | "TimedOut" | "Disconnected":
            text = f"ipv6natd did not answer ({error.text}): systemctl status ipv6natd"
        case "UnknownMethod" | "UnknownInterface" | "UnknownObject":
            text = f"ipv6natd has another version: systemctl restart ipv6natd ({error.text})"
        case _:
            text = error.text
    return EXIT_FAILED, text


def json_text(value: Any, mode: str) -> str:
    """The value for `--json=mode`."""
    if mode == "short":
        return json.dumps(value, separators=(",", ":"))
    return json.dumps(value, indent=2)


def painted(word: str, screen: Screen) -> str:
    """A state, verdict, outcome or event in its colour."""
    return screen.paint(printable(word), COLOURS.get(word, Colour.WARNING))


def labelled(name: str, texts: Iterable[str]) -> list[tuple[str, str]]:
    """Items for `pairs`: the first text has the name, the others continue it."""
    return [("" if number else name, printable(text)) for number, text in enumerate(texts)]


def printable_cells(cells: Mapping[str, str]) -> dict[str, str]:
    """A row for `listing` with all its texts escaped."""
    return {name: printable(cell) for name, cell in cells.items()}


def listing(rows: Sequence[Mapping[str, str]], options: Options, summary: str = "") -> str:
    """A table of safe cells; with the legend, a sentence below it."""
    text = table(rows, legend=options.legend, screen=options.screen)
    if options.legend and summary:
        text += f"\n{summary}\n" if rows else f"{summary}\n"
    return text


def suggestion(words: Sequence[str], otherwise: str) -> str:
    """The end of a sentence about an unknown word: the similar words, else `otherwise`."""
    return f"; did you mean {' and '.join(map(repr, words))}?" if words else otherwise
