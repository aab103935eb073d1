"""At most one daemon in a network namespace."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ipv6natd.system import instance
from ipv6natd.system.instance import OtherInstanceError, only_instance

HOLD = """
import sys
from ipv6natd.system import instance
instance.NAME = "\\0" + sys.argv[1]
with instance.only_instance():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def name(monkeypatch: pytest.MonkeyPatch) -> str:
    """A name of its own: a daemon may run on this machine."""
    text = f"ipv6natd-test-{os.getpid()}"
    monkeypatch.setattr(instance, "NAME", f"\0{text}")
    return text


@pytest.fixture
def other(name: str) -> Iterator[int]:
    """Another process that holds the name."""
    argv = [sys.executable, "-c", HOLD, name]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process.pid
        process.communicate()


def test_second_daemon_is_refused_however_often_it_asks(other: int) -> None:
    for _ in range(200):
        with pytest.raises(OtherInstanceError, match=rf"\(process {other}\); stop it first"):
            only_instance().__enter__()


def test_name_is_free_when_the_daemon_has_ended() -> None:
    for _ in range(2):
        with only_instance():
            for _ in range(300):
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
                    asking.connect(instance.NAME)
            with pytest.raises(OtherInstanceError):
                only_instance().__enter__()


def test_name_of_another_user_does_not_stop_the_daemon(
    other: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert other
    owner = instance._CREDENTIALS.pack(other, 1000, 1000)
    monkeypatch.setattr(socket.socket, "getsockopt", lambda *_: owner)
    with only_instance():
        pass
    assert "a second ipv6natd would not be noticed" in caplog.text
