"""Runs blocking calls in daemon threads, so that a stop does not wait for them.

asyncio joins its own executor when the loop closes: a call that hangs on a dead engine would delay
the stop. The result of a call that ends after the loop is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)

RETRY_DELAY = 0.5
"""Seconds before the next attempt to start a thread."""


async def start_thread(name: str, work: Callable[[], None]) -> None:
    """Start a daemon thread; retry until the kernel allows it.

    The kernel refuses threads while memory or the task limit is exhausted. If this lasts, the
    watchdog restarts the service.
    """
    refused = False
    while True:
        try:
            threading.Thread(target=work, name=name, daemon=True).start()
            return
        except RuntimeError as error:
            if not refused:
                log.error("%s; memory or the task limit may be exhausted; retrying", error)
            refused = True
            await asyncio.sleep(RETRY_DELAY)


async def in_thread(call: Callable[[], T]) -> T:
    """Run `call` in a new thread; return its result or raise its exception."""
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
        with contextlib.suppress(RuntimeError):  # the loop is closed: the result is dropped
            loop.call_soon_threadsafe(settle, result, error)

    await start_thread(getattr(call, "__name__", "call"), work)
    return await future


class Worker:
    """Runs calls in threads, one at a time."""

    def __init__(self) -> None:
        self._one_at_a_time = asyncio.Lock()
        self._began: float | None = None

    @property
    def busy_for(self) -> float:
        """Seconds since the current call began; 0 between two calls."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    async def run(self, call: Callable[[], T]) -> T:
        """Run `call` after the earlier calls; see `in_thread`."""
        async with self._one_at_a_time:
            self._began = time.monotonic()
            try:
                return await in_thread(call)
            finally:
                self._began = None
