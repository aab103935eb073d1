"""Conversion of values: rows to D-Bus variants, and variants back to plain values."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterable
from collections.abc import Mapping as Map
from typing import Any

from ipv6natd.dbus.wire import Marshaller, Variant
from ipv6natd.report.status import Row, bus_fields

SIGNATURES = {
    name: signature
    for signature, names in (
        ("b", ("DockerConnected", "Icc", "Internal", "Masquerade", "Used")),
        ("q", ("HostPort", "HostPortEnd", "ContainerPort", "ContainerPortEnd")),
        ("u", ("MappingCount", "NetworkCount", "SkippedCount", "FindingCount", "DurationMs")),
        ("u", ("MappingsAdded", "MappingsRemoved", "RulesAdded", "RulesRemoved", "OtherRuleCount")),
        ("t", ("Connections", "DriftRepairs", "Generation", "LastSync", "Since")),
        ("as", ("Subnets", "Tables", "Warnings")),
        ("aa{sv}", ("Networks", "Ports", "Skipped", "Steps", "OtherRules")),
    )
    for name in names
}
"""Field or property on the bus -> its signature. The others are strings."""

_UNSENDABLE = re.compile("[\0\ud800-\udfff]")


def bus_text(text: str) -> str:
    """The text, with each character replaced that a D-Bus string cannot hold.

    A NUL or a lone surrogate in a container's name would otherwise end the connection.
    """
    return _UNSENDABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def variants(row: Row | Map[str, Any]) -> dict[str, Any]:
    """The row, or other values by their names on the bus, as `a{sv}`."""
    values = row if isinstance(row, Map) else bus_fields(row)
    return {
        name: Variant(SIGNATURES.get(name, "s"), _sendable(value)) for name, value in values.items()
    }


def _sendable(value: Any) -> Any:
    if isinstance(value, str):
        return bus_text(value)
    if isinstance(value, tuple):
        return [_sendable(item) for item in value]
    return value if isinstance(value, int) else variants(value)


def without_variants(value: Any) -> Any:
    """The value without variants."""
    if isinstance(value, Variant):
        return without_variants(value.value)
    if isinstance(value, dict):
        return {key: without_variants(item) for key, item in value.items()}
    return [without_variants(item) for item in value] if isinstance(value, list) else value


def marshal_text(text: str) -> bytes:
    """The body of an `s` reply."""
    data = bus_text(text).encode()
    return struct.pack("<I", len(data)) + data + b"\0"


def marshal_rows(rows: Iterable[Row]) -> bytes:
    """The body of an `aa{sv}` reply, built row by row: 10,000 rows of variants need much memory.

    A row begins with its length, aligned to 4 bytes; its content is aligned to 8 bytes. To be
    called in a thread.
    """
    body = bytearray(4)
    for row in rows:
        time.sleep(0)  # The event loop may run: this releases the interpreter lock.
        block = Marshaller("a{sv}", [variants(row)]).marshall()
        body += bytes(-len(body) % 4) + block[:4]
        body += bytes(-len(body) % 8) + block[8:]
    body[:4] = struct.pack("<I", len(body) - 4)
    return bytes(body)
