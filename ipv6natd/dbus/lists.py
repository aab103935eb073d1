"""Long replies, made in threads, so that the event loop never waits for them.

A list is marshalled once for each generation of the status: 10,000 mappings need a second of CPU,
which every user could ask for at any time. Other replies are made for each call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from ipv6natd.dbus.connection import ERROR, BusError
from ipv6natd.dbus.values import marshal_rows, marshal_text
from ipv6natd.report.status import Row, Status, mapping_rows, network_row
from ipv6natd.system.threads import in_thread

MAX_REPLY_BYTES = 31 << 20
"""The bus daemon disconnects a sender of a message of more than 32 MiB."""


class Lists:
    """The marshalled bodies of the lists."""

    def __init__(self, status: Callable[[], Status]) -> None:
        """`status` returns the newest status."""
        self._status = status
        self._bodies: dict[str, tuple[int, asyncio.Task[bytes]]] = {}

    async def rows(self, member: str) -> bytes:
        """The body of the reply to ListMappings, ListNetworks or ListSkipped."""
        status = self._status()
        generation, task = self._bodies.get(member, (None, None))
        if task is None or generation != status.generation:
            rows: dict[str, Iterable[Row]] = {
                "ListMappings": mapping_rows(status),
                "ListNetworks": map(network_row, status.networks),
                "ListSkipped": status.skipped,
            }
            task = asyncio.create_task(rows_body(rows[member]))
            self._bodies[member] = (status.generation, task)
        try:
            # Shielded: other callers may wait for the same task.
            return await asyncio.shield(task)
        except Exception:
            self._bodies.pop(member, None)
            raise


async def rows_body(rows: Iterable[Row]) -> bytes:
    """The body of an `aa{sv}` reply. Raises BusError if the bus would not carry it."""
    return await _body(lambda: marshal_rows(rows))


async def text_body(text: Callable[[], str]) -> bytes:
    """The body of an `s` reply; `text` runs in a thread. Raises BusError as `rows_body` does."""
    return await _body(lambda: marshal_text(text()))


async def _body(marshal: Callable[[], bytes]) -> bytes:
    data = await in_thread(marshal)
    if len(data) > MAX_REPLY_BYTES:
        text = f"the reply has {len(data) >> 20} MiB, more than the bus carries"
        raise BusError(ERROR + "LimitsExceeded", f"{text}: read the rules with ip6tables-save")
    return data
