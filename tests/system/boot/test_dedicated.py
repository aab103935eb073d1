"""The service with fewer privileges, with the drop-ins of the examples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.system.boot.host import FORWARDING, Host

pytestmark = pytest.mark.slow


@contextmanager
def dedicated_user(host: Host) -> Iterator[None]:
    host.follow("dedicated-user.conf")
    try:
        host.await_state('s "synced"')
        yield
    finally:
        host.sh("""
            rm -r /etc/systemd/system/ipv6natd.service.d
            rm /etc/sysusers.d/ipv6natd.conf /etc/dbus-1/system.d/ipv6natd-user.conf
            systemctl daemon-reload && systemctl reload dbus
        """)
        host.restart()


def test_dedicated_user_writes_rules_and_uses_polkit(host: Host) -> None:
    with dedicated_user(host):
        assert host.run("ps", "-o", "user=", host.show("MainPID")).strip() == "ipv6natd"
        host.run("ip6tables", "-t", "nat", "-F")
        host.await_served()
        refused = host.as_nobody("ipv6natctl", "resync")
        assert refused.startswith("not permitted: a password is needed"), refused
        host.run("systemctl", "reload", "ipv6natd")
        host.sandbox.host.sysctl(FORWARDING, 0)
        host.restart()
        assert host.sandbox.host.sysctl(FORWARDING) == "1"
        table = host.run("systemd-analyze", "security", "--no-pager", "ipv6natd")
        assert "Overall exposure level for ipv6natd.service: 1.5 OK" in table
    assert host.run("ps", "-o", "user=", host.show("MainPID")).strip() == "root"
    host.await_served()
    # The service of root restores the value that the dedicated user saved.
    host.run("ipv6natctl", "cleanup")
    assert host.sandbox.host.sysctl(FORWARDING) == "0"
    host.run("ipv6natctl", "resync")
    host.await_served()


def test_service_on_nf_tables_works_without_cap_net_raw(host: Host) -> None:
    host.follow("nft-only.conf")
    try:
        host.await_state('s "synced"')
        status = host.run("cat", f"/proc/{host.show('MainPID')}/status")
        assert (
            re.findall(r"^Cap(?:Prm|Bnd):\s*(\w+)$", status, re.MULTILINE)
            == [f"{1 << 12:016x}"] * 2
        )
        host.run("ip6tables", "-t", "nat", "-F")
        host.await_served()
        host.sandbox.host.run("conntrack", "-F")
        assert host.run("ipv6natctl", "explain", "8080")
    finally:
        host.without("/etc/systemd/system/ipv6natd.service.d")
