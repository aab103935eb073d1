"""Objects, interfaces and members: the service, the XML and busctl agree."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from ipv6natd.dbus import log_control
from ipv6natd.dbus.connection import BusError
from ipv6natd.dbus.members import METHODS
from ipv6natd.dbus.objects import (
    INTERFACES,
    INTROSPECTABLE,
    LOG_CONTROL,
    LOG_CONTROL_PATH,
    MANAGER,
    NAME,
    PATH,
    PROPERTIES,
    introspection,
)
from ipv6natd.dbus.values import SIGNATURES
from ipv6natd.report.status import properties
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
    """(interface, member) -> (in, out) signatures of the XML; (type, "") for signal or property."""
    found = {}
    for interface in ElementTree.fromstring(introspection(path)).iter("interface"):
        for member in interface.iter(kind):
            args = [(arg.get("direction", "in"), arg.attrib["type"]) for arg in member.iter("arg")]
            both = [
                "".join(type_ for arg_direction, type_ in args if arg_direction == direction)
                for direction in ("in", "out")
            ]
            both[0] += member.get("type", "")
            found[interface.attrib["name"], member.attrib["name"]] = (both[0], both[1])
    return found


@pytest.mark.parametrize("path", INTERFACES)
def test_xml_of_each_object_matches_the_implementation(path: str) -> None:
    interfaces = [
        interface.get("name")
        for interface in ElementTree.fromstring(introspection(path)).iter("interface")
    ]
    assert sorted(interfaces, key=str) == sorted(INTERFACES[path])
    implemented = {
        key: (method.in_signature, method.out_signature)
        for key, method in METHODS.items()
        if key[0] in INTERFACES[path]
    }
    assert members(path, "method") == implemented
    rows = {
        PATH: (MANAGER, properties(status())),
        LOG_CONTROL_PATH: (LOG_CONTROL, log_control.properties()),
    }
    interface, row = rows.get(path, ("", {}))
    typed = {(interface, name): (SIGNATURES.get(name, "s"), "") for name in row}
    assert members(path, "property") == typed


@pytest.mark.parametrize("path", INTERFACES)
def test_every_argument_in_the_xml_has_a_name(path: str) -> None:
    for arg in ElementTree.fromstring(introspection(path)).iter("arg"):
        assert arg.get("name")


def test_introspection_xml_is_served_and_links_every_object(bus: Bus) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status())), client(bus) as root:
            found, left = [], ["/"]
            while left:
                path = left.pop()
                xml = await ask(root, "Introspect", interface=INTROSPECTABLE, path=path)
                assert xml == introspection(path)
                found.append(path)
                nodes = ElementTree.fromstring(xml).findall("node")
                left += [f"{path.rstrip('/')}/{node.get('name')}" for node in nodes]
            assert sorted(found) == sorted(INTERFACES)
            for name in (NAME, LOG_CONTROL):
                path = PATH if name == NAME else LOG_CONTROL_PATH
                assert introspection(path) == (DBUS / f"{name}.xml").read_text()

    run(body())


@pytest.mark.parametrize("path", INTERFACES)
def test_get_all_returns_the_properties_of_each_interface(bus: Bus, path: str) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status())), client(bus) as root:
            for interface in ("", *INTERFACES[path]):
                words = ("GetAll", "s", interface)
                if PROPERTIES not in INTERFACES[path]:
                    with pytest.raises(BusError, match="has no interface"):
                        await ask(root, *words, interface=PROPERTIES, path=path)
                    continue
                answer = await ask(root, *words, interface=PROPERTIES, path=path)
                own = interface in ("", MANAGER, LOG_CONTROL)
                wanted = {name for _, name in members(path, "property")} if own else set()
                assert set(answer) == wanted

    run(body())


def test_busctl_shows_the_flags_of_each_member(bus: Bus) -> None:
    need("busctl")

    async def body() -> None:
        async with serving(bus, FakeSource(status(mapping()))):
            busctl = ("busctl", f"--address={bus.address}")
            flags: dict[str, str] = {}
            for path in INTERFACES:
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
            assert LOG_CONTROL_PATH in out
            code, out, err = await command(
                bus, *busctl, "--json=short", "call", NAME, PATH, MANAGER, "ListMappings"
            )
            assert '"HostPort":{"type":"q","data":8000}' in out

    run(body())


def test_source_tree_has_no_bus_activation_file() -> None:
    assert not list(DBUS.parent.glob("dbus/*.service"))
    assert not [path for path in DBUS.parent.glob("systemd/*") if "Alias=dbus" in path.read_text()]
