"""Calls to the Docker engine: connect, subscribe, list, inspect. Every call blocks.

A call raises EngineUnavailable or InspectFailed, and no error of the library.
"""

from __future__ import annotations

import errno
import http.client
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import docker.errors
import docker.tls
import docker.transport.unixconn
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
from ipv6natd.engine.responses import Response, limited
from ipv6natd.engine.stream import LongRow, TooLong, bounded, json_lines, json_rows, json_value
from ipv6natd.model import Container, Engine

log = logging.getLogger(__name__)

CALL_TIMEOUT = 60
"""Seconds that a call may take, with the body of its response. An inspect of a starting container
waits for the container's lock; after this time it is repeated."""
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


class AnswerTooLong(InspectFailed):
    """The engine's answer is longer than MAX_LENGTH; a retry would get the same."""


_PIECE = 1 << 16
"""Bytes."""

for _connection in (http.client.HTTPConnection, docker.transport.unixconn.UnixHTTPConnection):
    # The connections of urllib3 inherit it. docker before 7.0 sets it again for unix sockets.
    _connection.response_class = Response


class Client(docker.APIClient):  # type: ignore[misc]
    """The client of the library, without its implicit configuration, and with limits for the
    length of answers."""

    def __init__(self, **kwargs: Any) -> None:
        self._left_out: set[str] = set()
        """The beginnings of the rows that were left out of lists."""
        super().__init__(**kwargs)
        # A compressed answer would have any length.
        self.headers["Accept-Encoding"] = "identity"

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

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a request. Raises TooLong for an answer that is read as a whole, and is too long,
        and ContentDecodingError for one that is compressed. The timeout is that of the whole call,
        with the body; without one it is that of the head."""
        with limited(self.timeout) as call:
            response = super().send(request, **kwargs | {"stream": True})
        if kwargs.get("timeout") is None:
            call.lift()  # the events
        if encoding := response.headers.get("Content-Encoding", "").replace("identity", ""):
            response.close()
            raise requests.exceptions.ContentDecodingError(f"the answer is compressed: {encoding}")
        if not kwargs.get("stream"):
            _read_whole(response)
        return response

    def inspected(self, path: str, identity: str, keys: Iterable[str] = ()) -> Any:
        """The JSON of an object, with `keys` only these. Raises ValueError; TooLong if it is too
        long."""
        with self._get(self._url(path, identity), stream=True) as response:
            if not response.ok:
                _read_whole(response)
            self._raise_for_status(response)
            return json_value(response.iter_content(_PIECE), keys)

    def warn_left_out(self, row: LongRow) -> None:
        """Log that a container is left out of the list, once for each."""
        start = ascii(row.start[:100])
        level = logging.DEBUG if start in self._left_out else logging.WARNING
        self._left_out.add(start)
        log.log(level, "a container has too long labels, its ports stay closed: %s", start)

    def rows(self, path: str) -> Iterator[Any]:
        """The rows of a list. Raises ValueError."""
        with self._get(self._url(path), stream=True) as response:
            response.raise_for_status()
            yield from json_rows(response.iter_content(_PIECE))

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Reject redirects: the target could be another host, and without TLS."""
        if resp.is_redirect:
            resp.close()  # the library would leave its connection open
            text = "it redirects to another address: set endpoint to the address of the engine"
            raise requests.TooManyRedirects(text)


def _read_whole(response: requests.Response) -> None:
    """Read the body as the library would, with a limit."""
    with response:
        response._content = bounded(response.iter_content(_PIECE))


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

    Raises InspectFailed if a retry may succeed, AnswerTooLong, and EngineUnavailable.
    """
    try:
        if kind == "container":
            return client.inspected("/containers/{0}/json", identity, parse.INSPECTED)
        return client.inspected("/networks/{0}", identity)
    except docker.errors.NotFound:
        return None
    except TooLong as error:
        raise AnswerTooLong(str(error)) from None
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


class Events:
    """An open stream of events."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self) -> Iterator[Any]:
        """The events until the connection ends. Raises ValueError for other JSON."""
        try:
            # Not by the library: it reads each event as a whole.
            yield from json_lines(self._stream._response.iter_content(_PIECE))
        except requests.RequestException as error:
            log.debug("the event stream: %s", one_line(error))

    def close(self) -> None:
        """Close the connection, also while another thread reads."""
        self._stream.close()


def subscribe(client: Client) -> Events:
    """The stream of the events that can change a rule. Raises EngineUnavailable.

    dockerd sends the head of its answer before it subscribes the client. Because of `since`, it
    first sends the events in between again: it keeps the last 256 (moby, daemon/events/events.go).
    """
    since = f"{time.time() - EVENTS_OVERLAP:.9f}"  # as the docker command writes it
    with engine_errors("its event stream broke"):
        events = client.events(since=since, filters=parse.EVENTS)
    # The library takes the body of an error for events.
    response = events._response
    if not response.ok:
        events.close()
        raise EngineUnavailable(
            f"it refuses /events: {response.status_code} {response.reason}; a socket proxy before "
            "the engine must permit this path"
        )
    return Events(events)


def list_all(client: Client, engine: Engine) -> tuple[list[Any], list[Container]]:
    """(networks as JSON, containers). Raises EngineUnavailable, also for other JSON than lists.

    The lists are read row by row and not by the library: the complete JSON of 10,000 containers
    takes four times the memory of the daemon. A container whose row is too long is left out: its
    ports are closed. Without a network its containers would be unprotected, so there it is an
    error.
    """
    with engine_errors("cannot list networks and containers"):
        networks = []
        for row in client.rows("/networks"):
            if isinstance(row, LongRow):
                raise ValueError(f"a network has too long labels: {row.start[:100]!a}")
            networks.append(row)
        containers = []
        for row in client.rows("/containers/json"):
            if isinstance(row, LongRow):
                client.warn_left_out(row)
            elif (container := parse.container(row, engine)) is not None:
                containers.append(container)
        return networks, containers


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
