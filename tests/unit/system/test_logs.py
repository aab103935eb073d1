"""Messages in the journal and on the standard error, also with hostile text."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipv6natd.system import logs
from ipv6natd.system.logs import datagram
from ipv6natd.system.terminal import printable

log = logging.getLogger("ipv6natd.test")
HOSTILE = "a\nb\x1b[2J\r\0\u202e\ud800\x9b\N{NO-BREAK SPACE}c"
ESCAPED = r"a\nb\x1b[2J\r\x00\u202e\ud800\x9b\xa0c"


@pytest.fixture(autouse=True)
def root() -> Iterator[logging.Logger]:
    """The root logger; its level and handlers are restored."""
    logger = logging.getLogger()
    level, handlers = logger.level, logger.handlers[:]
    yield logger
    for handler in logger.handlers[:]:
        if handler not in handlers:
            logger.removeHandler(handler)
            handler.close()
    logger.setLevel(level)


class Journal:
    """Receives datagrams like the journal."""

    def __init__(self, socket_: socket.socket) -> None:
        self._socket = socket_
        socket_.setblocking(False)

    def entries(self) -> list[dict[str, str]]:
        entries = []
        while True:
            try:
                entries.append(parsed(self._socket.recv(1 << 20)))
            except BlockingIOError:
                return entries


def parsed(data: bytes) -> dict[str, str]:
    """Parse a datagram by the rules of systemd's journal export format."""
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        fields[name.decode()] = value.decode()
        data = rest
    return fields


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    """A journal to which the standard error is connected."""
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    monkeypatch.setattr(logs, "SOCKET", f"{tmp_path}/socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(f"{tmp_path}/socket")
        yield Journal(server)


def test_message_in_the_journal_has_fields(
    root: logging.Logger, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.start(debug=False)
    log.warning("published %s", "web", extra={"fields": {"IPV6NATD_CONTAINER": "web"}})
    log.debug("not said")
    assert journal.entries() == [
        {
            "MESSAGE": "published web",
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "ipv6natd",
            "IPV6NATD_CONTAINER": "web",
        }
    ]
    assert capsys.readouterr().err == ""
    assert root.level == logging.INFO


def test_message_too_large_for_the_journal_goes_to_stderr_with_priority(
    journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.start(debug=True)
    text = "x" * (1 << 20)
    log.error("%s", ValueError(f"{text}\nsecond"))
    Path(logs.SOCKET).unlink()
    logging.getLogger().handlers[-1]._socket.close()  # type: ignore[attr-defined]
    log.debug("gone")
    assert journal.entries() == []
    assert capsys.readouterr().err == f"<3>{text}\n<3>second\n<7>gone\n"


@pytest.mark.parametrize("stream", ["", "1:2", "nonsense"])
def test_message_without_journal_is_a_line_with_the_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    logs.start(debug=False)
    log.info("published %s", HOSTILE, extra={"fields": {"IPV6NATD_CONTAINER": HOSTILE}})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f" INFO    published {ESCAPED}")


def test_message_with_hostile_name_forges_neither_field_nor_line(journal: Journal) -> None:
    logs.start(debug=False)
    forged = "x\nPRIORITY=0\nMESSAGE=forged"
    log.info("published %s", forged, extra={"fields": {"IPV6NATD_CONTAINER": forged}})
    log.info("published %s", HOSTILE, extra={"fields": {"IPV6NATD_CONTAINER": HOSTILE}})
    first, second = journal.entries()
    assert first["MESSAGE"] == r"published x\nPRIORITY=0\nMESSAGE=forged"
    assert first["IPV6NATD_CONTAINER"] == forged
    assert first["PRIORITY"] == "6"
    assert second["MESSAGE"] == f"published {ESCAPED}"
    assert second["IPV6NATD_CONTAINER"] == HOSTILE.replace("\ud800", r"\ud800")


def test_output_of_a_tool_and_traceback_keep_their_lines(journal: Journal) -> None:
    logs.start(debug=False)
    log.error("failed: %s", ValueError("one\n\ttwo\x1b"))
    try:
        raise ValueError("deep")
    except ValueError:
        log.exception("odd")
    first, second = journal.entries()
    assert first["MESSAGE"] == "failed: one\n\\ttwo\\x1b"
    assert second["MESSAGE"].startswith("odd\nTraceback")
    assert second["MESSAGE"].endswith("ValueError: deep")


def test_level_and_target_return_the_set_values(
    root: logging.Logger, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.start(debug=False)
    assert (logs.level(), logs.target()) == ("info", "journal")
    for name in logs.LEVELS:
        logs.set_level(name)
        assert logs.level() == name
    logs.set_level("notice")
    log.info("no")
    log.warning("yes")
    logs.set_target("console")
    log.warning("here")
    logs.set_target("journal")
    log.warning("there")
    assert [entry["MESSAGE"] for entry in journal.entries()] == ["yes", "there"]
    assert capsys.readouterr().err == "<4>here\n"
    assert sum(isinstance(handler, logs.ConsoleHandler) for handler in root.handlers) == 1


def test_message_goes_to_stderr_if_the_journal_does_not_listen(
    journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(logs.SOCKET).unlink()
    logs.start(debug=False)
    log.warning("there")
    assert capsys.readouterr().err == "<4>there\n"
    assert journal.entries() == []


def test_set_target_without_journal_raises_and_changes_nothing(
    root: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "SOCKET", f"{tmp_path}/none")
    before = root.handlers[:]
    with pytest.raises(OSError, match="No such file"):
        logs.set_target("journal")
    assert root.handlers == before


NAMES = st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True)


@given(st.dictionaries(NAMES, st.text(st.characters(exclude_categories=["Cs"]))))
def test_datagram_parses_to_the_same_fields(fields: dict[str, str]) -> None:
    assert parsed(datagram(fields)) == fields


@given(st.text())
def test_printable_escapes_exactly_the_unprintable_text(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text
