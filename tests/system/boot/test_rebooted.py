"""The host boots with its containers and the service."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.harness import until
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


@pytest.mark.slow
def test_firewall_that_starts_after_docker_costs_no_unit(host: Host) -> None:
    """Q6: an order that cannot be kept makes systemd delete a start job. nftables flushes all rules
    at its start, and ipv6natd writes its own again."""
    drop_in = "/etc/systemd/system/nftables.service.d/after-docker.conf"
    host.sh(
        f"mkdir -p {drop_in.rpartition('/')[0]}; echo '[Unit]\nAfter=docker.service' >{drop_in}"
    )
    host.run("systemctl", "enable", "nftables")
    try:
        for _ in range(3):
            host.run("systemctl", "reboot")
            host.await_off()
            host.plug()
            host.boot()
            for unit in ("docker", "ipv6natd", "nftables"):
                assert until(partial(active, host, unit), "active", timeout=20) == "active"
            assert "ordering cycle" not in host.run("journalctl", "-b", "--no-pager")
            host.await_served()
    finally:
        host.sh(f"rm {drop_in}; systemctl disable nftables; systemctl daemon-reload")


def active(host: Host, unit: str) -> str:
    return host.run("systemctl", "is-active", unit, check=False).strip()
