"""The faults of dbus-next that the transport corrects."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipv6natd.dbus import connection as transport
from ipv6natd.dbus import wire as dbus_wire
from ipv6natd.dbus.connection import BusError, Call, connect
from ipv6natd.dbus.values import bus_text, marshal_rows, variants, without_variants
from ipv6natd.report.explain import Explanation
from ipv6natd.report.ports import PortReport
from ipv6natd.report.status import MappingRow, NetworkRow, Row, bus_fields, mapping_row
from tests.integration.bus.conftest import Bus, client, mapping, run
from tests.integration.bus.flood import connected, message, send

LIBRARY = vars(dbus_wire)
"""The names that the transport imports from dbus-next."""
DBUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count, not paths


def test_overridden_private_names_of_dbus_next_exist() -> None:
    base = LIBRARY["aio"].MessageBus
    names = ("_finalize", "_setup_socket", "_auth_readline", "_message_reader")
    for name in (*names, "send", "disconnect"):
        assert callable(getattr(base, name))
    assert callable(LIBRARY["aio"]._MessageWriter.write_callback)
    assert callable(LIBRARY["Unmarshaller"].read_array)
    assert issubclass(LIBRARY["MarshallerStreamEndError"], Exception)
    assert callable(LIBRARY["Message"]._marshall)


def test_full_socket_buffer_keeps_the_connection_open(bus: Bus) -> None:
    async def body() -> None:
        async with client(bus) as connection:
            bus.pause()
            for number in range(5000):
                connection.emit("/a", "a.b", "C", "su", "x" * 200, number)
            await asyncio.sleep(0.2)
            assert connection.connected
            assert connection.unsent > 1000
            bus.resume()
            assert await connection.call(*DBUS, "GetId")
            assert connection.unsent == 0

    run(body())


def test_signals_pass_a_full_socket_buffer_whole_and_in_order(bus: Bus) -> None:
    async def body() -> None:
        numbers: list[int] = []
        async with client(bus, lambda signal: numbers.append(signal.args[-1])) as listener:
            await listener.call(*DBUS, "AddMatch", "s", "type='signal',path='/a'")
            async with client(bus) as sender:
                bus.pause()
                for number in range(2000):
                    sender.emit("/a", "a.b", "C", "su", "x" * number, number)
                bus.resume()
                await sender.call(*DBUS, "GetId")
            await listener.call(*DBUS, "GetId")
        assert [number for number in numbers if isinstance(number, int)] == list(range(2000))

    run(body())


def test_flood_of_messages_leaves_turns_to_other_tasks(bus: Bus) -> None:
    """The event loop calls the reader for new data, beside the next batch of a former call."""
    batches: Counter[int] = Counter()
    turns = 0

    def received(_call: Call) -> None:
        batches[turns] += 1
        time.sleep(0.0001)  # so that the next messages have arrived at the end of a batch

    async def body() -> None:
        nonlocal turns
        path = bus.address.removeprefix("unix:path=")
        connection = await connect(bus.address, on_call=received)
        parts = {"path": "/a", "interface": "a.b", "member": "C", "serial": 1}
        call = message(destination=connection.unique_name, **parts)
        with contextlib.closing(connection), contextlib.closing(connected(path, 0)) as sock:
            sending = asyncio.create_task(asyncio.to_thread(send, sock, call, 10_000))
            while batches.total() < 10_000:
                await asyncio.sleep(0)
                turns += 1
            await sending
        assert max(batches.values()) <= dbus_wire.MAX_BATCH

    run(body())


def test_50_closed_connections_leak_no_descriptor(bus: Bus) -> None:
    async def body() -> None:
        before = descriptors()
        connections = []
        for _ in range(50):
            connection = await connect(bus.address)
            connection.close()
            connections.append(connection)
        assert descriptors() == before

    run(body())


def test_50_failed_connects_leak_no_descriptor(tmp_path: Path) -> None:
    async def body() -> None:
        before = descriptors()
        for _ in range(50):
            with pytest.raises(BusError, match="cannot reach the system bus at unix:path="):
                await connect(f"unix:path={tmp_path}/none")
        assert descriptors() == before

    run(body())


@pytest.mark.parametrize("address", ["", "tcp:host=::1", "nonsense", "unix:runtime=yes"])
def test_invalid_bus_address_raises_bus_error(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "SYSTEM_BUS", "unix:path=/nonexistent")
    monkeypatch.delenv("DBUS_SYSTEM_BUS_ADDRESS", raising=False)

    async def body() -> None:
        with pytest.raises(BusError) as caught:
            await connect(address)
        assert caught.value.name == "org.freedesktop.DBus.Error.NoServer"

    run(body())


def test_second_address_of_a_list_is_tried(bus: Bus, tmp_path: Path) -> None:
    async def body() -> None:
        connection = await connect(f"unix:path={tmp_path}/none;{bus.address}")
        assert connection.connected
        connection.close()

    run(body())


def test_connection_closed_during_authentication_raises_bus_error(
    tmp_path: Path,
) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{tmp_path}/s")
        server.listen()
        thread = threading.Thread(target=lambda: server.accept()[0].close())
        thread.start()

        async def body() -> None:
            with pytest.raises(BusError, match="cannot reach"):
                await connect(f"unix:path={tmp_path}/s", seconds=5)

        run(body())
        thread.join()


def test_connect_to_a_silent_bus_times_out(bus: Bus) -> None:
    async def body() -> None:
        before = descriptors()
        bus.pause()
        with pytest.raises(BusError, match=r"no answer within 0\.2 s"):
            await connect(bus.address, seconds=0.2)
        assert descriptors() == before

    run(body())


def test_call_without_reply_times_out_and_leaves_no_handler(bus: Bus) -> None:
    async def body() -> None:
        async with client(bus) as connection:
            bus.pause()
            with pytest.raises(BusError, match=r"did not answer GetId within 0\.1 s"):
                await connection.call(*DBUS, "GetId", timeout=0.1)
            assert not connection._bus._method_return_handlers
            bus.resume()
            assert await connection.call(*DBUS, "GetId")

    run(body())


def test_calls_fail_at_once_when_the_bus_closes_the_connection(bus: Bus) -> None:
    async def body() -> None:
        connection = await connect(bus.address)
        bus.pause()
        waiting = asyncio.create_task(connection.call(*DBUS, "GetId"))
        await asyncio.sleep(0.05)
        bus.stop()
        for call in (waiting, connection.call(*DBUS, "GetId")):
            with pytest.raises(BusError, match="closed the connection"):
                await call
        await connection.closed()
        connection.emit("/a", "a.b", "C", "")
        connection.close()

    run(body())


def test_error_reply_of_a_failing_handler_has_no_exception_text(bus: Bus) -> None:
    async def body() -> None:
        def fail(_call: object) -> None:
            raise RuntimeError("secret")

        broken = await connect(bus.address, on_call=fail)
        async with client(bus) as connection:
            with pytest.raises(BusError) as caught:
                await connection.call(broken.unique_name, "/a", "a.b", "C", timeout=0.3)
            assert "secret" not in caught.value.text
        assert broken.connected
        broken.close()

    run(body())


def test_call_with_long_arrays_is_truncated_and_the_connection_stays_open(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_ARRAYS", 4096)

    async def body() -> None:
        calls: list[tuple[str, bool, int]] = []
        small = await connect(
            bus.address,
            on_call=lambda it: calls.append((it.member, it.truncated, len(it.args))),
        )
        async with client(bus) as connection:
            there = (small.unique_name, "/a", "a.b")
            for member, length, times in (("Long", 5000, 1), ("Many", 500, 10), ("Short", 50, 10)):
                arrays = [[1] * length] * times
                with pytest.raises(BusError):
                    await connection.call(*there, member, "au" * times, *arrays, timeout=0.2)
        assert calls == [("Long", True, 0), ("Many", True, 0), ("Short", False, 10)]
        assert small.connected
        small.close()

    run(body())


class SlowStream(io.BytesIO):
    """A socket that has data at every second read, and records the largest requested size."""

    largest = 0
    _there = False

    def read(self, size: int | None = -1) -> bytes:
        self._there = not self._there
        if not self._there:
            return None  # type: ignore[return-value]
        assert size is not None
        self.largest = max(self.largest, size)
        return super().read(min(size, 10_000))


@pytest.mark.parametrize("over", [0, 1, 31 << 20])
def test_reader_holds_at_most_max_message_bytes(over: int) -> None:
    def call(text: str) -> bytes:
        parts = {"path": "/a", "member": "Long", "serial": 1, "signature": "s", "body": [text]}
        return bytes(LIBRARY["Message"](**parts)._marshall())

    text = "x" * ((1 << 16) - len(call("")) + over)
    honest = bytes(LIBRARY["Message"](path="/a", member="Honest", serial=2)._marshall())
    stream = SlowStream(call(text) + honest)
    reader = reader_of(stream)
    most_held, message = 0, None
    while message is None:
        message = reader.unmarshall()
        most_held = max(most_held, len(reader.buf))
    assert (message.member, message.truncated, message.size) == ("Long", over > 0, (1 << 16) + over)
    assert message.body == ([] if over else [text])
    assert most_held <= 1 << 16
    assert stream.largest <= 1 << 16
    reader.reset()
    while (message := reader.unmarshall()) is None:
        pass
    assert message.member == "Honest"


def test_reply_above_max_message_raises_bus_error(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_REPLY", 4096)

    async def body() -> None:
        def answer(call: Call) -> None:
            call.connection.reply(call, "s", ["x" * 5000])

        wordy = await connect(bus.address, on_call=answer)
        small = await connect(bus.address, on_call=answer)
        with pytest.raises(BusError, match="too many to read"):
            await small.call(wordy.unique_name, "/a", "a.b", "C")
        assert await small.call(*DBUS, "GetId")
        for connection in (small, wordy):
            connection.close()

    run(body())


def test_calls_without_expected_reply_are_rate_limited() -> None:
    """One sender can send more such calls than we can parse: the bus daemon does not bound them."""
    parts = {"path": "/a", "member": "Flood", "serial": 1}
    quiet = LIBRARY["MessageFlag"].NO_REPLY_EXPECTED
    calls = [LIBRARY["Message"](**parts, flags=quiet)._marshall()] * 5000
    reader = reader_of(io.BytesIO(b"".join([*calls, LIBRARY["Message"](**parts)._marshall()])))
    read, began = 0, time.monotonic()
    for _ in calls:
        with contextlib.suppress(ValueError):
            read += reader.unmarshall() is not None
        reader.reset()
    assert 20 <= read <= 20 * (time.monotonic() - began + 2)
    assert reader.unmarshall().member == "Flood"


def test_import_works_without_typing_no_type_check_decorator() -> None:
    lost = "import typing; vars(typing).pop('no_type_check_decorator', 0)"
    code = f"{lost}; import ipv6natd.dbus.wire"
    subprocess.run((sys.executable, "-W", "error", "-c", code), check=True)


@given(st.text())
def test_bus_text_returns_a_valid_d_bus_string(text: str) -> None:
    assert "\0" not in bus_text(text)
    bus_text(text).encode()


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_bus_text_keeps_valid_text_unchanged(text: str) -> None:
    assert bus_text(text) == text


PORTS = st.integers(0, 65535)
COUNTS = st.integers(0, 2**64 - 1)
ROWS: st.SearchStrategy[list[Row]] = st.lists(
    st.builds(
        MappingRow,
        host_port=PORTS,
        host_port_end=PORTS,
        container_port=PORTS,
        container_port_end=PORTS,
        since=COUNTS,
    )
    | st.builds(NetworkRow)
    | st.builds(
        Explanation,
        ports=st.lists(st.builds(PortReport, connections=st.none() | COUNTS)).map(tuple),
    )
)


@given(ROWS)
def test_marshal_rows_matches_the_library(rows: list[Row]) -> None:
    body = [[variants(row) for row in rows]]
    assert marshal_rows(rows) == bytes(LIBRARY["Marshaller"]("aa{sv}", body).marshall())


def test_without_variants_removes_every_variant() -> None:
    row = mapping_row(mapping(), {})
    assert without_variants([variants(row)]) == [bus_fields(row)]


def test_message_inside_an_invalid_message_is_not_read() -> None:
    """The next read starts at the next message, not in the bytes of the bad one, where its sender
    may have placed a forged message."""
    inner = LIBRARY["Message"](path="/a", interface="a.b", member="Forged", serial=9, sender=":1.0")
    body = bytes(inner._marshall())
    # A message of the unknown type 9 with correct lengths.
    odd = b"l\x09\0\x01" + struct.pack("<III", len(body), 1, 0) + body
    honest = bytes(LIBRARY["Message"](path="/a", member="Honest", serial=2)._marshall())
    stream = io.BytesIO(odd + honest)
    with pytest.raises(ValueError, match="9"):
        reader_of(stream).unmarshall()
    assert reader_of(stream).unmarshall().member == "Honest"


def test_array_length_beyond_the_message_end_raises_an_error() -> None:
    honest = bytes(LIBRARY["Message"](path="/a", member="Honest", serial=2)._marshall())
    # An array with a length of 64 bytes, more than the message has.
    long = bytearray(
        LIBRARY["Message"](path="/a", member="M", signature="ay", body=[b""], serial=1)._marshall()
    )
    long[-4:] = struct.pack("<I", 64)
    stream = io.BytesIO(bytes(long) + honest)
    with pytest.raises(ValueError, match="beyond the end"):
        reader_of(stream).unmarshall()
    assert reader_of(stream).unmarshall().member == "Honest"


def reader_of(stream: io.BytesIO) -> Any:
    return LIBRARY["_Reader"](stream, *(1 << 16,) * 3)


def test_signature_cache_is_bounded() -> None:
    for number in range(3000):
        signature = "".join("yb"[number >> bit & 1] for bit in range(12))
        assert LIBRARY["Variant"](signature[:1], 1 if signature[0] == "y" else True)
        LIBRARY["SignatureTree"]._get(signature)
    assert LIBRARY["SignatureTree"]._get.cache_info().currsize <= 256
