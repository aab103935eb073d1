"""The bus service: a connection that is made again when it ends, limits for callers, and signals.

It decides nothing about rules, and the rules do not wait for it: without a bus it only retries. The
members of the service are in `members`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from ipv6natd.dbus import connection as bus
from ipv6natd.dbus.connection import BUS, ERROR, BusError, Call, Connection, Signal
from ipv6natd.dbus.firewalld import Firewalld
from ipv6natd.dbus.limits import Limits
from ipv6natd.dbus.members import Members, Method, Source, find_method
from ipv6natd.dbus.objects import NAME
from ipv6natd.dbus.polkit import Authority
from ipv6natd.dbus.signals import Announcer
from ipv6natd.report.status import Status

log = logging.getLogger(__name__)

FAILED = "org.ipv6natd1.Error.Failed"

MIN_RETRY_DELAY, MAX_RETRY_DELAY = 0.2, 30.0
"""Seconds between two attempts to connect to the bus."""


class BusService:
    """org.ipv6natd1 during the daemon's life, over one connection after the other."""

    def __init__(self, source: Source, *subscribers: Firewalld) -> None:
        """Serve `source`, once `serve` runs; `subscribers` receive the signals of other
        services."""
        self._members = Members(source)
        self._authority = Authority()
        self._subscribers: tuple[Authority | Firewalld, ...] = (self._authority, *subscribers)
        self._connection: Connection | None = None
        """The connection while we own the name on it."""
        self._announcer: Announcer | None = None
        self._limits = Limits()
        self._tasks: set[asyncio.Task[None]] = set()

    async def session(self, address: str | None = None, *, log_recovery: bool = False) -> None:
        """Connect, own the name, and serve until the connection ends. Raises BusError.

        `log_recovery`: a warning was logged before, so success is logged as INFO.
        """
        connection = await bus.connect(address, on_call=self._on_call, on_signal=self._on_signal)
        try:
            await self._subscribe(connection)
            await _request_name(connection)
            log.log(logging.INFO if log_recovery else logging.DEBUG, "serving %s on the bus", NAME)
            self._connection = connection
            self._announcer = Announcer(connection, self._limits)
            await connection.closed()
        finally:
            self._connection = None
            if self._announcer is not None:
                self._announcer.close()
                self._announcer = None
            for subscriber in self._subscribers:
                subscriber.disconnected()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._limits = Limits()
            await connection.flush(1.0)
            connection.close()

    async def _subscribe(self, connection: Connection) -> None:
        try:
            for subscriber in self._subscribers:
                await subscriber.subscribe(connection)
        except BusError as error:
            log.warning("cannot subscribe to the signals of polkit and firewalld: %s", error.text)

    def _on_signal(self, signal: Signal) -> None:
        for subscriber in self._subscribers:
            subscriber.on_signal(signal)

    def publish(self, old: Status, new: Status, drift: tuple[str, ...] = ()) -> None:
        """Send the signals for the changes of a sync; does nothing without a connection."""
        if self._announcer is not None:
            self._announcer.publish(old, new, drift)

    def _on_call(self, call: Call) -> None:
        task = asyncio.create_task(self._answer(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, call: Call) -> None:
        try:
            if call.truncated:
                text = f"the arguments of {call.member} are too long: {call.size} bytes in total"
                raise BusError(ERROR + "LimitsExceeded", text)
            method = find_method(call)
            method.validate(self._members, call)
            if method.action is None and self._limits.fits():
                await self._send_reply(call, method)
                return
            with self._limits.sender_call(call):
                uid = self._authority.cached_uid(call)
                if uid is None:
                    with self._limits.unidentified_call(call):
                        uid = await self._authority.fetch_uid(call)
                with self._limits.user_call(uid):
                    await self._answer_user(replace(call, uid=uid), method)
        except Exception as error:
            self._refuse(call, error)

    async def _answer_user(self, call: Call, method: Method) -> None:
        if method.action is not None:
            await self._authority.check(call, method.action)
        if not method.in_turn:
            await self._send_reply(call, method)
            return
        async with self._limits.turn(call.uid):
            await self._send_reply(call, method)
            # No further long reply is made until the bus has read this one.
            await call.connection.flush(bus.CALL_TIMEOUT)

    async def _send_reply(self, call: Call, method: Method) -> None:
        body = await self._members.reply(call, method)
        await self._limits.check_unread(call, len(body) if isinstance(body, bytes) else 0)
        self._limits.add_sent(call.connection.reply(call, method.out_signature, body))

    def _refuse(self, call: Call, error: Exception) -> None:
        if not isinstance(error, BusError):
            log.error("%s failed", call.member, exc_info=error)
            text = f"{call.member} failed; the journal says why: journalctl -u ipv6natd"
            error = BusError(FAILED, text)
        if self._limits.error_fits(call.connection):
            self._limits.add_sent(call.connection.reply_error(call, error))


async def serve(
    service: BusService,
    address: str | None = None,
    *,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Serve until cancelled. Never raises: the daemon keeps the rules without a bus too."""
    delay, logged = MIN_RETRY_DELAY, ""
    while True:
        try:
            await service.session(address, log_recovery=bool(logged))
            delay, logged, text = MIN_RETRY_DELAY, "", "the system bus closed the connection"
        except BusError as error:
            text = error.text
        except Exception:
            log.exception("the bus service failed")
            text = "the bus service failed"
        # One warning for each new error, not for each attempt.
        log.log(logging.DEBUG if text == logged else logging.WARNING, "%s; trying again", text)
        logged = text
        await pause(delay)
        delay = min(delay * 2, MAX_RETRY_DELAY)


async def _request_name(connection: Connection) -> None:
    # 4 is DBUS_NAME_FLAG_DO_NOT_QUEUE: a second daemon logs the conflict instead of waiting.
    (result,) = await connection.call(*BUS, "RequestName", "su", NAME, 4)
    if result != 1:
        raise BusError(ERROR + "NameExists", f"another process owns {NAME} on the bus")
