"""An engine that the administrator stopped stays stopped, although a connect would start it.

`systemd-socket-activate` replaces systemd: it listens and starts the real engine at the first
connect. A fake on the private bus reports the state of the two units.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from ipv6natd.dbus import connection as bus
from ipv6natd.dbus import wire as dbus_wire
from ipv6natd.dbus.connection import BUS
from tests.harness import Bus, Daemon, Engine, Sandbox, serve, until
from tests.harness.sandbox import Variant
from tests.system.packets.asking import opened

# The library is imported in one module, which prepares its import.
BusVariant = vars(dbus_wire)["Variant"]
SYSTEMD = "org.freedesktop.systemd1"
LONGER_THAN_A_RETRY = 5.0


@dataclass
class Units:
    """docker.socket, always active, and docker.service, in the state that the test sets."""

    socket: str
    service: str = "active"
    asked: int = 0

    def answer(self, call: bus.Call) -> None:
        unit, name = call.path.rsplit("/", 1)[-1], call.args[1]
        self.asked += 1
        if name == "Listen":
            value = BusVariant("a(ss)", [["Stream", self.socket]])
        else:
            state = "active" if unit == "docker_2esocket" else self.service
            value = BusVariant("s", state)
        call.connection.reply(call, "v", [value])


@contextmanager
def systemd(address: str, units: Units) -> Iterator[None]:
    """Run the fake in a thread with its own event loop, until the end of the context."""
    stop, ready = threading.Event(), threading.Event()

    async def play() -> None:
        connection = await bus.connect(address, on_call=units.answer)
        await connection.call(*BUS, "RequestName", "su", SYSTEMD, 4)
        ready.set()
        await asyncio.to_thread(stop.wait)
        connection.close()

    thread = threading.Thread(target=lambda: asyncio.run(play()), daemon=True)
    thread.start()
    try:
        assert ready.wait(30)
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    ("variant", "proxy"),
    [
        pytest.param("nft", True, id="nft-proxy"),
        pytest.param("legacy", False, id="legacy-noproxy", marks=pytest.mark.slow),
        pytest.param("nft", False, id="nft-noproxy", marks=pytest.mark.slow),
        pytest.param("legacy", True, id="legacy-proxy", marks=pytest.mark.slow),
    ],
)
def test_stopped_engine_is_not_started_by_a_connect(
    tools: None,  # noqa: ARG001
    variant: Variant,
    proxy: bool,
) -> None:
    with (
        Sandbox(variant) as sandbox,
        Engine(sandbox, userland_proxy=proxy) as engine,
        Bus(sandbox.dir, names=[SYSTEMD]) as private,
    ):
        units = Units(socket=str(engine.socket))
        with (
            systemd(private.address, units),
            Daemon(sandbox, engine.endpoint, bus=private.address) as daemon,
        ):
            engine.network("X", "fd00:a::/64")
            rules = until(sandbox.rules, lambda text: "brX" in text and "MASQUERADE" in text)
            units.service = "deactivating"
            engine.stop()
            units.service = "inactive"
            engine.start_on_demand()
            daemon.wait_state("waiting-for-docker")
            time.sleep(LONGER_THAN_A_RETRY)
            assert not engine.running
            assert "docker.service is inactive, and ipv6natd does not start it" in daemon.status
            assert sandbox.rules() == rules

            # After another process starts the engine, the daemon follows it again.
            units.service = "active"
            engine.await_answer()
            daemon.wait_state("synced")
            made = engine.run("x1", "X", publish=["8080:80"])
            with serve(made.ns, "x1", tcp=[80]):
                opened(sandbox.client, 8080)


def test_daemon_without_unit_states_connects_and_starts_the_engine(tools: None) -> None:  # noqa: ARG001
    """A check of the engine is a connect if no unit owns its socket, so the test above can fail."""
    with Sandbox() as sandbox, Engine(sandbox) as engine:
        engine.stop()
        engine.start_on_demand()
        assert not engine.running
        with Daemon(sandbox, engine.endpoint):
            assert until(lambda: engine.running, True, timeout=10)
