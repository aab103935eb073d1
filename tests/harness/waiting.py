"""Wait in a running event loop until a condition is true."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

PATIENCE = 5.0
"""Seconds. Each condition needs less than a tenth of a second."""


async def until(holds: Callable[[], object], *, limit: float = PATIENCE) -> None:
    """Return as soon as `holds()` is true; fail after `limit` seconds."""
    deadline = time.monotonic() + limit
    while not holds():
        assert time.monotonic() < deadline, "the condition stayed false"
        await asyncio.sleep(0.002)


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Run `work` during the block. The end of the block raises the exception of `work`."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=PATIENCE)
        assert done, "the task did not end after its cancellation"
    if not task.cancelled():
        task.result()
