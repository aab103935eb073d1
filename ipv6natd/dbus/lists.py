"""Long answers: made in threads, in slices, so that the loop never waits for them.

The lists are marshalled once a generation and kept. Everything else is made when it is asked for:
one for each user at a time, and one for all users but root.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from collections.abc import Mapping as Map
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from ipv6natd.dbus.connection import ERROR, BusError
from ipv6natd.dbus.values import marshal_rows, marshal_text
from ipv6natd.model import Mapping
from ipv6natd.report.status import (
    Row,
    Status,
    mapping_rows,
    mapping_state,
    network_rows,
    skipped_rows,
)

MAX_ANSWER = 31 << 20
"""Bytes. The bus throws out whoever sends a message of more than 32 MiB."""
SLICE = 20
"""Rows marshalled, a few milliseconds of work, before the loop gets the interpreter."""
LEAST_ID = 12
"""Characters of an id that Docker itself shows."""


class Lists:
    """What is listed of a status that goes on, as it goes out."""

    def __init__(self, status: Callable[[], Status]) -> None:
        """`status` says the newest one."""
        self._status = status
        self._made: dict[str, tuple[int, asyncio.Task[bytes]]] = {}
        self._others = asyncio.Lock()
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    async def rows(self, member: str) -> bytes:
        """The answer to ListMappings, ListNetworks or ListSkipped."""
        status = self._status()
        generation, task = self._made.get(member, (None, None))
        if task is None or generation != status.generation or _failed(task):
            task = asyncio.create_task(asyncio.to_thread(_list_body, member, status))
            self._made[member] = (status.generation, task)
        # Shielded: others may wait for the same rows.
        return await asyncio.shield(task)

    async def found(self, uid: int, wanted: Map[str, Any]) -> bytes:
        """The answer to FindMappings, which is not kept. BusError for what is no filter."""
        status = self._status()
        try:
            # An empty tuple is tried at once: what is no filter need not wait for the others.
            matching((), wanted)
        except FilterError as error:
            raise BusError("org.ipv6natd1.Error.InvalidFilter", str(error)) from None
        return await self.made(uid, partial(_found, status, wanted))

    async def made(self, uid: int, make: Callable[[], bytes]) -> bytes:
        """An answer that is not kept; `make` is called in a thread."""
        async with self.turn(uid):
            return await asyncio.to_thread(make)

    @contextlib.asynccontextmanager
    async def turn(self, uid: int) -> AsyncIterator[None]:
        """While something is made for the user. The calls of one user wait for each other before
        they wait for those of others, so that each user waits for one call of each other user."""
        # Weak: the lock lasts as long as somebody has it or waits for it.
        own = self._turns.setdefault(uid, asyncio.Lock())
        others = self._others if uid else contextlib.nullcontext()
        async with own, others:
            yield

    def forget(self) -> None:
        """Megabytes that nobody will ask for again."""
        self._made.clear()


def rows_body(rows: Iterable[Row]) -> bytes:
    """An `aa{sv}` answer. BusError when the bus would not carry it."""
    return _fitting(marshal_rows(rows))


def text_body(text: str) -> bytes:
    """An `s` answer. BusError when the bus would not carry it."""
    return _fitting(marshal_text(text))


def _fitting(data: bytes) -> bytes:
    if len(data) > MAX_ANSWER:
        text = f"the answer has {len(data) >> 20} MiB, more than the bus carries"
        raise BusError(ERROR + "LimitsExceeded", f"{text}: ask the kernel instead")
    return data


def _failed(task: asyncio.Task[bytes]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _list_body(member: str, status: Status) -> bytes:
    """Runs in a thread."""
    match member:
        case "ListNetworks":
            return rows_body(network_rows(status))
        case "ListSkipped":
            return rows_body(skipped_rows(status))
        case _:
            return rows_body(_sliced(status))


def _found(status: Status, wanted: Map[str, Any]) -> bytes:
    """Runs in a thread."""
    return rows_body(_sliced(replace(status, mappings=matching(status.mappings, wanted))))


def _sliced(status: Status) -> Iterator[Row]:
    """The rows; lets go of the interpreter between slices, so that the loop never waits."""
    for first in range(0, len(status.mappings), SLICE):
        time.sleep(0)
        yield from mapping_rows(replace(status, mappings=status.mappings[first : first + SLICE]))


class FilterError(ValueError):
    """A sentence that says what would be a filter."""


def _is(given: str, name: str, id_: str) -> bool:
    return given == name or (len(given) >= LEAST_ID and id_.startswith(given))


_FIELDS: dict[str, tuple[type, Callable[[Mapping, Any], bool]]] = {
    "Container": (str, lambda it, given: _is(given, it.container_name, it.container_id)),
    "Network": (str, lambda it, given: _is(given, it.network_name, it.network_id)),
    "Port": (int, lambda it, given: it.host_port <= given <= it.host_port_end),
    "Protocol": (str, lambda it, given: given == it.protocol),
    "State": (str, lambda it, given: given == mapping_state(it)),
}


def matching(mappings: Iterable[Mapping], wanted: Map[str, Any]) -> tuple[Mapping, ...]:
    """The mappings for which every field holds. Raises FilterError for one that cannot be."""
    tests = []
    for name, given in wanted.items():
        if name not in _FIELDS:
            raise FilterError(f"no filter is called {name!r}; there are {', '.join(_FIELDS)}")
        type_, holds = _FIELDS[name]
        if type(given) is not type_:
            kind = {str: "a string", int: "a whole number"}[type_]
            raise FilterError(f"the filter {name} is {kind}, not {given!r}")
        tests.append((holds, given))
    return tuple(each for each in mappings if all(holds(each, given) for holds, given in tests))
