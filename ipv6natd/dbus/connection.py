"""The transport: one connection to the system bus, calls in both directions, and signals.

`service` serves the calls of others; `polkit`, `firewalld` and `ctl` make calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ipv6natd.dbus.values import bus_text, without_variants
from ipv6natd.dbus.wire import Bus, Message, MessageFlag, MessageType

log = logging.getLogger(__name__)

BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
"""Name, path and interface of the bus daemon itself."""
ERROR = "org.freedesktop.DBus.Error."
SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
CONNECT_TIMEOUT = 10.0
CALL_TIMEOUT = 25.0
MAX_MESSAGE = 8 << 10
"""Bytes of a call or signal that a service reads. No member needs more. Python's text may take four
times as many, while the calls of many users wait."""
MAX_REPLY = 128 << 10
"""Bytes of a reply that a service reads. No reply of polkit and no zone list of firewalld needs
more."""
MAX_ARRAYS = 1 << 10
"""Bytes of all arrays of a call or signal to a service, the header fields included. The library
needs some microseconds for each element and blocks the event loop meanwhile."""
RETRY_DELAY = 0.1
"""Seconds until a call is sent again that the bus daemon rejected because its queue was full."""
MAX_ERROR_LENGTH = 4000
"""Characters of an error text, which may quote arguments of any length."""
NO_LIMIT = 256 << 20
"""Bytes; more than the D-Bus specification allows for a message (128 MiB)."""


class BusError(Exception):
    """A D-Bus error: a dotted `name` for programs, a sentence for people."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name
        self.text = text


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A method call that another process sent; `args` are plain Python values.

    One attribute for each field of the message that a handler or its reply needs.
    """

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
    """True if the caller permits a password dialog."""
    size: int
    """Bytes of the message."""
    truncated: bool
    """True if the message was too long; then `args` is empty."""
    uid: int = -1
    """The caller's user id, -1 before the bus daemon named it."""


@dataclass(frozen=True, slots=True)
class Signal:
    """A received signal; `args` are plain Python values."""

    sender: str
    path: str
    interface: str
    member: str
    args: list[Any]


