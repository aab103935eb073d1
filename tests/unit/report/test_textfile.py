"""The metrics in a file."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ipv6natd.report import textfile
from ipv6natd.report.status import State, Status
from ipv6natd.report.textfile import Textfile

NOW = Status(version="1", state=State.SYNCED)


def run(
    file: Textfile, until: Callable[[], bool], *, first: Callable[[], None] | None = None
) -> None:
    async def body() -> None:
        task = asyncio.create_task(file.run())
        try:
            async with asyncio.timeout(20):
                await asyncio.sleep(0)
                if first is not None:
                    first()
                while not until():  # noqa: ASYNC110 - a file has no event
                    await asyncio.sleep(0.01)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    asyncio.run(body())


def test_it_is_written_at_once_for_all_to_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "ipv6natd.prom"
    run(Textfile(str(path), lambda: NOW), path.exists)
    assert 'ipv6natd_state{state="synced"} 1\n' in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["ipv6natd.prom"]  # noqa: PTH208


def test_a_link_in_its_way_is_not_written_through(tmp_path: Path) -> None:
    """The folder belongs to the collector, who must not have root write where it likes."""
    secret, path = tmp_path / "shadow", tmp_path / "ipv6natd.prom"
    secret.write_text("root:x\n")
    secret.chmod(0o600)
    path.with_suffix(".new").symlink_to(secret)
    path.symlink_to(secret)
    run(Textfile(str(path), lambda: NOW), lambda: not path.is_symlink())
    assert secret.read_text() == "root:x\n"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert "ipv6natd_up 1" in path.read_text()


def test_a_change_is_written_and_a_quiet_minute_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textfile, "PAUSE", 0.01)
    path, seen = tmp_path / "a.prom", [NOW]
    file = Textfile(str(path), lambda: seen[-1])

    def change() -> None:
        seen.append(Status(version="2", state=State.DEGRADED))
        file.changed()

    run(file, lambda: path.exists() and 'state="degraded"} 1' in path.read_text(), first=change)
    monkeypatch.setattr(textfile, "EVERY", 0.02)
    path.unlink()
    run(file, path.exists)
    path.unlink()
    run(file, path.exists)


def test_a_write_that_a_dead_disk_holds_up_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(textfile, "PATIENCE", 0.05)
    file = Textfile(str(tmp_path / "a.prom"), lambda: NOW)
    with file._lock:
        file.stopped()
    assert "an earlier write does not end" in caplog.text


def test_the_last_word_is_that_nobody_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.prom"
    Textfile(str(path), lambda: NOW).stopped()
    assert path.read_text().splitlines()[-1] == "ipv6natd_up 0"
    Textfile("", lambda: NOW).stopped()


def test_a_folder_that_is_not_there_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "none" / "a.prom")
    file = Textfile(path, lambda: NOW)
    with caplog.at_level(logging.WARNING):
        run(file, lambda: bool(caplog.records))
        file.stopped()
    assert [each.getMessage() for each in caplog.records] == [
        f"metrics_textfile: {path} cannot be written: No such file or directory; "
        "see ipv6natd.toml(5)"
    ]
