"""The installed files: only root may write them, with any umask."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from stat import S_IMODE, S_ISREG

import pytest

from ipv6natd import __version__
from tests import ROOT
from tests.harness.process import environment

PROGRAMS = {"usr/bin/ipv6natd", "usr/bin/ipv6natctl", "usr/lib/ipv6natd/apply"}


def installed(destination: Path, umask: int) -> None:
    """Run `make install` with this umask."""
    completed = _packaging(destination, "install.sh", "--with-python", umask=umask)
    assert completed.returncode == 0, completed.stderr


def _packaging(
    destination: Path, script: str, *arguments: str, umask: int = 0o022
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (ROOT / "packaging" / script, *arguments),
        umask=umask,
        env=environment({"DESTDIR": str(destination), "PYTHON": sys.executable}),
        cwd="/",
        capture_output=True,
        text=True,
    )


def entries(top: Path) -> Iterator[tuple[str, os.stat_result]]:
    for path in sorted(top.rglob("*")):
        yield str(path.relative_to(top)), path.lstat()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
def test_nobody_but_root_may_write_what_is_installed_and_everybody_may_read_it(
    tmp_path: Path, umask: int
) -> None:
    top = tmp_path / "root"
    top.mkdir()
    installed(top, umask)
    found = dict(entries(top))
    modes = {name: oct(status.st_mode) for name, status in found.items()}
    programs = {each for each in found if modes[each] == oct(0o100755)}
    folders = {each for each in found if modes[each] == oct(0o040755)}
    plain = {each for each in found if modes[each] == oct(0o100644)}
    assert programs == PROGRAMS
    assert set(found) - programs - folders - plain == set(), modes
    assert {status.st_uid for status in found.values()} == {os.getuid()}
    assert "etc/ipv6natd/ipv6natd.toml" in plain


def test_uninstall_deletes_what_install_made_and_keeps_the_settings(tmp_path: Path) -> None:
    installed(tmp_path, 0o022)
    setting = tmp_path / "etc/ipv6natd/conf.d/mine.toml"
    other = tmp_path / "usr/bin/other"
    # A module of an earlier version, and bytecode.
    earlier = tmp_path / "usr/lib/ipv6natd/ipv6natd/earlier.py"
    for path in (setting, other, earlier):
        path.touch()
    completed = _packaging(tmp_path, "uninstall.sh")
    assert completed.returncode == 0, completed.stderr
    left = {name for name, status in entries(tmp_path) if S_ISREG(status.st_mode)}
    settings = {"etc/ipv6natd/ipv6natd.toml", "etc/ipv6natd/conf.d/mine.toml"}
    assert left == {*settings, "usr/bin/other"}
    assert not (tmp_path / "usr/lib/ipv6natd").exists()


def test_uninstall_deletes_nothing_of_a_package(tmp_path: Path) -> None:
    installed(tmp_path, 0o022)
    (tmp_path / "usr/bin/ipv6natd").write_text("from ipv6natd.cli import main\nmain()\n")
    before = dict(entries(tmp_path)).keys()
    completed = _packaging(tmp_path, "uninstall.sh")
    assert completed.returncode == 1
    assert completed.stderr.endswith("name its prefix, such as PREFIX=/usr\n")
    assert dict(entries(tmp_path)).keys() == before


def test_the_commands_load_what_was_installed_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    top, poison = tmp_path / "root", tmp_path / "poison"
    top.mkdir()
    installed(top, 0o022)
    for name in ("ipv6natd", "argparse", "sitecustomize", "usercustomize"):
        (poison / name).mkdir(parents=True)
        (poison / name / "__init__.py").write_text("raise SystemExit(99)\n")
    for command in ("ipv6natd", "ipv6natctl"):
        file = top / "usr/bin" / command
        first, *rest = file.read_text().splitlines()
        assert first == "#!/usr/bin/python3 -I"
        # The command contains its installed path.
        there = "\n".join((first, *rest)).replace('"/usr/lib', f'"{top}/usr/lib')
        file.write_text(there)
        said = subprocess.run(
            (file, "--version"),
            check=True,
            capture_output=True,
            text=True,
            cwd=poison,
            env=environment({"PYTHONPATH": str(poison), "PYTHONSTARTUP": str(poison)}),
        ).stdout
        assert said == f"{command} {__version__}\n"


def test_links_of_the_installed_pages_lead_to_installed_files(tmp_path: Path) -> None:
    """Q28."""
    installed(tmp_path, 0o022)
    pages = tmp_path / "usr/share/doc/ipv6natd"
    links = {
        (page, link)
        for page in pages.rglob("*.md")
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        # The packages have the license in the place of the distribution.
        if link != "LICENSE"
    }
    assert len(links) > 20
    missing = [str(page) + " " + link for page, link in links if not (page.parent / link).exists()]
    assert missing == []


DEBOOTSTRAP = """#!/bin/sh
for last; do :; done
test -z "$FAIL" || exit 1
# As another user does beforehand, in a folder where all may write.
mkdir -p "$FOLDER.part" && ln -s "$VICTIM" "$FOLDER.part/var"
mkdir -p "$last/usr/share/doc/x" "$last/etc" "$last/dev" "$last/var/log" "$last/var/cache"
touch "$last/var/log/dpkg.log" "$last/usr/share/doc/x/copyright" "$last/usr/share/doc/x/README"
"""
UNSHARE = """#!/bin/sh
while [ "$1" != debootstrap ]; do shift; done
exec "$@"
"""


def make_base(folder: Path, **variables: str) -> int:
    """Run base.sh without debootstrap and unshare; return its exit status."""
    programs = folder.parent.parent / "programs"
    programs.mkdir()
    for name, text in (("debootstrap", DEBOOTSTRAP), ("unshare", UNSHARE)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    here = {"PATH": f"{programs}:{os.environ['PATH']}", "FOLDER": str(folder)}
    command = [str(ROOT / "packaging/container/base.sh"), str(folder)]
    return subprocess.run(command, env=here | variables, check=False).returncode


def test_base_of_the_image_is_made_in_a_folder_that_nobody_else_knows(tmp_path: Path) -> None:
    victim, shared = tmp_path / "victim", tmp_path / "shared"
    (victim / "log").mkdir(parents=True)
    (victim / "log/keep").touch()
    shared.mkdir()
    assert make_base(shared / "base", VICTIM=str(victim)) == 0
    assert (victim / "log/keep").exists()
    assert S_IMODE((shared / "base").stat().st_mode) == 0o755
    made = {str(path.relative_to(shared / "base")) for path in (shared / "base").rglob("*")}
    assert {"var/log", "usr/share/doc/x/copyright"} <= made
    assert not {"var/log/dpkg.log", "usr/share/doc/x/README"} & made
    assert {path.name for path in shared.iterdir()} == {"base", "base.part"}


def test_base_of_the_image_leaves_nothing_after_a_failure(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    assert make_base(shared / "base", FAIL="1") != 0
    assert list(shared.iterdir()) == []


def test_addresses_of_the_publisher_are_filled_in_again_where_none_is_left(tmp_path: Path) -> None:
    """`make release` fills them in, and the build of each package does so again."""
    script, tree = tmp_path / "publisher.sh", tmp_path / "tree"
    text = (ROOT / "packaging/publisher.sh").read_text()
    # The patterns of sed escape the dots, so they stay.
    script.write_text(text.replace("placeholder.example.org", "ipv6natd.test"))
    tree.mkdir()
    (tree / "control").write_text("Homepage: https://placeholder.example.org\n")
    for _ in range(2):
        subprocess.run(["bash", script, tree], check=True)
        assert (tree / "control").read_text() == "Homepage: https://ipv6natd.test\n"
