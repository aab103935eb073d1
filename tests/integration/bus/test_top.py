"""`ipv6natctl top`, once and live on a terminal."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import signal
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace

import pytest

from ipv6natd.ctl.top import _ENTER, _LEAVE
from ipv6natd.host.findings import Finding, Topic
from ipv6natd.model import ManagedBy
from tests.integration.bus.conftest import (
    CTL,
    Bus,
    FakeSource,
    command,
    mapping,
    run,
    serving,
    status,
)

WAIT = 20.0
"""Seconds for a slow machine."""
OFF = Finding(topic=Topic.FORWARDING, problem="it is off; now", command="sysctl -w a=1")


def test_list_is_printed_once_without_a_terminal_the_busiest_first(bus: Bus) -> None:
    async def body() -> None:
        native = replace(mapping(2, "db"), managed_by=ManagedBy.ENGINE)
        async with serving(bus, FakeSource(status(mapping(), mapping(1, "a\nb"), native))):
            _, out, _ = await command(bus, *CTL, "top", "--json=short")
            assert [(row["HostPort"], row["Connections"]) for row in json.loads(out)] == [
                (8001, 8001),
                (8000, 8000),
                (8002, None),
            ]
            code, out, err = await command(bus, *CTL, "top")
        assert (code, err) == (0, "")
        assert out == (
            "RATE CONNECTIONS PROTOCOL HOST      CONTAINER NETWORK\n"
            "-    16002       tcp      [::]:8001 a\\nb      front\n"
            "-    16000       tcp      [::]:8000 web       front\n"
            "-    -           tcp      [::]:8002 db        front\n"
            "\n"
            "3 mappings.\n"
        )

    run(body())


class Terminal:
    """`ipv6natctl top` on a terminal of 12 lines."""

    def __init__(self, controller: int, process: asyncio.subprocess.Process) -> None:
        self.controller, self.process = controller, process
        self.text = ""
        os.set_blocking(controller, False)

    async def until(self, words: str) -> None:
        """Wait until the words are on the terminal."""
        async with asyncio.timeout(WAIT):
            while words not in self.text:
                await asyncio.sleep(0.05)
                self.read()

    def read(self) -> None:
        with suppress(OSError):  # nothing to read, or nobody has the terminal open
            self.text += os.read(self.controller, 1 << 16).decode()

    async def ended(self) -> int:
        async with asyncio.timeout(WAIT):
            code = await self.process.wait()
        self.read()
        return code


@asynccontextmanager
async def live(bus: Bus) -> AsyncIterator[Terminal]:
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 12, 80, 0, 0))
    before = termios.tcgetattr(terminal)
    env = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": bus.address, "TERM": "xterm"}
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig=KILL", "setsid", "--ctty", *CTL, "top"),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=env,
    )
    shown = Terminal(controller, process)
    try:
        yield shown
        assert termios.tcgetattr(terminal) == before
        assert shown.text.count(_ENTER) == shown.text.count(_LEAVE) == 1
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(controller)
        os.close(terminal)


def test_live_list_has_rates_changes_and_findings_and_ends_with_q(bus: Bus) -> None:
    async def body() -> None:
        many = [mapping(number, f"c{number}") for number in range(30)]
        old = status(*many, findings=(OFF,))
        source = FakeSource(old)
        async with serving(bus, source) as service, live(bus) as shown:
            await shown.until("c29")
            assert "it is off; now: sysctl -w a=1" in shown.text
            page = shown.text.rpartition("\x1b[H")[2]
            assert page.count("\n") < 12
            source.now = status(*many[1:], findings=(), generation=2)
            service.publish(old, source.now)
            await shown.until("-> c0 ")
            await shown.until("/s ")
            assert "it is off" not in shown.text.rpartition("\x1b[H")[2]
            os.write(shown.controller, b"q")
            assert await shown.ended() == 0

    run(body())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_terminal_is_restored_after_a_signal(bus: Bus, number: signal.Signals) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status(mapping()))), live(bus) as shown:
            await shown.until("web")
            shown.process.send_signal(number)
            assert await shown.ended() == 0

    run(body())


@pytest.mark.parametrize(("what", "code"), [("daemon", 3), ("bus", 1)])
def test_terminal_is_restored_when_the_daemon_or_the_bus_ends(
    bus: Bus, what: str, code: int
) -> None:
    async def body() -> None:
        async with AsyncExitStack() as daemon:
            await daemon.enter_async_context(serving(bus, FakeSource(status(mapping()))))
            async with live(bus) as shown:
                await shown.until("web")
                if what == "bus":
                    bus.stop()
                else:
                    await daemon.aclose()
                assert await shown.ended() == code

    run(body())
