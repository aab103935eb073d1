"""At most one daemon in a network namespace: two would remove each other's rules.

The daemon holds a name in the abstract namespace of Unix sockets, which belongs to the network
namespace. So it is seen from a container with the network of the host too, and it is free when the
process ends. Any user can take such a name; only one of root or of our own user counts.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

log = logging.getLogger(__name__)

NAME = "\0org.ipv6natd1"
_CREDENTIALS = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""
_TRIES, _PAUSE = 20, 0.05


class OtherInstanceError(Exception):
    """Another daemon runs in this network namespace."""


@contextlib.contextmanager
def only_instance() -> Iterator[None]:
    """Hold the name. Raises OtherInstanceError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as holder:
        try:
            holder.bind(NAME)
            holder.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE and (process := _owner()) is not None:
                at = f" (process {process})" if process else ""
                raise OtherInstanceError(
                    f"another ipv6natd runs in this network namespace{at}; stop it first: "
                    "systemctl stop ipv6natd, or docker stop with the name of its container"
                ) from None
            log.warning("a second ipv6natd would not be noticed: %s", error.strerror)
            yield
            return
        # Otherwise the connections of those who ask would wait, and after some no more fit.
        accepting = threading.Thread(target=_accept_all, args=(holder,), daemon=True)
        accepting.start()
        try:
            yield
        finally:
            holder.shutdown(socket.SHUT_RDWR)  # ends the wait for the next connection
            accepting.join()


def _accept_all(holder: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the daemon has ended
        while True:
            holder.accept()[0].close()


def _owner() -> int | None:
    """The process that holds the name, 0 if it is in another pid namespace; None if it belongs to
    another user, or if it is unknown."""
    for _ in range(_TRIES):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.setblocking(False)
            try:
                asking.connect(NAME)
            except BlockingIOError:
                time.sleep(_PAUSE)  # many others ask too; a daemon accepts all of them
                continue
            except OSError:
                return None
            data = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            process, user, _ = _CREDENTIALS.unpack(data)
            return int(process) if user in (0, os.geteuid()) else None
    return None
