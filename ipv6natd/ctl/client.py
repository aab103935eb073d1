"""What every command gets and gives: the daemon on the bus, its options, and a result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ipv6natd.dbus import connection as bus
from ipv6natd.dbus.connection import ERROR, BusError
from ipv6natd.system.terminal import PIPE, Screen

NAME = "org.ipv6natd1"
PATH = "/org/ipv6natd1"
MANAGER = "org.ipv6natd1.Manager"
PROPERTIES = "org.freedesktop.DBus.Properties"
BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
"""The bus itself: name, path and interface."""

EXIT_FAILED, EXIT_NOT_RUNNING, EXIT_NO_PERMISSION = 1, 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a command found: the value for --json, the text for people, the exit code."""

    value: Any
    text: str
    code: int = 0
    note: str = ""
    """A sentence for the error output: why there is little else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user asked for besides the command."""

    argument: str = ""
    filters: Mapping[str, Any] = field(default_factory=dict)
    json: str = "off"
    legend: bool = True
    flags: frozenset[str] = frozenset()
    """Switches that only some commands have, without their dashes."""
    screen: Screen = PIPE


class DaemonClient:
    """The daemon over the bus. Connects when first asked, so that some commands need no bus."""

    def __init__(self) -> None:
        self._connection: bus.Connection | None = None

    async def connection(self, on_signal: bus.OnSignal | None = None) -> bus.Connection:
        """The connection. `on_signal`, with the first use, hears what is subscribed to.

        Raises BusError.
        """
        if self._connection is None:
            self._connection = await bus.connect(on_signal=on_signal)
        return self._connection

    async def call(
        self,
        member: str,
        signature: str = "",
        *args: Any,
        timeout: float = bus.CALL_TIMEOUT,  # noqa: ASYNC109 - it is part of every call's meaning
        interactive: bool = False,
    ) -> Any:
        """What a method of the manager answers, None if nothing. Raises BusError."""
        connection = await self.connection()
        target = (NAME, PATH, MANAGER, member, signature)
        values = await connection.call(*target, *args, timeout=timeout, interactive=interactive)
        return values[0] if values else None

    async def properties(self) -> dict[str, Any]:
        """All properties of the manager. Raises BusError."""
        connection = await self.connection()
        (values,) = await connection.call(NAME, PATH, PROPERTIES, "GetAll", "s", MANAGER)
        return dict(values)

    async def listen(self, rule: str) -> None:
        """Subscribe to signals. Raises BusError."""
        connection = await self.connection()
        await connection.call(*BUS, "AddMatch", "s", rule)

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()


CommandFunction = Callable[[DaemonClient, Options], Any]
"""A command: a coroutine function that returns a Result or raises BusError."""


def is_not_running(error: BusError) -> bool:
    """Whether the bus is there and the daemon is not."""
    return error.name in (ERROR + "ServiceUnknown", ERROR + "NameHasNoOwner")


def is_unreachable(error: BusError) -> bool:
    """Whether nobody can be asked: no bus, or no daemon on it."""
    return is_not_running(error) or error.name == ERROR + "NoServer"


def explain_error(error: BusError, command: str) -> tuple[int, str]:
    """The exit code, and a sentence that says what to do for what `command` was to do."""
    if is_not_running(error):
        return EXIT_NOT_RUNNING, "ipv6natd is not running: systemctl start ipv6natd"
    match error.name.removeprefix(ERROR):
        case "AccessDenied" | "AuthFailed" | "InteractiveAuthorizationRequired":
            # The daemon names the command for the member; here it is known what was typed.
            reason = error.text.partition(": sudo ")[0]
            return EXIT_NO_PERMISSION, f"not permitted: {reason}: sudo {command}"
        case "NoServer":
            return EXIT_FAILED, f"{error.text}: systemctl status dbus.socket"
        case "NoReply" | "Timeout" | "TimedOut" | "Disconnected":
            return EXIT_FAILED, f"ipv6natd gave no answer ({error.text}): systemctl status ipv6natd"
        case "UnknownMethod" | "UnknownInterface" | "UnknownObject":
            return (
                EXIT_FAILED,
                f"ipv6natd is of another version: systemctl restart ipv6natd ({error.text})",
            )
    return EXIT_FAILED, error.text
