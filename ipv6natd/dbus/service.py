"""The bus service: a connection that comes back, callers kept apart, and who hears what.

It decides nothing about rules, and the rules do not wait for it: without a bus it only keeps
trying. What the service has is in dbus_members.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from ipv6natd.dbus import connection as bus
from ipv6natd.dbus.connection import BUS, ERROR, BusError, Call, Connection, Signal
from ipv6natd.dbus.limits import Limits
from ipv6natd.dbus.members import Members, Method, Source, called
from ipv6natd.dbus.objects import NAME
from ipv6natd.dbus.polkit import Authority
from ipv6natd.dbus.signals import emit
from ipv6natd.report.status import Row, Status

log = logging.getLogger(__name__)

FAILED = "org.ipv6natd1.Error.Failed"

MAX_UNSENT = 1000
"""Messages waiting for the bus above which signals are left out: nobody is reading."""
FIRST_DELAY, LAST_DELAY = 0.2, 30.0
"""Seconds between two tries to reach the bus."""


class Follower(Protocol):
    """Who wants to hear of other services, over the connection that serves."""

    async def join(self, connection: Connection) -> None:
        """The connection is there."""
        ...

    def heard(self, signal: Signal) -> None:
        """A signal came; must not wait."""
        ...

    def leave(self) -> None:
        """The connection has ended."""
        ...


class BusService:
    """org.ipv6natd1 for as long as the daemon lives, over as many connections as that takes."""

    def __init__(self, source: Source, *followers: Follower) -> None:
        """Serve what `source` says; `serve` does the work. `followers` listen on the side."""
        self._members = Members(source)
        self._authority = Authority()
        self._followers = (self._authority, *followers)
        self._connection: Connection | None = None
        self._limits = Limits()
        self._tasks: set[asyncio.Task[None]] = set()
        self.owned = asyncio.Event()
        """Set while the name is ours."""

    async def session(self, address: str | None = None, *, again: bool = False) -> None:
        """One connection, from hello to its end; BusError when the name could not be had.

        `again`: the journal has said what was wrong, and has to say that it is over.
        """
        connection = await bus.connect(
            address,
            on_call=self._on_call,
            on_signal=self._heard,
            max_message=bus.MAX_MESSAGE,
            max_arrays=bus.MAX_ARRAYS,
        )
        try:
            await self._join(connection)
            await _own(connection)
            log.log(logging.INFO if again else logging.DEBUG, "serving %s on the bus", NAME)
            self._connection = connection
            self.owned.set()
            await connection.closed()
        finally:
            self.owned.clear()
            self._connection = None
            for follower in self._followers:
                follower.leave()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._limits.clear()
            await connection.flush(1.0)
            connection.close()

    async def _join(self, connection: Connection) -> None:
        try:
            for follower in self._followers:
                await follower.join(connection)
        except BusError as error:
            log.warning("other services on the bus cannot be followed: %s", error.text)

    def _heard(self, signal: Signal) -> None:
        for follower in self._followers:
            follower.heard(signal)

    def publish(self, old: Status, new: Status, drift: Row | None = None) -> None:
        """Tell listeners what a sync changed; nothing happens while there is no bus."""
        if old.generation != new.generation:
            self._members.lists.forget()
        connection = self._connection
        if connection is None or connection.unsent > MAX_UNSENT:
            return
        try:
            emit(connection, old, new, drift)
        except Exception:
            log.exception("the signals of a sync could not be sent")  # the rules go on

    def _on_call(self, call: Call) -> None:
        try:
            if call.cut:
                text = f"the arguments of {call.member} are too long: {call.size} bytes in all"
                raise BusError(ERROR + "LimitsExceeded", text)
            method = called(call)
            method.check(self._members, call)
            if method.action is None and self._limits.fits(call):
                answer = method.answer(self._members, call)
                assert isinstance(answer, list)  # nobody waits where everybody may
                self._limits.sent(call, call.connection.reply(call, method.returns, answer))
                return
            self._limits.begin(call)
        except Exception as error:
            self._refuse(call, error)
            return
        task = asyncio.create_task(self._answer(call, method))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, call: Call, method: Method) -> None:
        try:
            uid = self._authority.known_user(call)
            if uid is None:
                with self._limits.unidentified(call):
                    uid = await self._authority.user(call)
            with self._limits.of_user(uid):
                await self._answer_user(replace(call, uid=uid), method)
        except Exception as error:
            self._refuse(call, error)
        finally:
            self._limits.end(call)

    async def _answer_user(self, call: Call, method: Method) -> None:
        if method.action is not None:
            await self._authority.check(call, method.action)
        answer = method.answer(self._members, call)
        result = answer if isinstance(answer, list) else await answer
        if isinstance(result, bytes):
            await self._limits.wait_for_room(call, len(result))
            size = call.connection.reply_marshalled(call, method.returns, result)
        else:
            await self._limits.wait_for_room(call)
            size = call.connection.reply(call, method.returns, result)
        self._limits.sent(call, size)

    def _refuse(self, call: Call, error: Exception) -> None:
        if not isinstance(error, BusError):
            log.error("%s failed", call.member, exc_info=error)
            text = f"{call.member} failed; the journal says why: journalctl -u ipv6natd"
            error = BusError(FAILED, text)
        self._limits.sent(call, call.connection.refuse(call, error))


async def serve(
    service: BusService,
    address: str | None = None,
    *,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Keep the name on the bus until cancelled. Never raises: rules are kept without a bus too."""
    delay, said = FIRST_DELAY, ""
    while True:
        try:
            await service.session(address, again=bool(said))
            delay, said, text = FIRST_DELAY, "", "the system bus closed the connection"
        except BusError as error:
            text = error.text
        except Exception:
            log.exception("the bus service failed")
            text = "the bus service failed"
        # Once for each trouble, not once for each try.
        log.log(logging.DEBUG if text == said else logging.WARNING, "%s; trying again", text)
        said = text
        await pause(delay)
        delay = min(delay * 2, LAST_DELAY)


async def _own(connection: Connection) -> None:
    # 4: do not queue, so that the second of two daemons says so instead of waiting in silence.
    (result,) = await connection.call(*BUS, "RequestName", "su", NAME, 4)
    if result != 1:
        raise BusError(ERROR + "NameExists", f"another process owns {NAME} on the bus")
