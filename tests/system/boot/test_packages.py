"""The packages for Debian and for Arch, which contain the same files."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest

from ipv6natd import __version__
from tests import ROOT
from tests.harness import image, need, tree, workshop
from tests.harness.needs import lack
from tests.harness.process import LabError, run
from tests.harness.single_file import single_file
from tests.harness.supply import NEWEST, need_newest

DEBIAN = """
packaging/deb/build.sh /out -d
# Elsewhere, at another time, by somebody with other habits: it is to be the same to the bit.
cp -r /src /elsewhere && cd /elsewhere
umask 077
TZ=Pacific/Kiritimati LC_ALL=C packaging/deb/build.sh /out/again -d
for package in /out/*_all.deb; do
    cmp "$package" "/out/again/${package##*/}"
    dpkg-deb --contents "$package" >>/out/contents
done
echo 'the same twice'
lintian --allow-root --fail-on=error,warning /out/*_all.deb
dpkg-deb --fsys-tarfile /out/ipv6natd_*_all.deb |
    tar -xO ./usr/bin/ipv6natd ./usr/bin/ipv6natctl | grep '^#!' >/out/python
"""

AUTOPKGTEST = """
DEBIAN_FRONTEND=noninteractive apt-get -q -y install autopkgtest procps iproute2
# It asks the archive anew at the end, which is nothing to depend on.
rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
packaging/deb/build.sh /out -d
mkdir /tmp/tested
cp -r packaging/deb/debian /tmp/tested
cd /tmp/tested
autopkgtest --no-built-binaries /out/ipv6natd_*_all.deb . -- null
"""

MAKEPKG = """
apart() { setpriv --reuid=nobody --regid=nogroup --clear-groups env HOME=/tmp "$@"; }
# makepkg asks pacman what is installed, which without dependencies is of no interest.
ln -s /bin/true /usr/bin/pacman
ln -s python3 /usr/bin/python
umask 022
"""

ARCH = f"""
{MAKEPKG}
shellcheck packaging/*.sh packaging/*/*.sh systemd/*.sh packaging/deb/debian/p*
shellcheck --shell=bash --exclude=SC2034,SC2154,SC2164 packaging/arch/PKGBUILD
shellcheck --shell=bash packaging/arch/ipv6natd.install
apart mkdir /tmp/arch
apart packaging/arch/build.sh /tmp/arch --nodeps
bsdtar -tf /tmp/arch/ipv6natd-*.pkg.tar* >/out/arch
bsdtar -tvf /tmp/arch/ipv6natd-*.pkg.tar* >/out/arch-modes
bsdtar -xOf /tmp/arch/ipv6natd-*.pkg.tar* '*/bin/ipv6nat*' |
    grep '^#!' >/out/arch-python
