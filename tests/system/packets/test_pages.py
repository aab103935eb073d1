"""The commands in README, in docs/ and in the manual pages run as they are written.

Commands that install or build are tested on booted hosts (tests/system/boot/test_readme.py).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests import ROOT
from tests.harness import Daemon, Engine, Sandbox, Wanted, until
from tests.harness.bus import Bus

pytestmark = [pytest.mark.ours, pytest.mark.slow, pytest.mark.depends_on]
PAGES = (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")))
TOOLS = ("ipv6natctl", "busctl", "ip6tables")
VALUES = {"PORT": "8080", "CONTAINER": "hello", "ADDRESS": "2001:db8:1::7", "BRIDGE": "brweb"}
"""What a reader puts in place of a word in capitals."""
LAST = "cleanup"
"""The command that removes the rules."""


def commands() -> set[tuple[str, ...]]:
    """The words of the commands in code; without those that run until they are ended."""
    return {words for page in PAGES for words in _commands(page.read_text()) if len(words) > 1}


def _commands(text: str) -> Iterator[tuple[str, ...]]:
    spans = re.findall(r"`([^`\n]+)`", text)
    lines = re.findall(r"^(?: {4})?\$? ?(.+)$", text, re.MULTILINE)
    for code in (*spans, *lines):
        command = re.split(r" #|[|;>&]", code)[0].strip().removeprefix("sudo ")
        command = command.removeprefix("docker exec ipv6nat ")
        # A page also names a command without its argument.
        named = command == "ipv6natctl explain" or "monitor" in command
        if command.split(" ")[0] in TOOLS and not named:
            yield tuple(VALUES.get(word, word) for word in shlex.split(command))


def test_commands_of_the_pages_run(wanted: Wanted) -> None:
    """Exit status 1 of ipv6natctl: the host has a fault, or no row matches."""
    found = sorted(commands(), key=lambda words: LAST in words)
    assert {words[0] for words in found} == set(TOOLS)
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(wanted.variant))
        engine = stack.enter_context(Engine(sandbox))
        bus = stack.enter_context(Bus(sandbox.dir))
        daemon = stack.enter_context(Daemon(sandbox, engine.endpoint, bus=bus.address))
        engine.network("web", "fd00:a::/64")
        engine.run("hello", "web", publish=["8080:80", "127.0.0.1:6379:6379"])
        sandbox.host.run(
            f"ip6tables-{wanted.variant}", "-N", "MAILCOW"
        )  # the ban list of an example
        until(lambda: "8080" in daemon.ctl("mappings"), True)
        for tool, *words in found:
            if tool == "busctl":
                bus.busctl(*words)
            elif tool == "ip6tables":
                sandbox.host.run(f"{tool}-{wanted.variant}", *words)
            else:
                code, text = daemon.ended(tool, *words)
                assert code in (0, 1), text
                assert "Traceback" not in text
