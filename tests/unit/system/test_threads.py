"""Threads for blocking calls, also if the kernel refuses threads for a time."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ipv6natd.system import threads as background
from ipv6natd.system.threads import in_thread


def test_in_thread_retries_after_a_refused_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start, refusals = threading.Thread.start, [None] * 3

    def refusing(thread: threading.Thread) -> None:
        if refusals:
            refusals.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refusing)
    monkeypatch.setattr(background, "RETRY_DELAY", 0.001)
    assert asyncio.run(in_thread(lambda: 7)) == 7
    (message,) = caplog.messages
    assert message.startswith("can't start new thread; memory")
