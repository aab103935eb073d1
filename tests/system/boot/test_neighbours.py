"""Firewalls of the distribution beside the service: ports stay open after their reloads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests import harness
from tests.system.boot.host import Host

# The packet tests F2 to F4 do the same with these firewalls, without a boot.
pytestmark = pytest.mark.slow


@contextmanager
def installed(host: Host, package: str) -> Iterator[None]:
    """A package with its dependencies, purged at the end."""
    apt = "DEBIAN_FRONTEND=noninteractive apt-get -q -y"
    host.sh(f"{apt} install {package}", timeout=120)
    try:
        yield
    finally:
        host.sh(f"{apt} purge {package}", timeout=120)
        host.sh("systemctl reset-failed docker; systemctl restart docker")
        host.restart()
        host.await_served()


def test_published_ports_survive_a_reload_of_firewalld(host: Host) -> None:
    with installed(host, "firewalld"):
        host.sh("systemctl enable --now firewalld && firewall-cmd --state")
        host.await_served()
        host.run("firewall-cmd", "--reload")
        host.await_served()
        host.run("firewall-cmd", "--complete-reload")
        host.await_served()


def test_published_ports_survive_a_reload_of_ufw(host: Host) -> None:
    with installed(host, "ufw"):
        host.sh("ufw --force enable && ufw status verbose")
        host.await_served()
        host.run("ufw", "reload")
        host.await_served()
        assert harness.until(
            lambda: "IPV6NAT-FORWARD" in host.run("ip6tables", "-S", "FORWARD"), True
        )
