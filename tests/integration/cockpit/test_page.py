"""The page for Cockpit: its code in node, and all of it at a real cockpit-bridge."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import unicodedata
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ipv6natd.ctl.explain import SERVER_HINTS
from ipv6natd.host.findings import Finding, Topic
from ipv6natd.model import Outcome, Protocol
from ipv6natd.report.explain import Explanation
from ipv6natd.report.ports import PortReport
from ipv6natd.system.terminal import printable
from tests import ROOT
from tests.harness.needs import need
from tests.harness.waiting import until
from tests.integration.bus.conftest import (
    Bus,
    FakeSource,
    mapping,
    run,
    serving,
    status,
    tool_environment,
)

HERE = Path(__file__).parent
WAIT = 20.0
"""Seconds for a slow machine."""
HOSTILE = "<img src=x>\u202e\x07\"'&"
OFF = Finding(topic=Topic.FORWARDING, problem="it is off; now", command="sysctl -w a=1")
Texts = dict[str, str]


def test_code_of_the_page_passes_its_tests_in_node() -> None:
    need("node")
    done = subprocess.run(
        ("node", "--test", HERE / "page.test.js"), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"pass (\d+)", done.stdout)[0]) >= 12


def test_page_escapes_the_same_characters_as_the_tool() -> None:
    """All code points. A newer Unicode has characters that an older one takes for unassigned."""
    need("node")
    script = """
        const { visible } = require(process.argv[1]);
        for (let code = 0; code < 0x110000; code++) {
            const char = String.fromCodePoint(code);
            console.log(`${/\\p{Cn}/u.test(char)} ${visible(char)}`);
        }
    """
    command = ("node", "-e", script, ROOT / "cockpit/ipv6natd.js")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    lines = done.stdout.split("\n")[:-1]
    assert len(lines) == 0x110000
    different = []
    for code, line in enumerate(lines):
        unassigned, _, shown = line.partition(" ")
        char = chr(code)
        is_unassigned = unassigned == "true", unicodedata.category(char) == "Cn"
        if shown != printable(char) and is_unassigned in ((True, True), (False, False)):
            different.append((hex(code), shown))
    assert not different
    assert lines[0x202E] == r"false \u202e"


class Page:
    """The page in node, at a bridge that is connected to the private bus."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.texts: Texts = {}

    async def until(self, holds: Callable[[Texts], bool]) -> Texts:
        """The texts of the page, by the id of the element, when they hold."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(WAIT):
                while not (self.texts and holds(self.texts)):
                    line = await self.process.stdout.readline()
                    assert line, "the page has ended"
                    self.texts = json.loads(line)
        except TimeoutError:
            pytest.fail(f"the page shows {self.texts}")
        return self.texts

    def do(self, line: str) -> None:
        """Click on something: see live.js."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())


