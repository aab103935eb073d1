"""An engine over TCP with TLS: DOCKER_HOST, DOCKER_CERT_PATH and DOCKER_TLS_VERIFY."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.harness import Daemon, Engine, Sandbox, need, serve
from tests.harness.tls import FUTURE, PAST, Authority, TlsFront
from tests.system.packets.asking import opened

ENDPOINT = "tcp://127.0.0.1:2376"


@pytest.fixture(scope="module")
def lab(tools: None) -> Iterator[tuple[Sandbox, Engine, Path]]:  # noqa: ARG001
    need("openssl")
    with Sandbox() as sandbox:
        certificates = Authority(sandbox.dir / "tls").signed("engine")
        flags = [f"--tls{name}={certificates}/{name}.pem" for name in ("key", "cert")]
        tcp = (f"--host={ENDPOINT}", "--tlsverify", f"--tlscacert={certificates}/ca.pem", *flags)
        with Engine(sandbox, *tcp) as engine:
            engine.network("X", "fd00:a::/64")
            yield sandbox, engine, certificates


def test_engine_over_verified_tls_is_followed(lab: tuple[Sandbox, Engine, Path]) -> None:
    sandbox, engine, certificates = lab
    settings = ("tls_verify = true", f'cert_path = "{certificates}"')
    with Daemon(sandbox, ENDPOINT, settings=settings):
        made = engine.run("x1", "X", publish=["8080:80"])
        with serve(made.ns, "x1", tcp=[80]):
            opened(sandbox.client, 8080)


Show = tuple[Path | None, Path | None]
"""A certificate, and the authority of the accepted clients; see TlsFront."""


@pytest.mark.slow
def test_engine_with_a_bad_certificate_is_refused_and_rules_stay(
    tools: None,  # noqa: ARG001
) -> None:
    """The rules stay in force with each of these certificates."""
    need("openssl")
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox())
        engine = stack.enter_context(Engine(sandbox))
        ours, theirs = (Authority(sandbox.dir / name) for name in ("ours", "theirs"))
        right: Show = (ours.signed("engine"), ours.ca)
        front = TlsFront(sandbox.host, engine.socket, *right)
        stack.enter_context(front)
        client = ours.signed("client")
        settings = ("tls_verify = true", f'cert_path = "{client}"')
        engine.network("X", "fd00:a::/64")
        made = engine.run("x1", "X", publish=["8080:80"])
        stack.enter_context(serve(made.ns, "x1", tcp=[80]))
        daemon = stack.enter_context(Daemon(sandbox, front.endpoint, settings=settings))
        opened(sandbox.client, 8080)
        rules = sandbox.rules()
        wrong: dict[str, Show] = {
            "ca.pem": (theirs.signed("engine"), ours.ca),
            "another name": (ours.signed("other", host="DNS:other.example"), ours.ca),
            "has expired": (ours.signed("old", valid=PAST), ours.ca),
            "not valid yet": (ours.signed("new", valid=FUTURE), ours.ca),
            "cert.pem": (right[0], theirs.ca),
            "does not speak TLS": (None, None),
        }
        for sentence, shown in wrong.items():
            front.change(*shown)
            lost = partial(_waits_with, daemon, sentence)
            daemon.wait_for(lost, f"waiting, with {sentence!r}", timeout=30)
            assert sandbox.rules() == rules
            opened(sandbox.client, 8080)
        front.change(*right)
        daemon.wait_state("synced", timeout=30)
        engine.rm("x1")
        daemon.wait_for(lambda: "0 mappings" in daemon.status, "no mapping", timeout=30)
        assert "Traceback" not in daemon.log
        for key in (client / "key.pem", client / "cert.pem"):
            assert not any(line in daemon.log for line in key.read_text().splitlines()[1:-1])


def _waits_with(daemon: Daemon, sentence: str) -> bool:
    return daemon.status.startswith("waiting-for-docker") and sentence in daemon.status


def test_missing_certificates_are_reported_and_rules_stay(
    lab: tuple[Sandbox, Engine, Path],
) -> None:
    sandbox, engine, certificates = lab
    with serve(engine.run("x2", "X", publish=["8081:80"]).ns, "x2", tcp=[80]):
        settings = ("tls_verify = true", f'cert_path = "{certificates}"')
        away = certificates.with_name("away")
        with Daemon(sandbox, ENDPOINT, settings=settings) as daemon:
            opened(sandbox.client, 8081)
            rules = sandbox.rules()
            try:
                for name, said in (
                    ("ca.pem", f"there is no ca.pem in {certificates}"),
                    ("key.pem", "there is no key.pem beside cert.pem"),
                ):
                    (certificates / name).rename(away)
                    assert daemon.stop() == 0
                    daemon.start(wait="waiting-for-docker")
                    daemon.wait_for(partial(_waits_with, daemon, said), said)
                    assert sandbox.rules() == rules
                    opened(sandbox.client, 8081)
                    away.rename(certificates / name)
                    daemon.wait_state("synced", timeout=30)
            finally:
                if away.exists():
                    away.rename(certificates / "ca.pem")
            assert "Traceback" not in daemon.log
        engine.rm("x2")


def test_http_endpoint_with_tls_verify_exits_78_and_a_reload_is_refused(
    lab: tuple[Sandbox, Engine, Path],
) -> None:
    sandbox, engine, certificates = lab
    plain = 'endpoint = "http://127.0.0.1:2375"'
    right = (f'endpoint = "unix://{engine.socket}"', f'cert_path = "{certificates}"')
    with serve(engine.run("x3", "X", publish=["8082:80"]).ns, "x3", tcp=[80]):
        daemon = ReloadedEndpointDaemon(sandbox, "", settings=right, start=False)
        daemon.env["DOCKER_TLS_VERIFY"] = "1"
        with daemon:
            # TLS settings do not apply to a socket, as with the docker command.
            daemon.start()
            opened(sandbox.client, 8082)
            rules = sandbox.rules()
            daemon.configure(plain, *right[1:])
            daemon.reload()
            assert "reload refused: " in daemon.status
            assert "http:// is never encrypted" in daemon.status
            assert sandbox.rules() == rules
            engine.run("x4", "X", publish=["8083:80"])
            daemon.wait_for(lambda: "[::]:8083/tcp -> x4" in daemon.log, "the socket is followed")
            assert daemon.stop() == 0
            daemon.start(wait=None)
            assert daemon.process is not None
            assert daemon.process.wait(30) == 78
            assert "set endpoint = 'tcp://127.0.0.1:2375'" in daemon.log
            assert "8083" in sandbox.rules()
    engine.rm("x3", "x4")


class ReloadedEndpointDaemon(Daemon):
    """A daemon with its endpoint in the configuration file, so that a reload can change it."""

    @property
    def flags(self) -> tuple[str, ...]:
        return ("-config", str(self.config))


def test_path_that_is_no_engine_socket_is_reported_until_the_engine_listens(
    tools: None,  # noqa: ARG001
) -> None:
    with Sandbox() as sandbox, Engine(sandbox) as engine:
        engine.network("X", "fd00:a::/64")
        engine.run("x1", "X", publish=["8080:80"])
        path = sandbox.dir / "docker.sock"
        daemon = Daemon(sandbox, f"unix://{path}", start=False)
        with daemon:
            daemon.start(wait="waiting-for-docker")
            daemon.wait_for(lambda: "no engine listens there" in daemon.status, "no socket")
            path.mkdir()
            daemon.wait_for(
                lambda: "is a directory and not a socket" in daemon.status, "a directory"
            )
            path.rmdir()
            path.touch()
            daemon.wait_for(lambda: "is a file and not a socket" in daemon.status, "a file")
            path.unlink()
            path.symlink_to("/nonexistent")
            daemon.wait_for(lambda: "no engine listens there" in daemon.status, "a dead link")
            path.unlink()
            engine.socket.chmod(0o666)
            path.symlink_to(engine.socket)
            daemon.wait_state("synced")
            daemon.wait_for(lambda: "1 mapping" in daemon.status, "the mapping")
            assert f"every user of this host can write to {engine.socket}" in daemon.log
            assert "Traceback" not in daemon.log
