"""A private system bus with the shipped policy, a fake source, the service, and clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from ipv6natd.dbus.connection import CALL_TIMEOUT, Connection, OnSignal, Signal, connect
from ipv6natd.dbus.objects import MANAGER, NAME, PATH
from ipv6natd.dbus.service import BusService, serve
from ipv6natd.host.findings import Finding, Severity, Topic
from ipv6natd.model import ManagedBy, Mapping, Network, Protocol, Skipped
from ipv6natd.netfilter.docker_rules import Leftover
from ipv6natd.report.explain import Explanation
from ipv6natd.report.ports import ConnectionsRow
from ipv6natd.report.status import State, Status, SyncResult, mapping_id
from ipv6natd.report.traces import StepRow, TraceRow
from tests import ROOT
from tests.harness.needs import need

POLICY = ROOT / "dbus" / "org.ipv6natd1.conf"
CTL = (sys.executable, "-c", "from ipv6natd.ctl import main; main()")
PLAIN_CTL = (
    sys.executable,
    "-c",
    # After the imports: a plain user may be unable to read the source tree.
    "import os, shutil; from ipv6natd.ctl import main; os.setgroups([]); os.setuid(65534);main()",
)
NOBODY = ("setpriv", "--reuid=65534", "--clear-groups")

POLKIT = "/usr/share/dbus-1/system.d/org.freedesktop.PolicyKit1.conf"

# Debian's system.conf and the shipped policy, with two differences. Root may send everything, so
# that a test can send messages that the policy denies. A caller may have more than 128 pending
# calls, so that a test reaches the limits of the service and not the bus daemon's.
CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>{address}</listen>
  <auth>EXTERNAL</auth>
  <limit name="max_replies_per_connection">50000</limit>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"
           send_interface="org.freedesktop.DBus"/>
  </policy>
  <include>{policy}</include>
  <policy user="root">
    <allow send_destination="*"/>
    <allow own="org.freedesktop.PolicyKit1"/>
    <allow own="org.freedesktop.systemd1"/>
  </policy>
  <include ignore_missing="yes">{polkit}</include>
</busconfig>
"""


class Bus:
    """A dbus-daemon that can be stopped, started, paused and resumed at one address."""

    def __init__(self, folder: Path) -> None:
        self.address = f"unix:path={folder}/socket"
        self._config = folder / "bus.conf"
        self._config.write_text(CONFIG.format(address=self.address, policy=POLICY, polkit=POLKIT))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = (f"--config-file={self._config}", "--nofork", "--print-address", "--nopidfile")
        # Even a killed test run leaves no process.
        command = ("setpriv", "--pdeathsig=KILL", "dbus-daemon", *options)
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self._process = process
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"unix:")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@pytest.fixture
def bus() -> Iterator[Bus]:
    need("dbus-daemon")
    # Not tmp_path: a plain user must reach the socket, and only the owner can read tmp_path.
    folder = Path(tempfile.mkdtemp(prefix="ipv6natd-bus-"))
    folder.chmod(0o755)
    daemon = Bus(folder)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()
        shutil.rmtree(folder)


class FakeSource:
    """A source with the values that the test sets."""

    def __init__(self, status: Status) -> None:
        self.now = status
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.left: tuple[Leftover, ...] = ()
        self.text = "*filter\nCOMMIT\n"
        self.done: list[str] = []
        self.explained: list[Explanation] = []
        self.reads = 0
        """Calls of `connections`."""

    def status(self) -> Status:
        return self.now

    async def resync(self) -> SyncResult:
        await self._do("resync")
        return SyncResult(generation=7, rules_added=3, rules_removed=1, duration_ms=12)

    async def reload(self) -> None:
        await self._do("reload")

    async def cleanup(self) -> None:
        await self._do("cleanup")

    async def leftovers(self) -> tuple[Leftover, ...]:
        return self.left

    async def remove_leftovers(self) -> tuple[Leftover, ...]:
        await self._do("remove_leftovers")
        self.left, left = (), self.left
        return left

    async def connections(self) -> list[ConnectionsRow]:
        self.reads += 1
        return [
            ConnectionsRow(id=mapping_id(one), connections=self.reads * one.host_port)
            for one in self.now.mappings
            if one.managed_by is ManagedBy.IPV6NATD
        ]

    async def trace(self, _asked: str, source: str) -> list[TraceRow]:
        step = StepRow(
            table="filter",
            hook="FORWARD",
            chain="FORWARD",
            rule="-j DROP",
            verdict="DROP",
            by="other",
        )
        row = TraceRow(
            protocol="tcp",
            source=source,
            interface="eth0",
            host_address="2001:db8::1",
            host_port=8080,
            fate="dropped",
            reason="it is dropped by other: -t filter -A FORWARD -j DROP",
            steps=(step,),
        )
        return [row]

    async def findings(self) -> tuple[Finding, ...]:
        return self.now.findings

    async def explain(self, query: str) -> list[Explanation]:
        return [row for row in self.explained if query in row.container_name]

    async def _do(self, what: str) -> None:
        if self.error is not None:
            raise self.error
        if self.gate is not None:
            await self.gate.wait()
        self.done.append(what)

    def facts_text(self) -> str:
        return '{"snapshot": {}, "policy": {}}'

    def ruleset_text(self) -> str:
        if self.error is not None:
            raise self.error
        return self.text


