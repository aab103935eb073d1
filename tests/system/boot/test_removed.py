"""Upgrade, removal, purge."""

from __future__ import annotations

from tests.harness.sandbox import CLIENT
from tests.system.boot.host import FORWARDING, Host

APT = "DEBIAN_FRONTEND=noninteractive apt-get -q -y"


def test_upgrade_under_load_loses_no_connection(host: Host) -> None:
    host.sh("cp /lab/apt-newer/*newer_all.deb /lab/newer.deb")
    host.await_served()
    host.upgrade(lambda: host.sh(f"{APT} install /lab/newer.deb", timeout=120))


def test_removal_closes_ports_and_removes_rules(host: Host) -> None:
    # The engine enabled forwarding at boot. Here the service must enable it.
    host.sandbox.host.sysctl(FORWARDING, 0)
    host.restart()
    assert host.sandbox.host.sysctl(FORWARDING) == "1"
    host.sh("mkdir -p /etc/iptables; ip6tables-save >/etc/iptables/rules.v6")
    said = host.sh(f"{APT} remove ipv6natd 2>&1; rm -r /etc/iptables", timeout=120)
    assert "/etc/iptables/rules.v6 contains rules of ipv6natd" in said
    assert host.sandbox.host.sysctl(FORWARDING) == "0"
    assert host.fetch() != CLIENT
    assert host.rules() == host.rules_before
    assert host.run("systemctl", "is-active", "ipv6natd", check=False).strip() == "inactive"


def test_installation_leaves_forwarding_off_until_the_rules_are_in_force(host: Host) -> None:
    unit = "/etc/systemd/system/ipv6natd.service"
    host.run("ln", "-s", "/dev/null", unit)
    host.sh(f"{APT} install /lab/newer.deb", timeout=120)
    assert host.sandbox.host.sysctl(FORWARDING) == "0"
    host.sh(f"rm {unit}; systemctl daemon-reload; systemctl start ipv6natd")
    host.await_served()
    assert host.sandbox.host.sysctl(FORWARDING) == "1"
    host.sh(f"{APT} remove ipv6natd", timeout=120)
    assert host.sandbox.host.sysctl(FORWARDING) == "0"


def test_upgrade_keeps_forwarding_disabled_by_a_masked_sysctl_file(host: Host) -> None:
    """By the link that README described when the package contained a file for sysctl.d."""
    mask = "/etc/sysctl.d/60-ipv6natd.conf"
    host.run("ln", "-s", "/dev/null", mask)
    host.sh(f"{APT} install /lab/newer.deb", timeout=120)
    host.await_state('s "degraded"')
    assert host.sandbox.host.sysctl(FORWARDING) == "0"
    assert f"forwarding is not changed: {mask} disables it" in host.journal()
    host.sh(f"{APT} remove ipv6natd; rm {mask}", timeout=120)


def test_removal_of_a_killed_service_without_a_bus_removes_rules(host: Host) -> None:
    assert host.sandbox.host.sysctl(FORWARDING) == "0"
    host.sh(f"{APT} install /lab/newer.deb", timeout=120)
    host.await_served()
    assert host.sandbox.host.sysctl(FORWARDING) == "1"
    host.sh("""
        echo 'bakcend = 1' >>/etc/ipv6natd/ipv6natd.toml
        systemctl kill --kill-whom=main --signal=KILL ipv6natd
        systemctl stop dbus.socket dbus.service
    """)
    try:
        host.sh(f"{APT} remove ipv6natd", timeout=120)
        assert host.rules() == host.rules_before
        assert host.sandbox.host.sysctl(FORWARDING) == "0"
    finally:
        host.sh("systemctl start dbus.socket && systemctl restart systemd-logind")


def test_purge_removes_all_files(host: Host) -> None:
    host.sh(f"{APT} purge ipv6natd", timeout=120)
    before = host.files()
    assert [path for path in before if "ipv6natd" in path] == []
    # Forwarding that was enabled before stays enabled.
    host.sandbox.host.sysctl(FORWARDING, 1)
    # The dependencies are installed already, so the difference shows only files of the package.
    host.sh(f"{APT} install /lab/newer.deb", timeout=120)
    host.await_served()
    assert host.sandbox.host.sysctl(FORWARDING) == "1"
    host.sh("echo 'debug = true' >/etc/ipv6natd/conf.d/50-local.toml")
    host.sh(f"{APT} purge ipv6natd", timeout=120)
    assert host.files() - before == set()
    assert host.sandbox.host.sysctl(FORWARDING) == "1"
