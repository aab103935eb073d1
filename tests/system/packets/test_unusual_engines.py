"""Engines behind a socket proxy, with starts that hang, and an engine that is not Docker."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.harness import Bus, Daemon, Engine, Sandbox, Wanted, need, serve, until
from tests.harness.engine import IMAGE
from tests.harness.process import end, spawn
from tests.harness.sandbox import CLIENT
from tests.system.packets.asking import opened

pytestmark = [pytest.mark.ours]

IDLE = 6
"""Seconds after which the proxy cuts an idle stream."""
PROXY = """\
defaults
    mode http
    timeout connect 5s
    timeout client {idle}s
    timeout server {idle}s
frontend docker
    bind unix@{front} mode 600
    http-request deny deny_status 403 if {{ path -m end /info }}
    default_backend engine
backend engine
    server docker unix@{back}
"""
HANGING = 16


@contextmanager
def socket_proxy(engine: Engine) -> Iterator[str]:
    """haproxy in front of the engine's socket; yields its endpoint."""
    need("haproxy")
    folder = engine.sandbox.dir
    front, config = folder / "proxy.sock", folder / "haproxy.cfg"
    config.write_text(PROXY.format(idle=IDLE, front=front, back=engine.socket))
    with (folder / "haproxy.log").open("wb") as log:
        process = spawn(["haproxy", "-db", "-f", str(config)], log=log)
    try:
        assert until(front.exists, True)
        yield f"unix://{front}"
    finally:
        end(process)


@pytest.mark.depends_on
def test_q11_socket_proxy_that_cuts_idle_streams_and_refuses_info(wanted: Wanted) -> None:
    with (
        Sandbox(wanted.variant) as sandbox,
        Engine(sandbox, userland_proxy=wanted.proxy) as engine,
        socket_proxy(engine) as endpoint,
        Bus(sandbox.dir) as bus,
        Daemon(sandbox, endpoint, bus=bus.address) as daemon,
    ):
        engine.network("X", "fd00:a::/64")
        for number in range(2):
            web = engine.run(f"web{number}", "X", publish=[f"{8080 + number}:80"])
            with serve(web.ns, "web", tcp=[80]):
                assert opened(sandbox.client, 8080 + number).peer == CLIENT
            time.sleep(1.5 * IDLE)
        assert "it is opened again" in daemon.log
        assert "WARNING" not in daemon.log
        assert "lost the Docker engine" not in daemon.log
        assert daemon.status.startswith("synced")


class SlowVolumes(socketserver.ThreadingUnixStreamServer):
    """A volume plugin of Docker whose mounts wait until `released`."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.path = folder / "slow.sock"
        self.folder = folder
        self.released = threading.Event()
        self.waiting = 0
        super().__init__(str(self.path), Answering)


class Answering(BaseHTTPRequestHandler):
    """The calls of dockerd: docs.docker.com, "Docker volume plugins"."""

    server: SlowVolumes

    def address_string(self) -> str:
        return ""

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        """Answer one call."""
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        name, place = asked.get("Name", ""), str(self.server.folder)
        if self.path == "/VolumeDriver.Mount":
            self.server.waiting += 1
            self.server.released.wait(60)
        answers: dict[str, dict[str, object]] = {
            "/Plugin.Activate": {"Implements": ["VolumeDriver"]},
            "/VolumeDriver.Capabilities": {"Capabilities": {"Scope": "local"}},
            "/VolumeDriver.Get": {"Volume": {"Name": name, "Mountpoint": place}},
            "/VolumeDriver.List": {"Volumes": []},
        }
        answer = {"Err": "", "Mountpoint": place, **answers.get(self.path, {})}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def slow_volumes(engine: Engine) -> Iterator[SlowVolumes]:
    with SlowVolumes(engine.sandbox.dir) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        found = engine.path("/etc/docker/plugins/slow.spec")
        found.parent.mkdir()
        found.write_text(f"unix://{server.path}")
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


@pytest.mark.slow
@pytest.mark.depends_on
def test_q10_starts_that_hang_hold_no_other_up(wanted: Wanted) -> None:
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(wanted.variant))
        engine = stack.enter_context(Engine(sandbox, userland_proxy=wanted.proxy))
        volumes = stack.enter_context(slow_volumes(engine))
        stack.enter_context(Daemon(sandbox, engine.endpoint))
        engine.network("X", "fd00:a::/64")
        for number in range(HANGING):
            words = ("run", "--detach", "--network=X", f"--publish={9000 + number}:80")
            volume = ("--volume-driver=slow", f"--volume=v{number}:/v")
            stack.callback(end, engine.start_docker(*words, *volume, IMAGE, "sleep", "infinity"))
        assert until(lambda: volumes.waiting, HANGING, timeout=20) == HANGING
        web = engine.run("web", "X", publish=["8080:80"])
        began = time.monotonic()
        with serve(web.ns, "web", tcp=[80]):
            assert opened(sandbox.client, 8080).peer == CLIENT
        assert time.monotonic() - began < 5


@pytest.mark.depends_on
def test_q12_podman_is_left_alone(wanted: Wanted) -> None:
    need("podman")
    with Sandbox(wanted.variant) as sandbox, ExitStack() as stack:
        folder = sandbox.dir / "podman"
        folder.mkdir()
        folders = [f"--root={folder}/root", f"--runroot={folder}/run", f"--tmpdir={folder}/tmp"]
        words = ["podman", "--storage-driver=vfs", *folders, "system", "service", "--time=0"]
        endpoint = f"unix://{folder}/podman.sock"
        with (folder / "log").open("wb") as log:
            inside = ("nsenter", f"--net={sandbox.host.path}", "unshare", "--mount")
            service = spawn([*inside, *words, endpoint], log=log)
        stack.callback(end, service)
        assert until((folder / "podman.sock").exists, True)
        daemon = stack.enter_context(Daemon(sandbox, endpoint, start=False))
        daemon.start(wait="waiting-for-docker")
        daemon.wait_for(lambda: "Podman, which does IPv6 NAT itself" in daemon.status, "its reason")
        assert "IPV6NAT" not in sandbox.rules()
