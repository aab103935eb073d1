"""Warnings about the engine's endpoint, and the advice for errors."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipv6natd.config import ConfigError, Layer, settings
from ipv6natd.engine.client import Client, EngineAddress, EngineUnavailable, tls_config
from ipv6natd.engine.endpoint import explain_error, security_warnings, wrong_file_type

TCP = "tcp://engine:2376"
FAILED = "certificate verify failed: "
# Errors of Python 3.11 to 3.13 with OpenSSL 3, of urllib3 1.26 and 2, and of the engine -> advice.
ADVICE = {
    FAILED + "unable to get local issuer certificate": "/tls/ca.pem",
    FAILED + "self-signed certificate in certificate chain": "/tls/ca.pem",
    FAILED + "self signed certificate": "/tls/ca.pem",
    FAILED + "CA cert does not include key usage extension": "-addext keyUsage",
    FAILED + "Missing Authority Key Identifier": "-addext keyUsage",
    "hostname '127.0.0.1' doesn't match 'other.example'": "another name",
    FAILED + "Hostname mismatch, certificate is not valid for 'engine'.": "another name",
    FAILED + "IP address mismatch, certificate is not valid for '127.0.0.1'.": "another name",
    FAILED + "certificate has expired": "has expired",
    FAILED + "certificate is not yet valid": "clocks",
    "[SSL: SSLV3_ALERT_HANDSHAKE_FAILURE] sslv3 alert handshake failure": "cert.pem",
    "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required": "cert.pem",
    "[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca": "cert.pem",
    "[SSL: WRONG_VERSION_NUMBER] wrong version number": "does not speak TLS",
    "[SSL: RECORD_LAYER_FAILURE] record layer failure": "does not speak TLS",
    "TLS/SSL connection has been closed (EOF)": "does not speak TLS",
    '400 Client Error: ("Client sent an HTTP request to an HTTPS server.")': "tls_verify = true",
    "RemoteDisconnected('Remote end closed connection')": "tls_verify = true",
    "HTTPConnectionPool: Read timed out. (read timeout=60)": "does not answer",
}


@pytest.mark.parametrize("error", ADVICE)
@pytest.mark.parametrize("cert_path", ["/tls", ""])
def test_explain_error_of_tls_gives_advice(error: str, cert_path: str) -> None:
    text = explain_error(TCP, cert_path, f"Max retries exceeded (Caused by SSLError({error}))")
    assert (ADVICE[error] if cert_path or "/tls" not in ADVICE[error] else "cert_path") in text


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("FileNotFoundError(2, 'No such file or directory')", "systemctl start docker"),
        ("ConnectionRefusedError(111, 'Connection refused')", "systemctl start docker"),
        ("PermissionError(13, 'Permission denied')", "group docker"),
        ("Read timed out.", "systemctl status docker"),
        ("500 Server Error", ""),
    ],
)
def test_explain_error_of_a_socket_gives_advice(error: str, advice: str) -> None:
    text = explain_error("unix:///run/docker.sock", "", error)
    assert advice in text
    assert bool(text) is bool(advice)


def test_explain_error_in_the_image_names_the_missing_volume(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("IPV6NATD_CONTAINER", "1")
    text = explain_error("unix:///run/docker.sock", "", "No such file or directory")
    assert "--volume /var/run/docker.sock:/var/run/docker.sock:ro" in text
    assert "systemctl" not in text


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0o660)
        yield path


def warnings(path: Path) -> list[str]:
    return list(security_warnings(f"unix://{path}", verified=False))


def test_socket_of_root_and_link_to_it_have_no_warning(listening: Path) -> None:
    assert warnings(listening) == []
    link = listening.with_name("link")
    link.symlink_to(listening)
    assert warnings(link) == []
    assert wrong_file_type(f"unix://{link}") == ""


def test_world_writable_socket_has_a_warning_with_a_command(listening: Path) -> None:
    listening.chmod(0o666)
    assert warnings(listening) == [
        f"every user of this host can write to {listening} and become root: chmod o-rwx {listening}"
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_socket_of_a_user_has_a_warning(listening: Path) -> None:
    os.chown(listening, 1000, 1000)
    (warning,) = warnings(listening)
    assert "belongs to user 1000" in warning
    assert warning.endswith(f": chown root {listening}")


def test_socket_in_a_world_writable_directory_has_a_warning(listening: Path) -> None:
    listening.parent.chmod(0o1777)
    (warning,) = warnings(listening)
    assert f"in {listening.parent}:" in warning


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_socket_below_a_directory_of_a_user_has_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "of-user" / "docker"
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "docker.sock"))
        (folder / "docker.sock").chmod(0o660)
        assert warnings(folder / "docker.sock") == []
        os.chown(folder.parent, 1000, 1000)
        (warning,) = warnings(folder / "docker.sock")
        assert warning.endswith(f": chown root {folder.parent}")
        # An engine of this user: the warning about the socket says it.
        os.chown(folder / "docker.sock", 1000, 1000)
        (warning,) = warnings(folder / "docker.sock")
        assert "docker.sock belongs to user 1000" in warning


def test_engine_on_the_network_without_verification_has_a_warning() -> None:
    assert list(security_warnings(TCP, verified=True)) == []
    (warning,) = security_warnings(TCP, verified=False)
    assert "tls_verify = true" in warning


@pytest.mark.parametrize("kind", ["directory", "file", "pipe"])
def test_wrong_file_type_is_reported(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "docker.sock"
    if kind == "directory":
        path.mkdir()
    elif kind == "file":
        path.touch()
    else:
        os.mkfifo(path)
    assert wrong_file_type(f"unix://{path}").startswith(f"{path} is a {kind} and not a socket: ")
    assert warnings(tmp_path / "none") == []
    assert wrong_file_type(TCP) == wrong_file_type("unix:///nonexistent") == ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of docker 5
def test_client_ignores_trust_settings_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """requests would use these authorities instead of ca.pem, and a proxy."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent/ca.pem")
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:1")
    (tmp_path / "netrc").write_text("machine 192.0.2.2 login a password swordfish\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    client = Client(base_url="tcp://192.0.2.2:2375", version="1.41")
    client.verify = "/ours/ca.pem"
    url = "http://192.0.2.2:2375/version"
    merged = client.merge_environment_settings(url, {}, None, None, None)
    client.close()
    assert merged["verify"] == "/ours/ca.pem"
    assert not merged["proxies"]
    assert not client.trust_env


def test_tls_config_uses_no_certificates_without_cert_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).touch()
    with pytest.raises(EngineUnavailable, match="cert_path is not set"):
        tls_config(EngineAddress(endpoint=TCP, tls_verify=True))
    assert tls_config(EngineAddress(endpoint=TCP)) is False


def test_endpoint_with_password_is_rejected_without_printing_it() -> None:
    for endpoint in ("tcp://me:swordfish@engine:2375", "tcp://swordfish@engine"):
        with pytest.raises(ConfigError) as caught:
            settings([Layer("environment", {"endpoint": endpoint})])
        assert "swordfish" not in str(caught.value)
        assert "without a user" in str(caught.value)
