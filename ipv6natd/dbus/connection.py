"""The transport: one connection to the system bus, calls over it both ways, and signals.

What is served and asked lives in dbus_api and ctl.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ipv6natd.dbus.values import bus_text, without_variants
from ipv6natd.dbus.wire import Bus, MarshalledReply, Message, MessageFlag, MessageType

log = logging.getLogger(__name__)

BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
"""The bus itself: name, path and interface."""
ERROR = "org.freedesktop.DBus.Error."
SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
CONNECT_TIMEOUT = 10.0
CALL_TIMEOUT = 25.0
MAX_MESSAGE = 128 << 10
"""Bytes of a message that a service reads. No member takes as much, and neither polkit's answers
nor firewalld's zones have as much."""
MAX_ARRAYS = 1 << 10
"""Bytes that the arrays of a call or signal to a service have together, its header among them. The
library takes some microseconds an element, during which nothing else runs."""
RETRY_DELAY = 0.1
"""Seconds until a call is sent again that the bus had no room for."""
MAX_ERROR_LENGTH = 4000
"""Characters of an error: it may quote what a caller sent, however long that was."""
NO_LIMIT = 256 << 20
"""More than a message can have."""


class BusError(Exception):
    """An error as D-Bus knows it: a dotted `name` for programs, a sentence for people."""

    def __init__(self, name: str, text: str) -> None:
        """Keep both parts."""
        super().__init__(text)
        self.name = name
        self.text = text


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A method call that somebody made; `args` are plain Python values."""

    connection: Connection
    sender: str
    path: str
    interface: str | None
    member: str
    signature: str
    args: list[Any]
    serial: int
    wants_reply: bool
    interactive: bool
    """Whether the caller can be asked for a password."""
    size: int
    """Bytes of the message."""
    truncated: bool
    """Whether it was too long: then `args` is empty."""
    uid: int = -1
    """The caller's user, -1 until the bus has been asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A signal that we subscribed to; `args` are plain Python values."""

    sender: str
    path: str
    interface: str
    member: str
    args: list[Any]


