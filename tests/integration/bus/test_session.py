"""A bus that is missing, ends and starts again, or on which another process owns our name."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from ipv6natd.dbus.connection import BusError
from ipv6natd.dbus.service import BusService, serve
from tests.harness.waiting import until
from tests.integration.bus.conftest import (
    Bus,
    FakeSource,
    ask,
    client,
    mapping,
    owned,
    run,
    serving,
    status,
)


def test_service_reconnects_after_the_bus_restarts(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status(mapping()))) as service:
            for _ in range(3):
                bus.stop()
                await until(lambda: service._connection is None)
                service.publish(status(), status(mapping(), generation=2))
                await asyncio.sleep(0.3)
                bus.start()
                await owned(service)
                async with client(bus) as root:
                    assert len(await ask(root, "ListMappings")) == 1

    run(body())
    assert "the system bus closed the connection; trying again" in caplog.text


def test_missing_bus_is_retried_with_backoff_and_logged_once(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    bus.stop()
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    async def body() -> None:
        service = BusService(FakeSource(status()))
        task = asyncio.create_task(serve(service, bus.address, pause=pause))
        await until(lambda: len(pauses) > 12)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with caplog.at_level(logging.INFO):
        run(body())
    assert pauses[:9] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0]
    assert max(pauses) == 30.0
    assert caplog.text.count("cannot reach the system bus") == 1


def test_name_owned_by_another_process_is_taken_once_free(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status())):
            second = BusService(FakeSource(status(mapping())))
            task = asyncio.create_task(serve(second, bus.address))
            await until(lambda: "another process owns org.ipv6natd1" in caplog.text)
            assert second._connection is None
        await owned(second)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    run(body())


def test_pending_calls_end_when_the_connection_closes(bus: Bus) -> None:
    async def body() -> None:
        source = FakeSource(status())
        source.gate = asyncio.Event()
        async with serving(bus, source) as service:
            async with client(bus) as root:
                waiting = asyncio.create_task(ask(root, "Resync"))
                await until(lambda: service._limits._calls_of_sender)
                bus.stop()
                with pytest.raises(BusError):
                    await waiting
            await until(lambda: not service._tasks)
            assert not service._limits._calls_of_sender

    run(body())
