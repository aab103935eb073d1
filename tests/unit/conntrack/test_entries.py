"""Conntrack entries in messages. tests/integration/net compares them with those of a kernel."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipv6natd.conntrack.entries import parse_entry
from tests.harness.conntrack import entries, message_body

CLIENT, HOST, CONTAINER = map(IPv6Address, ("2001:db8::2", "2001:db8::1", "fd00:a::2"))
PORTS = (
    "17 29 src=2001:db8::2 dst=2001:db8::1 sport=40000 dport=5353 "
    "src=fd00:a::2 dst=2001:db8::2 sport=53 dport=40000 mark=0 use=1"
)
UDP = f"udp {PORTS}"


@pytest.mark.parametrize("protocol", [6, 17, 33, 132, 136])
def test_parse_reads_addresses_and_ports_of_both_directions(protocol: int) -> None:
    entry = parse_entry(message_body(f"it {PORTS.replace('17', str(protocol), 1)}"))
    assert entry is not None
    assert entry.original[1:] == (protocol, CLIENT, HOST, 40000, 5353)
    assert entry.reply[1:] == (protocol, CONTAINER, CLIENT, 53, 40000)
    assert entry.translated


def test_parse_reads_protocols_without_ports() -> None:
    echo, other, gre = entries(
        """
icmpv6   58 29 src=2001:db8::2 dst=fd00:a::2 type=128 code=0 id=3 src=fd00:a::2 dst=2001:db8::2 type=129 code=0 id=3 mark=0 use=1
unknown  4 599 src=2001:db8::2 dst=fd00:a::2 src=fd00:a::2 dst=2001:db8::2 mark=0 use=1
gre      47 29 src=2001:db8::2 dst=fd00:a::2 srckey=0x1 dstkey=0xff src=fd00:a::2 dst=2001:db8::2 srckey=0xff dstkey=0x1 mark=0 use=1
"""  # noqa: E501
    )
    assert echo.original[1:] == (58, CLIENT, CONTAINER, 0, 0)
    assert other.original[1:] == (4, CLIENT, CONTAINER, 0, 0)
    assert gre.original[1:] == (47, CLIENT, CONTAINER, 1, 0xFF)
    assert not any(entry.translated for entry in (echo, other, gre))


def test_packed_tuples_are_equal_if_all_fields_are() -> None:
    reversed_reply = (
        "udp 17 29 src=fd00:a::2 dst=2001:db8::2 sport=53 dport=40000 "
        "src=2001:db8::2 dst=fd00:a::2 sport=40000 dport=53 mark=0 use=1"
    )
    entry, again = entries(f"{UDP}\n{reversed_reply}")
    assert entry.reply == again.original
    for field in ("src=fd00:a::2", "dst=2001:db8::2", "sport=53", "dport=40000"):
        name = field.partition("=")[0]
        other = "fd00::9" if "::" in field else "9"
        (changed,) = entries(reversed_reply.replace(field, f"{name}={other}", 1))
        assert changed.original.packed != entry.reply.packed
    echo = "icmpv6 58 29 src=::2 dst=::1 type=128 code=0 id={} src=::1 dst=::2 type=129 code=0 id=1"
    one, two = entries(f"{echo.format(1)}\n{echo.format(2)}")
    assert one.original.packed != two.original.packed


@pytest.mark.parametrize(
    "line",
    [
        f"{UDP} zone=3",
        UDP.replace("dport=5353", "dport=5353 zone-orig=3"),
        UDP.replace("dport=40000 mark", "dport=40000 zone-reply=3 mark"),
    ],
)
def test_parse_skips_entries_with_a_zone(line: str) -> None:
    assert parse_entry(message_body(line)) is None


def test_parse_skips_cut_messages_and_other_formats() -> None:
    body = message_body(UDP)
    second = body.index(b",", 10)
    for cut in range(len(body) - 8):
        assert parse_entry(body[:cut]) is None
    swapped = body[:4] + body[second : second + 40] + body[8:]
    assert parse_entry(swapped) is None


@given(st.binary(max_size=200) | st.integers(0, 200).map(lambda n: message_body(UDP)[:n]))
def test_parse_with_any_bytes_does_not_raise(data: bytes) -> None:
    parse_entry(data)
