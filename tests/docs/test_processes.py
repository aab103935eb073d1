"""Only one source file starts processes, and never a shell."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipv6natd.system import process as tools
from tests.docs.sources import modules
from tests.harness.every import every

WORDS = {"TimeoutExpired", "CompletedProcess"}
"""Names of subprocess that start no process."""
STARTS = ("system", "popen", "fork", "forkpty", "exec", "spawn", "posix_spawn", "startfile")
"""Prefixes of functions in os that start or become a program."""
BUILT_IN = {"eval", "exec", "compile", "__import__"}
MODULES = {"multiprocessing", "pty", "pickle", "marshal", "shelve", "commands", "code", "runpy"}
"""Modules that start processes or execute their input."""


def offences(tree: ast.AST) -> Iterator[str]:
    """Uses of functions that only system/process.py may use, or no module."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="subprocess"), attr=name)) if (
                name not in WORDS
            ):
                yield f"subprocess.{name}"
            case ast.Attribute(value=ast.Name(id="os"), attr=name) if name.startswith(STARTS):
                yield f"os.{name}"
            case ast.Attribute(attr=name) if name.startswith("create_subprocess"):
                yield name
            case ast.Attribute(attr="subprocess_exec" | "subprocess_shell" as name):
                yield name
            case ast.Call(func=ast.Name(id=name)) if name in BUILT_IN:
                yield name
            case ast.keyword(arg="shell"):
                yield "shell="
            case ast.ImportFrom(module="os" | "subprocess" as module):
                yield f"from {module}"
            case ast.Import(names=names):
                yield from (each.name for each in names if each.name.split(".")[0] in MODULES)
                yield from (
                    f"{each.name} as {each.asname}"
                    for each in names
                    if each.asname and each.name in ("os", "subprocess")
                )
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in MODULES:
                yield module


@every("name", sorted(modules()))
def test_no_module_starts_a_process_but_tools(name: str) -> None:
    found = list(offences(ast.parse(modules()[name].read_text())))
    expected = ["subprocess.Popen", "subprocess.Popen", "create_subprocess_exec"]
    assert sorted(found) == (sorted(expected) if name == "system.process" else [])


@pytest.mark.parametrize(
    "source",
    [
        "import os; os.system('true')",
        "import os; os.execv('/bin/sh', [])",
        "import os as quiet",
        "from os import system",
        "import subprocess; subprocess.run('true', shell=True)",
        "import subprocess; subprocess.check_output(['true'])",
        "from subprocess import Popen",
        "import asyncio; asyncio.create_subprocess_shell('true')",
        "from asyncio import subprocess as s; s.create_subprocess_exec('true')",
        "eval('1')",
        "import multiprocessing.pool",
        "from pickle import loads",
    ],
)
def test_the_reader_of_sources_sees_what_it_is_for(source: str) -> None:
    assert list(offences(ast.parse(source)))


def test_each_process_is_given_an_environment() -> None:
    tree = ast.parse(modules()["system.process"].read_text())
    starts = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("Popen", "create_subprocess_exec")
    ]
    assert len(starts) == 3
    for each in starts:
        assert "env" in {keyword.arg for keyword in each.keywords}


def test_tools_are_looked_for_in_folders_of_root_alone() -> None:
    # On some hosts a group may write to /usr/local, like staff on older Debian versions.
    assert not [each for each in tools.TOOL_DIRECTORIES if each.startswith("/usr/local")]
    for folder in map(Path, tools.TOOL_DIRECTORIES):
        assert folder.is_absolute()
        if folder.exists():
            status = folder.stat()
            assert status.st_uid == 0
            assert not status.st_mode & 0o022


def test_a_tool_gets_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LD_PRELOAD_", "PYTHONPATH", "DOCKER_HOST", "XTABLES_LIBDIR", "BASH_ENV"):
        monkeypatch.setenv(name, "/poison")
    done = tools.run(["/usr/bin/env"], timeout=10, environment={"A": "b"})
    assert dict(
        line.split("=", 1) for line in done.stdout.splitlines()
    ) == tools.BASE_ENVIRONMENT | {"A": "b"}


def test_a_tool_that_hangs_is_killed_and_leaves_nothing() -> None:
    started: list[int] = []
    with pytest.raises(subprocess.TimeoutExpired):
        tools.run(
            [sys.executable, "-c", "import signal; signal.pause()"],
            timeout=0.2,
            stdin="x" * (1 << 20),
            on_start=started.append,
        )
    assert not Path(f"/proc/{started[0]}").exists()


def test_one_that_the_kernel_holds_does_not_hold_its_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Instead of uninterruptible sleep, this test makes kill a no-op."""
    monkeypatch.setattr(tools, "KILL_TIMEOUT", 0.1)
    held: list[subprocess.Popen[str]] = []
    kill = subprocess.Popen.kill
    monkeypatch.setattr(subprocess.Popen, "kill", lambda each: held.append(each))
    with pytest.raises(subprocess.TimeoutExpired):
        tools.run(["/bin/sleep", "60"], timeout=0.1)
    kill(held[0])
    held[0].wait(10)
