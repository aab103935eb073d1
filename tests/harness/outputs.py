"""All outputs of a state for users and programs, and checks that each output is safe.

The oracle of tests/unit/test_hostile.py and of the fuzzers, where names and labels are arbitrary.
"""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Iterator
from collections.abc import Mapping as Map
from functools import cache
from pathlib import Path
from typing import Any, cast

from ipv6natd.ctl.client import DaemonClient, Options, json_text
from ipv6natd.ctl.commands import COMMANDS
from ipv6natd.ctl.monitor import EventReader, event_line
from ipv6natd.dbus.connection import BusError, Signal
from ipv6natd.dbus.values import marshal_rows, marshal_text, variants, without_variants
from ipv6natd.dbus.wire import Marshaller, Message, MessageType, _Reader, marshalled
from ipv6natd.model import Desired, Snapshot
from ipv6natd.netfilter.render import format_ruleset
from ipv6natd.policy.ruleset import ruleset
from ipv6natd.report import changes as journal
from ipv6natd.report import explain, metrics
from ipv6natd.report.ports import ConnectionsRow
from ipv6natd.report.status import (
    Row,
    State,
    Status,
    finding_row,
    mapping_id,
    mapping_rows,
    network_row,
    one_line,
    properties,
)
from ipv6natd.report.traces import StepRow, TraceRow
from ipv6natd.system import logs
from ipv6natd.system import sd_notify as notify
from ipv6natd.system.terminal import Screen

SCREEN = Screen(columns=80)
COLOURED = Screen(colour=True, columns=80)
_COLOUR = re.compile(r"\x1b\[(?:0|1|4|31|32|33)m")
_FIELD = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
LONGEST = 5000
"""The maximum bytes of one text, with any name or label."""
NO_FILTERS: Map[str, str] = {}
LISTS = ("mappings", "networks", "skipped", "findings")


def assert_every_output_is_safe(facts: Snapshot, want: Desired, reason: str = "") -> None:
    """Check the journal, the bus, the terminal, JSON, metrics and STATUS= of this state."""
    now = status_of(facts, want, reason)
    assert_in_the_journal(now)
    assert_status_line(now)
    daemon = Answering(now, facts, want)
    for name in ("status", *LISTS, "rules", "metrics", "top"):
        assert_on_the_terminal(name, daemon)
    for each in facts.containers[:20]:
        assert_on_the_terminal("explain", daemon, argument=each.name)
    traced = {"from": "2001:db8::7"}
    assert_on_the_terminal("explain", daemon, argument="8080", filters=traced)
    assert_events(daemon)
    assert_metrics(now)


def status_of(facts: Snapshot, want: Desired, reason: str = "") -> Status:
    """The status that the daemon would report."""
    return Status(
        version="1.2.3",
        state=State.DEGRADED if reason else State.SYNCED,
        state_reason=reason,
        backend="nft",
        engine_version=facts.engine.version if facts.engine else "",
        docker_connected=True,
        mappings=want.mappings,
        networks=want.networks,
        skipped=want.skipped,
    )


# The journal and systemd.


_ENDS: list[Callable[[], None]] = []


def at_end(close: Callable[[], None]) -> None:
    """Register a function for `close_all`: checks share resources that are slow to create."""
    _ENDS.append(close)


def close_all() -> None:
    """Close the shared resources of the checks."""
    while _ENDS:
        _ENDS.pop()()


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        folder = tempfile.TemporaryDirectory(prefix="ipv6natd-journal-")
        self._kept = folder
        path = str(Path(folder.name, "socket"))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.settimeout(5)
        before, logs.SOCKET = logs.SOCKET, path
        self._journal = logs.JournalHandler()
        self._console = logs.ConsoleHandler()
        logs.SOCKET = before
        self.entries: list[dict[str, str]] = []
        self.lines: list[str] = []

    def close(self) -> None:
        self._journal.close()
        self._console.close()
        self._socket.close()
        self._kept.cleanup()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        self._journal.emit(record)
        self.entries.append(parsed(self._socket.recv(1 << 20)))
        self.lines.append(self._console.format(record))


@cache
def _heard() -> _Heard:
    made = _Heard()
    at_end(made.close)
    at_end(_heard.cache_clear)
    return made


