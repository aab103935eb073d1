"""An engine over TCP with TLS, as DOCKER_HOST, DOCKER_CERT_PATH and DOCKER_TLS_VERIFY name it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Daemon, Engine, Sandbox, need, serve
from tests.lab.process import run
from tests.packets.asking import opened

ENDPOINT = "tcp://127.0.0.1:2376"


def authority(folder: Path) -> Path:
    """A folder with a new authority's ca.pem, and key.pem and cert.pem signed by it."""
    folder.mkdir(mode=0o700)
    new = ("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    ca = ("-keyout", f"{folder}/ca-key.pem", "-out", f"{folder}/ca.pem", "-subj", "/CN=lab")
    run(*new, "-x509", *ca)
    key = ("-keyout", f"{folder}/key.pem", "-out", f"{folder}/request", "-subj", "/CN=engine")
    run(*new[:5], *key)
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    signed = ("-CA", f"{folder}/ca.pem", "-CAkey", f"{folder}/ca-key.pem", "-CAcreateserial")
    files = ("-in", f"{folder}/request", "-out", f"{folder}/cert.pem")
    run(
        *("openssl", "x509", "-req", "-days", "2", "-sha256", "-extfile", str(extensions)),
        *signed,
        *files,
    )
    return folder


@pytest.fixture(scope="module")
def lab(tools: None) -> Iterator[tuple[Sandbox, Engine, Path]]:  # noqa: ARG001
    need("openssl")
    with Sandbox() as sandbox:
        certificates = authority(sandbox.dir / "tls")
        flags = [f"--tls{name}={certificates}/{name}.pem" for name in ("key", "cert")]
        tcp = (f"--host={ENDPOINT}", "--tlsverify", f"--tlscacert={certificates}/ca.pem", *flags)
        with Engine(sandbox, *tcp) as engine:
            engine.network("X", "fd00:a::/64")
            yield sandbox, engine, certificates


def test_an_engine_over_verified_tls_is_followed(lab: tuple[Sandbox, Engine, Path]) -> None:
    sandbox, engine, certificates = lab
    settings = ("tls_verify = true", f'cert_path = "{certificates}"')
    with Daemon(sandbox, ENDPOINT, settings=settings):
        made = engine.run("x1", "X", publish=["8080:80"])
        with serve(made.ns, "x1", tcp=[80]):
            opened(sandbox.client, 8080)


def test_an_engine_that_shows_a_foreign_certificate_is_refused(
    lab: tuple[Sandbox, Engine, Path],
) -> None:
    sandbox, _, _ = lab
    stranger = authority(sandbox.dir / "stranger")
    settings = ("tls_verify = true", f'cert_path = "{stranger}"')
    with Daemon(sandbox, ENDPOINT, settings=settings, start=False) as daemon:
        daemon.start(wait="waiting-for-docker")
        daemon.wait_for(lambda: "certificate" in daemon.status.lower(), "a word on certificates")
        assert "Traceback" not in daemon.log
