"""The container image, with the command lines that docker-ipv6nat documents."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import ROOT
from tests.harness import Container, Daemon, Engine, Sandbox, need, serve, until
from tests.harness.image import image
from tests.harness.process import run
from tests.harness.sandbox import CLIENT, Variant
from tests.harness.tree import Suite
from tests.system.packets.asking import knocking, opened

pytestmark = [pytest.mark.ours, pytest.mark.slow]
CAPABILITIES = ("--cap-drop=ALL", "--cap-add=NET_ADMIN", "--cap-add=NET_RAW")
MORE = ("--cap-add=NET_ADMIN", "--cap-add=NET_RAW")
FORWARDING = "net.ipv6.conf.all.forwarding"
LIMIT = 150_000_000
"""Bytes of the unpacked image."""


@pytest.fixture(scope="module")
def archive(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    return image(tmp_path_factory.mktemp("image"))


@dataclass(frozen=True, kw_only=True)
class Lab:
    """An engine with the image, and a container "web" with the published port 8080."""

    sandbox: Sandbox
    engine: Engine
    tag: str
    web: Container

    def start(self, *options: str, socket: bool = True, flags: tuple[str, ...] = ()) -> None:
        """Start ipv6natd in the container "ipv6nat"."""
        volume = (f"--volume={self.engine.socket}:/var/run/docker.sock:ro",) if socket else ()
        words = ("run", "--detach", "--name=ipv6nat", "--restart=unless-stopped", "--network=host")
        self.engine.docker(*words, *options, *volume, self.tag, *flags)

    def log(self) -> str:
        return self.engine.docker("logs", "ipv6nat", check=False)

    def await_log(self, text: str) -> str:
        log = until(self.log, lambda log: text in log, timeout=15)
        assert text in log
        return log

    def ctl(self, *words: str) -> str:
        return self.engine.docker("exec", "ipv6nat", "ipv6natctl", *words, check=False)

    def await_served(self) -> None:
        client = self.sandbox.client
        assert until(lambda: opened(client, 8080).peer, CLIENT, timeout=15) == CLIENT, self.log()


@contextmanager
def lab(variant: Variant, archive: Path, *, suite: Suite | None = None) -> Iterator[Lab]:
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(variant))
        engine = stack.enter_context(Engine(sandbox, suite=suite))
        # An engine of another suite sees its own folder only.
        file = str(shutil.copy(archive, engine.dir))
        tag = engine.docker("load", "--input", file).rpartition(" ")[2]
        engine.network("X", "fd00:a::/64")
        web = engine.run("web", "X", publish=["8080:80"])
        stack.enter_context(serve(web.ns, "web", tcp=[80]))
        made = Lab(sandbox=sandbox, engine=engine, tag=tag, web=web)
        yield made
        assert "Traceback" not in made.log()


@pytest.fixture
def nft(archive: Path) -> Iterator[Lab]:
    with lab("nft", archive) as made:
        yield made


def test_image_is_small_and_has_no_compiler_and_no_caches(archive: Path) -> None:
    with tarfile.open(archive) as outer:
        layer = outer.extractfile("layer.tar")
        with tarfile.open(fileobj=layer) as tar:
            members = tar.getmembers()
    names = {member.name.removeprefix("./") for member in members}
    assert sum(member.size for member in members) < LIMIT
    assert not {name for name in names if name.startswith(("usr/bin/gcc", "usr/bin/cc"))}
    assert not {name for name in names if name.startswith(("var/cache/", "var/lib/apt/lists/"))}
    assert not {name for name in names if "__pycache__" in name}


@pytest.mark.parametrize("options", [CAPABILITIES, MORE], ids=["dropped", "more"])
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_documented_command_lines_forward_ports_and_show_the_state(
    archive: Path, variant: Variant, options: tuple[str, ...]
) -> None:
    with lab(variant, archive) as made:
        made.start(*options, "--health-interval=1s")
        made.await_served()
        assert "[::]:8080" in made.ctl("mappings")
        # As the engine, without a flag.
        assert f'backend="{variant}"' in made.ctl("metrics")
        health = ("inspect", "--format={{.State.Health.Status}}", "ipv6nat")
        assert until(lambda: made.engine.docker(*health), "healthy", timeout=30) == "healthy"


def test_privileged_container_forwards_ports_and_enables_forwarding(archive: Path) -> None:
    # Docker 20.10 gives it each capability there is, and a machine of CI has not all of them.
    with lab("nft", archive, suite="trixie") as made:
        made.sandbox.host.sysctl(FORWARDING, 0)
        made.start("--privileged")
        made.await_served()
        assert made.sandbox.host.sysctl(FORWARDING) == "1"


def test_restart_and_upgrade_of_the_image_lose_no_connection(nft: Lab) -> None:
    nft.start(*CAPABILITIES)
    nft.await_served()
    with knocking(nft.sandbox.client, 8080) as knocks:
        nft.engine.docker("restart", "ipv6nat")
        until(lambda: "synced" in nft.ctl("status"), True, timeout=15)
        nft.engine.docker("rm", "--force", "ipv6nat")
        nft.start(*CAPABILITIES)
        until(lambda: "synced" in nft.ctl("status"), True, timeout=15)
    assert "synced" in nft.ctl("status")
    assert knocks.count > 20
    assert knocks.wrong == []


def test_compose_file_starts_ipv6natd_and_its_rules_stay_when_it_goes(
    nft: Lab, tmp_path: Path
) -> None:
    need("docker-compose")
    # JSON is YAML. The engine of the test has another socket, and nobody has tagged the image.
    socket = f"{nft.engine.socket}:/var/run/docker.sock:ro"
    changed = {"services": {"ipv6nat": {"image": nft.tag, "volumes": [socket]}}}
    (tmp_path / "changed.yaml").write_text(json.dumps(changed))
    files = (ROOT / "examples/compose.yaml", tmp_path / "changed.yaml")
    words = ["docker-compose", f"--host={nft.engine.endpoint}", "--project-name=test"]
    words += [f"--file={file}" for file in files]
    run(*words, "up", "--detach", timeout=60)
    nft.await_served()
    assert "on no volume" not in nft.ctl("findings")
    run(*words, "down", "--volumes", timeout=60)
    assert nft.engine.docker("ps", "--all", "--format={{.Names}}") == "web"
    assert opened(nft.sandbox.client, 8080).peer == CLIENT


def test_cleanup_in_the_container_removes_all_rules(nft: Lab) -> None:
    nft.start(*CAPABILITIES, flags=("-cleanup",))
    nft.await_served()
    nft.engine.docker("stop", "ipv6nat")
    assert [line for line in nft.sandbox.rules().splitlines() if line.startswith("-A")] == []


def test_container_without_a_socket_says_so(nft: Lab) -> None:
    before = nft.sandbox.rules()
    nft.start(*CAPABILITIES, socket=False)
    nft.await_log("docker.sock")
    assert nft.sandbox.rules() == before


def test_second_ipv6natd_ends_and_changes_nothing(nft: Lab) -> None:
    with Daemon(nft.sandbox, nft.engine.endpoint):
        before = nft.sandbox.rules()
        nft.start(*CAPABILITIES)
        nft.await_log("another ipv6natd runs in this network namespace; stop it first")
        assert nft.sandbox.rules() == before
    # `--restart` tries again, and now nobody else runs.
    assert until(lambda: "synced" in nft.ctl("status"), True, timeout=30)


@pytest.mark.parametrize("volume", [(), ("--volume=ipv6natd:/var/lib/ipv6natd",)])
def test_missing_volume_is_reported(nft: Lab, volume: tuple[str, ...]) -> None:
    nft.start(*CAPABILITIES, *volume, flags=("-debug",))
    nft.await_served()
    text = nft.ctl("findings")
    assert ("/var/lib/ipv6natd is on no volume" in text) == (not volume)
    assert "each write of ours causes a read" not in nft.log()


def test_container_without_capabilities_changes_nothing(nft: Lab) -> None:
    before = nft.sandbox.rules()
    nft.start("--cap-drop=ALL")
    nft.await_log("NET_ADMIN")
    assert nft.sandbox.rules() == before


def test_container_with_a_read_only_root_says_what_is_missing(nft: Lab) -> None:
    nft.start(*CAPABILITIES, "--read-only")
    nft.await_log("add --tmpfs /run")
    nft.await_served()


def test_configuration_of_the_image_names_the_first_process(archive: Path) -> None:
    with tarfile.open(archive) as outer:
        file = outer.extractfile("config.json")
        assert file is not None
        config = json.load(file)["config"]
    assert config["Entrypoint"] == ["/usr/lib/ipv6natd/container"]
    assert config["Healthcheck"]["Test"] == ["CMD", "ipv6natctl", "status"]
