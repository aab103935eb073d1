"""README's unchanged lines for an apt repository, on a host from which the package was removed."""

from __future__ import annotations

import re

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


def test_signed_repository_needs_its_key(host: Host) -> None:
    """README's words about a signed release."""

    def is_accepted() -> bool:
        update = "apt-get --error-on=any update >/dev/null 2>&1 && echo yes || echo no"
        return host.sh(update).strip() == "yes"

    (signed_by,) = re.findall(r"write `(\[signed-by=\S+\])`", README.read_text())
    host.sh(f"""
        cp {SOURCES} /root/unsigned.list
        rm -r /srv/ipv6natd; cp -r /lab/signed/apt /srv/ipv6natd
        mkdir -p /etc/apt/keyrings; cp /lab/signed/ipv6natd.asc /etc/apt/keyrings
        sed -i 's|\\[.*\\]|{signed_by}|' {SOURCES}
    """)
    assert signed_by in host.run("cat", SOURCES)
    assert is_accepted()
    host.sh("sed -i 's/^Date: .*/Date: Thu, 01 Jan 2026 00:00:00 +0000/' /srv/ipv6natd/InRelease")
    assert not is_accepted()
    host.sh("cp /lab/signed/apt/InRelease /srv/ipv6natd")
    assert is_accepted()
    host.sh("rm /etc/apt/keyrings/ipv6natd.asc /var/lib/apt/lists/*ipv6natd*")
    assert not is_accepted()
    host.sh(f"cp /root/unsigned.list {SOURCES}; rm /root/unsigned.list")


def test_removal_after_the_repository_removes_rules_and_files(host: Host) -> None:
    as_root(host, inline(README, "**Remove**", "apt remove"))
    assert host.fetch() != CLIENT
    assert host.rules() == host.rules_before
    as_root(host, inline(README, "**Remove**", "apt purge"))
    host.sh(f"rm -r {SOURCES} /srv/ipv6natd")
    assert [path for path in host.files() if "ipv6natd" in path] == []
