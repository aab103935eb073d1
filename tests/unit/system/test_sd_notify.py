"""The datagrams that systemd receives."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipv6natd.system.sd_notify import Notifier, watchdog_interval


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(f"{tmp_path}/notify")
        server.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
        yield server


@pytest.fixture
def notifier(systemd: socket.socket) -> Iterator[Notifier]:
    assert systemd.fileno() >= 0
    notifier = Notifier()
    yield notifier
    notifier.close()


def test_notifier_sends_one_datagram_per_state(systemd: socket.socket, notifier: Notifier) -> None:
    notifier.ready("2 mappings")
    notifier.status("synced")
    notifier.stopping()
    notifier.watchdog()
    assert [systemd.recv(4096) for _ in range(4)] == [
        b"READY=1\nSTATUS=2 mappings",
        b"STATUS=synced",
        b"STOPPING=1",
        b"WATCHDOG=1",
    ]


def test_reloading_contains_the_time(systemd: socket.socket, notifier: Notifier) -> None:
    notifier.reloading()
    assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]+", systemd.recv(4096))


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("a\nREADY=1\r\nb", "a READY=1 b"),
        ("a\u2028b\0c", "a b c"),
        ("käse → 容器", "käse → 容器"),
        ("\ud800", r"\ud800"),
        ("a\x1b[31mb\x9b\u202e", r"a\x1b[31mb\x9b\u202e"),
        ("", ""),
    ],
    ids=ascii,
)
def test_status_is_one_line_of_utf8(
    systemd: socket.socket, notifier: Notifier, text: str, sent: str
) -> None:
    notifier.status(text)
    assert systemd.recv(4096) == f"STATUS={sent}".encode()


def test_long_status_is_cut_and_keeps_the_ready(systemd: socket.socket, notifier: Notifier) -> None:
    notifier.ready("ä" * 10_000)
    message = systemd.recv(1 << 20)
    assert message.startswith(b"READY=1\nSTATUS=\xc3\xa4")
    assert len(message) <= 4096
    message.decode()


def test_notifier_without_systemd_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier()
    notifier.ready("x")
    notifier.close()
    notifier.status("x")


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 20.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 20.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_interval_is_a_third_of_the_limit(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert watchdog_interval(environ) == seconds