class Connection:
    """A connection that said hello. Made by `connect`, ended by `close` or by the bus."""

    def __init__(self, bus: Bus) -> None:
        """Wrap the library's connection."""
        self._bus = bus

    @property
    def unique_name(self) -> str:
        """What the bus calls us, ":1.42"."""
        return str(self._bus.unique_name)

    @property
    def connected(self) -> bool:
        """Whether the bus is still there."""
        return bool(self._bus.connected)

    @property
    def unsent(self) -> int:
        """Messages that the bus has not taken yet."""
        return int(self._bus._writer.messages.qsize())

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *args: Any,
        timeout: float = CALL_TIMEOUT,  # noqa: ASYNC109 - it is part of every call's meaning
        autostart: bool = False,
        interactive: bool = False,
    ) -> list[Any]:
        """Call a method and return what it answers; BusError for everything else.

        `autostart`: the bus may start the service. `interactive`: the service may have somebody
        asked for a password, which takes the time it takes.
        """
        flags = MessageFlag.NONE if autostart else MessageFlag.NO_AUTOSTART
        if interactive:
            flags |= MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION
        message = Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(args),
            flags=flags,
        )
        deadline = time.monotonic() + timeout
        reply = await self._send_and_wait(message, timeout)
        while _queue_is_full(message, reply) and time.monotonic() + RETRY_DELAY < deadline:
            await asyncio.sleep(RETRY_DELAY)
            reply = await self._send_and_wait(message, deadline - time.monotonic())
        if reply.truncated:
            text = f"{destination} answers {member} with {reply.size} bytes, too many to read"
            raise BusError(ERROR + "LimitsExceeded", text)
        if reply.message_type is MessageType.ERROR:
            text = reply.body[0] if reply.signature.startswith("s") else reply.error_name
            raise BusError(reply.error_name, text)
        return typing.cast("list[Any]", without_variants(reply.body))

    async def _send_and_wait(self, message: Message, timeout: float) -> Message:  # noqa: ASYNC109
        disconnected = BusError(ERROR + "Disconnected", "the system bus closed the connection")
        if not self.connected:
            raise disconnected
        message.serial = self._bus.next_serial()
        try:
            reply = await asyncio.wait_for(self._bus.call(message), timeout)
        except TimeoutError:
            text = f"{message.destination} did not answer {message.member} within {timeout:g} s"
            raise BusError(ERROR + "NoReply", text) from None
        except (EOFError, OSError):
            raise disconnected from None
        finally:
            self._bus._method_return_handlers.pop(message.serial, None)
        if reply is None:
            raise disconnected
        return reply

    def reply(self, call: Call, signature: str, values: list[Any]) -> int:
        """Answer the call with values that fit the signature; the answer's size in bytes."""
        return self._send_reply(call, signature=signature, body=values)

    def reply_marshalled(self, call: Call, signature: str, data: bytes) -> int:
        """Answer the call with a body that `marshal_rows` made; the answer's size in bytes."""
        message = MarshalledReply(
            message_type=MessageType.METHOD_RETURN,
            reply_serial=call.serial,
            destination=call.sender,
            signature=signature,
        )
        message.data = data
        return self._bus.send(message) if call.wants_reply else 0

    def reply_error(self, call: Call, error: BusError) -> int:
        """Answer the call with an error; the answer's size in bytes."""
        return self._send_reply(
            call,
            message_type=MessageType.ERROR,
            error_name=error.name,
            signature="s",
            body=[bus_text(error.text[:MAX_ERROR_LENGTH])],
        )

    def _send_reply(self, call: Call, **parts: Any) -> int:
        parts.setdefault("message_type", MessageType.METHOD_RETURN)
        if not call.wants_reply:
            return 0
        return self._bus.send(Message(reply_serial=call.serial, destination=call.sender, **parts))

    def emit(self, path: str, interface: str, member: str, signature: str, *values: Any) -> None:
        """Send a signal to whoever listens; nothing when the bus is gone."""
        self._bus.send(Message.new_signal(path, interface, member, signature, list(values)))

    async def closed(self) -> None:
        """Wait until the connection has ended, whoever ended it."""
        await asyncio.wait([self._bus._disconnect_future])

    async def flush(self, seconds: float) -> None:
        """Wait until the bus took everything, but no longer than that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                writer = self._bus._writer
                while self.connected and (self.unsent or writer.buf is not None):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    def close(self) -> None:
        """End the connection. What was not sent is lost; calls that wait fail."""
        self._bus.disconnect()


def _queue_is_full(call: Message, reply: Message) -> bool:
    """Whether the bus did not pass the call on, because too much waits for who was called."""
    by_bus = reply.sender == BUS[0] != call.destination
    return bool(by_bus and reply.error_name == ERROR + "LimitsExceeded")


OnCall = Callable[[Call], None]
OnSignal = Callable[[Signal], None]


async def connect(
    address: str | None = None,
    *,
    on_call: OnCall | None = None,
    on_signal: OnSignal | None = None,
    max_message: int = NO_LIMIT,
    max_arrays: int = NO_LIMIT,
    seconds: float = CONNECT_TIMEOUT,
) -> Connection:
    """Connect to `address`, $DBUS_SYSTEM_BUS_ADDRESS or the system bus; BusError if that fails.

    The handlers run between two messages and must not wait. A call is
    `truncated` that has more than `max_message` bytes, or arrays of more than `max_arrays` bytes
    together. A signal is dropped.
    """
    address = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS
    bus = None
    try:
        bus = Bus(address, max_message, max_arrays)
        connection = Connection(bus)
        bus.add_message_handler(lambda message: _dispatch(connection, message, on_call, on_signal))
        await asyncio.wait_for(bus.connect(), seconds)
    except BaseException as error:
        if bus is not None:
            bus.disconnect()
        if not isinstance(error, Exception):
            raise
        reason = getattr(error, "strerror", None) or str(error) or f"no answer within {seconds:g} s"
        text = f"cannot reach the system bus at {address}: {reason}"
        raise BusError(ERROR + "NoServer", text) from None
    return connection


def _dispatch(
    connection: Connection, message: Message, on_call: OnCall | None, on_signal: OnSignal | None
) -> bool:
    """Whether the message was ours; what is not, the library looks at itself."""
    kind = message.message_type
    try:
        if kind is MessageType.METHOD_CALL and on_call is not None:
            on_call(_call_from(connection, message))
            return True
        if kind is MessageType.SIGNAL and on_signal is not None:
            on_signal(_signal_from(message))
    except Exception:
        # Past this point the library would send the traceback to the caller.
        log.exception("a message on the bus could not be handled")
        return True
    return False


def _call_from(connection: Connection, message: Message) -> Call:
    return Call(
        connection=connection,
        sender=message.sender or "",
        path=message.path,
        interface=message.interface,
        member=message.member,
        signature=message.signature,
        args=without_variants(message.body),
        serial=message.serial,
        wants_reply=not message.flags & MessageFlag.NO_REPLY_EXPECTED,
        interactive=bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION),
        size=message.size,
        truncated=message.truncated,
    )


def _signal_from(message: Message) -> Signal:
    return Signal(
        sender=message.sender or "",
        path=message.path,
        interface=message.interface,
        member=message.member,
        args=without_variants(message.body),
    )
