"""What a new connection to a server gets."""

from __future__ import annotations

import asyncio
import socket

import pytest

from ipv6natd.host import servers
from ipv6natd.host.servers import Answer, tcp_answer
from tests.harness.waiting import until


def test_server_that_listens_has_accepted_the_connection_and_gets_no_data() -> None:
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read())
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(serve, "::1", 0)
        port = server.sockets[0].getsockname()[1]
        assert await tcp_answer("::1", port) is Answer.ACCEPTED
        server.close()
        await server.wait_closed()
        await until(lambda: received)
        assert await tcp_answer("::1", port) is Answer.REFUSED

    asyncio.run(scenario())
    assert received == [b""]


def test_address_that_does_not_answer_takes_no_longer_than_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(servers, "TIMEOUT", 0.1)
    with socket.socket(socket.AF_INET6) as full:
        full.bind(("::1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        with socket.socket(socket.AF_INET6) as first, socket.socket(socket.AF_INET6) as second:
            for waiting in (first, second):
                waiting.setblocking(False)
                waiting.connect_ex(("::1", port))
            assert asyncio.run(tcp_answer("::1", port)) is Answer.NONE


def test_address_without_a_route_is_no_answer() -> None:
    assert asyncio.run(tcp_answer("2001:db8::1%nowhere", 80)) is Answer.NONE
