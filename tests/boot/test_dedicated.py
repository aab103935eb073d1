"""The service as a user of its own: the drop-in that lies among the examples, as it says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.boot.host import Host


@contextmanager
def user_of_its_own(host: Host) -> Iterator[None]:
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


def test_a_user_of_its_own_writes_rules_and_asks_polkit(host: Host) -> None:
    with user_of_its_own(host):
        assert host.run("ps", "-o", "user=", host.show("MainPID")).strip() == "ipv6natd"
        host.run("ip6tables", "-t", "nat", "-F")
        host.await_served()
        refused = host.as_nobody("ipv6natctl", "resync")
        assert refused.startswith("not permitted: that takes a password"), refused
        host.run("systemctl", "reload", "ipv6natd")
        table = host.run("systemd-analyze", "security", "--no-pager", "ipv6natd")
        assert "Overall exposure level for ipv6natd.service: 1.5 OK" in table
    assert host.run("ps", "-o", "user=", host.show("MainPID")).strip() == "root"
    host.await_served()
