"""Booted hosts: for each suite one with the package installed, and one for README's lines.

The tests of a host depend on each other and run in this order.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT, harness
from tests.harness import tree, workshop
from tests.harness.process import run
from tests.system.boot.clone import Clone
from tests.system.boot.host import Host

TOOLS = ("systemd-nspawn", "ip", "nsenter", "unshare", "setpriv", "busybox", "git", "gpg")

CI: list[tree.Suite] = ["trixie"]
"""The host with the package in CI. Its iptables is one that python-iptables does not know."""
ALL: list[tree.Suite] = ["bookworm", "trixie", "sid"]
AS_WRITTEN: dict[str, list[tree.Suite]] = {"test_arch": ["trixie"], "test_readme": ["bookworm"]}
"""The suites in which CI runs README's lines, so that CI boots both releases of Debian; test_arch
runs in no other suite."""

BUILD = """
packaging/deb/build.sh /out -d
mkdir /out/apt /out/apt-newer
cp /out/*_all.deb /out/apt
packaging/apt.sh /out/apt
# A newer version is the same package with another number.
dpkg-deb --raw-extract /out/ipv6natd_*_all.deb /tmp/newer
sed -i 's/^Version: .*/&+newer/' /tmp/newer/DEBIAN/control
dpkg-deb --build /tmp/newer /out/apt-newer
cp /out/apt/*.deb /out/apt-newer
packaging/apt.sh /out/apt-newer
"""
"""Makes the package, and two apt repositories: with the package, and with a newer one too."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every = metafunc.config.getoption("--engines") == "all"
    module = metafunc.module.__name__.rpartition(".")[2]
    if "host" in metafunc.fixturenames:
        metafunc.parametrize("host", ALL if every else CI, indirect=True, scope="package")
    if "clone" in metafunc.fixturenames:
        suites = ALL if every and module != "test_arch" else AS_WRITTEN[module]
        metafunc.parametrize("clone", suites, indirect=True, scope="module")


@pytest.fixture(scope="package")
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    """A host with containers that are older than the installation of the package."""
    suite = wanted(request)
    folder = tmp_path_factory.mktemp(suite)
    build = workshop.begin(suite, folder, BUILD)
    with Host(suite) as booted:
        booted.furnish()
        workshop.finish(build, folder)
        for package in folder.glob("*_all.deb"):
            shutil.copy(package, booted.shared)
        for repository in ("apt", "apt-newer"):
            shutil.copytree(folder / repository, booted.shared / repository)
        sign(folder, booted.shared)
        booted.install()
        yield booted


def sign(release: Path, shared: Path) -> None:
    """Sign the repository of a release, and write it and its key to `shared`/signed."""
    # The agent removes its own sockets while it ends, perhaps during the removal of the folder.
    with tempfile.TemporaryDirectory(prefix="ipv6natd-gpg-", ignore_cleanup_errors=True) as home:
        gpg = {"GNUPGHOME": home, "SIGN_KEY": "lab@localhost"}
        create = ("--quick-generate-key", gpg["SIGN_KEY"], "default", "default", "never")
        try:
            run("gpg", "--batch", "--passphrase", "", *create, env=gpg)
            run(str(ROOT / "packaging/sums.sh"), str(release), env=gpg)
            run("gpg", "--verify", "SHA256SUMS.asc", "SHA256SUMS", env=gpg, cwd=release)
        finally:
            run("gpgconf", "--kill", "all", env=gpg)
    (shared / "signed").mkdir()
    shutil.copytree(release / "apt", shared / "signed/apt")
    shutil.copy(release / "ipv6natd.asc", shared / "signed")


@pytest.fixture(scope="module")
def clone(request: pytest.FixtureRequest) -> Iterator[Clone]:
    """A plain user's clone of this source, on a host with containers and without the package."""
    with Clone(wanted(request)) as booted:
        booted.furnish()
        booted.fetch_source()
        yield booted


def wanted(request: pytest.FixtureRequest) -> tree.Suite:
    """The requested suite, if its tree exists."""
    harness.need(*TOOLS)
    suite: tree.Suite = request.param
    tree.need(suite)
    return suite
