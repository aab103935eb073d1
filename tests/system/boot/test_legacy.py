"""The unit on a host with legacy ip6tables: libraries loaded by ctypes, and the lock."""

from __future__ import annotations

from tests.system.boot.host import Host


def choose(host: Host, choice: str) -> None:
    """Select the variant of `iptables` and `ip6tables` for the engine and the service."""
    host.sh("systemctl stop ipv6natd && ipv6natd -flush")
    for tool in ("iptables", "ip6tables"):
        host.sh(f"update-alternatives {choice.format(tool)}")
    host.sh("systemctl reset-failed docker ipv6natd; systemctl restart docker ipv6natd")
    host.await_served()


def test_sandbox_permits_writes_to_legacy_tables(host: Host) -> None:
    choose(host, "--set {0} /usr/sbin/{0}-legacy")
    try:
        host.await_state('s "legacy"', "Backend")
        host.await_state('s "synced"')
        assert "libip6tc" in host.run("cat", f"/proc/{host.show('MainPID')}/maps")
        assert "--dport 8080 -j DNAT" in host.run("ip6tables-legacy", "-t", "nat", "-S")
        assert "IPV6NAT" not in host.run("ip6tables-nft-save")
        host.run("ip6tables-legacy", "-t", "nat", "-F")
        host.await_served()
    finally:
        choose(host, "--auto {}")
    host.await_state('s "nft"', "Backend")
