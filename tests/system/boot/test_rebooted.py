"""The host boots with its containers and the service."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.harness.namespace import Namespace
from tests.harness.probe import Address, Failure
from tests.system.boot.host import QUIET, Host, page


def test_reboot_restores_published_ports_and_opens_no_other_port(host: Host) -> None:
    host.run("systemctl", "reboot")
    host.await_off()
    host.plug()
    with requests_to_quiet(host.sandbox.rogue) as answers:
        host.boot()
        host.await_served()
        host.await_state('s "synced"')
    assert set(answers) <= {Failure.TIMEOUT, Failure.UNREACHABLE, Failure.REFUSED}
    assert len(answers) > 20
    # The container answers the host, so silence above is the work of the rules.
    assert page(host.sandbox.host, QUIET, 80) not in set(Failure)


@contextmanager
def requests_to_quiet(ns: Namespace) -> Iterator[list[Address | Failure]]:
    """The results of repeated requests to the container without published ports, by a route
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
