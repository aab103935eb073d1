"""The replies of org.ipv6natd1: values, errors, and permissions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from ipv6natd.dbus.connection import BusError, Signal
from ipv6natd.dbus.objects import (
    INTROSPECTABLE,
    MANAGER,
    NAME,
    PATH,
    PEER,
    PROPERTIES,
    introspection,
)
from ipv6natd.dbus.values import variants, without_variants
from ipv6natd.dbus.wire import Variant
from ipv6natd.host.findings import Finding
from ipv6natd.netfilter.docker_rules import Leftover
from ipv6natd.report.status import (
    Row,
    finding_row,
    mapping_rows,
    network_row,
    properties,
)
from tests.harness.needs import need
from tests.integration.bus.conftest import (
    NOBODY,
    Bus,
    FakeSource,
    ask,
    client,
    command,
    mapping,
    run,
    serving,
    status,
)

ERROR = "org.freedesktop.DBus.Error."


def plain_rows(rows: Iterable[Row]) -> Any:
    return without_variants([variants(row) for row in rows])


def test_lists_and_properties_match_the_status(bus: Bus) -> None:
    async def body() -> None:
        now = status(mapping(), mapping(1))
        async with serving(bus, FakeSource(now)), client(bus) as root:
            assert await ask(root, "ListMappings") == plain_rows(mapping_rows(now))
            assert await ask(root, "ListNetworks") == plain_rows(map(network_row, now.networks))
            assert await ask(root, "ListSkipped") == plain_rows(now.skipped)
            assert await ask(root, "ListFindings") == plain_rows(map(finding_row, now.findings))
            assert await ask(root, "GetRuleset") == "*filter\nCOMMIT\n"
            everything = await ask(root, "GetAll", "s", MANAGER, interface=PROPERTIES)
            assert everything == properties(now)
            for name, value in everything.items():
                assert await ask(root, "Get", "ss", MANAGER, name, interface=PROPERTIES) == value

    run(body())


def test_resync_returns_counts_and_reload_and_cleanup_return_nothing(bus: Bus) -> None:
    async def body() -> None:
        source = FakeSource(status())
        async with serving(bus, source), client(bus) as root:
            answer = await ask(root, "Resync")
            assert answer == {"Generation": 7, "RulesAdded": 3, "RulesRemoved": 1, "DurationMs": 12}
            assert await ask(root, "Reload") is None
            assert await ask(root, "Cleanup") is None
        assert source.done == ["resync", "reload", "cleanup"]

    run(body())


def test_cleanup_keeps_leftovers_and_cleanup_leftovers_removes_them(bus: Bus) -> None:
    rule = Leftover(variant="nft", table="nat", chain="PREROUTING", rule="-i \udcff -j DOCKER")
    row = {"Variant": "nft", "Table": "nat", "Chain": "PREROUTING", "Rule": "-i \ufffd -j DOCKER"}

    async def body() -> None:
        source = FakeSource(status())
        source.left = (rule,)
        async with serving(bus, source), client(bus) as root:
            await ask(root, "Cleanup")
            assert await ask(root, "ListLeftovers") == [row]
            assert await ask(root, "CleanupLeftovers") == [row]
            assert await ask(root, "ListLeftovers") == []
        assert source.done == ["cleanup", "remove_leftovers"]

    run(body())


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (("Nonsense",), "UnknownMethod", "no method Nonsense"),
        (("ListMappings", "s", "x"), "InvalidArgs", "ListMappings takes '', not 's'"),
        (("Get", "s", "x", PROPERTIES), "InvalidArgs", "Get takes 'ss', not 's'"),
        (("Get", "ss", MANAGER, "Nope", PROPERTIES), "UnknownProperty", "no property 'Nope'"),
        (("Get", "ss", PEER, "Nope", PROPERTIES), "UnknownProperty", "no property 'Nope'"),
        (("Get", "ss", "a.b", "State", PROPERTIES), "UnknownInterface", "no interface 'a.b'"),
        (("GetAll", "s", "a.b", PROPERTIES), "UnknownInterface", "no interface 'a.b'"),
        (("Ping", "a.b"), "UnknownInterface", "no interface a.b"),
    ],
)
def test_invalid_call_returns_its_error_name_and_message(
    bus: Bus, call: tuple[str, ...], error: str, text: str
) -> None:
    async def body() -> None:
        interface = call[-1] if "." in call[-1] else MANAGER
        words = call[:-1] if "." in call[-1] else call
        async with serving(bus, FakeSource(status())), client(bus) as root:
            with pytest.raises(BusError) as caught:
                await ask(root, *words, interface=interface)
            assert caught.value.name == ERROR + error
            assert text in caught.value.text

    run(body())


@pytest.mark.parametrize(
    ("name", "error"), [("State", "PropertyReadOnly"), ("Nope", "UnknownProperty")]
)
def test_set_of_a_manager_property_returns_an_error(bus: Bus, name: str, error: str) -> None:
    async def body() -> None:
        value = Variant("s", "y")
        async with serving(bus, FakeSource(status())), client(bus) as root:
            with pytest.raises(BusError) as caught:
                await ask(root, "Set", "ssv", MANAGER, name, value, interface=PROPERTIES)
            assert caught.value.name == ERROR + error

    run(body())


@pytest.mark.parametrize("path", ["/a", "/org/ipv6natd", "/org/ipv6natd1/a", "/org/freedesktop/a"])
def test_unknown_path_returns_unknown_object(bus: Bus, path: str) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status())), client(bus) as root:
            for interface, member in ((INTROSPECTABLE, "Introspect"), (MANAGER, "ListMappings")):
                with pytest.raises(BusError) as caught:
                    await ask(root, member, interface=interface, path=path)
                assert caught.value.name == ERROR + "UnknownObject"

    run(body())


def test_internal_error_is_logged_and_its_reply_has_no_traceback(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        source = FakeSource(status())
        source.error = RuntimeError("secret")
        async with serving(bus, source), client(bus) as root:
            for member in ("Resync", "GetRuleset"):
                with pytest.raises(BusError) as caught:
                    await ask(root, member)
                assert caught.value.name == "org.ipv6natd1.Error.Failed"
                assert caught.value.text == (
                    f"{member} failed; the journal says why: journalctl -u ipv6natd"
                )

    run(body())
    assert caplog.text.count("RuntimeError: secret") == 2


def test_bus_error_of_the_source_is_returned_unchanged(bus: Bus) -> None:
    async def body() -> None:
        source = FakeSource(status())
        source.error = BusError("org.ipv6natd1.Error.DockerUnavailable", "Docker is away\0")
        async with serving(bus, source), client(bus) as root:
            with pytest.raises(BusError) as caught:
                await ask(root, "Resync")
            assert caught.value.name == "org.ipv6natd1.Error.DockerUnavailable"
            assert caught.value.text == "Docker is away\ufffd"

    run(body())


def test_peer_interface_replies_at_every_path_each_time(bus: Bus) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status())), client(bus) as root:
            for path in ("/", "/org", PATH, "/elsewhere"):
                ids = [await ask(root, "GetMachineId", interface=PEER, path=path) for _ in "12"]
                assert ids[0] == ids[1]
                assert len(ids[0]) == 32
                assert await ask(root, "Ping", interface=PEER, path=path) is None

    run(body())


def test_call_without_interface_finds_the_member(bus: Bus) -> None:
    async def body() -> None:
        nameless: Any = None
        async with serving(bus, FakeSource(status())), client(bus) as root:
            assert await ask(root, "ListMappings", interface=nameless) == []
            assert await ask(root, "Introspect", interface=nameless) == introspection(PATH)
            assert "org" in await ask(root, "Introspect", interface=nameless, path="/")

    run(body())


def test_plain_user_reads_but_cannot_resync_or_own_the_name(bus: Bus) -> None:
    need("busctl", "setpriv")

    async def body() -> None:
        plain_busctl = (*NOBODY, "busctl", f"--address={bus.address}")
        async with serving(bus, FakeSource(status(mapping()))):
            for member in ("ListMappings", "ListNetworks", "ListFindings", "GetRuleset"):
                code, _, err = await command(
                    bus, *plain_busctl, "call", NAME, PATH, MANAGER, member
                )
                assert (code, err) == (0, "")
            code, _, err = await command(bus, *plain_busctl, "call", NAME, PATH, MANAGER, "Resync")
            assert code == 1
            assert err == "Call failed: Access denied\n"
        where = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
        own = ("call", *where, "RequestName", "su", NAME, "0")
        code, _, err = await command(bus, *plain_busctl, *own)
        assert code == 1
        assert err == "Call failed: Access denied\n"

    run(body())


HOSTILE = ["a\nb", "\"'<&>", "\x1b[2J", "käse-容器", "x" * 10_000, "\ud800", "a\0b", ""]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_name_does_not_break_replies_or_signals(bus: Bus, name: str) -> None:
    async def body() -> None:
        found = Finding(problem=name, command=name, network=name)
        source = FakeSource(status(mapping(name=name), state_reason=name, findings=(found,)))
        source.text = name
        signals: list[Signal] = []
        expected = name.replace("\0", "\ufffd").replace("\ud800", "\ufffd")
        async with serving(bus, source) as service, client(bus, signals.append) as root:
            (row,) = await ask(root, "ListMappings")
            assert row["ContainerName"] == expected
            (row,) = await ask(root, "ListFindings")
            assert {row["Text"], row["Command"], row["Network"]} == {expected}
            assert await ask(root, "GetRuleset") == expected
            service.publish(status(generation=0), source.now)
            everything = await ask(root, "GetAll", "s", MANAGER, interface=PROPERTIES)
            assert everything["StateReason"] == expected
        added = [signal for signal in signals if signal.member == "MappingAdded"]
        assert [signal.args[0]["ContainerName"] for signal in added] == [expected]

    run(body())
