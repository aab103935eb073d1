"""The service in a process of its own, so that its memory can be measured."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from ipv6natd.dbus.service import BusService, serve
from tests import ROOT
from tests.integration.bus.conftest import Bus, FakeSource, mapping, status


@contextlib.asynccontextmanager
async def serving_apart(bus: Bus) -> AsyncIterator[int]:
    """The process id of the service, which owns its name."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, bus.address),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
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


async def _serve(address: str) -> None:
    service = BusService(FakeSource(status(mapping())))
    task = asyncio.create_task(serve(service, address))
    await service.owned.wait()
    print("serving", flush=True)
    await task


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
