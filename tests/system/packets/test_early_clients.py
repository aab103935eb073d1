"""A client that connects before the rule of its port is in force does not hang.

The engine opens the port early: without its proxy, with a socket that nobody reads.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.harness import Answer, Failure, Namespace, Regime, connect, until
from tests.harness.probe import Conversation
from tests.harness.sandbox import CLIENT, HOST
from tests.system.packets.asking import opened, peer, stopped

pytestmark = [pytest.mark.ours]
PATIENCE = 8.0
"""Seconds. A reset comes with the rule of the port. A first packet is repeated after 1, 3, 7 s."""
SO_ATTACH_FILTER = 26
RESET = 2.0
"""Seconds until a client that waits has got its reset."""
ARRIVED = 0.2
"""Seconds until the first packets have arrived."""


def hears(connection: socket.socket, seconds: float) -> bool:
    """True if the connection has data or ends within this time."""
    connection.settimeout(seconds)
    try:
        connection.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@pytest.mark.depends_on("variant", "engine", "proxy")
def test_client_that_connected_before_the_rule_is_served_or_reset(regime: Regime) -> None:
    """Also one that waits for the first byte. With the proxy the container sees the bridge. Docker
    28 without the proxy drops first packets, and a later one is served."""
    port = regime.port(2)
    with ExitStack() as stack:

        def begun(space: Namespace, to: int) -> Conversation:
            client = stack.enter_context(space.socket(socket.AF_INET6, socket.SOCK_STREAM))
            client.setblocking(False)
            client.connect_ex((str(HOST), to))
            return Conversation(client)

        unread = regime.host.socket(socket.AF_INET6, socket.SOCK_STREAM)
        stack.enter_context(unread)
        unread.bind(("::", port + 1))
        unread.listen()
        with stopped(regime):
            stack.enter_context(regime.container(publish=[f"{port}:80"]))
            asking, silent = (begun(regime.client, port) for _ in range(2))
            local, other = begun(regime.host, port), begun(regime.client, port + 1)
            time.sleep(ARRIVED)
        opened(regime.client, port)
        answers = [client.ask(timeout=PATIENCE) for client in (asking, local)]
        if regime.proxy:
            assert all(isinstance(answer, Answer) for answer in answers)
            assert isinstance(silent.ask(), Answer)
        else:
            assert Failure.TIMEOUT not in answers
            assert hears(silent.socket, RESET) or isinstance(silent.ask(timeout=PATIENCE), Answer)
        # A service of the host on another port that accepts late.
        assert not hears(other.socket, 0.5)
        with unread.accept()[0] as late:
            late.send(b"x")
            assert other.socket.recv(1) == b"x"


@pytest.mark.depends_on("variant", "proxy")
def test_connection_that_a_service_of_the_host_accepted_goes_on(regime: Regime) -> None:
    """It has closed its listener, and a container has the port now."""
    port = regime.port()
    with ExitStack() as stack:
        listener = regime.host.socket(socket.AF_INET6, socket.SOCK_STREAM)
        with listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as services do
            listener.bind(("::", port))
            listener.listen()
            client = stack.enter_context(connect(regime.client, HOST, port))
            served = stack.enter_context(listener.accept()[0])
        stack.enter_context(regime.container(publish=[f"{port}:80"]))
        opened(regime.client, port)
        for sender, receiver in ((client.socket, served), (served, client.socket)):
            receiver.settimeout(PATIENCE)
            sender.send(b"x")
            assert receiver.recv(1) == b"x"


def listener_that_drops(port: int) -> socket.socket:
    """A socket whose filter drops each packet behind netfilter, as engine 29 drops them until the
    container runs. The entry without an answer stays two minutes, and each packet renews it."""
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    returns_0 = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
    program = struct.pack("HL", 1, ctypes.addressof(returns_0))
    listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    listener.bind(("::", port))
    listener.listen()
    return listener


@contextmanager
def first_packets_dropped(regime: Regime, port: int) -> Iterator[None]:
    """Also those that the client repeats until its port is forwarded."""
    tool = f"ip6tables-{regime.variant}"
    rule = ("INPUT", "--proto", "tcp", "--dport", str(port), "--jump", "DROP")
    regime.host.run(tool, "--wait", "--insert", *rule)
    try:
        yield
    finally:
        regime.host.run(tool, "--wait", "--delete", *rule)


@pytest.mark.depends_on("variant", "engine", "proxy")
def test_client_whose_first_packet_was_dropped_before_the_rule_is_served(regime: Regime) -> None:
    port = regime.port()
    words = ("--proto", "tcp", "--orig-port-dst", str(port))
    with ExitStack() as stack:
        client = stack.enter_context(regime.client.socket(socket.AF_INET6, socket.SOCK_STREAM))
        client.setblocking(False)
        with regime.host.within(lambda: listener_that_drops(port)):
            assert client.connect_ex((str(HOST), port)) == errno.EINPROGRESS
            entries = until(lambda: regime.host.flows(*words), lambda text: "UNREPLIED" in text)
            assert "UNREPLIED" in entries
            stack.enter_context(first_packets_dropped(regime, port))
        with stopped(regime):  # until the container's server listens
            stack.enter_context(regime.container(publish=[f"{port}:80"]))
        assert peer(Conversation(client).ask(timeout=PATIENCE)) == CLIENT
