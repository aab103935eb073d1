"""Conntrack entries as values and as messages of the kernel, from lines of `conntrack -L`."""

from __future__ import annotations

import re
import struct
from ipaddress import IPv6Address

from ipv6natd.conntrack.entries import Entry, parse_entry
from ipv6natd.system.netlink import NESTED, attribute

_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _ZONE, _TUPLE_ZONE = 1, 2, 3, 18, 3
"""CTA_... of linux/netfilter/nfnetlink_conntrack.h."""
_PORTS = {"sport": 2, "dport": 3, "srckey": 2, "dstkey": 3, "id": 7, "type": 8, "code": 9}
"""Word of `conntrack -L` -> attribute in CTA_TUPLE_PROTO."""


def entries(text: str) -> list[Entry]:
    """The entries without a zone."""
    parsed = [parse_entry(message_body(line)) for line in text.strip().splitlines()]
    return [entry for entry in parsed if entry]


def message_body(line: str) -> bytes:
    """The message for a line of `conntrack -L`, in the kernel's order of attributes."""
    protocol = int(re.findall(r" \d+", line)[0])
    fields = [(word, value) for word, value in re.findall(r"([a-z-]+)=(\S+)", line)]
    second = [word for word, _ in fields].index("src", 1)
    zone = dict(fields).get("zone")
    status = 8 if "[UNREPLIED]" in line else 10
    return b"".join(
        (
            struct.pack("=BBH", 10, 0, 0),
            _tuple(_TUPLE_ORIG, protocol, fields[:second]),
            _tuple(_TUPLE_REPLY, protocol, fields[second:]),
            attribute(_ZONE, struct.pack("!H", int(zone))) if zone else b"",
            attribute(_STATUS, struct.pack("!I", status)),
        )
    )


def _tuple(kind: int, protocol: int, fields: list[tuple[str, str]]) -> bytes:
    words = dict(reversed(fields))  # `id` occurs again at the end of a line, as the entry's id
    addresses = b"".join(
        attribute(number, IPv6Address(words[name]).packed)
        for number, name in ((3, "src"), (4, "dst"))
    )
    numbers = attribute(1, bytes([protocol]))
    # The kernel writes the id of ICMPv6 first.
    for name, number in sorted(_PORTS.items(), key=lambda item: item[1]):
        if name in words:
            size = "!B" if name in ("type", "code") else "!H"
            numbers += attribute(number, struct.pack(size, int(words[name], 0)))
    parts = attribute(NESTED | 1, addresses) + attribute(NESTED | 2, numbers)
    for name in ("zone-orig", "zone-reply"):
        if name in words:
            parts += attribute(_TUPLE_ZONE, struct.pack("!H", int(words[name])))
    return attribute(NESTED | kind, parts)
