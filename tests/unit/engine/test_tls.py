"""Verification of an engine on the network: settings, certificates and connections.

tests/system/packets/test_endpoint.py has the cases with expired and wrong certificates.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from ipv6natd.config import ConfigError, Layer, Settings, environment_layer, settings
from ipv6natd.engine.client import Client, EngineAddress, EngineUnavailable, connect, tls_config
from ipv6natd.engine.endpoint import certificate_error, explain_error, security_warnings

pytestmark = [
    # Of docker 5.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*unclosed <socket:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*unclosed <socket:pytest.PytestUnraisableExceptionWarning"),
]

# Self-signed, for 127.0.0.1, and only used here.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBkzCCATqgAwIBAgIUB/d2ezdjy+YK5p4YQwnh0Fwx8X0wCgYIKoZIzj0EAwIw
DjEMMAoGA1UEAwwDbGFiMCAXDTI2MTEyODE4MzEwMloYDzIxMjYxMTA0MTgzMTAy
WjAOMQwwCgYDVQQDDANsYWIwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASBvRih
YU6vW8I3aqQU8veLI6DCqtIP5aukp1ykGwszDtvwcfC+GsA0tXQuL2PxkW3InWPv
ZM6kr0Wq0Mj+mDKUo3QwcjAdBgNVHQ4EFgQUk+q8eUqlllLv4CknI53x5F4cplAw
HwYDVR0jBBgwFoAUk+q8eUqlllLv4CknI53x5F4cplAwDwYDVR0TAQH/BAUwAwEB
/zAOBgNVHQ8BAf8EBAMCAoQwDwYDVR0RBAgwBocEfwAAATAKBggqhkjOPQQDAgNH
ADBEAiAFms4zcdl8mQ1bIHT/RPHjtKWMDK9z3iLp+Nf8bl6uoQIgDqv3UGQRwlwy
sfEJAxB3JPjsUgcyJjIVSkGZvlfCDqM=
-----END CERTIFICATE-----
"""
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgPm2LtPRFW8vnFC6z
6lmq61sVAJ1c6LDvgH3pIFqhEpihRANCAASBvRihYU6vW8I3aqQU8veLI6DCqtIP
5aukp1ykGwszDtvwcfC+GsA0tXQuL2PxkW3InWPvZM6kr0Wq0Mj+mDKU
-----END PRIVATE KEY-----
"""
ENCRYPTED = """\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAg8eCtlDZzmKQICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEENDV1wXgU6+ia6e7hJpr4vAEgZCr
5gBLIsYV6nqpIV/QkHGouiiN69PIU5072fkPNLyq4LwZDSYtGyGsexrA53QMEsWP
x9MhhArDqgGO4CpD5C8aOKDXQ2j3B2r8gZ0GRo7WRLez0p4uT6dxoamb78zYGJQq
qrk5///2zn1EIqyxphAxoSzXfukJK2qlhoLj2/iIYJ/b6SwHdUPrvuUqVJXp/bA=
-----END ENCRYPTED PRIVATE KEY-----
"""
TCP, HTTP, HTTPS, UNIX = "tcp://h:2376", "http://h:2375", "https://h:2376", "unix:///run/x.sock"
SOURCES: dict[str, Callable[[str], Layer]] = {
    "environment": lambda at: environment_layer({"DOCKER_HOST": at, "DOCKER_TLS_VERIFY": "1"}),
    "a file": lambda at: Layer("/etc/x.toml", {"endpoint": at, "tls_verify": True}),
    "flags": lambda at: Layer("command line", {"endpoint": at, "tls_verify": True}),
}


# Invalid settings.


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("cert_path", ["", "/certs"])
def test_http_endpoint_with_tls_verify_is_rejected(source: str, cert_path: str) -> None:
    layer = SOURCES[source](HTTP)
    with pytest.raises(ConfigError) as caught:
        settings([Layer("f", {"cert_path": cert_path}), layer])
    error = str(caught.value)
    assert error.startswith(f"{layer.source}: tls_verify = true and endpoint = '{HTTP}': ")
    assert "set endpoint = 'tcp://h:2375'" in error
    assert "DOCKER_TLS_VERIFY" in error


def test_error_names_both_sources_of_conflicting_settings() -> None:
    layers = [
        Layer("/etc/x.toml", {"endpoint": HTTP, "tls_verify": False}),
        environment_layer({"DOCKER_TLS_VERIFY": "1"}),
    ]
    with pytest.raises(ConfigError, match=r"^/etc/x\.toml and environment: tls_verify"):
        settings(layers)


@pytest.mark.parametrize("endpoint", [TCP, HTTPS])
def test_tls_verify_without_cert_path_is_rejected(endpoint: str) -> None:
    """A public authority signs for every owner of a host name."""
    with pytest.raises(
        ConfigError, match=r"cert_path is not set; set it to the directory with ca\.pem"
    ):
        settings([Layer("f", {"endpoint": endpoint, "tls_verify": True})])


@pytest.mark.parametrize(
    "values",
    [
        {"endpoint": UNIX, "tls_verify": True},
        {"endpoint": HTTP},
        {"endpoint": HTTP, "cert_path": "/certs"},
        {"endpoint": HTTPS},
        {"endpoint": TCP, "tls_verify": True, "cert_path": "/certs"},
    ],
)
def test_other_combinations_are_accepted(values: dict[str, Any]) -> None:
    """For a socket, tls_verify is ignored, as by the docker command."""
    assert isinstance(settings([Layer("f", values)]), Settings)


@pytest.mark.parametrize(
    "endpoint",
    [
        *("HTTP://h:2375", "Http://h:2375", "TCP://h:2376", "HTTPS://h:2376", "UNIX:///run/x.sock"),
        *("npipe:////./pipe/docker", "ssh://h", "fd://", "http+unix:///run/x.sock", "h:2375"),
        *(" http://h:2375", "tcp://me@h:2376", "https://me:secret@h:2376", "tcp://h:2376\n"),
    ],
)
def test_endpoint_with_another_spelling_is_rejected(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="must be unix:///path or tcp://host:port"):
        settings([Layer("f", {"endpoint": endpoint, "tls_verify": True, "cert_path": "/certs"})])


# Certificates.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with three valid files."""
    for name, text in (("ca", CERTIFICATE), ("cert", CERTIFICATE), ("key", KEY)):
        (tmp_path / f"{name}.pem").write_text(text)
    return tmp_path


