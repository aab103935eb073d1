"""The host boots with its containers and the service."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.harness.namespace import Namespace
from tests.harness.probe import Address, Failure
from tests.system.boot.host import QUIET, Host, page


def test_a_reboot_brings_everything_back_and_opens_nothing_on_the_way(host: Host) -> None:
    host.run("systemctl", "reboot")
    host.await_off()
    host.plug()
    with knocks(host.sandbox.rogue) as answers:
        host.boot()
        host.await_served()
        host.await_state('s "synced"')
    assert set(answers) <= {Failure.TIMEOUT, Failure.UNREACHABLE, Failure.REFUSED}
    assert len(answers) > 20
    # There was somebody to answer.
    assert page(host.sandbox.host, QUIET, 80) not in set(Failure)


@contextmanager
def knocks(ns: Namespace) -> Iterator[list[Address | Failure]]:
    """What comes of asking the container that publishes nothing, over and over, by way of a route
    through the host."""
    answers: list[Address | Failure] = []
    stop = threading.Event()

    def body() -> None:
        while not stop.is_set():
            answers.append(page(ns, QUIET, 80, timeout=0.05))

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join()
