"""One booted host a suite, with the package installed; its tests are one story, in this order."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import lab
from tests.boot.host import Host
from tests.lab import tree, workshop
from tests.lab.needs import lack

TOOLS = ("systemd-nspawn", "ip", "nsenter", "unshare", "setpriv", "busybox", "git")

CI: list[tree.Suite] = ["bookworm", "trixie"]
ALL: list[tree.Suite] = [*CI, "sid"]
ONCE: dict[str, tree.Suite] = {
    "test_control": "bookworm",
    "test_legacy": "trixie",  # whose iptables python-iptables does not know
    "test_neighbours": "bookworm",
}
"""What takes its time, of which CI has little, and where it is worth most."""
LATE = "test_dedicated.py"
"""What CI has no time for."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    left_out = collection_path.name == LATE and config.getoption("--engines") != "all"
    return True if left_out else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "host" in metafunc.fixturenames:
        every = metafunc.config.getoption("--engines") == "all"
        once = ONCE.get(metafunc.module.__name__.rpartition(".")[2])
        suites = ALL if every else [once] if once else CI
        metafunc.parametrize("host", suites, indirect=True, scope="package")


@pytest.fixture(scope="package")
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Host]:
    """With containers on it since before the package was built and installed."""
    lab.need(*TOOLS)
    suite: tree.Suite = request.param
    if not tree.ready(suite):
        lack(f"a tree of Debian {suite}; {tree.hint(suite)}")
    folder = tmp_path_factory.mktemp(suite)
    build = workshop.begin(suite, folder, "packaging/deb/build.sh /out -d")
    with Host(suite) as booted:
        booted.furnish()
        workshop.finish(build, folder)
        (package,) = folder.glob("ipv6natd_*_all.deb")
        shutil.copy(package, booted.shared)
        booted.install()
        yield booted