cd /tmp/arch
cp /src/packaging/arch/* .
apart makepkg --printsrcinfo | diff /src/packaging/arch/.SRCINFO -
"""

TAG = f"v{__version__}"
RELEASE = f"""
{MAKEPKG}
export HOME=/root
DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install git
# The tree has the build dependencies without a compiler, which is not needed.
mkdir -p ~/.config/dpkg
echo no-check-builddeps >~/.config/dpkg/buildpackage.conf
sed -i 's/^## Unreleased/## {__version__}/' CHANGELOG.md
git init -q
git add .
git -c user.name=lab -c user.email=lab@localhost commit -q -m all
git tag {TAG}
export BASE=/out/image
packaging/release.sh {TAG} /out/newest /out/libraries.json /out/release
packaging/release.sh {TAG} /out/newest /out/libraries.json /tmp/again
diff -r /out/release /tmp/again
echo 'the same twice'
(cd /out/release && sha256sum --check SHA256SUMS)
mkdir /tmp/release
cp -r /out/release/aur/. /out/release/*.tar.gz /tmp/release
chown -R nobody /tmp/release
cd /tmp/release
apart makepkg --printsrcinfo | diff .SRCINFO -
# The tarball lies where it was downloaded to before, so that only its sum counts.
apart makepkg --nodeps
echo more >>ipv6natd-{__version__}.tar.gz
apart makepkg --force --verifysource 2>&1 | tee /out/refused || true
"""


def built(suite: tree.Suite, folder: Path, script: str) -> None:
    need("unshare", "git")
    tree.need(suite)
    workshop.finish(workshop.begin(suite, folder, script), folder, timeout=300)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "suite" in metafunc.fixturenames:
        # The other test does all of this in Debian 13.
        metafunc.parametrize("suite", ["bookworm", "sid"])


@pytest.mark.slow
def test_installed_package_passes_its_autopkgtest(suite: tree.Suite, tmp_path: Path) -> None:
    built(suite, tmp_path, AUTOPKGTEST)


@pytest.mark.slow
def test_debian_package_is_lintian_clean_and_reproducible(
    suite: tree.Suite, tmp_path: Path
) -> None:
    built(suite, tmp_path, DEBIAN)
    assert "the same twice" in (tmp_path / "log").read_text()
    check_modes((tmp_path / "contents").read_text())
    assert (tmp_path / "python").read_text() == "#! /usr/bin/python3 -I\n" * 2


@pytest.mark.slow
def test_debian_and_arch_packages_have_the_same_files(tmp_path: Path) -> None:
    built("trixie", tmp_path, DEBIAN + ARCH)
    debian = {line.split()[5][2:] for line in (tmp_path / "contents").read_text().splitlines()}
    arch = set((tmp_path / "arch").read_text().splitlines())
    assert plain(debian) == plain(arch)
    check_modes((tmp_path / "contents").read_text())
    check_modes((tmp_path / "arch-modes").read_text())
    pythons = (tmp_path / "arch-python").read_text().splitlines()
    assert len(pythons) == 2
    assert all(re.fullmatch("#!/usr/bin/python3? -I", each) for each in pythons)


def check_modes(listing: str) -> None:
    """Only root can write, all users can read, and no file is setuid or setgid."""
    programs = set()
    for line in listing.splitlines():
        mode, name = line.split()[0], re.split(r" \./?| (?=usr/|etc/|\.[A-Z])", line)[-1]
        assert re.search(r"\b(root[ /]+root|0 +0)\b", line), line
        assert re.fullmatch("drwxr-xr-x|-rw-r--r--|-rwxr-xr-x|lrwxrwxrwx", mode), line
        if mode == "-rwxr-xr-x":
            programs.add(name.replace("usr/local/", "usr/"))
    assert programs == {"usr/bin/ipv6natd", "usr/bin/ipv6natctl", "usr/lib/ipv6natd/apply"}


@pytest.mark.slow
def test_release_has_all_files_and_arch_builds_only_from_its_tarball(tmp_path: Path) -> None:
    need_newest()
    shutil.copytree(NEWEST, tmp_path / "newest", symlinks=True)
    (tmp_path / "libraries.json").write_text("{}")
    if not image.base().exists():
        lack("the base of the container image; `make tree-image` makes it")
    run("cp", "-a", str(image.base()), str(tmp_path / "image"), timeout=60)
    built("trixie", tmp_path, RELEASE)
    assert "the same twice" in (tmp_path / "log").read_text()
    assert f"ipv6natd-{__version__}.tar.gz ... FAILED" in (tmp_path / "refused").read_text()
    release = tmp_path / "release"
    files = {str(path.relative_to(release)) for path in release.rglob("*") if path.is_file()}
    source = f"ipv6natd-{__version__}.tar.gz"
    assert files == {
        *("SHA256SUMS", source, "ipv6natd.pyz", "ipv6natd.cdx.json"),
        "ipv6natd-image.tar.gz",
        *("aur/PKGBUILD", "aur/.SRCINFO", "aur/ipv6natd.install"),
        *("apt/Packages", "apt/Packages.gz", "apt/Release"),
        *(f"apt/{name}_{__version__}_all.deb" for name in ("ipv6natd", "cockpit-ipv6natd")),
        f"python/ipv6natd-{__version__}-py3-none-any.whl",
        f"python/{source}",
    }
    # A web server is not root.
    assert all((release / each).stat().st_mode & 0o777 in (0o644, 0o755) for each in files)
    named = {line.split()[1] for line in (release / "SHA256SUMS").read_text().splitlines()}
    assert named == files - {"SHA256SUMS"}


@pytest.mark.slow
def test_list_of_libraries_names_those_of_the_single_file(tmp_path: Path) -> None:
    if not (ROOT / ".venv/tools/.stamp").exists():
        lack("cyclonedx-py; `make .venv/tools/.stamp` gets it")
    run("make", "-C", str(ROOT), "sbom")
    components = json.loads((ROOT / "dist/ipv6natd.cdx.json").read_text())["components"]
    listed = {f"{each['name']}-{each['version']}" for each in components}
    with zipfile.ZipFile(single_file(tmp_path) / "ipv6natd.pyz") as archive:
        folders = {name.partition("/")[0] for name in archive.namelist()}
    included = {name for name in folders if name.endswith(".dist-info")}
    contained = {name.removesuffix(".dist-info").replace("_", "-") for name in included}
    assert contained == {name.replace("_", "-") for name in listed}


def test_release_with_another_version_in_its_files_fails(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"cannot be released: no '__version__ = \"99\.0\"' in its "):
        released(tmp_path, "99.0")


def test_release_of_a_changed_tree_fails(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="the files here differ; git checkout"):
        released(tmp_path, __version__, changed="README.md")
    assert not (tmp_path / "release").exists()


def released(folder: Path, version: str, *, changed: str | None = None) -> None:
    """Make the release of this source with this tag and changelog entry, without libraries.

    `changed` is a file that is changed after the tag.
    """
    need("git")
    workshop.pack(folder / "tagged.tar")
    clone = folder / "clone"
    clone.mkdir()
    run("tar", "-x", "-f", str(folder / "tagged.tar"), "-C", str(clone))
    log = clone / "CHANGELOG.md"
    log.write_text(log.read_text().replace("## Unreleased", f"## {version}"))
    git = ("git", "-C", str(clone), "-c", "user.name=lab", "-c", "user.email=lab@localhost")
    for words in ("init -q", "add .", "commit -q -m all", f"tag v{version}"):
        run(*git, *words.split())
    if changed:
        (clone / changed).write_text("changed\n")
    arguments = (f"v{version}", str(folder), "/dev/null", str(folder / "release"))
    run(str(clone / "packaging/release.sh"), *arguments)


def plain(paths: set[str]) -> set[str]:
    """The files, without those that differ by distribution."""
    texts = r"usr/share/(doc/(cockpit-)?ipv6natd/[^/]*|licenses/.*)$"
    own = rf"usr/(local/)?lib/python|usr/(local/)?bin|{texts}|\."
    found = {each for each in paths if each and each[-1] != "/" and not re.match(own, each)}
    found = {path.removesuffix(".gz") for path in found}
    return {path.replace("/vendor-completions/", "/site-functions/") for path in found}


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("packaging/deb/debian/changelog", rf"^ipv6natd \({re.escape(__version__)}\) "),
        ("packaging/arch/PKGBUILD", rf"^pkgver={re.escape(__version__)}$"),
    ],
)
def test_packages_have_this_version(file: str, line: str) -> None:
    assert re.search(line, (ROOT / file).read_text(), re.MULTILINE)
