"""SCTP: scenario S1, with hand-made packets, because some kernels have no SCTP sockets."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.harness import Bus, Daemon, Namespace, Sandbox, forge, until
from tests.harness.fake_engine import raw_container
from tests.harness.sandbox import CLIENT, HOST, Variant
from tests.system.packets.asking import SHORT, dnats, listed
from tests.system.packets.by_hand import bridge_network, engine, peer_on

SCTP = 132
HEADER = struct.Struct("!HHI")
INIT, INIT_ACK = 1, 2
HOST_PORT, PORT, CLIENT_PORT = 36412, 36413, 40000
TAG, TAG_BACK = 0x1234, 0x5678


def crc32c(data: bytes) -> bytes:
    """The checksum of RFC 9260, in its byte order."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return struct.pack("<I", crc ^ 0xFFFFFFFF)


def packet(source: int, port: int, tag: int, kind: int, own_tag: int) -> bytes:
    """A packet with a single chunk, which offers one stream in each direction."""
    head = HEADER.pack(source, port, tag)
    chunk = struct.pack("!BBHIIHHI", kind, 0, 20, own_tag, 65536, 1, 1, 1)
    return head + crc32c(head + bytes(4) + chunk) + chunk


def read(data: bytes) -> tuple[int, int, int, int]:
    """Source port, port, tag and kind of chunk; the checksum must be right."""
    assert data[8:12] == crc32c(data[:8] + bytes(4) + data[12:])
    return *HEADER.unpack(data[:8]), data[12]


@contextmanager
def sctp(ns: Namespace) -> Iterator[socket.socket]:
    with ns.socket(socket.AF_INET6, socket.SOCK_RAW, SCTP) as sock:
        sock.settimeout(3)
        yield sock


@contextmanager
def published(variant: Variant) -> Iterator[tuple[Sandbox, Daemon, Namespace]]:
    """(sandbox, ipv6natd, container with a published SCTP port)"""
    web = raw_container("web", on="X")
    entries = [{"HostIp": "::", "HostPort": str(HOST_PORT)}]
    web["NetworkSettings"]["Ports"] = {f"{PORT}/sctp": entries}
    with (
        Sandbox(variant) as sandbox,
        peer_on(sandbox, "brX", "fd00:a::/64") as container,
        engine(sandbox, bridge_network("X", "fd00:a::/64"), web) as behind,
        Bus(sandbox.dir) as bus,
        Daemon(sandbox, behind.endpoint, bus=bus.address) as daemon,
    ):
        yield sandbox, daemon, container


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_s1_sctp_is_forwarded_both_ways_with_a_valid_checksum(
    tools: None,  # noqa: ARG001
    variant: Variant,
) -> None:
    with (
        published(variant) as (sandbox, daemon, container),
        sctp(sandbox.client) as client,
        sctp(container) as server,
    ):
        (row,) = until(lambda: listed(daemon, "mappings"), lambda rows: len(rows) == 1)
        assert (row["Protocol"], row["HostPort"]) == ("sctp", HOST_PORT)
        assert len(dnats(sandbox.rules(), HOST_PORT)) == 1
        assert "CHECKSUM" not in sandbox.rules()

        client.sendto(packet(CLIENT_PORT, HOST_PORT, 0, INIT, TAG), (str(HOST), 0))
        data, source = server.recvfrom(4096)
        assert read(data) == (CLIENT_PORT, PORT, 0, INIT)
        assert source[0] == str(CLIENT)

        server.sendto(packet(PORT, CLIENT_PORT, TAG, INIT_ACK, TAG_BACK), (str(CLIENT), 0))
        data, source = client.recvfrom(4096)
        assert read(data) == (HOST_PORT, CLIENT_PORT, TAG, INIT_ACK)
        assert source[0] == str(HOST)


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_forged_packet_from_the_host_does_not_hide_an_sctp_client(variant: Variant) -> None:
    """The client's INIT would be a reply of the forged entry, and reach the proxy."""
    forged = packet(HOST_PORT, CLIENT_PORT, 0, INIT, TAG)
    with (
        published(variant) as (sandbox, daemon, _),
        sctp(sandbox.client) as client,
        sctp(sandbox.host) as proxy,
    ):
        until(lambda: listed(daemon, "mappings"), lambda rows: len(rows) == 1)
        by = forge.hardware(sandbox.host, "ext0")
        forge.send(sandbox.rogue, [forge.packet(HOST, CLIENT, SCTP, forged)], link="ext0", by=by)
        assert until(lambda: "sctp" in sandbox.host.flows(), True)
        proxy.settimeout(SHORT)
        client.sendto(packet(CLIENT_PORT, HOST_PORT, 0, INIT, TAG), (str(HOST), 0))
        with pytest.raises(TimeoutError):
            proxy.recv(4096)
