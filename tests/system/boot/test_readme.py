"""README's unchanged lines for Debian and other distributions, on a fresh host with a clone."""

from __future__ import annotations

import pytest

from tests.harness.process import LabError
from tests.harness.sandbox import CLIENT
from tests.system.boot.clone import (
    BY_HAND,
    ELSEWHERE,
    HOME,
    LIBRARIES,
    MADE,
    ON_DEBIAN,
    README,
    Clone,
    inline,
)


def test_readme_lines_for_debian_build_install_and_start_the_service(clone: Clone) -> None:
    clone.as_root(ON_DEBIAN, timeout=600)
    assert clone.run("systemctl", "is-enabled", "ipv6natd").strip() == "enabled"
    clone.await_state('s "synced"')
    clone.await_served()


def test_check_on_a_fresh_host_finds_no_fault(clone: Clone) -> None:
    clone.as_root(inline(README, "`ipv6natctl check` examines", "ipv6natctl check"))


def test_readme_lines_for_debian_upgrade_without_lost_connections(clone: Clone) -> None:
    """Q24: also to a later commit of the same version."""
    clone.as_user(f"cd {HOME}/origin; echo '# later' >>ipv6natd/cli.py; git commit -qam later")
    clone.as_user(f"cd {HOME}/clone; " + inline(README, "**Upgrade**", "git pull"))
    before = clone.show("MainPID")
    with clone.load() as end:
        install = inline(README, "**Upgrade**", "apt install")
        assert "apt install " in ON_DEBIAN
        clone.as_root(ON_DEBIAN.replace("apt install", install))
        clone.await_state('s "synced"')
    seen = end()
    assert set(seen) == {CLIENT}
    assert len(seen) > 20
    assert "# later" in clone.sh("cat /usr/lib/python3/dist-packages/ipv6natd/cli.py")
    assert clone.show("MainPID") != before


def test_readme_lines_for_debian_remove_rules_and_files(clone: Clone) -> None:
    clone.as_root(inline(README, "**Remove**", "apt remove"))
    assert clone.fetch() != CLIENT
    assert clone.rules() == clone.rules_before
    clone.as_root(inline(README, "**Remove**", "apt purge"))
    assert ours(clone) == set()


def test_readme_lines_for_other_distributions_install_and_start_the_service(clone: Clone) -> None:
    clone.as_root(f"apt-get -q install {' '.join(LIBRARIES)}")
    clone.as_root(ELSEWHERE)
    assert clone.run("systemctl", "is-enabled", "ipv6natd").strip() == "enabled"
    clone.await_served()
    clone.as_root("ipv6natctl check")


def test_upgrade_on_other_distributions_restarts_without_lost_connections(clone: Clone) -> None:
    before = clone.show("MainPID")
    with clone.load() as end:
        clone.as_root(ELSEWHERE + inline(README, "**Upgrade**", "systemctl restart"))
        clone.await_state('s "synced"')
    assert set(end()) == {CLIENT}
    assert clone.show("MainPID") != before


def test_uninstall_lines_remove_rules_and_files(clone: Clone) -> None:
    clone.sh("systemctl stop ipv6natd")
    clone.as_root(BY_HAND)
    assert clone.rules() == clone.rules_before

    clone.sh("systemctl start ipv6natd")
    clone.await_served()
    assert inline(README, "**Remove**", "make uninstall") == MADE.strip()
    with pytest.raises(LabError, match="name its prefix, such as PREFIX=/usr"):
        clone.as_root("make uninstall")
    clone.await_served()
    clone.as_root(MADE)
    assert clone.rules() == clone.rules_before
    kept = {"/etc/ipv6natd", "/etc/ipv6natd/conf.d", "/etc/ipv6natd/ipv6natd.toml"}
    assert ours(clone) - {"/var/lib/ipv6natd"} == kept


def ours(host: Clone) -> set[str]:
    """Paths of ipv6natd that no package owns, outside of the clone."""
    return {path for path in host.files() if "ipv6natd" in path and not path.startswith(HOME)}