class Connection:
    """An authenticated connection. `connect` makes it; `close` or the bus daemon ends it."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    @property
    def unique_name(self) -> str:
        """Our unique name on the bus, such as ":1.42"."""
        return str(self._bus.unique_name)

    @property
    def connected(self) -> bool:
        """True while the connection is open."""
        return bool(self._bus.connected)

    @property
    def unsent(self) -> int:
        """Number of messages in our queue, not yet written to the socket."""
        return int(self._bus._writer.messages.qsize())

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        *args: Any,
        timeout: float = CALL_TIMEOUT,  # noqa: ASYNC109 - a part of each call
        autostart: bool = False,
        interactive: bool = False,
    ) -> list[Any]:
        """Call a method and return the values of its reply. Raises BusError for any error.

        `autostart` permits the bus daemon to start the service. `interactive` permits the service
        to open a password dialog; the call then lasts as long as the dialog.
        """
        flags = MessageFlag.NONE if autostart else MessageFlag.NO_AUTOSTART
        if interactive:
            flags |= MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION
        message = Message(
            destination, path, interface, member, flags=flags, signature=signature, body=list(args)
        )
        deadline = time.monotonic() + timeout
        reply = await self._send_and_wait(message, timeout)
        while _queue_is_full(message, reply) and time.monotonic() + RETRY_DELAY < deadline:
            await asyncio.sleep(RETRY_DELAY)
            reply = await self._send_and_wait(message, deadline - time.monotonic())
        if reply.truncated:
            text = f"the reply of {destination} to {member} has {reply.size} bytes"
            raise BusError(ERROR + "LimitsExceeded", f"{text}, too many to read")
        if reply.message_type is MessageType.ERROR:
            text = reply.body[0] if reply.signature.startswith("s") else reply.error_name
            raise BusError(reply.error_name, text)
        return list(without_variants(reply.body))

    async def watch_service(self, name: str, *, interface: str, member: str) -> None:
        """Receive a signal of the service `name`, and the changes of its owner. Raises BusError."""
        for rule in (
            f"type='signal',sender='{name}',interface='{interface}',member='{member}'",
            f"type='signal',sender='{BUS[0]}',member='NameOwnerChanged',arg0='{name}'",
        ):
            await self.call(*BUS, "AddMatch", "s", rule)

    async def _send_and_wait(self, message: Message, timeout: float) -> Message:  # noqa: ASYNC109
        disconnected = BusError(ERROR + "Disconnected", "the system bus closed the connection")
        if not self.connected:
            raise disconnected
        message.serial = self._bus.next_serial()
        try:
            async with asyncio.timeout(timeout):
                return await self._bus.call(message)
        except TimeoutError:
            text = f"{message.destination} did not answer {message.member} within {timeout:g} s"
            raise BusError(ERROR + "NoReply", text) from None
        except (EOFError, OSError):
            raise disconnected from None
        finally:
            self._bus._method_return_handlers.pop(message.serial, None)

    def reply(self, call: Call, signature: str, body: list[Any] | bytes) -> int:
        """Reply with values of the given signature, or with a body from dbus.values; return the
        bytes of the reply."""
        reply = Message.new_method_return(call, signature, body)
        return self._bus.send(reply) if call.wants_reply else 0

    def reply_error(self, call: Call, error: BusError) -> int:
        """Reply to the call with an error; return the bytes of the reply."""
        reply = Message.new_error(call, error.name, bus_text(error.text[:MAX_ERROR_LENGTH]))
        return self._bus.send(reply) if call.wants_reply else 0

    def emit(self, path: str, interface: str, member: str, signature: str, *values: Any) -> int:
        """Broadcast a signal and return its bytes; does nothing if the connection has ended."""
        return self._bus.send(Message.new_signal(path, interface, member, signature, list(values)))

    async def closed(self) -> None:
        """Wait until either side has closed the connection."""
        await asyncio.wait([self._bus._disconnect_future])

    async def flush(self, seconds: float) -> None:
        """Wait until all messages are written to the socket, at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                writer = self._bus._writer
                while self.connected and (self.unsent or writer.buf is not None):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    def close(self) -> None:
        """Close the connection. Unsent messages are lost; pending calls fail."""
        self._bus.disconnect()


def _queue_is_full(call: Message, reply: Message) -> bool:
    """True if the bus daemon rejected the call because the callee's queue is full."""
    by_bus = reply.sender == BUS[0] != call.destination
    return bool(by_bus and reply.error_name == ERROR + "LimitsExceeded")


OnCall = Callable[[Call], None]
OnSignal = Callable[[Signal], None]


async def connect(
    address: str | None = None,
    *,
    on_call: OnCall | None = None,
    on_signal: OnSignal | None = None,
    seconds: float = CONNECT_TIMEOUT,
) -> Connection:
    """Connect to `address`, $DBUS_SYSTEM_BUS_ADDRESS or the system bus. Raises BusError.

    The handlers run in the event loop and must not block. With `on_call`, messages are limited: a
    call with more than MAX_MESSAGE bytes, or with more than MAX_ARRAYS bytes of arrays, reaches
    `on_call` truncated, and such a signal is dropped.
    """
    limits = (MAX_MESSAGE, MAX_REPLY, MAX_ARRAYS) if on_call else (NO_LIMIT,) * 3
    address = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS
    bus = None
    try:
        bus = Bus(address, *limits)
        connection = Connection(bus)
        bus.add_message_handler(lambda message: _dispatch(connection, message, on_call, on_signal))
        async with asyncio.timeout(seconds):
            await bus.connect()
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
    """Return True if a handler took the message; the library handles the others itself."""
    kind = message.message_type
    try:
        if kind is MessageType.METHOD_CALL and on_call is not None:
            on_call(_call_from(connection, message))
            return True
        if kind is MessageType.SIGNAL and on_signal is not None:
            args = without_variants(message.body)
            sender, path = message.sender or "", message.path
            on_signal(Signal(sender, path, message.interface, message.member, args))
    except Exception:
        # The library would send the traceback of an exception to the caller.
        log.exception("cannot handle a message from the bus")
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
