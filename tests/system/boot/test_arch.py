"""README's unchanged lines for Arch, with pacman and makepkg on a host of Debian 13.

Arch itself is not tested: its archive, its versions and the hooks of its packages. PKGBUILD,
.install and the installed service are tested with packets.
"""

from __future__ import annotations

import pytest

from tests.harness import tree
from tests.harness.sandbox import CLIENT
from tests.system.boot.clone import HOME, LIBRARIES, ON_ARCH, README, USER, Clone, inline

pytestmark = pytest.mark.slow

PREPARE = f"""
apt-get -q --no-install-recommends install {" ".join((*tree.ARCH, *tree.PACMAN))}
apt-get -q --no-install-recommends install make binutils python3-hatchling {" ".join(LIBRARIES)}
ln -s python3 /usr/bin/python
# Debian's Python puts what does not come from Debian below /usr/local, Arch's does not.
echo 'export DEB_PYTHON_INSTALL_LAYOUT=deb' >>/etc/makepkg.conf
echo '{USER} ALL = NOPASSWD: ALL' >/etc/sudoers.d/{USER}
printf '[options]\\nHoldPkg = pacman\\nLocalFileSigLevel = Optional\\n' >/etc/pacman.conf
# It makes its database once root asks; makepkg, which asks too, is not root.
pacman -Q || true
"""

HOST_PACKAGE = """
pkgname=debian
pkgver=13
pkgrel=1
arch=('any')
provides=(
    'dbus' 'iproute2' 'iptables' 'python' 'systemd' 'python-build' 'python-hatchling'
    'python-installer' 'python-dbus-next' 'python-docker' 'python-requests'
    'python-sdnotify'
)
"""
"""A package that provides to pacman what Debian's packages have installed."""


@pytest.fixture(scope="module")
def arch(clone: Clone) -> Clone:
    clone.as_root(PREPARE)
    clone.as_user(f"""
        mkdir {HOME}/debian && cd {HOME}/debian
        cat >PKGBUILD <<'END'{HOST_PACKAGE}END
        makepkg
        sudo pacman -U debian-13-*.pkg.tar*
    """)
    return clone


def test_readme_lines_for_arch_build_install_and_start_the_service(arch: Clone) -> None:
    arch.as_user(f"cd {HOME}/clone\n{ON_ARCH}", timeout=180)
    assert "ipv6natd 0" in arch.run("pacman", "-Q")
    assert arch.run("systemctl", "is-enabled", "ipv6natd").strip() == "enabled"
    arch.await_served()
    arch.as_root("ipv6natctl check")


def test_readme_lines_for_arch_upgrade_without_lost_connections(arch: Clone) -> None:
    arch.newer()
    arch.as_user(f"cd {HOME}/clone; " + inline(README, "**Upgrade**", "git pull"))
    before = arch.show("MainPID")
    with arch.load() as end:
        arch.as_user(f"cd {HOME}/clone\n{ON_ARCH}", timeout=180)
        arch.await_state('s "synced"')
    assert set(end()) == {CLIENT}
    assert arch.run("pacman", "-Q", "ipv6natd").strip().endswith("-2")
    assert arch.show("MainPID") != before


def test_removal_by_pacman_removes_rules_and_files(arch: Clone) -> None:
    arch.as_root(inline(README, "**Remove**", "pacman -R"))
    assert arch.fetch() != CLIENT
    assert arch.rules() == arch.rules_before
    left = {path for path in arch.files() if "ipv6natd" in path and not path.startswith(HOME)}
    assert left <= {"/var/lib/ipv6natd", "/etc/ipv6natd", "/etc/ipv6natd/ipv6natd.toml.pacsave"}
