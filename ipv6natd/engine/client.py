"""Calls to the Docker engine: connect, subscribe, list, inspect. Every call blocks.

A call raises EngineUnavailable or InspectFailed, and no error of the library.
"""

from __future__ import annotations

import errno
import logging
import time
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

CALL_TIMEOUT = 60
"""Seconds that a call may take. An inspect of a starting container waits for the container's lock;
after this time it is repeated."""
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
EVENTS_OVERLAP = 0.1
"""Seconds before the subscription whose events are wanted too: an event has the time at which it
was made, and it is sent a little later."""


class EngineUnavailable(Exception):
    """The engine cannot be reached or does not answer any more; the text is the reason."""


class WrongEngine(EngineUnavailable):
    """The endpoint is that of another program than Docker; the text says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAddress:
    """How to reach the engine."""

    endpoint: str
    cert_path: str = ""
    tls_verify: bool = False


class InspectFailed(Exception):
    """The engine did not return the object; a retry may succeed."""


class Client(docker.APIClient):  # type: ignore[misc]
    """The client of the library, without its implicit configuration."""

    @property
    def trust_env(self) -> bool:
        """False: the environment and ~/.netrc could set other authorities, proxies and accounts."""
        return False

    @trust_env.setter
    def trust_env(self, _value: bool) -> None:
        """Ignored; the library sets it."""

    @property
    def verified(self) -> bool:
        """True if the engine must present a certificate of a trusted authority."""
        return self.base_url.startswith("https://") and bool(self.verify)

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Reject redirects: the target could be another host, and without TLS."""
        if resp.is_redirect:
            resp.close()  # the library would leave its connection open
            text = "it redirects to another address: set endpoint to the address of the engine"
            raise requests.TooManyRedirects(text)


_MALFORMED = (ValueError, RecursionError, AttributeError, KeyError, TypeError)
"""Errors of the libraries for responses with broken, too deeply nested or unexpected JSON."""
_LIBRARY_ERRORS = (docker.errors.DockerException, requests.RequestException, OSError, *_MALFORMED)


@contextmanager
def engine_errors(what: str, address: EngineAddress | None = None) -> Iterator[None]:
    """Convert the errors of the library to EngineUnavailable; with `address`, add advice."""
    try:
        yield
    except _LIBRARY_ERRORS as error:
        reason = one_line(error)
        if address is not None and (
            advice := explain_error(address.endpoint, address.cert_path, str(error))
        ):
            log.debug("%s: %s", what, reason)
            reason = advice
        raise EngineUnavailable(f"{what}: {reason}") from None


def inspect(client: Client, kind: str, identity: str) -> object:
    """The JSON of a container or network; None if the engine does not have it any more.

    Raises InspectFailed if a retry may succeed, and EngineUnavailable.
    """
    call = client.inspect_container if kind == "container" else client.inspect_network
    try:
        return call(identity)
    except docker.errors.NotFound:
        return None
    except requests.exceptions.ReadTimeout:
        raise InspectFailed(f"no answer within {CALL_TIMEOUT} s") from None
    except requests.ConnectionError as error:
        if _is_exhausted(error):
            raise InspectFailed(one_line(error)) from None
        raise EngineUnavailable(one_line(error)) from None
    # Before OSError, because errors of requests are OSErrors too, also the one for broken JSON.
    except (requests.RequestException, docker.errors.DockerException, *_MALFORMED) as error:
        raise InspectFailed(one_line(error)) from None
    except OSError as error:
        raise EngineUnavailable(one_line(error)) from None


def _is_exhausted(error: BaseException | None) -> bool:
    """True if this process or host has no file or memory left: the engine is not lost by that."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            return True
        error = error.__cause__ or error.__context__
    return False


def subscribe(client: Client) -> Any:
    """The stream of the events that can change a rule. Raises EngineUnavailable.

    dockerd sends the head of its answer before it subscribes the client. Because of `since`, it
    first sends the events in between again: it keeps the last 256 (moby, daemon/events/events.go).
    """
    since = f"{time.time() - EVENTS_OVERLAP:.9f}"  # as the docker command writes it
    with engine_errors("its event stream broke"):
        events = client.events(since=since, filters=parse.EVENTS, decode=True)
    # The library takes the body of an error for events.
    response = events._response
    if not response.ok:
        events.close()
        raise EngineUnavailable(
            f"it refuses /events: {response.status_code} {response.reason}; a socket proxy before "
            "the engine must permit this path"
        )
    return events


def list_all(client: Client, engine: Engine) -> tuple[list[Any], list[Container]]:
    """(networks as JSON, containers). Raises EngineUnavailable, also for other JSON than lists.

    The list of containers is read row by row and not by the library: the complete JSON of 10,000
    containers takes four times the memory of the daemon.
    """
    with engine_errors("cannot list networks and containers"):
        networks = client.networks()
        if not isinstance(networks, list):
            raise ValueError("the answer is not a list")
        url = f"{client.base_url}/v{client.api_version}/containers/json"
        with client.get(url, stream=True, timeout=CALL_TIMEOUT) as response:
            response.raise_for_status()
            rows = json_rows(response.iter_content(1 << 16))
            containers = (parse.container(row, engine) for row in rows)
            return networks, [container for container in containers if container is not None]


def tls_config(address: EngineAddress) -> docker.tls.TLSConfig | bool:
    """The TLS settings, as for the docker command: cert_path has the files, tls_verify verifies.

    Raises EngineUnavailable if the files cannot be used; they may be installed later.
    """
    plain = address.endpoint.startswith("http://")
    if plain and address.tls_verify:
        raise EngineUnavailable("http:// is never encrypted, and tls_verify is true")
    if plain or address.endpoint.startswith(UNIX):
        return False
    if not (address.tls_verify or address.cert_path):
        return False
    if reason := certificate_error(address.cert_path, verify=address.tls_verify):
        raise EngineUnavailable(reason)
    folder = Path(address.cert_path)
    key, cert, ca = (folder / name for name in (KEY, CERT, CA))
    return docker.tls.TLSConfig(
        client_cert=(str(cert), str(key)) if cert.exists() else None,
        ca_cert=str(ca) if ca.exists() else None,
        verify=address.tls_verify,
    )


def connect(address: EngineAddress) -> tuple[Client, Engine]:
    """Connect; return the client and the facts about the engine. Raises EngineUnavailable."""
    endpoint = address.endpoint
    if reason := wrong_file_type(endpoint):
        raise EngineUnavailable(reason)
    with engine_errors(f"cannot reach {endpoint}", address):
        client = Client(
            base_url=endpoint, version="auto", timeout=CALL_TIMEOUT, tls=tls_config(address)
        )
        try:
            version = client.version()
            if parse.is_podman(version):
                raise WrongEngine(
                    f"the engine at {endpoint} is Podman, which does IPv6 NAT itself; set endpoint "
                    "to the address of Docker, or remove ipv6natd"
                )
            option = ip6tables_option(endpoint)
            return client, parse.engine(version, _info(client), ip6tables=option)
        except BaseException:
            client.close()
            raise


def _info(client: Client) -> object:
    """GET /info; None if it is refused, as by a socket proxy, or cannot be read."""
    try:
        return client.info()
    except (docker.errors.APIError, *_MALFORMED) as error:
        log.debug("the engine does not answer /info: %s", one_line(error))
        return None


def one_line(error: BaseException) -> str:
    """The text of an error, or its class, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
