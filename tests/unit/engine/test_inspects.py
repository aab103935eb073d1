"""Which objects are inspected next: see ipv6natd.engine.inspects."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from ipv6natd.engine import inspects
from ipv6natd.engine.inspects import MAX_POLLS, InspectQueue, NetworkPolls


def test_network_that_does_not_answer_delays_no_poll_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inspects, "ports_in_use", frozenset)
    monkeypatch.setattr(inspects, "POLL_TIMEOUT", 0.01)
    asked: Counter[str] = Counter()
    complete = asyncio.Event()
    queue = InspectQueue()
    polls = NetworkPolls(queue)

    async def answer() -> None:
        while True:
            subject, _ = await queue.next("network")
            asked[subject.id] += 1
            if subject.id != "hangs":
                queue.done(subject)
            if asked["answers"] == MAX_POLLS:
                complete.set()

    async def scenario() -> None:
        tasks = [asyncio.create_task(run()) for run in (polls.run, answer)]
        for network_id in ("hangs", "answers"):
            polls.begin(network_id)
        async with asyncio.timeout(10):
            await complete.wait()
        for task in tasks:
            task.cancel()

    asyncio.run(scenario())
    assert asked["hangs"] == 1
