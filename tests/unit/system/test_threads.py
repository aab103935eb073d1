"""Threads for blocking calls, also where the kernel gives none for a while."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ipv6natd.system import threads as background
from ipv6natd.system.threads import in_thread


def test_a_thread_that_is_refused_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start, refusals = threading.Thread.start, [None] * 3

    def stingy(thread: threading.Thread) -> None:
        if refusals:
            refusals.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", stingy)
    monkeypatch.setattr(background, "RETRY_DELAY", 0.001)
    assert asyncio.run(in_thread(lambda: 7)) == 7
    (message,) = caplog.messages
    assert message.startswith("can't start new thread; is memory")
