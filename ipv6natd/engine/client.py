"""Calls to the Docker engine: connect, TLS, list, inspect. Each call blocks, and each error is one
of two: the engine is gone, or its answer is unclear.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import docker.errors
import docker.tls
import requests

from ipv6natd.engine import parse
from ipv6natd.engine.dockerd import ip6tables_option
from ipv6natd.engine.endpoint import (
    CA,
    CERT,
    KEY,
    UNIX,
    certificate_error,
    explain_error,
    wrong_file_type,
)
from ipv6natd.engine.stream import json_rows
from ipv6natd.model import Container, Engine

log = logging.getLogger(__name__)

# An inspect waits for the lock that a starting container holds, so this is also how long a start
# may take before it is asked about again.
CALL_TIMEOUT = 60


class EngineUnavailable(Exception):
    """The engine cannot be reached or stopped answering; the text says in which way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAddress:
    """How to reach the engine."""

    endpoint: str
    cert_path: str = ""
    tls_verify: bool = False


class InspectFailed(Exception):
    """The engine answered, but not in a way that tells anything; asking again may."""


class Client(docker.APIClient):  # type: ignore[misc]
    """The library's client, as it is told and in no other way."""

    @property
    def trust_env(self) -> bool:
        """Never: the environment or ~/.netrc would name other authorities, proxies and accounts."""
        return False

    @trust_env.setter
    def trust_env(self, _value: bool) -> None:
        """The library sets it."""

    @property
    def verified(self) -> bool:
        """True if the engine has to show a certificate of an authority that we know."""
        return self.base_url.startswith("https://") and bool(self.verify)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Where an answer sends us: nowhere. It could be another host, and without TLS."""
        if resp.is_redirect:
            resp.close()  # the library would leave its connection open
            text = "it sends us elsewhere, where we do not go: name the engine itself in endpoint"
            raise requests.TooManyRedirects(text)


_MALFORMED = (ValueError, RecursionError, AttributeError, KeyError, TypeError)
"""What the libraries let through: JSON that is none, is nested too deeply, or has another shape."""
_LIBRARY_ERRORS = (docker.errors.DockerException, requests.RequestException, OSError, *_MALFORMED)


@contextmanager
def engine_errors(what: str, address: EngineAddress | None = None) -> Iterator[None]:
    """Convert the errors of the library to EngineUnavailable, with advice if `address` is given."""
    try:
        yield
    except _LIBRARY_ERRORS as error:
        said = one_line(error)
        if address is not None and (
            helps := explain_error(address.endpoint, address.cert_path, str(error))
        ):
            log.debug("%s: %s", what, said)
            said = helps
        raise EngineUnavailable(f"{what}: {said}") from None


def inspect(client: Client, kind: str, identity: str) -> object:
    """The JSON, None where the engine has no such thing any more.

    Raises InspectFailed where asking again may help and EngineUnavailable where the engine is away.
    """
    call = client.inspect_container if kind == "container" else client.inspect_network
    try:
        return call(identity)
    except docker.errors.NotFound:
        return None
    except docker.errors.APIError as error:
        raise InspectFailed(one_line(error)) from None
    except requests.exceptions.ReadTimeout:
        raise InspectFailed(f"no answer within {CALL_TIMEOUT} s") from None
    except requests.ConnectionError as error:
        raise EngineUnavailable(one_line(error)) from None
    # Before OSError: the library's errors are that too, the one for broken JSON among them.
    except (requests.RequestException, docker.errors.DockerException, *_MALFORMED) as error:
        raise InspectFailed(one_line(error)) from None
    except OSError as error:
        raise EngineUnavailable(one_line(error)) from None


def list_all(client: Client, engine: Engine) -> tuple[list[Any], list[Container]]:
    """(networks as JSON, containers). What is no list counts as an engine out of its mind.

    The list of containers is read row by row, past the library: whole, that of 10,000 takes four
    times the memory that the daemon needs.
    """
    with engine_errors("cannot list networks and containers"):
        networks = client.networks()
        if not isinstance(networks, list):
            raise ValueError("the answer is not a list")
        address = f"{client.base_url}/v{client.api_version}/containers/json"
        with client.get(address, stream=True, timeout=CALL_TIMEOUT) as answer:
            answer.raise_for_status()
            rows = json_rows(answer.iter_content(1 << 16))
            read = (parse.container(row, engine) for row in rows)
            return networks, [each for each in read if each is not None]


def tls_config(address: EngineAddress) -> docker.tls.TLSConfig | bool:
    """TLS as the docker command does it: certificates of its directory, verified when asked for.

    Raises EngineUnavailable where they cannot be used. They may be put there later.
    """
    plain = address.endpoint.startswith("http://")
    if plain and address.tls_verify:
        raise EngineUnavailable("http:// is never encrypted, and tls_verify is true")
    if plain or address.endpoint.startswith(UNIX):
        return False
    if not (address.tls_verify or address.cert_path):
        return False
    if wrong := certificate_error(address.cert_path, verify=address.tls_verify):
        raise EngineUnavailable(wrong)
    folder = Path(address.cert_path)
    key, cert, ca = (folder / name for name in (KEY, CERT, CA))
    return docker.tls.TLSConfig(
        client_cert=(str(cert), str(key)) if cert.exists() else None,
        ca_cert=str(ca) if ca.exists() else None,
        verify=address.tls_verify,
    )


def connect(address: EngineAddress) -> tuple[Client, Engine]:
    """Connect; return the client and what the engine says about itself. Blocks. Raises
    EngineUnavailable."""
    endpoint = address.endpoint
    if wrong := wrong_file_type(endpoint):
        raise EngineUnavailable(wrong)
    with engine_errors(f"cannot reach {endpoint}", address):
        client = Client(
            base_url=endpoint, version="auto", timeout=CALL_TIMEOUT, tls=tls_config(address)
        )
        try:
            told = ip6tables_option(endpoint)
            return client, parse.engine(client.version(), client.info(), ip6tables=told)
        except BaseException:
            client.close()
            raise


def one_line(error: BaseException) -> str:
    """The text of an error in one line of at most 300 characters; its class where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__
