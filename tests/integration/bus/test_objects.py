"""Objects, interfaces and members: what is served, what the XML says, what busctl shows."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from ipv6natd.dbus import log_control
from ipv6natd.dbus.connection import BusError
from ipv6natd.dbus.members import METHODS
from ipv6natd.dbus.objects import (
    INTROSPECTABLE,
    LOG,
    LOG_PATH,
    MANAGER,
    NAME,
    PATH,
    PROPERTIES,
    SERVED,
    introspection,
)
from ipv6natd.report.status import (
    properties,
)
from tests import ROOT
from tests.harness.needs import need
from tests.integration.bus.conftest import (
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

DBUS = ROOT / "dbus"


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
