"""README's unchanged lines for an apt repository, on a host from which the package was removed."""

from __future__ import annotations

from tests.harness.sandbox import CLIENT
from tests.system.boot.clone import AGREE, FROM_REPOSITORY, README, inline
from tests.system.boot.host import Host

SOURCES = "/etc/apt/sources.list.d/ipv6natd.list"


def as_root(host: Host, lines: str) -> str:
    """The output of the lines of a page; stops at the first error."""
    script = f"set -e; export DEBIAN_FRONTEND=noninteractive\n{lines}"
    return host.run("sh", "-c", AGREE, "agree", "sh", "-c", script, timeout=180)


def test_readme_lines_install_from_an_apt_repository(host: Host) -> None:
    # The host has no network, so apt would wait for the archive.
    host.sh("mkdir /root/sources; mv /etc/apt/sources.list* /root/sources")
    host.sh("mkdir /etc/apt/sources.list.d; cp -r /lab/apt /srv/ipv6natd")
    as_root(host, FROM_REPOSITORY)
    assert host.run("systemctl", "is-enabled", "ipv6natd").strip() == "enabled"
    host.await_served()


def test_upgrade_from_the_repository_loses_no_connection(host: Host) -> None:
    host.sh("rm -r /srv/ipv6natd; cp -r /lab/apt-newer /srv/ipv6natd")
    host.upgrade(lambda: as_root(host, inline(README, "**Upgrade**", "apt update")))


def test_removal_after_the_repository_removes_rules_and_files(host: Host) -> None:
    as_root(host, inline(README, "**Remove**", "apt remove"))
    assert host.fetch() != CLIENT
    assert host.rules() == host.rules_before
    as_root(host, inline(README, "**Remove**", "apt purge"))
    host.sh(f"rm -r {SOURCES} /srv/ipv6natd")
    assert [path for path in host.files() if "ipv6natd" in path] == []
