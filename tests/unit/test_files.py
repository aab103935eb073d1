"""Files in folders that may belong to another user: root must not follow links there."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.firewall.tools import LOCK_VARIABLE
from ipv6natd.firewall.xtables import xtables_lock
from ipv6natd.model import Desired
from ipv6natd.netfilter.render import format_ruleset
from ipv6natd.policy.ruleset import ruleset
from ipv6natd.sync.saved_rules import SavedRules
from ipv6natd.system import files
from tests.docs.sources import modules

RULES = ruleset(Desired())
KEPT = format_ruleset(RULES)


@pytest.fixture
def shadow(tmp_path: Path) -> Iterator[Path]:
    """A file of root outside the folder, which must be neither read nor changed."""
    path = tmp_path / "shadow"
    path.write_text(KEPT)
    path.chmod(0o640)
    yield path
    assert path.read_text() == KEPT
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SavedRules:
    """The saved table, in an empty folder."""
    folder = tmp_path / "state"
    folder.mkdir()
    monkeypatch.setenv("STATE_DIRECTORY", str(folder))
    return SavedRules()


def test_the_saved_table_is_not_written_through_a_link(saved: SavedRules, shadow: Path) -> None:
    saved.path.symlink_to(shadow)
    saved.path.with_suffix(".new").symlink_to(shadow)
    saved.write(RULES)
    assert not saved.path.is_symlink()
    assert saved.path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(saved.path.parent) == [saved.path.name]  # noqa: PTH208


def test_the_saved_table_is_not_written_into_a_file_that_another_has_open(
    saved: SavedRules, shadow: Path
) -> None:
    """A hard link, or a file that a user created and can read, would be overwritten."""
    saved.path.with_suffix(".new").hardlink_to(shadow)
    saved.write(RULES)
    assert saved.path.stat().st_ino != shadow.stat().st_ino


def test_the_saved_table_is_not_read_through_a_link(saved: SavedRules, shadow: Path) -> None:
    saved.path.symlink_to(shadow)
    assert saved.read() is None


def test_the_saved_table_is_not_read_from_a_device_or_a_pipe(saved: SavedRules) -> None:
    """A read from a pipe can block forever, and a device may be endless."""
    os.mkfifo(saved.path)
    assert saved.read() is None
    saved.path.unlink()
    saved.path.symlink_to("/dev/zero")
    assert saved.read() is None


def test_removing_the_saved_table_removes_the_link(saved: SavedRules, shadow: Path) -> None:
    saved.path.symlink_to(shadow)
    saved.remove()
    assert not saved.path.is_symlink()


def test_a_file_is_replaced_as_a_whole_with_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.prom"
    before = os.umask(0o077)
    try:
        files.replace(path, "one\n", mode=0o644)
        files.replace(path, "two\n", mode=0o644)
    finally:
        os.umask(before)
    assert path.read_text() == files.read(path) == "two\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["a.prom"]  # noqa: PTH208


def test_replace_does_not_follow_a_folder_exchanged_for_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner of the parent folder may move it and put a link in its place between two steps."""
    folder, other = tmp_path / "folder", tmp_path / "etc"
    folder.mkdir()
    other.mkdir()
    opened = files.open_file

    def exchanged(name: str, flags: int, mode: int = 0o600, folder_: int | None = None) -> int:
        if not (tmp_path / "moved").exists():
            folder.rename(tmp_path / "moved")
            folder.symlink_to(other)
        return opened(name, flags, mode, folder_)

    monkeypatch.setattr(files, "open_file", exchanged)
    files.replace(folder / "x", "x", mode=0o600)
    assert os.listdir(other) == []  # noqa: PTH208
    assert (tmp_path / "moved/x").read_text() == "x"


def test_the_lock_of_legacy_tables_is_not_made_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, lock = tmp_path / "made", tmp_path / "xtables.lock"
    lock.symlink_to(target)
    monkeypatch.setenv(LOCK_VARIABLE, str(lock))
    with pytest.raises(FirewallError, match="cannot be opened"), xtables_lock():
        pass
    assert not target.exists()


HOMES = {"system.files", "ctl"}
"""Modules that open files in other ways; ctl redirects its output to /dev/null."""
SYSCTLS = {"sync.forwarding": ["(_CONF / key).write_text(f'{value}\\n')"]}
"""Writes where only root can create a link: /proc/sys."""
WRITES = {"write_text", "write_bytes", "open", "touch", "symlink_to", "mkstemp", "rename"}


def writes(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=attr)) if attr in WRITES:
                yield ast.unparse(node)
            case ast.Call(func=ast.Name(id="open")):
                yield ast.unparse(node)


def test_files_are_written_in_one_way() -> None:
    found = {
        name: list(writes(ast.parse(path.read_text())))
        for name, path in modules().items()
        if name not in HOMES
    }
    assert {name: calls for name, calls in found.items() if calls} == SYSCTLS
