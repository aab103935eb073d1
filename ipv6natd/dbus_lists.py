"""The lists as they go out: marshalled once a generation, in a thread and in slices, then kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Mapping as Map
from dataclasses import replace
from typing import Any

from ipv6natd.bus import ERROR, BusError
from ipv6natd.dbus_values import marshal_rows
from ipv6natd.filters import FilterError, matching
from ipv6natd.status import Row, Status, mapping_rows, network_rows, skipped_rows

MAX_ANSWER = 31 << 20
"""Bytes. The bus throws out whoever sends a message of more than 32 MiB."""
SLICE = 20
"""Rows marshalled, a few milliseconds of work, before the loop gets the interpreter."""


class Lists:
    """The three lists of a status that goes on."""

    def __init__(self, status: Callable[[], Status]) -> None:
        """`status` says the newest one."""
        self._status = status
        self._made: dict[str, tuple[int, asyncio.Task[bytes]]] = {}

    async def rows(self, member: str) -> bytes:
        """The answer to ListMappings, ListNetworks or ListSkipped."""
        status = self._status()
        generation, task = self._made.get(member, (None, None))
        if task is None or generation != status.generation or _failed(task):
            task = asyncio.create_task(asyncio.to_thread(_list_body, member, status))
            self._made[member] = (status.generation, task)
        # Shielded: others may wait for the same rows.
        return await asyncio.shield(task)

    async def found(self, wanted: Map[str, Any]) -> bytes:
        """The answer to FindMappings, which is not kept. BusError for what is no filter."""
        status = self._status()
        try:
            # An empty tuple is tried at once: what is no filter need not wait for the others.
            matching((), wanted)
        except FilterError as error:
            raise BusError("org.ipv6natd1.Error.InvalidFilter", str(error)) from None
        return await asyncio.to_thread(_found, status, wanted)

    def forget(self) -> None:
        """Megabytes that nobody will ask for again."""
        self._made.clear()


async def marshalled(rows: Iterable[Row]) -> bytes:
    """An answer of rows that is not kept; made in a thread."""
    return await asyncio.to_thread(_body, rows)


def fits(size: int) -> None:
    """Raises BusError for an answer of `size` bytes that the bus would not carry."""
    if size > MAX_ANSWER:
        text = f"the answer has {size >> 20} MiB, more than the bus carries: ask the kernel instead"
        raise BusError(ERROR + "LimitsExceeded", text)


def _failed(task: asyncio.Task[bytes]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _list_body(member: str, status: Status) -> bytes:
    """Runs in a thread."""
    match member:
        case "ListNetworks":
            return _body(network_rows(status))
        case "ListSkipped":
            return _body(skipped_rows(status))
        case _:
            return _body(_sliced(status))


def _found(status: Status, wanted: Map[str, Any]) -> bytes:
    """Runs in a thread."""
    return _body(_sliced(replace(status, mappings=matching(status.mappings, wanted))))


def _sliced(status: Status) -> Iterator[Row]:
    """The rows; lets go of the interpreter between slices, so that the loop never waits."""
    for first in range(0, len(status.mappings), SLICE):
        time.sleep(0)
        yield from mapping_rows(replace(status, mappings=status.mappings[first : first + SLICE]))


def _body(rows: Iterable[Row]) -> bytes:
    data = marshal_rows(rows)
    fits(len(data))
    return data