@asynccontextmanager
async def opened(bus: Bus, home: Path, *, uid: int = 0) -> AsyncIterator[Page]:
    need("node", "cockpit-bridge", "setpriv")
    own = ("setpriv", f"--reuid={uid}", "--clear-groups", "--pdeathsig=KILL")
    # With these, the bridge starts no session bus and no agent.
    env = tool_environment(bus, home) | {
        "DBUS_SESSION_BUS_ADDRESS": bus.address,
        "SSH_AUTH_SOCK": "/nonexistent",
        "XDG_RUNTIME_DIR": str(home),
        "HOME": str(home),
    }
    process = await asyncio.create_subprocess_exec(
        *own,
        "node",
        HERE / "live.js",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=env,
        limit=1 << 24,
    )
    try:
        yield Page(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(WAIT):
            await process.communicate()


def test_page_shows_what_the_bridge_gives_it_and_follows_the_signals(
    bus: Bus, tmp_path: Path
) -> None:
    async def body() -> None:
        source = FakeSource(status(mapping(), mapping(1, "db"), findings=(OFF,)))
        async with serving(bus, source) as service, opened(bus, tmp_path) as page:
            seen = await page.until(lambda texts: "web" in texts["mappings"])
            assert seen["state"].startswith("synced")
            assert "Docker 20.10.24 · nft · 2 mappings · 1 network" in seen["facts"]
            assert "[::]:8000tcpweb[fd00:a::2]:80front" in seen["mappings"]
            assert "fd00:a::/64" in seen["networks"]
            assert "first; second" in seen["networks"]
            assert "taken by web" in seen["skipped"]
            assert "it is off; now" in seen["findings"]
            assert "sysctl -w a=1" in seen["findings"]
            assert "tcp [::]:8001" in seen["diagram"]
            assert seen["problem"] == ""
            before, source.now = source.now, status(mapping(2, "cache"), generation=2)
            service.publish(before, source.now)
            seen = await page.until(lambda texts: "cache" in texts["mappings"])
            assert "web" not in seen["mappings"]
            assert "it is off" not in seen["findings"]

    run(body())


def test_page_says_that_the_daemon_has_ended_and_returns_with_it(bus: Bus, tmp_path: Path) -> None:
    async def body() -> None:
        async with opened(bus, tmp_path) as page:
            await page.until(lambda texts: "ipv6natd is not running" in texts["problem"])
            async with serving(bus, FakeSource(status(mapping()))):
                await page.until(lambda texts: "web" in texts["mappings"] and not texts["problem"])
            await page.until(lambda texts: "ipv6natd is not running" in texts["problem"])
            async with serving(bus, FakeSource(status(mapping(3, "later")))):
                await page.until(lambda texts: "later" in texts["mappings"])

    run(body())


def test_resync_is_for_root_and_another_user_reads_why(bus: Bus, tmp_path: Path) -> None:
    async def body() -> None:
        source = FakeSource(status(mapping()))
        async with serving(bus, source) as service:
            async with opened(bus, tmp_path) as page:
                await page.until(lambda texts: "web" in texts["mappings"])
                page.do("click actions")
                await until(lambda: source.done == ["resync"], limit=WAIT)
                await page.until(lambda texts: "added: 3, removed: 1" in texts["actions"])
            async with opened(bus, tmp_path, uid=65534) as page:
                await page.until(lambda texts: "web" in texts["mappings"])
                page.do("click actions")
                seen = await page.until(lambda texts: bool(texts["problem"]))
                assert seen["problem"].startswith(
                    "only root may do that: sudo ipv6natctl resync; or"
                )
                assert "administrative access" in seen["problem"]
                # The next read does not hide it.
                before, source.now = source.now, status(mapping(2, "cache"), generation=2)
                service.publish(before, source.now)
                after = await page.until(lambda texts: "cache" in texts["mappings"])
                assert after["problem"] == seen["problem"]
            assert source.done == ["resync"]

    run(body())


def explained(*ports: int) -> Explanation:
    """A container whose TCP ports are on this machine."""
    reports = (
        PortReport(
            binding=f"[::]:{port} -> {port}/tcp",
            outcome=Outcome.FORWARDED,
            container_address="::1",
            container_port=port,
        )
        for port in ports
    )
    return Explanation(
        container_id="0" * 64,
        container_name="web",
        networks=(),
        ports=tuple(reports),
        skipped=(),
        loopback="the userland proxy answers",
    )


def test_container_is_explained_and_its_servers_are_asked(bus: Bus, tmp_path: Path) -> None:
    async def body(listening: int) -> None:
        source = FakeSource(status(mapping()))
        source.explained = [explained(listening, 1)]
        async with serving(bus, source), opened(bus, tmp_path) as page:
            await page.until(lambda texts: "web" in texts["mappings"])
            page.do("explain")
            seen = await page.until(lambda texts: "refused" in texts["explanation-text"])
            assert seen["explanation-title"] == "web"
            assert "the userland proxy answers" in seen["explanation-text"]
            assert f"{listening}/tcp forwarded, accepted" in seen["explanation-text"]
            assert "1/tcp forwarded, refused" in seen["explanation-text"]

    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        run(body(server.getsockname()[1]))


def test_hostile_names_stay_text_and_ten_thousand_rows_arrive(bus: Bus, tmp_path: Path) -> None:
    rows = [mapping(number % 50_000, f"web{number}") for number in range(9_999)]
    hostile = replace(mapping(1, HOSTILE), protocol=Protocol.UDP, network_name=HOSTILE)

    async def body() -> None:
        async with serving(bus, FakeSource(status(hostile, *rows))), opened(bus, tmp_path) as page:
            seen = await page.until(lambda texts: "500 of 10000" in texts["mappings"])
            assert "<img src=x>\\u202e\\x07\"'&" in seen["mappings"]
            assert "\u202e" not in json.dumps(seen, ensure_ascii=False)

    run(body())


def test_page_has_the_sentences_of_the_tool_about_servers() -> None:
    code = (ROOT / "cockpit/ipv6natd.js").read_text()
    for answer, sentence in SERVER_HINTS.items():
        assert f'"{answer}": mark("{sentence}")' in code


def test_page_uses_only_members_that_the_bus_documents() -> None:
    code = (ROOT / "cockpit/ipv6natd.js").read_text()
    described = (ROOT / "dbus/org.ipv6natd1.xml").read_text()
    members = set(re.findall(r'MANAGER, "(\w+)"', code)) | {"Resync"}
    (lists,) = re.findall(r"LISTS = \[(.*)\]", code)
    members |= {f"List{name}" for name in lists.split('"')[1::2]}
    fields = set(re.findall(r"\b(?:row|port|net|network|properties)\.([A-Z]\w+)", code))
    unknown = {name for name in members if f'<method name="{name}"' not in described}
    assert not unknown
    # The tool adds what a server does.
    assert {name for name in fields if name not in described} == {"Server"}