def test_tls_config_uses_the_existing_certificates(folder: Path) -> None:
    ca, cert, key = (f"{folder}/{name}.pem" for name in ("ca", "cert", "key"))

    def used(*, verify: bool) -> tuple[Any, Any]:
        address = EngineAddress(endpoint=TCP, cert_path=str(folder), tls_verify=verify)
        tls: Any = tls_config(address)
        return tls.ca_cert, tls.cert

    assert used(verify=True) == used(verify=False) == (ca, (cert, key))
    for name in (cert, key):
        Path(name).unlink()
    assert used(verify=True) == (ca, None)
    Path(ca).unlink()
    assert used(verify=False) == (None, None)


UNUSABLE: dict[str, tuple[dict[str, str | None], str]] = {
    "no ca": ({"ca": None}, "there is no ca.pem in {}: put the certificate"),
    "nothing": ({"ca": None, "cert": None, "key": None}, "there is no ca.pem in {}: put"),
    "an empty ca": ({"ca": ""}, "there is no certificate in {}/ca.pem: put"),
    "garbage for a ca": ({"ca": "garbage\n"}, "there is no certificate in {}/ca.pem: put"),
    "a key for a ca": ({"ca": KEY}, "there is no certificate in {}/ca.pem: put"),
    "a broken ca": ({"ca": CERTIFICATE[:200]}, "there is no certificate in {}/ca.pem: put"),
    "no key": ({"key": None}, "there is no key.pem beside cert.pem in {}: put both"),
    "no certificate": ({"cert": None}, "there is no cert.pem beside key.pem in {}: put both"),
    "an empty key": ({"key": ""}, "{0}/cert.pem and {0}/key.pem are not a certificate and its key"),
    "a key with a password": ({"key": ENCRYPTED}, "its key without a password: put both"),
    "garbage": ({"cert": "x"}, "{0}/cert.pem and {0}/key.pem are not a certificate and its key"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_certificates_are_reported_before_any_connect(folder: Path, case: str) -> None:
    files, error = UNUSABLE[case]
    for name, text in files.items():
        path = folder / f"{name}.pem"
        path.unlink() if text is None else path.write_text(text)
    assert error.format(folder) in certificate_error(str(folder), verify=True)
    with engine() as server:
        with pytest.raises(EngineUnavailable, match=r"\.pem"):
            connected(f"tcp://{server.place}", str(folder), verify=True)
        assert server.connections == 0


def test_missing_cert_path_directory_is_reported(tmp_path: Path) -> None:
    assert certificate_error(f"{tmp_path}/none", verify=True).startswith("there is no ca.pem in ")
    (tmp_path / "ca.pem").mkdir()
    assert f"{tmp_path}/ca.pem" in certificate_error(str(tmp_path), verify=True)


@pytest.mark.parametrize("endpoint", [TCP, HTTPS, HTTP])
def test_tls_config_with_tls_verify_requires_cert_path(endpoint: str) -> None:
    """Also without the checks of the settings."""
    with pytest.raises(EngineUnavailable, match=r"cert_path|never encrypted"):
        tls_config(EngineAddress(endpoint=endpoint, tls_verify=True))


# Connections.


class Server(ThreadingHTTPServer):
    """An engine at plain HTTP; with `elsewhere`, it redirects every request."""

    daemon_threads = True

    def __init__(self, elsewhere: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.elsewhere = elsewhere
        self.connections = 0
        self.headers: list[dict[str, str]] = []

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.headers.append({key.lower(): value for key, value in self.headers.items()})
        body = json.dumps({"Version": "28.5.1", "ApiVersion": "1.41"}).encode()
        self.send_response(307 if self.server.elsewhere else 200)
        if self.server.elsewhere:
            self.send_header("Location", self.server.elsewhere)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


@contextmanager
def engine(elsewhere: str = "") -> Iterator[Server]:
    with Server(elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def connected(endpoint: str, cert_path: str = "", *, verify: bool = False) -> tuple[str, ...]:
    """The security warnings after a connect."""
    address = EngineAddress(endpoint=endpoint, cert_path=cert_path, tls_verify=verify)
    client, _ = connect(address)
    client.close()
    return tuple(security_warnings(endpoint, verified=client.verified))


@pytest.mark.parametrize(
    ("endpoint", "verify", "verified"),
    [
        (TCP, None, False),
        (HTTP, None, False),
        (HTTPS, None, True),
        (TCP, False, False),
        (TCP, True, True),
        (HTTPS, False, False),
        (HTTPS, True, True),
        (UNIX, None, False),
    ],
)
def test_client_knows_if_it_verifies_the_engine(
    folder: Path, endpoint: str, verify: bool | None, verified: bool
) -> None:
    """`verify` None: no cert_path. Plain https:// uses the authorities that the host trusts."""
    path = "" if verify is None else str(folder)
    tls = tls_config(EngineAddress(endpoint=endpoint, cert_path=path, tls_verify=bool(verify)))
    client = Client(base_url=endpoint, version="1.41", tls=tls)
    assert client.verified is verified
    if verify:
        assert client.verify == f"{folder}/ca.pem"
    client.close()


def test_engine_at_plain_http_always_has_a_warning() -> None:
    with engine() as server:
        (warning,) = connected(f"http://{server.place}")
        assert server.connections
        assert "is not verified, so another host on the network path" in warning
        connections = server.connections
        with pytest.raises(EngineUnavailable, match="never encrypted"):
            connected(f"http://{server.place}", verify=True)
        assert server.connections == connections


def test_advice_for_http_is_a_valid_setting() -> None:
    (warning,) = security_warnings(HTTP, verified=False)
    assert "use tcp:// in endpoint" in warning
    assert "use tcp:// in endpoint" in explain_error(HTTP, "", "RemoteDisconnected")
    (warning,) = security_warnings(TCP, verified=False)
    assert "use tcp://" not in warning


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_redirect_of_an_engine_is_not_followed(scheme: str) -> None:
    """A redirect could lead to another host, without TLS and without its certificate."""
    with engine() as other, engine(f"{scheme}://{other.place}/version") as server:
        with pytest.raises(EngineUnavailable, match="it redirects to another address"):
            connected(f"tcp://{server.place}")
        assert server.connections
        assert other.connections == 0


@pytest.mark.parametrize(
    "name", ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"]
)
def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "example.org")
    with engine() as proxy, engine() as server:
        monkeypatch.setenv(name, f"http://{proxy.place}")
        connected(f"tcp://{server.place}")
        assert server.connections
        assert proxy.connections == 0


def test_no_account_of_netrc_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (".netrc", "_netrc"):
        (tmp_path / name).write_text("machine 127.0.0.1 login me password swordfish\n")
        (tmp_path / name).chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with engine() as server:
        connected(f"tcp://{server.place}")
        assert server.headers
        assert not any("authorization" in headers for headers in server.headers)


@pytest.mark.parametrize(
    "name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"]
)
def test_no_authority_of_the_environment_is_trusted(
    monkeypatch: pytest.MonkeyPatch, folder: Path, name: str
) -> None:
    monkeypatch.setenv(name, str(folder / "cert.pem"))
    address = EngineAddress(endpoint=TCP, cert_path=str(folder), tls_verify=True)
    client = Client(base_url=TCP, version="1.41", tls=tls_config(address))
    merged = client.merge_environment_settings(HTTPS, {}, None, None, None)
    client.close()
    assert merged["verify"] == f"{folder}/ca.pem"
    assert isinstance(client, requests.Session)
