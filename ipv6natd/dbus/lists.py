"""Long replies, made in threads and in slices, so that the event loop never waits for them.

The lists are marshalled once for each generation of the status, and cached. Other replies are made
on demand, each in its caller's turn (Limits.turn).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Mapping as Map
from dataclasses import replace
from typing import Any

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

MAX_REPLY_BYTES = 31 << 20
"""The bus daemon disconnects a sender of a message of more than 32 MiB."""
ROWS_PER_SLICE = 20
"""Rows to marshal before the event loop may run: a few milliseconds of work."""
MIN_ID_LENGTH = 12
"""Characters; Docker shows as many of an id."""


class Lists:
    """The marshalled bodies of the replies with rows or text."""

    def __init__(self, status: Callable[[], Status]) -> None:
        """`status` returns the newest status."""
        self._status = status
        self._bodies: dict[str, tuple[int, asyncio.Task[bytes]]] = {}

    async def rows(self, member: str) -> bytes:
        """The body of the reply to ListMappings, ListNetworks or ListSkipped."""
        status = self._status()
        generation, task = self._bodies.get(member, (None, None))
        if task is None or generation != status.generation or _failed(task):
            task = asyncio.create_task(asyncio.to_thread(_list_body, member, status))
            self._bodies[member] = (status.generation, task)
        # Shielded: other callers may wait for the same task.
        return await asyncio.shield(task)

    async def find_mappings(self, wanted: Map[str, Any]) -> bytes:
        """The body of the reply to FindMappings, not cached. Raises BusError for a bad filter."""
        status = self._status()
        try:
            matching((), wanted)
        except FilterError as error:
            raise BusError("org.ipv6natd1.Error.InvalidFilter", str(error)) from None
        return await asyncio.to_thread(_filtered_body, status, wanted)

    def clear(self) -> None:
        """Drop the cached bodies of an old generation, which may have megabytes."""
        self._bodies.clear()


def rows_body(rows: Iterable[Row]) -> bytes:
    """The body of an `aa{sv}` reply. Raises BusError if the bus would not carry it."""
    return _checked_size(marshal_rows(rows))


def text_body(text: str) -> bytes:
    """The body of an `s` reply. Raises BusError if the bus would not carry it."""
    return _checked_size(marshal_text(text))


def _checked_size(data: bytes) -> bytes:
    if len(data) > MAX_REPLY_BYTES:
        text = f"the reply has {len(data) >> 20} MiB, more than the bus carries"
        raise BusError(ERROR + "LimitsExceeded", f"{text}: read the rules with ip6tables-save")
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
            return rows_body(_sliced_mapping_rows(status))


def _filtered_body(status: Status, wanted: Map[str, Any]) -> bytes:
    """Runs in a thread."""
    return rows_body(
        _sliced_mapping_rows(replace(status, mappings=matching(status.mappings, wanted)))
    )


def _sliced_mapping_rows(status: Status) -> Iterator[Row]:
    """The rows; releases the interpreter lock between slices, so that the event loop can run."""
    for first in range(0, len(status.mappings), ROWS_PER_SLICE):
        time.sleep(0)
        yield from mapping_rows(
            replace(status, mappings=status.mappings[first : first + ROWS_PER_SLICE])
        )


class FilterError(ValueError):
    """A filter that does not exist or has a value of the wrong type."""


def _is_name_or_id(value: str, name: str, id_: str) -> bool:
    return value == name or (len(value) >= MIN_ID_LENGTH and id_.startswith(value))


_FILTERS: dict[str, tuple[type, Callable[[Mapping, Any], bool]]] = {
    "Container": (
        str,
        lambda mapping, value: _is_name_or_id(value, mapping.container_name, mapping.container_id),
    ),
    "Network": (
        str,
        lambda mapping, value: _is_name_or_id(value, mapping.network_name, mapping.network_id),
    ),
    "Port": (int, lambda mapping, value: mapping.host_port <= value <= mapping.host_port_end),
    "Protocol": (str, lambda mapping, value: value == mapping.protocol),
    "State": (str, lambda mapping, value: value == mapping_state(mapping)),
}


def matching(mappings: Iterable[Mapping], wanted: Map[str, Any]) -> tuple[Mapping, ...]:
    """The mappings that pass all filters. Raises FilterError."""
    tests = []
    for name, value in wanted.items():
        if name not in _FILTERS:
            raise FilterError(f"no filter is called {name!r}; there are {', '.join(_FILTERS)}")
        type_, accepts = _FILTERS[name]
        if type(value) is not type_:
            kind = {str: "a string", int: "a whole number"}[type_]
            raise FilterError(f"the filter {name} is {kind}, not {value!r}")
        tests.append((accepts, value))
    return tuple(
        mapping for mapping in mappings if all(accepts(mapping, value) for accepts, value in tests)
    )
