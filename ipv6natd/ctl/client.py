"""The parts that all commands use: the daemon on the bus, the options, and the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ipv6natd.dbus import connection as bus
from ipv6natd.dbus.connection import BUS, ERROR, BusError
from ipv6natd.dbus.objects import MANAGER, NAME, PATH, PROPERTIES
from ipv6natd.system.terminal import PIPE, Screen

EXIT_FAILED, EXIT_NOT_RUNNING, EXIT_NO_PERMISSION = 1, 3, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of a command: the value for --json, the text for people, the exit code."""

    value: Any
    text: str
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

    async def connection(self, on_signal: bus.OnSignal | None = None) -> bus.Connection:
        """The connection. `on_signal` receives signals, if the first call gives it.

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
        timeout: float = bus.CALL_TIMEOUT,  # noqa: ASYNC109 - a part of each call
        interactive: bool = False,
    ) -> Any:
        """Call a method of the manager; return its value, None if it has none. Raises BusError."""
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
        """Subscribe to the signals that match the rule. Raises BusError."""
        connection = await self.connection()
        await connection.call(*BUS, "AddMatch", "s", rule)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


CommandFunction = Callable[[DaemonClient, Options], Any]
"""A coroutine function that returns a Result or raises BusError."""


def is_not_running(error: BusError) -> bool:
    """True if the bus works and the daemon does not run."""
    return error.name in (ERROR + "ServiceUnknown", ERROR + "NameHasNoOwner")


def is_unreachable(error: BusError) -> bool:
    """True if there is no bus or no daemon on it."""
    return is_not_running(error) or error.name == ERROR + "NoServer"


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
            return EXIT_FAILED, f"{error.text}: systemctl status dbus.socket"
        case "NoReply" | "Timeout" | "TimedOut" | "Disconnected":
            return EXIT_FAILED, f"ipv6natd did not answer ({error.text}): systemctl status ipv6natd"
        case "UnknownMethod" | "UnknownInterface" | "UnknownObject":
            return (
                EXIT_FAILED,
                f"ipv6natd has another version: systemctl restart ipv6natd ({error.text})",
            )
    return EXIT_FAILED, error.text
