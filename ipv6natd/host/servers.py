"""Asks the servers in containers whether they answer, as a client on this host would."""

from __future__ import annotations

import asyncio
from enum import StrEnum

TIMEOUT = 1.0
"""Seconds; the container is on this host."""


class Answer(StrEnum):
    """What a new TCP connection to a container gets."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    """No program in the container listens on this address and port."""
    NONE = "no-answer"


async def tcp_answer(address: str, port: int) -> Answer:
    """Connect, and close the connection without data."""
    try:
        async with asyncio.timeout(TIMEOUT):
            _, writer = await asyncio.open_connection(address, port)
    except ConnectionRefusedError:
        return Answer.REFUSED
    except OSError:
        return Answer.NONE
    writer.close()
    return Answer.ACCEPTED
