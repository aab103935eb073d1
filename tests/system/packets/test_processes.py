"""The child processes of the daemon: they end with it, and run by absolute path in a clean
environment."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ipv6natd.system.process import TOOL_DIRECTORIES
from tests.harness import Bus, Daemon, Engine, Sandbox, need, until
from tests.harness.daemon import BIN
from tests.harness.sandbox import Variant

MISSING_ENDPOINT = "unix:///nonexistent/docker.sock"


@pytest.fixture
def sandbox(tools: None) -> Iterator[Sandbox]:  # noqa: ARG001
    with Sandbox() as made:
        yield made


def children(pid: int) -> dict[int, str]:
    """Process id -> command line of the child processes."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if f"\nPPid:\t{pid}\n" in status.read_text():
                line = (status.parent / "cmdline").read_bytes()
                found[int(status.parent.name)] = line.replace(b"\0", b" ").decode()
        except OSError:  # it has ended
            continue
    return found


def test_killed_daemon_leaves_no_child_process(sandbox: Sandbox) -> None:
    need("nft", "setpriv")
    with Daemon(sandbox, MISSING_ENDPOINT, backend="nft", start=False) as daemon:
        daemon.start(wait="waiting-for-docker")
        assert daemon.process is not None
        pid = daemon.process.pid
        listens = until(
            lambda: [each for each, line in children(pid).items() if "nft monitor" in line],
            lambda found: len(found) == 1,
        )
        (monitor,) = listens
        daemon.kill9()
        assert until(lambda: Path(f"/proc/{monitor}/cmdline").exists(), False) is False


CALL = re.compile(
    r'^\d+ +execve\("(?P<path>[^"]*)", \[(?P<argv>.*?)\], \[(?P<env>.*?)\](\) = | <unf)'
)
ALLOWED = {"PATH", "LC_ALL", "XTABLES_LOCKFILE", "DBUS_SYSTEM_BUS_ADDRESS"}
"""The permitted environment variables of a tool."""
POISON = [
    *("LD_LIBRARY_PATH", "IFS", "ENV", "BASH_ENV", "PERL5LIB", "HOME", "TMPDIR", "NFT_DEBUG"),
    *("DOCKER_CONFIG", "HTTP_PROXY", "ALL_PROXY", "SECRET"),
]
LIBRARY_SEARCH_TOOLS = {
    "ldconfig",
    "ldconfig.real",
    "gcc",
    "cc",
    "ld",
    "objdump",
    "collect2",
    "uname",
}
TOOLS = {"ip6tables", "ip6tables-restore", "ip6tables-save", "nft", "ip", "busctl"}


class Traced(Daemon):
    """A daemon in a hostile environment, with a trace of each exec."""

    @property
    def trace(self) -> Path:
        return self.dir / "trace"

    @property
    def poison(self) -> Path:
        return self.dir / "poison"

    @property
    def command(self) -> list[str]:
        self.poison.mkdir(exist_ok=True)
        for name in (*TOOLS, "sh", "setpriv", "true", "docker", "ssh", "modprobe"):
            fake = self.poison / name
            fake.write_text(f"#!/bin/sh\necho {name} >>{self.poison}/taken\n")
            fake.chmod(0o755)
        path = f"PATH={self.poison}:{self.sandbox.path}"
        given = [f"--env={each}" for each in (path, *(f"{name}={self.poison}" for name in POISON))]
        flags = ("-f", "-qq", "-D", "-v", "-s", "9999", "-e", "trace=execve,execveat")
        return ["/usr/bin/strace", *flags, *given, "-o", str(self.trace), *super().command]


def calls(trace: str) -> list[tuple[str, str, str]]:
    """Path, arguments and environment of each exec."""
    # strace prints the end of an interrupted call on another line.
    lines = [line for line in trace.splitlines() if "execve" in line and "resumed>" not in line]
    found = [CALL.match(line) for line in lines]
    assert all(found), [line for line, hit in zip(lines, found, strict=True) if hit is None]
    return [(hit["path"], hit["argv"], hit["env"]) for hit in found if hit is not None]


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_tools_run_by_absolute_path_with_a_minimal_environment(
    tools: None,  # noqa: ARG001
    variant: Variant,
) -> None:
    need("strace")
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(variant))
        engine = stack.enter_context(Engine(sandbox))
        bus = stack.enter_context(Bus(sandbox.dir))
        daemon = Traced(sandbox, engine.endpoint, bus=bus.address, start=False)
        stack.enter_context(daemon)
        engine.network("X", "fd00:a::/64")
        daemon.start()
        engine.run("x1", "X", publish=["8080:80", "5353:53/udp"])
        until(lambda: daemon.status, lambda said: "2 mappings" in said)
        engine.rm("x1")
        until(lambda: daemon.status, lambda said: "2 mappings" not in said)
        bus.busctl("call", "org.ipv6natd1", "/org/ipv6natd1", "org.ipv6natd1.Manager", "Resync")
        assert daemon.stop() == 0
        own, *seen = calls(daemon.trace.read_text())
        assert own[2].count("poison") > len(POISON)
        ran = {path.rpartition("/")[2] for path, _, _ in seen}
        assert ran >= {"ip", "nft"}
        assert any(each.startswith("ip6tables") for each in ran)
        for path, argv, env in seen:
            folder, _, name = path.rpartition("/")
            assert folder in TOOL_DIRECTORIES or (
                name in LIBRARY_SEARCH_TOOLS and folder[0] == "/"
            ), path
            assert name not in ("sh", "bash", "dash"), argv
            names = {each.partition("=")[0] for each in re.findall(r'"((?:[^"\\]|\\.)*)"', env)}
            # The library for legacy tables searches its shared libraries with these tools.
            assert names <= ALLOWED or name in LIBRARY_SEARCH_TOOLS, path
            assert "poison" not in env + argv
        assert not (daemon.poison / "taken").exists()


def test_xtables_libdir_without_extensions_is_an_error(
    tools: None,  # noqa: ARG001
) -> None:
    with Sandbox("legacy") as sandbox:
        asked = ("env", "XTABLES_LIBDIR=/nonexistent", str(BIN / "ipv6natd"), "-flush")
        said = sandbox.host.run(*asked, "-config", "/dev/null", "-backend", "legacy", check=False)
    assert "take XTABLES_LIBDIR out of the environment" in said
    assert "Traceback" not in said
