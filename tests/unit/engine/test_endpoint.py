"""Who may stand at the engine's endpoint, and what is said where it does not answer."""

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
# What Python 3.11 to 3.13 with OpenSSL 3, urllib3 1.26 and 2, and the engine say.
SAID = {
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


@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("cert_path", ["/tls", ""])
def test_a_failure_of_tls_says_what_to_do(said: str, cert_path: str) -> None:
    sentence = explain_error(TCP, cert_path, f"Max retries exceeded (Caused by SSLError({said}))")
    assert (SAID[said] if cert_path or "/tls" not in SAID[said] else "cert_path") in sentence


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("FileNotFoundError(2, 'No such file or directory')", "systemctl start docker"),
        ("ConnectionRefusedError(111, 'Connection refused')", "systemctl start docker"),
        ("PermissionError(13, 'Permission denied')", "group docker"),
        ("Read timed out.", "systemctl status docker"),
        ("500 Server Error", ""),
    ],
)
def test_a_socket_that_fails_says_what_to_do(said: str, told: str) -> None:
    sentence = explain_error("unix:///run/docker.sock", "", said)
    assert told in sentence
    assert bool(sentence) is bool(told)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0o660)
        yield path


def doubted(path: Path) -> list[str]:
    return list(security_warnings(f"unix://{path}", verified=False))


def test_a_socket_of_root_is_in_no_doubt_and_neither_is_a_link_to_it(listening: Path) -> None:
    assert doubted(listening) == []
    link = listening.with_name("link")
    link.symlink_to(listening)
    assert doubted(link) == []
    assert wrong_file_type(f"unix://{link}") == ""


def test_a_socket_that_everybody_may_write_to_is_named_with_the_command(listening: Path) -> None:
    listening.chmod(0o666)
    assert doubted(listening) == [
        f"everybody on this host may write to {listening}, and so become root: "
        f"chmod o-rwx {listening}"
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_a_socket_of_a_plain_user_is_named(listening: Path) -> None:
    os.chown(listening, 1000, 1000)
    (said,) = doubted(listening)
    assert "belongs to user 1000" in said
    assert said.endswith(f": chown root {listening}")


def test_a_folder_in_which_anybody_may_put_a_socket_is_named(listening: Path) -> None:
    listening.parent.chmod(0o1777)
    (said,) = doubted(listening)
    assert f"into {listening.parent}:" in said


def test_an_engine_on_the_network_that_is_not_checked_is_named() -> None:
    assert list(security_warnings(TCP, verified=True)) == []
    (said,) = security_warnings(TCP, verified=False)
    assert "tls_verify = true" in said


@pytest.mark.parametrize("kind", ["directory", "file", "pipe"])
def test_what_is_no_socket_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "docker.sock"
    if kind == "directory":
        path.mkdir()
    elif kind == "file":
        path.touch()
    else:
        os.mkfifo(path)
    assert wrong_file_type(f"unix://{path}").startswith(f"{path} is a {kind} and no socket: ")
    assert doubted(tmp_path / "none") == []
    assert wrong_file_type(TCP) == wrong_file_type("unix:///nonexistent") == ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of docker 5
def test_no_variable_of_the_libraries_chooses_whom_to_trust(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """requests would take an authority from there in the place of our ca.pem, and ask a proxy."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent/ca.pem")
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:1")
    (tmp_path / "netrc").write_text("machine 192.0.2.2 login a password swordfish\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    client = Client(base_url="tcp://192.0.2.2:2375", version="1.41")
    client.verify = "/ours/ca.pem"
    url = "http://192.0.2.2:2375/version"
    asked = client.merge_environment_settings(url, {}, None, None, None)
    client.close()
    assert asked["verify"] == "/ours/ca.pem"
    assert not asked["proxies"]
    assert not client.trust_env


def test_certificates_come_from_the_folder_that_was_named_and_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).touch()
    with pytest.raises(EngineUnavailable, match="there is no cert_path"):
        tls_config(EngineAddress(endpoint=TCP, tls_verify=True))
    assert tls_config(EngineAddress(endpoint=TCP)) is False


def test_a_password_in_an_endpoint_is_refused_and_not_said() -> None:
    for endpoint in ("tcp://me:swordfish@engine:2375", "tcp://swordfish@engine"):
        with pytest.raises(ConfigError) as caught:
            settings([Layer("environment", {"endpoint": endpoint})])
        assert "swordfish" not in str(caught.value)
        assert "without a user" in str(caught.value)
