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


def test_textfile_is_written_at_once_and_is_the_only_file(tmp_path: Path) -> None:
    path = tmp_path / "ipv6natd.prom"
    run(Textfile(str(path), lambda: NOW), path.exists)
    assert 'ipv6natd_state{state="synced"} 1\n' in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["ipv6natd.prom"]  # noqa: PTH208


def test_textfile_is_not_written_through_a_link(tmp_path: Path) -> None:
    """The folder belongs to the collector, which must not make root write to other files."""
    secret, path = tmp_path / "shadow", tmp_path / "ipv6natd.prom"
    secret.write_text("root:x\n")
    secret.chmod(0o600)
    path.with_suffix(".new").symlink_to(secret)
    path.symlink_to(secret)
    run(Textfile(str(path), lambda: NOW), lambda: not path.is_symlink())
    assert secret.read_text() == "root:x\n"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert "ipv6natd_up 1" in path.read_text()


def test_textfile_is_rewritten_after_a_change_and_after_the_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textfile, "MIN_WRITE_INTERVAL", 0.01)
    path, statuses = tmp_path / "a.prom", [NOW]
    file = Textfile(str(path), lambda: statuses[-1])

    def change() -> None:
        statuses.append(Status(version="2", state=State.DEGRADED))
        file.changed()

    run(file, lambda: path.exists() and 'state="degraded"} 1' in path.read_text(), first=change)
    monkeypatch.setattr(textfile, "REWRITE_INTERVAL", 0.02)
    path.unlink()
    run(file, path.exists)
    path.unlink()
    run(file, path.exists)


def test_write_stopped_does_not_wait_for_a_write_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(textfile, "LOCK_TIMEOUT", 0.05)
    file = Textfile(str(tmp_path / "a.prom"), lambda: NOW)
    with file._lock:
        file.write_stopped()
    assert "an earlier write has not finished" in caplog.text


def test_write_stopped_leaves_only_up_0(tmp_path: Path) -> None:
    path = tmp_path / "a.prom"
    Textfile(str(path), lambda: NOW).write_stopped()
    assert path.read_text().splitlines()[-1] == "ipv6natd_up 0"
    Textfile("", lambda: NOW).write_stopped()


def test_missing_folder_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(tmp_path / "none" / "a.prom")
    file = Textfile(path, lambda: NOW)
    with caplog.at_level(logging.WARNING):
        run(file, lambda: bool(caplog.records))
        file.write_stopped()
    assert [record.getMessage() for record in caplog.records] == [
        f"metrics_textfile: {path} cannot be written: No such file or directory; "
        "see ipv6natd.toml(5)"
    ]
