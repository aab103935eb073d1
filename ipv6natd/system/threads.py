"""Runs blocking calls in daemon threads, so that a stop does not wait for them.

asyncio joins its own executor when the loop closes: a call that hangs on a dead engine would delay
the stop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)

RETRY_DELAY = 0.5
"""Seconds before the next attempt to start a thread."""


def start_thread(call: Callable[[], object], name: str) -> None:
    """Run `call` in a new thread. Raises RuntimeError if the kernel refuses the thread."""
    threading.Thread(target=call, name=name, daemon=True).start()


async def in_thread(call: Callable[[], T]) -> T:
    """Run `call` in a new thread; return its result or raise its exception.

    If the caller is cancelled, the call continues and its result is dropped. The kernel refuses
    threads while memory or the task limit is exhausted. If this lasts, the watchdog restarts the
    service.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    name, refused = getattr(call, "__name__", "call"), False
    while True:
        try:
            start_thread(work, name)
        except RuntimeError as error:
            if not refused:
                log.error("%s; memory or the task limit may be exhausted; retrying", error)
            refused = True
            await asyncio.sleep(RETRY_DELAY)
        else:
            return await asyncio.wrap_future(future)
