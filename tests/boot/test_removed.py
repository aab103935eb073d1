"""Upgrade, removal, purge."""

from __future__ import annotations

from tests.boot.host import Host
from tests.lab.sandbox import CLIENT

APT = "DEBIAN_FRONTEND=noninteractive apt-get -q -y"


def test_an_upgrade_under_load_loses_nothing(host: Host) -> None:
    # A newer version is the same package with another number.
    host.sh("""set -e
        cd /lab
        dpkg-deb --raw-extract ipv6natd_*_all.deb newer
        sed -i 's/^Version: .*/&+newer/' newer/DEBIAN/control
        dpkg-deb --build newer newer.deb
    """)
    host.await_served()
    with host.load() as end:
        host.sh(f"{APT} install /lab/newer.deb", timeout=120)
        host.await_state('s "synced"')
    seen = end()
    assert set(seen) == {CLIENT}
    assert len(seen) > 20
    version = host.run("dpkg-query", "--show", "--showformat=${Version}", "ipv6natd")
    assert version.endswith("+newer")


def test_a_removal_closes_the_ports_and_takes_the_rules_out(host: Host) -> None:
    host.sh(f"{APT} remove ipv6natd", timeout=120)
    assert host.fetch() != CLIENT
    assert host.rules() == host.rules_before
    assert host.run("systemctl", "is-active", "ipv6natd", check=False).strip() == "inactive"


def test_a_removal_of_a_dead_service_without_a_bus_takes_the_rules_out(host: Host) -> None:
    host.sh(f"{APT} install /lab/newer.deb", timeout=120)
    host.await_served()
    host.sh("""
        echo 'bakcend = 1' >>/etc/ipv6natd/ipv6natd.toml
        systemctl kill --kill-whom=main --signal=KILL ipv6natd
        systemctl stop dbus.socket dbus.service
    """)
    try:
        host.sh(f"{APT} remove ipv6natd", timeout=120)
        assert host.rules() == host.rules_before
    finally:
        host.sh("systemctl start dbus.socket && systemctl restart systemd-logind")


def test_a_purge_leaves_nothing(host: Host) -> None:
    host.sh(f"{APT} purge ipv6natd", timeout=120)
    before = host.files()
    assert [path for path in before if "ipv6natd" in path] == []
    # What it pulled in is there now, and does not hide what it itself leaves.
    host.sh(f"{APT} install /lab/newer.deb", timeout=120)
    host.await_served()
    host.sh(f"{APT} purge ipv6natd", timeout=120)
    assert host.files() - before == set()
