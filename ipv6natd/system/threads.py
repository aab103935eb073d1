"""Blocking calls off the event loop, in threads that nobody has to wait for at the end.

asyncio's own executor is joined when the loop closes: a call that hangs on a dead engine would
then hold up the stop. These threads are daemons; what they return too late is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)

RETRY_DELAY = 0.5
"""Seconds before a thread is asked for again."""


async def start_thread(name: str, work: Callable[[], None]) -> None:
    """Start a thread that nobody waits for.

    A kernel that is short of memory, or a limit of tasks, may refuse one for a while. That is no
    reason to end; if it lasts, the watchdog tells.
    """
    refused = False
    while True:
        try:
            threading.Thread(target=work, name=name, daemon=True).start()
            return
        except RuntimeError as error:
            if not refused:
                log.error("%s; is memory or the number of tasks used up? trying again", error)
            refused = True
            await asyncio.sleep(RETRY_DELAY)


async def in_thread(call: Callable[[], T]) -> T:
    """Run `call` in a thread of its own and return or raise what it does."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def work() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = call()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    await start_thread(getattr(call, "__name__", "call"), work)
    return await future
