"""The completions in real shells, with a running service."""

from __future__ import annotations

import asyncio
import os
import re
import select
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ipv6natd.ctl.commands import COMMANDS
from ipv6natd.ctl.usage import FILTERS, FLAGS
from tests import ROOT
from tests.harness.needs import need
from tests.integration.bus.conftest import Bus, FakeSource, mapping, run, serving, status

FOLDER = ROOT / "completions"
FILES = ("ipv6natctl.bash", "_ipv6natctl", "ipv6natctl.fish")
SHOW_TIMEOUT = 30.0
SHELLS = {
    "bash": ("bash --norc -i", f"source {FOLDER}/ipv6natctl.bash"),
    "zsh": (
        "zsh -f -i",
        f"fpath=({FOLDER} $fpath); autoload -U compinit; compinit -u -D",
    ),
}
TYPED = [
    ("expl", "explain "),
    ("mappings --prot", "--protocol"),
    ("mappings --protocol u", "udp "),
    ("explain we", "web "),
    ("explain 80", "8000 "),
    ("explain d", "db "),
    ("mappings --network fr", "front "),
    ("skipped --container d", "db "),
    ("cleanup --dry", "--dry-run "),
    ("--json=sh", "short "),
]
"""The typed text before TAB, and the end of the completed word."""


def environ(bus: Bus) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "DBUS_SYSTEM_BUS_ADDRESS": bus.address,
        "LC_ALL": "C.UTF-8",
        "TERM": "dumb",
        "HOME": os.devnull,
        "PS1": "$ ",
    }


class Terminal:
    """A shell on a pseudo-terminal."""

    def __init__(self, shell: str, env: dict[str, str]) -> None:
        command = ("script", "-qefc", shell, "/dev/null")
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=env)
        self._shown = ""

    def type(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def wait(self, pattern: str) -> None:
        """Read until the pattern matches, and drop the text up to its end."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + SHOW_TIMEOUT
        while (hit := re.search(pattern, self._shown)) is None:
            ready, _, _ = select.select([self._process.stdout], [], [], deadline - time.monotonic())
            assert ready, f"{pattern!r} does not show in {self._shown!r}"
            data = os.read(self._process.stdout.fileno(), 4096)
            assert data, f"the shell ended: {self._shown!r}"
            self._shown += data.decode(errors="replace").replace("\a", "")
        self._shown = self._shown[hit.end() :]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def type_all(shell: str, env: dict[str, str]) -> None:
    command, setup = SHELLS[shell]
    terminal = Terminal(command, env)
    try:
        terminal.type(f"{setup}; echo rea''dy\n")
        terminal.wait("ready")
        for typed, ending in TYPED:
            terminal.type(f"ipv6natctl {typed}\t")
            terminal.wait(re.escape(typed[: typed.rfind(" ") + 1]) + ".*" + re.escape(ending))
            terminal.type("\x15")  # Ctrl-U deletes the line
    finally:
        terminal.close()


@pytest.mark.parametrize("shell", SHELLS)
def test_bash_and_zsh_complete_commands_options_and_live_names(bus: Bus, shell: str) -> None:
    need(shell, "script")

    async def body() -> None:
        async with serving(bus, FakeSource(status(mapping()))):
            await asyncio.to_thread(type_all, shell, environ(bus))

    run(body())


@pytest.mark.parametrize(("typed", "ending"), TYPED)
def test_fish_completes_with_live_names(bus: Bus, typed: str, ending: str) -> None:
    need("fish")
    ask = f"source {FOLDER}/ipv6natctl.fish; complete -C 'ipv6natctl {typed}'"
    results: list[str] = []

    async def body() -> None:
        async with serving(bus, FakeSource(status(mapping()))):
            process = await asyncio.create_subprocess_exec(
                *("fish", "--no-config", "--private", "-c", ask),
                stdout=subprocess.PIPE,
                env=environ(bus),
            )
            out, _ = await process.communicate()
            results.extend(out.decode().splitlines())

    run(body())
    words = [line.partition("\t")[0].rpartition("=")[2] for line in results]
    assert words == [ending.strip()]


COMPLETING = {
    "bash": """source {folder}/ipv6natctl.bash
        for words in 'networks --network' 'mappings --container' 'explain' 'mappings --port'; do
            COMP_WORDS=(ipv6natctl $words ''); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
            _ipv6natctl
            printf '%s\n' "${{COMPREPLY[@]}}"
        done""",
    "zsh": """fpath=({folder} $fpath); autoload -Uz +X _ipv6natctl; _wanted() {{ print -l $names }}
        _ipv6natctl >/dev/null 2>&1; _ipv6natctl_containers; _ipv6natctl_networks""",
    "fish": """source {folder}/ipv6natctl.fish
        complete -C 'ipv6natctl networks --network '
        complete -C 'ipv6natctl explain '""",
}
"""A script for each shell that completes without a terminal."""


@pytest.mark.parametrize("shell", COMPLETING)
def test_name_with_shell_syntax_is_neither_run_nor_offered(
    tmp_path: Path, bus: Bus, shell: str
) -> None:
    need(shell)
    ran = tmp_path / "ran"
    evil = (f"$(touch${{IFS}}{ran})", f"`touch${{IFS}}{ran}`", f"a;touch${{IFS}}{ran}", "a|b", "~")
    now = status(mapping(), *(mapping(i, name) for i, name in enumerate(evil, 1)))
    (front,) = now.networks
    networks = (front, *(replace(front, id=f"{i:064}", name=name) for i, name in enumerate(evil)))
    now = replace(now, networks=networks)
    offered: list[str] = []

    async def body() -> None:
        async with serving(bus, FakeSource(now)):
            process = await asyncio.create_subprocess_exec(
                *(shell, "-c", COMPLETING[shell].format(folder=FOLDER)),
                stdout=subprocess.PIPE,
                env=environ(bus),
            )
            out, _ = await process.communicate()
            offered.extend(out.decode().split())

    run(body())
    assert not ran.exists()
    assert {"front", "web"} <= {word.rpartition("=")[2] for word in offered}
    assert not [word for word in offered if re.search(r"touch|[|~$;`]", word)]


@pytest.mark.parametrize("file", FILES)
def test_completion_files_have_every_command_and_option(file: str) -> None:
    text = (FOLDER / file).read_text()
    for word in (*COMMANDS, *FILTERS, *FLAGS, "json", "no-legend", "help", "version"):
        assert re.search(rf"(?:^|[\s'{{,-]){word}\b", text, re.MULTILINE), word
