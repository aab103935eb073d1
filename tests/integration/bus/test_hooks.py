"""The scripts in examples/ that follow `ipv6natctl monitor --json=short`, and their page."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from ipv6natd.ctl import monitor
from tests import ROOT
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

EXAMPLES = ROOT / "examples"
WAIT = 20.0
"""Seconds for a slow machine."""


@contextmanager
def web_server(codes: list[int]) -> Iterator[tuple[str, list[Any]]]:
    """A web server that answers with these codes, then with 200; its address, and what it got."""
    received: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(codes.pop(0) if codes else 200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/changes", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def programs(folder: Path, bus: Bus) -> dict[str, str]:
    """An environment with `ipv6natctl` for this bus, and an nsupdate that records its input."""
    nsupdate = folder / "nsupdate"
    nsupdate.write_text(
        f'#!/bin/sh\necho "options $*" >>{folder}/updates; cat >>{folder}/updates\n'
    )
    nsupdate.chmod(0o755)
    return tool_environment(bus, folder)


async def piped(env: dict[str, str], script: str, *words: str) -> asyncio.subprocess.Process:
    """`ipv6natctl monitor --json=short | script words`."""
    line = f'ipv6natctl monitor --json=short | exec {sys.executable} {EXAMPLES / script} "$@"'
    command = ("setpriv", "--pdeathsig=KILL", "sh", "-c", line, "sh", *words)
    return await asyncio.create_subprocess_exec(
        *command, env=env, stderr=asyncio.subprocess.PIPE, start_new_session=True
    )


async def ended(process: asyncio.subprocess.Process) -> str:
    """End the pipe; what the script has written to its error output."""
    os.killpg(process.pid, 15)
    _, errors = await process.communicate()
    return errors.decode()


def test_webhook_sends_each_change_and_reports_a_failed_one(bus: Bus, tmp_path: Path) -> None:
    async def body() -> None:
        old, new = status(mapping()), status(mapping(), mapping(1, "db"), generation=2)
        env = programs(tmp_path, bus)
        with web_server([500]) as (url, received):
            async with serving(bus, FakeSource(old)) as service:
                process = await piped(env, "hook_webhook.py", url)
                try:
                    # The script has no answer to its start, so the change is repeated.
                    async with asyncio.timeout(WAIT):
                        while len(received) < 2:
                            service.publish(old, new)
                            service.publish(new, replace(old, generation=3))
                            await asyncio.sleep(0.2)
                finally:
                    errors = await ended(process)
        kinds = {event["Event"] for event in received}
        assert kinds == {"added", "removed"}
        assert {event["Mapping"]["ContainerName"] for event in received} == {"db"}
        assert "not delivered: HTTP Error 500" in errors

    run(body())


def test_dns_names_follow_the_containers(bus: Bus, tmp_path: Path) -> None:
    updates = tmp_path / "updates"

    def text() -> str:
        return updates.read_text() if updates.exists() else ""

    async def body() -> None:
        source = FakeSource(status(mapping(), mapping(1, "Bad_Name"), mapping(2, "a\nsend")))
        env = programs(tmp_path, bus)
        async with serving(bus, source) as service:
            words = ("containers.example.org", "2001:db8::1", "-k", "/etc/ddns.key")
            process = await piped(env, "hook_dns.py", *words)
            try:
                await until(lambda: text().count("send\n") == 1, limit=WAIT)
                old, source.now = source.now, status(mapping(1, "db"), generation=2)
                service.publish(old, source.now)
                await until(lambda: text().count("send\n") == 2, limit=WAIT)
            finally:
                await ended(process)
        assert text() == (
            "options -k /etc/ddns.key\n"
            "zone containers.example.org\n"
            "update add web.containers.example.org 60 AAAA 2001:db8::1\n"
            "send\n"
            "options -k /etc/ddns.key\n"
            "zone containers.example.org\n"
            "update delete web.containers.example.org AAAA\n"
            "update add db.containers.example.org 60 AAAA 2001:db8::1\n"
            "send\n"
        )

    run(body())


def test_page_names_each_event_and_property() -> None:
    source = Path(monitor.__file__).read_text()
    events = set(re.findall(r'"Event": "(\w+)"', source)) | {"added", "removed", "started"}
    page = (ROOT / "docs/hooks.md").read_text()
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == events
    assert all(f"`{name}`" in page for name in monitor._SHOWN_PROPERTIES)
