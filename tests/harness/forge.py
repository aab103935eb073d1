"""Forged packets: any source and any protocol, without the sender's own network stack.

CAP_NET_RAW is enough to send them. Docker gives every container this capability.
"""

from __future__ import annotations

import json
import socket
import struct
from ipaddress import IPv6Address

from tests.harness.namespace import Namespace
from tests.harness.probe import ETH_P_IPV6

TCP, UDP, GRE, ICMPV6, FRAGMENT, DESTINATION_OPTIONS = 6, 17, 47, 58, 44, 60
AUTHENTICATION = 51
SYN, ACK = 2, 16


def packet(source: IPv6Address, destination: IPv6Address, protocol: int, body: bytes) -> bytes:
    """An IPv6 packet. `body` begins with an extension header if `protocol` is one."""
    head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64)
    return head + source.packed + destination.packed + body


def checked(source: IPv6Address, destination: IPv6Address, protocol: int, body: bytes) -> bytes:
    """The body with its checksum, which is at byte 16 in TCP, 6 in UDP and 2 in ICMPv6."""
    at = {TCP: 16, UDP: 6, ICMPV6: 2}[protocol]
    pseudo = source.packed + destination.packed + struct.pack("!II", len(body), protocol)
    words = struct.unpack(
        f"!{(len(pseudo + body) + 1) // 2}H",
        (pseudo + body).ljust((len(pseudo + body) + 1) // 2 * 2, b"\0"),
    )
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return body[:at] + struct.pack("!H", (~total & 0xFFFF) or 0xFFFF) + body[at + 2 :]


def udp_body(
    source: IPv6Address, destination: IPv6Address, ports: tuple[int, int], data: bytes = b"?\n"
) -> bytes:
    """A UDP datagram without its IPv6 header."""
    head = struct.pack("!HHHH", *ports, 8 + len(data), 0)
    return checked(source, destination, UDP, head + data)


def tcp_body(
    source: IPv6Address,
    destination: IPv6Address,
    ports: tuple[int, int],
    flags: int = SYN,
    numbers: tuple[int, int] = (1, 0),
) -> bytes:
    """A TCP segment without data and without its IPv6 header."""
    head = struct.pack("!HHIIBBHHH", *ports, *numbers, 5 << 4, flags, 64000, 0, 0)
    return checked(source, destination, TCP, head)


def echo_body(source: IPv6Address, destination: IPv6Address, number: int = 1) -> bytes:
    """An ICMPv6 echo request without its IPv6 header."""
    return checked(source, destination, ICMPV6, struct.pack("!BBHHH", 128, 0, 0, number, 1) + b"?")


def error_body(source: IPv6Address, destination: IPv6Address, about: bytes) -> bytes:
    """An ICMPv6 error, port unreachable, about a packet that `destination` sent."""
    return checked(source, destination, ICMPV6, struct.pack("!BBHI", 1, 4, 0, 0) + about[:512])


def advertisement(router: IPv6Address, address: bytes) -> bytes:
    """A router advertisement of a default route, to all nodes, from this hardware address."""
    group = IPv6Address("ff02::1")
    fixed = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    body = checked(router, group, ICMPV6, fixed + b"\x01\x01" + address)
    made = bytearray(packet(router, group, ICMPV6, body))
    made[7] = 255  # the hop limit: a router on the link
    return bytes(made)


def datagram(
    source: IPv6Address, destination: IPv6Address, ports: tuple[int, int], data: bytes = b"?\n"
) -> bytes:
    """A whole UDP packet."""
    return packet(source, destination, UDP, udp_body(source, destination, ports, data))


def datagram_of_no_length(
    source: IPv6Address, destination: IPv6Address, ports: tuple[int, int], data: bytes = b"?\n"
) -> bytes:
    """A UDP packet with the length 0, which RFC 2675 permits above 65,535 bytes."""
    body = struct.pack("!HHHH", *ports, 0, 0) + data
    return packet(source, destination, UDP, checked(source, destination, UDP, body))


def authenticated(
    source: IPv6Address, destination: IPv6Address, protocol: int, body: bytes
) -> bytes:
    """A packet behind an authentication header (RFC 4302) of an unknown association."""
    header = bytes([protocol, 4, 0, 0]) + bytes(20)  # 24 bytes: six words, minus two
    return packet(source, destination, AUTHENTICATION, header + body)


def options(following: int) -> bytes:
    """A header with destination options, which are padding only."""
    return bytes([following, 0, 1, 4, 0, 0, 0, 0])  # padded to 8 bytes


def fragment(following: int, offset_and_more: int, part: bytes, number: int = 9) -> bytes:
    """A fragment header and its part. The offset is in bytes, plus 1 if more parts follow."""
    return struct.pack("!BBHI", following, 0, offset_and_more, number) + part


def nested_fragments(
    source: IPv6Address, destination: IPv6Address, protocol: int, body: bytes
) -> list[bytes]:
    """A packet in two fragments, each of them in another one that is whole.

    The first ends between two headers with options, so it has no port."""
    inner = [
        fragment(DESTINATION_OPTIONS, 1, options(DESTINATION_OPTIONS)),
        fragment(DESTINATION_OPTIONS, 8, options(protocol) + body),
    ]
    return [
        packet(source, destination, FRAGMENT, fragment(FRAGMENT, 0, part, number))
        for number, part in enumerate(inner, 10)
    ]


def kinds(
    source: IPv6Address, destination: IPv6Address, ports: tuple[int, int], data: bytes = b"?\n"
) -> dict[str, list[bytes]]:
    """For each kind a first packet that may create a conntrack entry; for fragments, both."""
    udp = udp_body(source, destination, ports, data)
    head, tail = udp[:8], udp[8:]
    return {
        "udp": [packet(source, destination, UDP, udp)],
        "tcp": [packet(source, destination, TCP, tcp_body(source, destination, ports))],
        "echo": [packet(source, destination, ICMPV6, echo_body(source, destination))],
        "gre": [packet(source, destination, GRE, struct.pack("!HHI", 1 << 13, 0x6558, 7))],
        "unknown protocol": [packet(source, destination, 253, b"12345678")],
        "behind destination options": [
            packet(source, destination, DESTINATION_OPTIONS, options(UDP) + udp)
        ],
        "behind an authentication header": [authenticated(source, destination, UDP, udp)],
        "fragments": [
            packet(source, destination, FRAGMENT, fragment(UDP, 1, head)),
            packet(source, destination, FRAGMENT, fragment(UDP, 8, tail)),
        ],
    }


def send(ns: Namespace, packets: list[bytes], *, link: str, by: bytes) -> None:
    """Send packets by a link to the router with the hardware address `by`."""
    with ns.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IPV6)) as sock:
        number = ns.within(lambda: socket.if_nametoindex(link))
        assert number
        for each in packets:
            sock.sendto(each, (link, ETH_P_IPV6, 0, 0, by))


def hardware(ns: Namespace, link: str) -> bytes:
    """The hardware address of a link."""
    (shown,) = json.loads(ns.ip(f"-j link show {link}"))
    return bytes.fromhex(shown["address"].replace(":", ""))