def mapping(number: int = 0, name: str = "web") -> Mapping:
    return Mapping(
        container_id=f"{number:064x}",
        container_name=name,
        network_id="e" * 64,
        network_name="front",
        bridge="br-0123456789ab",
        protocol=Protocol.TCP,
        host_address=IPv6Address("::"),
        host_port=8000 + number,
        container_address=IPv6Address("fd00:a::2"),
        container_port=80,
    )


def warning(text: str) -> Finding:
    return Finding(topic=Topic.NETWORK, severity=Severity.WARNING, problem=text, network="front")


def status(*mappings: Mapping, **changes: Any) -> Status:
    network = Network(
        id="e" * 64,
        name="front",
        driver="bridge",
        bridge="br-0123456789ab",
        subnets=(IPv6Network("fd00:a::/64"),),
        warnings=("first", "second"),
    )
    skipped = Skipped(container_name="db", network="front", port="5432/tcp", reason="taken by web")
    full = Status(
        version="1.2.3",
        state=State.SYNCED,
        backend="nft",
        engine_version="20.10.24",
        docker_connected=True,
        generation=1,
        last_sync=1_700_000_000_000_000,
        mappings=mappings,
        networks=(network,),
        skipped=(skipped,),
        findings=tuple(map(warning, network.warnings)),
    )
    return replace(full, **changes)


def run(body: Coroutine[Any, Any, None], *, seconds: float = 60) -> None:
    """Run the body with a time limit, and fail if the event loop caught an exception."""
    swallowed: list[dict[str, Any]] = []

    async def bounded() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: swallowed.append(context))
        async with asyncio.timeout(seconds):
            await body

    asyncio.run(bounded())
    assert not swallowed


async def owned(service: BusService) -> None:
    """Wait until the service owns its name."""
    while service._connection is None:  # noqa: ASYNC110 - the service has no event for it
        await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def serving(bus: Bus, source: FakeSource) -> AsyncIterator[BusService]:
    """The service on the bus, which owns its name."""
    service = BusService(source)
    task = asyncio.create_task(serve(service, bus.address))
    try:
        await owned(service)
        yield service
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.asynccontextmanager
async def client(
    bus: Bus, on_signal: OnSignal | None = None, *, uid: int = 0
) -> AsyncIterator[Connection]:
    """A user's connection; with `on_signal` it subscribes to all signals of the service."""

    def ours(it: Signal) -> None:
        if on_signal is not None and it.sender != "org.freedesktop.DBus":
            on_signal(it)

    os.setresuid(uid, uid, 0)  # the bus daemon reads the uid of the peer from the kernel
    try:
        connection = await connect(bus.address, on_signal=ours)
    finally:
        os.setresuid(0, 0, 0)
    try:
        if on_signal is not None:
            where = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
            await connection.call(*where, "AddMatch", "s", f"type='signal',path='{PATH}'")
        yield connection
    finally:
        connection.close()


async def ask(
    connection: Connection,
    member: str,
    signature: str = "",
    *args: Any,
    interface: str = MANAGER,
    path: str = PATH,
    timeout: float = CALL_TIMEOUT,  # noqa: ASYNC109
    interactive: bool = False,
) -> Any:
    """The only value of the reply; None for an empty reply."""
    values = await connection.call(
        *(NAME, path, interface, member, signature, *args),
        timeout=timeout,
        interactive=interactive,
    )
    return values[0] if values else None


def tool_environment(bus: Bus, folder: Path) -> dict[str, str]:
    """An environment in which `ipv6natctl`, a program in the folder, asks the private bus."""
    tool = folder / "ipv6natctl"
    words = " ".join(f"'{word}'" for word in CTL)
    tool.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    tool.chmod(0o755)
    return os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DBUS_SYSTEM_BUS_ADDRESS": bus.address,
    }


async def command(bus: Bus, *words: str) -> tuple[int, str, str]:
    """Exit code, output and error output of a command that uses the private bus."""
    process = await asyncio.create_subprocess_exec(
        *words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address, "LC_ALL": "C.UTF-8"},
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
