"""Waiting in a running event loop for something to become true."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

PATIENCE = 5.0
"""Seconds; nothing here takes a tenth of a second."""


async def until(holds: Callable[[], object]) -> None:
    """Return as soon as `holds()` is true; fail when it never is."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "this never became true"
        await asyncio.sleep(0.002)


@asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Run `work` beside the block; whatever it raises on its own, the block's end raises."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=PATIENCE)
        assert done, "this did not stop when it was told to"
    if not task.cancelled():
        task.result()
