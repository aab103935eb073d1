"""Restarts and losses of the engine, the bus, the rules and the service."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests import harness
from tests.system.boot.host import Host


@pytest.fixture
def process(host: Host) -> Iterator[str]:
    """The process id of the daemon, which must be the same after the test."""
    host.await_served()
    pid = host.show("MainPID")
    yield pid
    host.await_state('s "synced"')
    assert host.show("MainPID") == pid


@pytest.mark.usefixtures("process")
def test_flushed_rules_are_restored(host: Host) -> None:
    host.run("ip6tables", "-F")
    host.run("ip6tables", "-t", "nat", "-F")
    host.await_served()
    assert harness.until(lambda: "IPV6NAT-FORWARD" in host.run("ip6tables", "-S", "FORWARD"), True)


@pytest.mark.usefixtures("process")
def test_service_survives_a_restart_of_docker(host: Host) -> None:
    host.run("systemctl", "restart", "docker")
    host.await_served()


@pytest.mark.usefixtures("process")
def test_service_survives_a_killed_engine(host: Host) -> None:
    # The service's own Restart= starts it again.
    host.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "docker")
    host.await_state("b true", "DockerConnected")
    host.await_served()


@pytest.mark.usefixtures("process")
def test_stopped_engine_is_not_started_through_its_socket(host: Host) -> None:
    host.run("systemctl", "stop", "docker")
    try:
        stopped = "ipv6natd does not start it: systemctl start docker"
        reason = harness.until(
            lambda: host.state("StateReason"), lambda reason: stopped in reason, timeout=10
        )
        assert stopped in reason
        # A resync reads the state of the units again.
        assert stopped in host.run("ipv6natctl", "resync", check=False)
        assert host.run("systemctl", "is-active", "docker.socket").strip() == "active"
        assert host.show("ActiveState", "docker") in ("inactive", "failed")
    finally:
        # The start limit of the unit permits fewer starts in a minute.
        host.sh("systemctl reset-failed docker; systemctl start docker")
    host.await_served()


@pytest.mark.usefixtures("process")
def test_bus_name_is_owned_again_after_a_bus_restart(host: Host) -> None:
    owner = host.run("busctl", "status", "org.ipv6natd1")
    host.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "dbus")
    harness.until(lambda: host.run("busctl", "status", "org.ipv6natd1", check=False) != owner, True)
    host.await_state('s "synced"')
    # logind does not reconnect to the bus. Without its restart each call to logind waits for
    # half a minute.
    host.run("systemctl", "restart", "systemd-logind")


def test_watchdog_restarts_a_hanging_daemon(host: Host) -> None:
    drop_in = "/run/systemd/system/ipv6natd.service.d"
    host.sh(f"""set -e
        mkdir -p {drop_in}
        printf '[Service]\\nWatchdogSec=2\\nRestartSec=100ms\\n' >{drop_in}/lab.conf
        systemctl daemon-reload
        systemctl restart ipv6natd
    """)
    try:
        host.await_state('s "synced"')
        host.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "ipv6natd")
        assert harness.until(lambda: host.show("NRestarts"), "1", timeout=20) == "1"
        assert "Watchdog timeout" in host.journal()
        host.await_state('s "synced"')
    finally:
        host.sh(f"rm -r {drop_in}; systemctl daemon-reload")
        host.restart()
    host.await_served()


def test_crash_loop_ends_with_the_reason_in_the_status(host: Host) -> None:
    """Open ports stay open meanwhile."""
    drop_in = "/run/systemd/system/ipv6natd.service.d"
    crash = "from ipv6natd import cli; cli.close_networks = None; cli.main()"
    host.sh(f"""set -e
        mkdir -p {drop_in}
        printf '[Service]\\nRestartSec=100ms\\nExecStart=\\n' >{drop_in}/lab.conf
        echo 'ExecStart=/usr/bin/python3 -I -c "{crash}"' >>{drop_in}/lab.conf
        systemctl daemon-reload
        systemctl reset-failed ipv6natd
    """)
    try:
        host.run("systemctl", "restart", "ipv6natd", check=False)
        assert harness.until(lambda: host.show("ActiveState"), "failed", timeout=60) == "failed"
        assert int(host.show("NRestarts")) >= 4
        said = host.run("systemctl", "--no-pager", "--full", "status", "ipv6natd", check=False)
        why = "stopped by an internal error, please report it: TypeError: 'NoneType' object is not"
        assert re.search(rf"Status: .*{why} callable at cli.py:[0-9]+", said), said
        assert f"\n{why}" in host.journal()
        host.await_served()
    finally:
        host.sh(f"rm -r {drop_in}; systemctl daemon-reload")
        host.restart()
    host.await_served()
