"""What is built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ipv6natd import __version__
from tests.lab import need, tree, workshop
from tests.lab.needs import lack

ROOT = Path(__file__).parents[2]

DEBIAN = """
packaging/deb/build.sh /out -d
# Elsewhere, at another time, by somebody with other habits: it is to be the same to the bit.
cp -r /src /elsewhere && cd /elsewhere
umask 077
TZ=Pacific/Kiritimati LC_ALL=C packaging/deb/build.sh /out/again -d
cmp /out/ipv6natd_*_all.deb /out/again/ipv6natd_*_all.deb
echo 'the same twice'
lintian --allow-root --fail-on=error,warning /out/ipv6natd_*_all.deb
dpkg-deb --contents /out/ipv6natd_*_all.deb >/out/contents
"""


def built(suite: tree.Suite, folder: Path, script: str) -> None:
    need("unshare", "git")
    if not tree.ready(suite):
        lack(f"a tree of Debian {suite}; {tree.hint(suite)}")
    workshop.finish(workshop.begin(suite, folder, script), folder, timeout=300)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "suite" in metafunc.fixturenames:
        every = metafunc.config.getoption("--engines") == "all"
        metafunc.parametrize("suite", tree.SUITES if every else ["trixie"])


def test_the_package_for_debian_is_clean_and_the_same_twice(
    suite: tree.Suite, tmp_path: Path
) -> None:
    built(suite, tmp_path, DEBIAN)
    assert "the same twice" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("packaging/deb/debian/changelog", rf"^ipv6natd \({re.escape(__version__)}\) "),
        ("packaging/arch/PKGBUILD", rf"^pkgver={re.escape(__version__)}$"),
    ],
)
def test_packages_are_of_this_version(file: str, line: str) -> None:
    assert re.search(line, (ROOT / file).read_text(), re.MULTILINE)