def parsed(data: bytes) -> dict[str, str]:
    """The fields of a datagram in systemd's journal export format."""
    fields: dict[str, str] = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        assert name.decode() not in fields
        fields[name.decode()] = value.decode()
        data = rest
    return fields


def logged(act: Callable[[], None]) -> tuple[list[dict[str, str]], list[str]]:
    """The log output of `act`: journal entries, and lines on a terminal."""
    heard, logger = _heard(), logging.getLogger("ipv6natd")
    heard.entries, heard.lines = [], []
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(heard)
    try:
        act()
    finally:
        logger.removeHandler(heard)
        logger.setLevel(level)
        logger.propagate = propagates
    return heard.entries, heard.lines


def assert_in_the_journal(now: Status) -> None:
    """Check that each message is one entry with known fields, and one line on a terminal."""

    def act() -> None:
        journal.log_changes(Status(version="1.2.3"), now)
        journal.log_changes(now, Status(version="1.2.3"))

    entries, lines = logged(act)
    expected = {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "MESSAGE_ID"}
    for entry in entries:
        assert entry["MESSAGE"].isprintable(), entry
        assert entry["SYSLOG_IDENTIFIER"] == "ipv6natd"
        for name, value in entry.items():
            assert _FIELD.fullmatch(name), entry
            assert name in expected or name.startswith("IPV6NATD_"), entry
            assert len(value.encode()) < LONGEST
    assert all(line.isprintable() for line in lines), lines


def assert_status_line(now: Status) -> None:
    """Check that STATUS= is one short printable line. systemd drops a datagram above 4096 bytes."""
    word = notify._status(one_line(now))
    assert word.isprintable(), word
    assert len(word.encode()) < 3000


# The bus.


def over_the_bus(signature: str, data: bytes) -> list[Any]:
    """A body, decoded like a caller does."""
    message = Message(
        message_type=MessageType.METHOD_RETURN,
        reply_serial=1,
        destination=":1.1",
        signature=signature,
        body=data,
    )
    message.serial = 1
    reader = _Reader(io.BytesIO(b"".join(marshalled(message))), *(1 << 30,) * 3)
    read = reader.unmarshall()
    assert read is not None
    assert read.signature == signature
    body = without_variants(read.body)
    for text in texts(body):
        assert "\0" not in text
    return list(body)


def texts(value: object) -> Iterator[str]:
    """All strings in a value."""
    match value:
        case str():
            yield value
        case dict():
            for key, each in value.items():
                yield from (key, *texts(each))
        case list() | tuple():
            for each in value:
                yield from texts(each)


class Answering:
    """The daemon for ipv6natctl, over a bus that only encodes and decodes."""

    def __init__(self, now: Status, facts: Snapshot, want: Desired) -> None:
        self._now, self._facts, self._want = now, facts, want
        self._lists: dict[str, Iterable[Row]] = {
            "ListMappings": tuple(mapping_rows(now)),
            "ListNetworks": tuple(map(network_row, now.networks)),
            "ListSkipped": now.skipped,
            "ListFindings": tuple(map(finding_row, now.findings)),
        }

    async def properties(self) -> dict[str, Any]:
        data = Marshaller("a{sv}", [variants(properties(self._now))]).marshall()
        (values,) = over_the_bus("a{sv}", bytes(data))
        return dict(values)

    async def tcp_answers(self, _: object) -> dict[tuple[str, int], str]:
        return {}

    async def call(self, member: str, *args: str) -> Any:
        if member == "GetRuleset":
            return over_the_bus("s", marshal_text(format_ruleset(ruleset(self._want))))[0]
        if member == "Explain":
            rules = ruleset(self._want)
            known = explain.explanations(args[0], self._facts, self._want, rules)
            rows: Iterable[Row] = [explain.with_connections(each, {}) for each in known]
        elif member == "Trace":
            rows = [_traced(network.name or network.bridge) for network in self._facts.networks]
        elif member == "ListConnections":
            rows = [ConnectionsRow(id=mapping_id(one), connections=1) for one in self._now.mappings]
        elif member in self._lists:
            rows = self._lists[member]
        else:
            raise BusError("org.freedesktop.DBus.Error.UnknownMethod", member)
        (found,) = over_the_bus("aa{sv}", marshal_rows(rows))
        assert all(len(text.encode()) < LONGEST for text in texts(found))
        return found


