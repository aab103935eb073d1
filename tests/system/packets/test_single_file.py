"""The daemon and its tool in one file, without any installed library."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from ipv6natd import __version__
from tests.harness import Bus, Daemon, Engine, Sandbox, Wanted, serve
from tests.harness.process import run
from tests.harness.sandbox import CLIENT
from tests.harness.single_file import single_file
from tests.system.packets.asking import opened

pytestmark = [pytest.mark.ours]
# Without `site`, Python finds only its own library and what is in the file.
BARE = ("/usr/bin/python3", "-I", "-S")


@pytest.fixture(scope="module")
def folder(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    return single_file(tmp_path_factory.mktemp("single"))


@pytest.mark.depends_on("variant")
def test_single_file_forwards_packets_and_shows_its_state(wanted: Wanted, folder: Path) -> None:
    class SingleFile(Daemon):
        executables = folder

        @property
        def command(self) -> list[str]:
            return [*BARE, str(folder / "ipv6natd")]

    with Sandbox(wanted.variant) as sandbox, Engine(sandbox) as engine, Bus(sandbox.dir) as bus:
        engine.network("X", "fd00:a::/64")
        web = engine.run("web", "X", publish=["8080:80"])
        with (
            SingleFile(sandbox, engine.endpoint, bus=bus.address) as daemon,
            serve(web.ns, "web", tcp=[80]),
        ):
            assert opened(sandbox.client, 8080).peer == CLIENT
            assert "[::]:8080" in daemon.ctl("mappings")
            assert daemon.flush()


def test_single_file_needs_no_installed_library(folder: Path) -> None:
    for name in ("ipv6natd", "ipv6natctl"):
        assert run(*BARE, str(folder / name), "--version") == f"{name} {__version__}\n"


def test_single_file_has_only_sources_in_a_fixed_order(folder: Path) -> None:
    with zipfile.ZipFile(folder / "ipv6natd.pyz") as archive:
        names = [name.rstrip("/") for name in archive.namelist()]
    assert names == sorted(names)
    assert {Path(name).suffix for name in names}.isdisjoint({".so", ".pyc"})


def test_single_file_is_reproducible(folder: Path, tmp_path: Path) -> None:
    again = single_file(tmp_path)
    assert (folder / "ipv6natd.pyz").read_bytes() == (again / "ipv6natd.pyz").read_bytes()
