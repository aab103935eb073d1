"""The object /org/freedesktop/LogControl1, used by `systemctl service-log-level` and `busctl`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipv6natd.dbus.connection import ERROR, BusError
from ipv6natd.dbus.objects import LOG_CONTROL, LOG_CONTROL_PATH, NAME, PROPERTIES
from ipv6natd.dbus.wire import Variant
from ipv6natd.system import logs
from tests.harness.needs import need
from tests.integration.bus.conftest import (
    Bus,
    FakeSource,
    ask,
    client,
    command,
    run,
    serving,
    status,
)


@pytest.fixture(autouse=True)
def _restore_log_level() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


def test_busctl_sets_and_reads_the_log_level(bus: Bus) -> None:
    need("busctl")

    async def body() -> None:
        async with serving(bus, FakeSource(status())):
            busctl = ("busctl", f"--address={bus.address}")
            where = (NAME, LOG_CONTROL_PATH, LOG_CONTROL)
            for name in logs.LEVELS:
                set_ = ("set-property", *where, "LogLevel", "s", name)
                assert await command(bus, *busctl, *set_) == (0, "", "")
                get = ("get-property", *where, "LogLevel", "LogTarget", "SyslogIdentifier")
                code, out, _ = await command(bus, *busctl, *get)
                assert (code, out) == (0, f's "{name}"\ns "console"\ns "ipv6natd"\n')

    run(body())


@pytest.mark.parametrize(
    ("name", "value", "error", "text"),
    [
        ("LogLevel", "loud", "InvalidArgs", "LogLevel is one of emerg, alert, .*, not 'loud'"),
        ("LogTarget", "kmsg", "InvalidArgs", "LogTarget is one of journal, console, not 'kmsg'"),
        ("LogTarget", "journal", "FileNotFound", "cannot be reached at .*/none"),
        ("SyslogIdentifier", "x", "PropertyReadOnly", "SyslogIdentifier can only be read"),
        ("Nope", "x", "UnknownProperty", "no property 'Nope'"),
    ],
)
def test_invalid_log_property_returns_an_error_and_changes_nothing(
    bus: Bus,
    name: str,
    value: str,
    error: str,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "SOCKET", f"{tmp_path}/none")

    async def body() -> None:
        async with serving(bus, FakeSource(status())), client(bus) as root:
            before = (logs.level(), logs.target())
            packed = Variant("s", value)
            with pytest.raises(BusError, match=text) as caught:
                await ask(
                    *(root, "Set", "ssv", LOG_CONTROL, name, packed),
                    interface=PROPERTIES,
                    path=LOG_CONTROL_PATH,
                )
            assert caught.value.name == ERROR + error
            assert (logs.level(), logs.target()) == before

    run(body())


def test_plain_user_reads_the_log_level_and_cannot_set_it(bus: Bus) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status())), client(bus, uid=65534) as nobody:
            got = await nobody.call(
                NAME, LOG_CONTROL_PATH, PROPERTIES, "Get", "ss", LOG_CONTROL, "LogLevel"
            )
            assert got == [logs.level()]
            packed = Variant("s", "debug")
            words = (
                NAME,
                LOG_CONTROL_PATH,
                PROPERTIES,
                "Set",
                "ssv",
                LOG_CONTROL,
                "LogLevel",
                packed,
            )
            with pytest.raises(BusError, match="sudo systemctl service-log-level ipv6natd"):
                await nobody.call(*words)

    run(body())
