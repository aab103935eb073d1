"""The service in a process of its own, so that its memory can be measured."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from ipv6natd.dbus.service import BusService, serve
from tests import ROOT
from tests.integration.bus.conftest import Bus, FakeSource, mapping, owned, status


@contextlib.asynccontextmanager
async def serving_apart(bus: Bus, *, rows: int = 0) -> AsyncIterator[int]:
    """The process id of the service, which owns its name.

    With `rows` it has as many mappings of 60 kB, and rules as long as all of them.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, bus.address, str(rows)),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"MALLOC_ARENA_MAX": "1"},  # as in the unit
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"serving\n"
    try:
        yield process.pid
    finally:
        process.kill()
        await process.communicate()


def peak(pid: int) -> int:
    """Largest resident size of the process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (size,) = (int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return size >> 10


async def _serve(address: str, rows: int) -> None:
    source = FakeSource(status(mapping()))
    if rows:
        source = FakeSource(status(*(mapping(row, name="x" * 60_000) for row in range(rows))))
        source.text = "x" * 60_000 * rows
    service = BusService(source)
    task = asyncio.create_task(serve(service, address))
    await owned(service)
    print("serving", flush=True)
    await task


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