def _traced(text: str) -> TraceRow:
    """A packet on a host whose interfaces, chains and rules have this name."""
    step = StepRow(table=text, hook=text, chain=text, rule=text, verdict=text, by=text)
    return TraceRow(
        protocol="tcp",
        source=f"fe80::1%{text}",
        interface=text,
        host_address="fd00::1",
        host_port=8080,
        fate="dropped",
        reason=text,
        steps=(step,),
    )


# The terminal.


def finished(run: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits."""
    try:
        run.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("the coroutine waits")


def assert_printable(text: str) -> None:
    """Check for control characters of terminals and of bidirectional text."""
    bad = [line for line in text.split("\n") if not line.isprintable()]
    assert not bad, bad


def assert_on_the_terminal(
    name: str, daemon: Answering, argument: str = "", filters: Map[str, str] = NO_FILTERS
) -> None:
    """Check the table, the notes and the JSON of a command."""
    shown = []
    for screen in (Screen(), SCREEN, COLOURED):
        options = Options(argument=argument, filters=filters, screen=screen)
        result = finished(COMMANDS[name].run(cast("DaemonClient", daemon), options))
        text = result.text
        if screen is COLOURED:
            text = _COLOUR.sub("", text)
        if name == "status":
            text = re.sub(r"Last sync: .*", "", text)
        assert_printable(text)
        shown.append(text)
    assert shown[1].split() == shown[2].split()
    for mode in ("short", "pretty"):
        word = json_text(result.value, mode)
        assert word.isascii()
        assert json.loads(word) == result.value
    if name in LISTS:
        lines = shown[0].splitlines()
        assert len(lines) == (len(result.value) + 3 if result.value else 1), lines


def assert_events(daemon: Answering) -> None:
    """Check the lines of `monitor` about mappings."""
    reader = EventReader()
    reader.owner = ":1.9"
    rows = finished(daemon.call("ListMappings"))
    for row in list(rows)[:5]:
        signal = Signal(
            sender=":1.9",
            path="/org/ipv6natd1",
            interface="org.ipv6natd1.Manager",
            member="MappingAdded",
            args=[row],
        )
        for event in reader.events(signal):
            line = event_line({"Time": 0, **event}, Screen())
            assert line.isprintable(), line
    changed = {"Event": "changed", "Time": 0, **finished(daemon.properties())}
    assert event_line(changed, Screen()).isprintable()


# Metrics.


def assert_metrics(now: Status) -> None:
    """Check that Prometheus can parse the metrics, and that labels are unchanged."""
    shown = without_variants(variants(properties(now)))
    lists: tuple[Iterable[Row], ...] = (
        mapping_rows(now),
        map(network_row, now.networks),
        map(finding_row, now.findings),
    )
    shown_lists = ([without_variants(variants(row)) for row in rows] for rows in lists)
    text = metrics.text(metrics.samples(shown, *shown_lists))
    samples: dict[str, list[dict[str, str]]] = {}
    kinds: set[str] = set()
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if kind := _KIND.fullmatch(line):
            assert kind[1] not in kinds
            kinds.add(kind[1])
        elif not _HELP.fullmatch(line):
            sample = _SAMPLE.fullmatch(line)
            assert sample, line
            assert sample[1] in kinds, line
            labels = {name: _unescaped(value) for name, value in _LABEL.findall(sample[2] or "")}
            samples.setdefault(sample[1], []).append(labels)
    (info,) = samples["ipv6natd_info"]
    assert info["engine_version"] == shown["EngineVersion"]
    assert set(samples) == kinds


# The text format of Prometheus, without timestamps.
_ONE = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"'
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"')
_SAMPLE = re.compile(
    rf"(ipv6natd_[a-z_]+)(?:\{{((?:{_ONE})(?:,(?:{_ONE}))*)\}})? [0-9]+(?:\.[0-9]+)?"
)
_KIND = re.compile(r"# TYPE (ipv6natd_[a-z_]+) (?:gauge|counter)")
_HELP = re.compile(r"# HELP ipv6natd_[a-z_]+ [ -~]+")


def _unescaped(value: str) -> str:
    return re.sub(r"\\(.)", lambda hit: "\n" if hit[1] == "n" else hit[1], value)
