"""What org.ipv6natd1 answers, signals and survives."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ipv6natd import dbus_lists, log_control
from ipv6natd.bus import BusError, Signal
from ipv6natd.dbus_api import BusService, serve
from ipv6natd.dbus_lists import Lists
from ipv6natd.dbus_members import METHODS
from ipv6natd.dbus_objects import (
    INTROSPECTABLE,
    LOG,
    LOG_PATH,
    MANAGER,
    NAME,
    PATH,
    PEER,
    PROPERTIES,
    SERVED,
    introspection,
)
from ipv6natd.dbus_values import plain, variants
from ipv6natd.leftovers import Leftover
from ipv6natd.status import (
    Row,
    State,
    Status,
    mapping_rows,
    network_rows,
    properties,
    skipped_rows,
)
from tests.bus.conftest import (
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
from tests.lab.needs import need

ERROR = "org.freedesktop.DBus.Error."
DBUS = Path(__file__).parents[2] / "dbus"


def shown(rows: list[Row]) -> Any:
    return plain([variants(row) for row in rows])


def test_every_list_and_property_is_the_status(bus: Bus) -> None:
    async def body() -> None:
        now = status(mapping(), mapping(1))
        async with serving(bus, FakeSource(now)), client(bus) as root:
            assert await ask(root, "ListMappings") == shown(mapping_rows(now))
            assert await ask(root, "ListNetworks") == shown(network_rows(now))
            assert await ask(root, "ListSkipped") == shown(skipped_rows(now))
            assert await ask(root, "GetRuleset") == "*filter\nCOMMIT\n"
            everything = await ask(root, "GetAll", "s", MANAGER, interface=PROPERTIES)
            assert [everything] == shown([properties(now)])
            for name, value in everything.items():
                assert await ask(root, "Get", "ss", MANAGER, name, interface=PROPERTIES) == value

    run(body())


def test_mappings_are_found_by_what_they_have(bus: Bus) -> None:
    async def body() -> None:
        now = status(*(mapping(number, name=f"web{number % 3}") for number in range(300)))
        async with serving(bus, FakeSource(now)), client(bus) as root:
            wanted = variants({"Container": ("s", "web1"), "Port": ("q", 8001)})
            (row,) = await ask(root, "FindMappings", "a{sv}", wanted)
            assert (row["ContainerName"], row["HostPort"]) == ("web1", 8001)
            assert len(await ask(root, "FindMappings", "a{sv}", {})) == 300
            with pytest.raises(BusError, match="no filter is called 'Name'") as caught:
                await ask(root, "FindMappings", "a{sv}", variants({"Name": ("s", "web1")}))
            assert caught.value.name == "org.ipv6natd1.Error.InvalidFilter"

    run(body())


def test_what_changes_something_answers_what_it_did(bus: Bus) -> None:
    async def body() -> None:
        source = FakeSource(status())
        async with serving(bus, source), client(bus) as root:
            answer = await ask(root, "Resync")
            assert answer == {"Generation": 7, "RulesAdded": 3, "RulesRemoved": 1, "DurationMs": 12}
            assert await ask(root, "Reload") is None
            assert await ask(root, "Cleanup") is None
        assert source.done == ["resync", "reload", "cleanup"]

    run(body())


def test_leftovers_are_listed_and_go_only_by_their_own_method(bus: Bus) -> None:
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
def test_errors_are_named_sentences(bus: Bus, call: tuple[str, ...], error: str, text: str) -> None:
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
def test_nothing_can_be_set(bus: Bus, name: str, error: str) -> None:
    async def body() -> None:
        value = variants({"x": ("s", "y")})["x"]
        async with serving(bus, FakeSource(status())), client(bus) as root:
            with pytest.raises(BusError) as caught:
                await ask(root, "Set", "ssv", MANAGER, name, value, interface=PROPERTIES)
            assert caught.value.name == ERROR + error

    run(body())


@pytest.mark.parametrize("path", ["/a", "/org/ipv6natd", "/org/ipv6natd1/a", "/org/freedesktop/a"])
def test_an_unknown_path_is_an_error(bus: Bus, path: str) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status())), client(bus) as root:
            for interface, member in ((INTROSPECTABLE, "Introspect"), (MANAGER, "ListMappings")):
                with pytest.raises(BusError) as caught:
                    await ask(root, member, interface=interface, path=path)
                assert caught.value.name == ERROR + "UnknownObject"

    run(body())


def test_no_traceback_leaves_the_process(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
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


def test_an_error_that_the_source_words_itself_is_passed_on(bus: Bus) -> None:
    async def body() -> None:
        source = FakeSource(status())
        source.error = BusError("org.ipv6natd1.Error.DockerUnavailable", "Docker is away\0")
        async with serving(bus, source), client(bus) as root:
            with pytest.raises(BusError) as caught:
                await ask(root, "Resync")
            assert caught.value.name == "org.ipv6natd1.Error.DockerUnavailable"
            assert caught.value.text == "Docker is away\ufffd"

    run(body())


def test_peer_answers_at_every_path_and_more_than_once(bus: Bus) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status())), client(bus) as root:
            for path in ("/", "/org", PATH, "/elsewhere"):
                ids = [await ask(root, "GetMachineId", interface=PEER, path=path) for _ in "12"]
                assert ids[0] == ids[1]
                assert len(ids[0]) == 32
                assert await ask(root, "Ping", interface=PEER, path=path) is None

    run(body())


def test_a_call_without_interface_means_the_main_one(bus: Bus) -> None:
    async def body() -> None:
        nameless: Any = None
        async with serving(bus, FakeSource(status())), client(bus) as root:
            assert await ask(root, "ListMappings", interface=nameless) == []
            assert await ask(root, "Introspect", interface=nameless) == introspection(PATH)
            assert "org" in await ask(root, "Introspect", interface=nameless, path="/")

    run(body())


def members(path: str, kind: str) -> dict[tuple[str, str], tuple[str, str]]:
    """(interface, member) -> (in, out) as the XML has them; for a signal or property (type, "")."""
    found = {}
    for interface in ElementTree.fromstring(introspection(path)).iter("interface"):
        for each in interface.iter(kind):
            args = [(arg.get("direction", "in"), arg.attrib["type"]) for arg in each.iter("arg")]
            both = ["".join(type_ for way, type_ in args if way == it) for it in ("in", "out")]
            both[0] += each.get("type", "")
            found[interface.attrib["name"], each.attrib["name"]] = (both[0], both[1])
    return found


@pytest.mark.parametrize("path", SERVED)
def test_the_xml_of_each_object_has_what_is_implemented_and_nothing_else(path: str) -> None:
    interfaces = [
        each.get("name") for each in ElementTree.fromstring(introspection(path)).iter("interface")
    ]
    assert sorted(interfaces, key=str) == sorted(SERVED[path])
    implemented = {
        key: (each.takes, each.returns) for key, each in METHODS.items() if key[0] in SERVED[path]
    }
    assert members(path, "method") == implemented
    rows = {PATH: (MANAGER, properties(status())), LOG_PATH: (LOG, log_control.properties())}
    interface, row = rows.get(path, ("", {}))
    typed = {(interface, name): (type_, "") for name, (type_, _) in row.items()}
    assert members(path, "property") == typed


@pytest.mark.parametrize("path", SERVED)
def test_every_argument_in_the_xml_has_a_name(path: str) -> None:
    for arg in ElementTree.fromstring(introspection(path)).iter("arg"):
        assert arg.get("name")


def test_the_xml_is_served_and_leads_to_every_object(bus: Bus) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status())), client(bus) as root:
            found, left = [], ["/"]
            while left:
                path = left.pop()
                xml = await ask(root, "Introspect", interface=INTROSPECTABLE, path=path)
                assert xml == introspection(path)
                found.append(path)
                nodes = ElementTree.fromstring(xml).findall("node")
                left += [f"{path.rstrip('/')}/{each.get('name')}" for each in nodes]
            assert sorted(found) == sorted(SERVED)
            for name in (NAME, LOG):
                path = PATH if name == NAME else LOG_PATH
                assert introspection(path) == (DBUS / f"{name}.xml").read_text()

    run(body())


@pytest.mark.parametrize("path", SERVED)
def test_get_all_answers_for_each_interface_of_each_object(bus: Bus, path: str) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status())), client(bus) as root:
            for interface in ("", *SERVED[path]):
                words = ("GetAll", "s", interface)
                if PROPERTIES not in SERVED[path]:
                    with pytest.raises(BusError, match="has no interface"):
                        await ask(root, *words, interface=PROPERTIES, path=path)
                    continue
                answer = await ask(root, *words, interface=PROPERTIES, path=path)
                own = interface in ("", MANAGER, LOG)
                wanted = {name for _, name in members(path, "property")} if own else set()
                assert set(answer) == wanted

    run(body())


def test_busctl_shows_the_flags_of_each_member(bus: Bus) -> None:
    need("busctl")

    async def body() -> None:
        async with serving(bus, FakeSource(status(mapping()))):
            busctl = ("busctl", f"--address={bus.address}")
            flags: dict[str, str] = {}
            for path in SERVED:
                code, out, err = await command(bus, *busctl, "introspect", NAME, path)
                assert (code, err) == (0, "")
                flags |= {line.split()[0]: line.split()[-1] for line in out.splitlines()}
            announced = set(properties(status())) - {"Version"}
            assert {flags[f".{name}"] for name in announced} == {"emits-change"}
            assert flags[".Version"] == flags[".SyslogIdentifier"] == "const"
            assert flags[".LogLevel"] == flags[".LogTarget"] == "writable"
            assert flags[".ListMappings"] == flags[".Resync"] == flags[".Synced"] == "-"
            code, out, err = await command(bus, *busctl, "tree", NAME)
            assert PATH in out
            assert LOG_PATH in out
            code, out, err = await command(
                bus, *busctl, "--json=short", "call", NAME, PATH, MANAGER, "ListMappings"
            )
            assert '"HostPort":{"type":"q","data":8000}' in out

    run(body())


def test_nothing_in_the_tree_lets_the_bus_start_the_daemon() -> None:
    assert not list(DBUS.parent.glob("dbus/*.service"))
    assert not [path for path in DBUS.parent.glob("systemd/*") if "Alias=dbus" in path.read_text()]


def test_a_plain_user_reads_but_neither_resyncs_nor_owns_the_name(bus: Bus) -> None:
    need("busctl", "setpriv")

    async def body() -> None:
        plain_busctl = (*NOBODY, "busctl", f"--address={bus.address}")
        async with serving(bus, FakeSource(status(mapping()))):
            for member in ("ListMappings", "ListNetworks", "ListSkipped", "GetRuleset"):
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
def test_no_name_breaks_an_answer_or_a_signal(bus: Bus, name: str) -> None:
    async def body() -> None:
        source = FakeSource(status(mapping(name=name), state_reason=name))
        source.text = name
        seen: list[Signal] = []
        expected = name.replace("\0", "\ufffd").replace("\ud800", "\ufffd")
        async with serving(bus, source) as service, client(bus, seen.append) as root:
            (row,) = await ask(root, "ListMappings")
            assert row["ContainerName"] == expected
            assert await ask(root, "GetRuleset") == expected
            service.publish(status(generation=0), source.now)
            everything = await ask(root, "GetAll", "s", MANAGER, interface=PROPERTIES)
            assert everything["StateReason"] == expected
        added = [each for each in seen if each.member == "MappingAdded"]
        assert [each.args[0]["ContainerName"] for each in added] == [expected]

    run(body())


def test_a_sync_is_signalled_once_with_what_changed(bus: Bus) -> None:
    async def body() -> None:
        seen: list[Signal] = []
        old = status(mapping(), mapping(1), mapping(2))
        new = status(
            mapping(),
            mapping(1, name="new"),
            mapping(3),
            generation=2,
            last_sync=old.last_sync + 1,
            state=State.DEGRADED,
            state_reason="x",
        )
        drift: Row = {"Rules": ("u", 4)}
        async with serving(bus, FakeSource(new)) as service, client(bus, seen.append) as root:
            service.publish(old, new, drift)
            service.publish(new, new)
            await ask(root, "Ping", interface=PEER)
        assert [each.member for each in seen] == [
            "PropertiesChanged",
            *("MappingRemoved", "MappingRemoved", "MappingAdded", "MappingAdded"),
            *("DriftRepaired", "Synced"),
        ]
        changed = {
            "State": "degraded",
            "StateReason": "x",
            "Generation": 2,
            "LastSync": new.last_sync,
        }
        assert seen[0].args == [MANAGER, changed, []]
        ports = [each.args[0]["HostPort"] for each in seen[1:5]]
        assert ports == [8001, 8002, 8001, 8003]
        assert seen[5].args == [{"Rules": 4}]
        assert seen[6].args == [
            2,
            {"MappingsAdded": 2, "MappingsRemoved": 2, "State": "degraded"},
        ]

    run(body())


def test_the_version_is_never_announced_and_a_quiet_sync_says_only_that_it_was(bus: Bus) -> None:
    async def body() -> None:
        seen: list[Signal] = []
        old = status(mapping())
        new = replace(old, version="2", last_sync=old.last_sync + 1)
        async with serving(bus, FakeSource(new)) as service, client(bus, seen.append) as root:
            service.publish(old, new)
            await ask(root, "Ping", interface=PEER)
        assert [each.member for each in seen] == ["PropertiesChanged", "Synced"]
        assert seen[0].args == [MANAGER, {"LastSync": new.last_sync}, []]

    run(body())


def test_at_most_fifty_mappings_are_signalled_a_sync(bus: Bus) -> None:
    async def body() -> None:
        seen: list[Signal] = []
        old = status(*(mapping(number) for number in range(40)))
        new = status(*(mapping(number) for number in range(40, 120)), generation=2, last_sync=5)
        async with serving(bus, FakeSource(new)) as service, client(bus, seen.append) as root:
            service.publish(old, new)
            await ask(root, "Ping", interface=PEER)
        names = [each.member for each in seen]
        assert (names.count("MappingRemoved"), names.count("MappingAdded")) == (40, 10)
        assert seen[-1].args[1]["MappingsAdded"] == 80

    run(body())


def test_signals_are_left_out_while_nobody_reads_them(bus: Bus) -> None:
    async def body() -> None:
        old = status()
        async with serving(bus, FakeSource(old)) as service, client(bus) as root:
            bus.pause()
            for number in range(6000):
                service.publish(old, replace(old, last_sync=number))
            connection = service._connection
            assert connection is not None
            assert 900 < connection.unsent < 1100
            bus.resume()
            assert await ask(root, "ListMappings") == []

    run(body())


def test_publishing_without_a_bus_does_nothing() -> None:
    service = BusService(FakeSource(status()))
    service.publish(status(), status(mapping(), generation=2))


def test_a_bus_that_dies_and_returns_is_served_again(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status(mapping()))) as service:
            for _ in range(3):
                bus.stop()
                await until(lambda: not service.owned.is_set())
                service.publish(status(), status(mapping(), generation=2))
                await asyncio.sleep(0.3)
                bus.start()
                await service.owned.wait()
                async with client(bus) as root:
                    assert len(await ask(root, "ListMappings")) == 1

    run(body())
    assert "the system bus closed the connection; trying again" in caplog.text


async def until(true: Any) -> None:
    while not true():  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0.01)


def test_a_bus_that_is_absent_is_tried_with_growing_pauses_and_named_once(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    bus.stop()
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await asyncio.sleep(0)

    async def body() -> None:
        service = BusService(FakeSource(status()))
        task = asyncio.create_task(serve(service, bus.address, pause=pause))
        await until(lambda: len(pauses) > 12)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with caplog.at_level(logging.INFO):
        run(body())
    assert pauses[:9] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0]
    assert max(pauses) == 30.0
    assert caplog.text.count("cannot reach the system bus") == 1


def test_a_name_that_another_owns_is_taken_when_it_is_free(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status())):
            second = BusService(FakeSource(status(mapping())))
            task = asyncio.create_task(serve(second, bus.address))
            await until(lambda: "another process owns org.ipv6natd1" in caplog.text)
            assert not second.owned.is_set()
        await second.owned.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    run(body())


def test_a_sender_with_too_many_calls_waiting_is_refused_and_others_are_not(bus: Bus) -> None:
    async def body() -> None:
        source = FakeSource(status())
        source.gate = asyncio.Event()
        async with serving(bus, source) as service, client(bus) as greedy, client(bus) as other:
            waiting = [asyncio.create_task(ask(greedy, "Resync")) for _ in range(16)]
            await until(lambda: sum(service._limits._unanswered.values()) == 16)
            with pytest.raises(BusError, match="16 calls of yours wait") as caught:
                await ask(greedy, "ListMappings")
            assert caught.value.name == ERROR + "LimitsExceeded"
            assert await ask(greedy, "Ping", interface=PEER) is None
            assert await ask(other, "ListMappings") == []
            source.gate.set()
            await asyncio.gather(*waiting)
            assert await ask(greedy, "ListMappings") == []
            assert not service._limits._unanswered

    run(body())


def test_waiting_calls_end_with_their_connection(bus: Bus) -> None:
    async def body() -> None:
        source = FakeSource(status())
        source.gate = asyncio.Event()
        async with serving(bus, source) as service:
            async with client(bus) as root:
                waiting = asyncio.create_task(ask(root, "Resync"))
                await until(lambda: service._limits._unanswered)
                bus.stop()
                with pytest.raises(BusError):
                    await waiting
            await until(lambda: not service._tasks)
            assert not service._limits._unanswered

    run(body())


def test_ten_thousand_rows_do_not_hold_up_the_loop(bus: Bus) -> None:
    async def body() -> None:
        now = status(*(mapping(number) for number in range(10_000)))
        lists = Lists(lambda: now)
        turns = 0
        task = asyncio.create_task(lists.rows("ListMappings"))
        while not task.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert turns > 50  # of a second's work: a count, because a busy machine stretches time
        assert await lists.rows("ListMappings") is task.result()
        async with serving(bus, FakeSource(now)), client(bus) as root:
            rows = await ask(root, "ListMappings")
        assert [row["HostPort"] for row in rows] == list(range(8000, 18_000))

    run(body())


def test_rows_are_marshalled_once_a_generation(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = dbus_lists._list_body

    def counted(member: str, now: Status) -> bytes:
        made.append(member)
        return real(member, now)

    monkeypatch.setattr(dbus_lists, "_list_body", counted)

    async def body() -> None:
        source = FakeSource(status(mapping()))
        async with serving(bus, source) as service, client(bus) as root:
            await asyncio.gather(*(ask(root, "ListMappings") for _ in range(10)))
            assert made == ["ListMappings"]
            old, source.now = source.now, status(mapping(), mapping(1), generation=2)
            service.publish(old, source.now)
            assert len(await ask(root, "ListMappings")) == 2
            assert made == ["ListMappings"] * 2

    run(body())


def test_an_answer_that_the_bus_would_not_carry_is_refused(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dbus_lists, "MAX_ANSWER", 1000)

    async def body() -> None:
        source = FakeSource(status(*(mapping(number) for number in range(10))))
        source.text = "x" * 2000
        async with serving(bus, source), client(bus) as root:
            for member in ("ListMappings", "GetRuleset", "ListMappings"):
                with pytest.raises(BusError, match="more than the bus carries"):
                    await ask(root, member)
            assert len(await ask(root, "ListSkipped")) == 1

    run(body())
