"""Many questions at once, from many namespaces, with the result of each.

All questions are sent together and wait together, because most of them get no answer until the
time-out.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address

from tests.harness.namespace import Namespace
from tests.harness.probe import Answer, Failure, failure, parsed
from tests.stress.soak.model import CLIENTS, Ask, Other, Reached, Want

STARTED = (0, errno.EINPROGRESS)

Told = Answer | Failure


class Faithful:
    """UDP clients that use one socket, and so one flow, for the whole run."""

    def __init__(self, ns: Namespace) -> None:
        self._ns = ns
        self._socks: dict[tuple[IPv6Address, int], socket.socket] = {}

    def socket(self, ask: Ask) -> socket.socket:
        """The socket of this question, after former answers are discarded."""
        key = (ask.address, ask.port)
        if key not in self._socks:
            sock = self._ns.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            sock.setblocking(False)
            sock.connect((str(ask.address), ask.port))
            self._socks[key] = sock
        drained(self._socks[key])
        return self._socks[key]

    def send(self) -> None:
        """Send a datagram from each socket, and ignore errors."""
        for sock in list(self._socks.values()):
            with contextlib.suppress(OSError):
                sock.send(b"?\n")

    def close(self) -> None:
        for sock in self._socks.values():
            sock.close()


def drained(sock: socket.socket) -> None:
    """Read all pending answers and errors; a socket reports at most two errors."""
    while True:
        try:
            sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            continue


def volley(
    asks: Iterable[Ask], spaces: Mapping[str, Namespace], faithful: Faithful, *, timeout: float
) -> dict[Ask, Told]:
    """Ask all questions, and wait up to `timeout` seconds; `spaces` has each origin's namespace."""
    told: dict[Ask, Told] = {}
    open_asks: dict[Ask, socket.socket] = {}
    by_origin: defaultdict[str, list[Ask]] = defaultdict(list)
    for ask in asks:
        by_origin[ask.origin].append(ask)
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        for origin, own in by_origin.items():
            socks = spaces[origin].within(lambda own=own: [made(ask, faithful) for ask in own])  # type: ignore[misc]
            for ask, sock in zip(own, socks, strict=True):
                if not ask.kept:
                    stack.callback(sock.close)
                begun = 0 if ask.kept else sock.connect_ex((str(ask.address), ask.port))
                if begun not in STARTED:
                    told[ask] = failure(OSError(begun, ""))
                    continue
                open_asks[ask] = sock
                selector.register(sock, selectors.EVENT_WRITE, ask)
        deadline = time.monotonic() + timeout
        while open_asks and (left := deadline - time.monotonic()) > 0:
            for key, events in selector.select(left):
                ask = key.data
                said = heard(open_asks[ask], events)
                if said is None:
                    selector.modify(key.fileobj, selectors.EVENT_READ, ask)
                    continue
                told[ask] = said
                selector.unregister(key.fileobj)
                del open_asks[ask]
    return told | dict.fromkeys(open_asks, Failure.TIMEOUT)


def made(ask: Ask, faithful: Faithful) -> socket.socket:
    if ask.kept:
        return faithful.socket(ask)
    kind = socket.SOCK_STREAM if ask.protocol == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setblocking(False)
    return sock


def heard(sock: socket.socket, events: int) -> Told | None:
    """The answer, or None if there is none yet."""
    try:
        if events & selectors.EVENT_WRITE:
            if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                return failure(OSError(code, ""))
            sock.send(b"?\n")
            return None
        return parsed(sock.recv(4096).partition(b"\n")[0])
    except BlockingIOError:
        # The event was an error that the sending thread of `Faithful` has received already.
        return None
    except OSError as error:
        return failure(error)


def right(ask: Ask, want: Want, told: Told) -> bool:
    """True if the answer is as expected."""
    match want:
        case Reached(server, peers):
            return (
                isinstance(told, Answer)
                and told.server == server
                and (peers is None or told.peer in peers)
            )
        case Other.CLOSED:
            return isinstance(told, Failure)
        case Other.HIDDEN:
            return isinstance(told, Failure) or told.peer != CLIENTS.get(ask.origin)
        case Other.UNSAID:
            return True
