"""Networks, containers, engines and events from JSON: recorded, hostile and of all versions."""

from __future__ import annotations

import json
from copy import deepcopy
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Any

import pytest

from ipv6natd.engine import parse as docker_facts
from ipv6natd.engine.parse import Subject
from ipv6natd.model import Container, Endpoint, Engine, GatewayMode, Network, PortBinding, Protocol
from tests.harness.build import RECORDED, identity, recorded
from tests.harness.every import every

ENGINE = Engine(version="20.10.24+dfsg1")
NEW_ENGINE = Engine(version="28.5.1")
NAMES = ("web", "in", "def", "noip6", "ho", "sh")
ADDRESS = IPv6Address("2001:db8::1")
BRIDGE = "com.docker.network.bridge."
HOST_IPV6 = "com.docker.network.host_ipv6"
HOSTILE = (
    'a"b',
    "a'b",
    "a b",
    "a\nb",
    "a\\b",
    "\0",
    "ä",
    "\ud800",
    "-A",
    "br+",
    "$(reboot)",
    "fd00:a::%eth0/64",
    "x" * 10_000,
)
INVALID: tuple[Any, ...] = (None, True, 0, 7, -1, 2.5, "", "x", [], ["x"], {}, {"x": 1}, [[]], "\0")


def inspected(name: str, engine: Engine = ENGINE) -> Container:
    found = docker_facts.container(recorded(f"inspect-{name}.json"), engine)
    assert found is not None
    return found


def listed(name: str, engine: Engine = ENGINE) -> Container:
    found = (docker_facts.container(row, engine) for row in recorded("list.json"))
    return next(
        container for container in found if container is not None and container.name == name
    )


def networks() -> dict[str, Network]:
    found = (docker_facts.network(row) for row in recorded("networks.json"))
    return {network.name: network for network in found if network is not None}


def raw_network(**fields: Any) -> dict[str, Any]:
    facts = {
        "Id": identity("x"),
        "Name": "x",
        "Driver": "bridge",
        "EnableIPv6": True,
        "IPAM": {"Config": [{"Subnet": "fd00:a::/64"}]},
        "Options": {},
    }
    return facts | fields


def network_of(**fields: Any) -> Network:
    found = docker_facts.network(raw_network(**fields))
    assert found is not None
    return found


def with_option(key: str, value: object) -> Network:
    return network_of(Options={key: value})


def raw_container(ports: object = None, **fields: Any) -> dict[str, Any]:
    """An inspect of Docker 28 for a network without IPv4: its IPv4 fields are missing."""
    facts = {
        "Id": identity("web"),
        "Name": "/web",
        "State": {"Running": True},
        "HostConfig": {},
        "NetworkSettings": {
            "Ports": ports if ports is not None else {},
            "Networks": {
                "x": {
                    "NetworkID": identity("x"),
                    "IPv6Gateway": "fd00:a::1",
                    "GlobalIPv6Address": "fd00:a::2",
                    "GwPriority": 0,
                }
            },
        },
    }
    return facts | fields


def container_of(raw: object, engine: Engine = NEW_ENGINE) -> Container:
    found = docker_facts.container(raw, engine)
    assert found is not None
    return found


def endpoint_of(**fields: Any) -> Endpoint:
    raw = raw_container()
    raw["NetworkSettings"]["Networks"]["x"].update(fields)
    (found,) = container_of(raw).endpoints
    return found


def binding_facts(container: Container) -> set[tuple[object, ...]]:
    bindings = container.bindings
    return {(b.protocol, b.container_port, b.host_address, b.host_port) for b in bindings}


def ipv6_ports(container: Container) -> list[str]:
    found = sorted(
        (binding.protocol, binding.host_port, binding.container_port, str(binding.host_address))
        for binding in container.bindings
        if isinstance(binding.host_address, IPv6Address)
    )
    return [f"[{address}]:{host}:{inside}/{p}" for p, host, inside, address in found]


# Recorded answers of a real engine.


def test_engine_of_the_recorded_answers() -> None:
    found = docker_facts.engine(recorded("version.json"), recorded("info.json"))
    assert found == ENGINE
    assert found.release == (20, 10, 24)


@pytest.mark.parametrize("name", NAMES)
def test_list_and_inspect_give_the_same_container(name: str) -> None:
    row, whole = listed(name), inspected(name)
    assert (row.id, row.name, binding_facts(row)) == (whole.id, whole.name, binding_facts(whole))
    assert [e.network_id for e in row.endpoints] == [e.network_id for e in whole.endpoints]
    assert row.problems == whole.problems == ()
    assert docker_facts.matches_inspect(row, whole)


def test_b1_b3_b6_r1_all_bindings_of_a_container_are_read() -> None:
    """81 and 82 are for IPv4 only, 84 is for [::1], and 85 has a port that the engine chose."""
    assert ipv6_ports(inspected("web")) == [
        "[::]:83:83/tcp",
        "[::1]:84:84/tcp",
        "[::]:7000:7000/tcp",
        "[::]:7001:7001/tcp",
        "[::]:7002:7002/tcp",
        "[::]:8080:80/tcp",
        "[::]:32770:85/tcp",
        "[::]:5353:53/udp",
    ]


def test_r2_publish_all_gives_the_ports_that_the_engine_chose() -> None:
    """-P sets no request, only bindings."""
    assert recorded("inspect-def.json")["HostConfig"]["PortBindings"] == {}
    assert ipv6_ports(inspected("def")) == ["[::]:32769:90/tcp"]


def test_p11_sysctl_disable_ipv6_removes_the_address() -> None:
    """Engines before 28 list the address nevertheless."""
    (on,), (off,) = listed("noip6").endpoints, inspected("noip6").endpoints
    assert (on.address, on.has_gateway6) == (IPv6Address("fd00:a::3"), True)
    assert (off.address, off.has_gateway6, off.has_gateway4) == (None, False, True)


def test_i10_container_on_an_internal_network_has_no_bindings() -> None:
    """The engine lists no binding for it."""
    assert inspected("in").bindings == ()


@pytest.mark.parametrize(("name", "endpoints"), [("ho", 1), ("sh", 0)])
def test_h16_host_and_container_network_have_no_ipv6_endpoint(name: str, endpoints: int) -> None:
    """H16."""
    found = inspected(name)
    assert found.bindings == ()
    assert [endpoint.address for endpoint in found.endpoints] == [None] * endpoints


def test_recorded_networks_are_read() -> None:
    found = networks()
    table = {n.name: (n.driver, n.bridge, n.enable_ipv6, n.internal) for n in found.values()}
    assert table == {
        "none": ("null", "br-f3fea88a4b24", False, False),
        "host": ("host", "br-c7ec2e1c27a0", False, False),
        "nov6": ("bridge", "br-af48f84aa1b2", False, False),
        "gua": ("bridge", "br-1cd276967010", True, False),
        "bridge": ("bridge", "docker0", True, False),
        "netx": ("bridge", "brX", True, False),
        "neti": ("bridge", "br-1a570fcce19c", True, True),
    }
    assert found["netx"].subnets == (IPv6Network("fd00:a::/64"),)
    assert all(network.warnings == () and not network.problem for network in found.values())


def test_subjects_of_the_recorded_events() -> None:
    events = (RECORDED / "events.json").read_text().splitlines()
    subjects = {s for line in events for s in docker_facts.event_subjects(json.loads(line))}
    known = {row["Id"] for row in recorded("networks.json")}
    assert {subject.id for subject in subjects if subject.kind == "network"} <= known
    assert ("container", inspected("web").id) in subjects


# Options of a network.


@pytest.mark.parametrize(
    ("ipam", "gateway"),
    [
        ({}, "fd00:a::1"),
        ({"Gateway": "fd00:a::ff"}, "fd00:a::ff"),
        ({"Gateway": "fd00:a::ff/64"}, "fd00:a::ff"),
        ({"Gateway": "172.18.0.1"}, None),
        ({"Gateway": "fd00:a::ff%x"}, None),
        ({"Gateway": ["fd00:a::ff"]}, None),
        ({"IPRange": "fd00:a::100/120"}, "fd00:a::100"),
        ({"IPRange": "fd00:a::/120"}, "fd00:a::1"),
        ({"IPRange": "x"}, None),
        ({"Subnet": f"{IPv6Address(2**128 - 1)}/128"}, None),
        ({"Subnet": "172.18.0.0/16", "Gateway": "172.18.0.1"}, None),
    ],
)
def test_gateway_is_the_configured_one_or_the_first_that_the_engine_takes(
    ipam: dict[str, Any], gateway: str | None
) -> None:
    """Q16."""
    ipv4 = {"Subnet": "172.19.0.0/16", "Gateway": "172.19.0.1"}
    config = [ipv4, {"Subnet": "fd00:a::/64"} | ipam]
    wanted = None if gateway is None else IPv6Address(gateway)
    assert network_of(IPAM={"Driver": "default", "Config": config}).gateway == wanted
    other = network_of(IPAM={"Driver": "other", "Config": config})
    assert other.gateway == (wanted if "Gateway" in ipam else None)


@pytest.mark.parametrize(
    ("key", "value", "attribute", "expected"),
    [
        (f"{BRIDGE}name", "mybr0", "bridge", "mybr0"),
        (f"{BRIDGE}name", "", "bridge", f"br-{identity('x')[:12]}"),
        (f"{BRIDGE}enable_icc", "false", "icc", False),
        (f"{BRIDGE}enable_icc", "0", "icc", False),
        (f"{BRIDGE}enable_icc", "T", "icc", True),
        (f"{BRIDGE}enable_ip_masquerade", "F", "masquerade", False),
        (f"{BRIDGE}enable_ip_masquerade", "TRUE", "masquerade", True),
        (f"{BRIDGE}gateway_mode_ipv6", "", "gateway_mode", GatewayMode.NAT),
        (f"{BRIDGE}gateway_mode_ipv6", "routed", "gateway_mode", GatewayMode.ROUTED),
        (f"{BRIDGE}gateway_mode_ipv6", "isolated", "gateway_mode", GatewayMode.ISOLATED),
        (f"{BRIDGE}host_binding_ipv4", "127.0.0.1", "host_binding_ipv4", IPv4Address("127.0.0.1")),
        (f"{BRIDGE}host_binding_ipv4", "::", "host_binding_ipv4", IPv6Address("::")),
        (f"{BRIDGE}host_binding_ipv6", "2001:db8::1", "host_binding_ipv6", ADDRESS),
        (f"{BRIDGE}host_binding_ipv6", "", "host_binding_ipv6", None),
        (HOST_IPV6, "2001:db8::1", "source_address", ADDRESS),
        (f"{BRIDGE}trusted_host_interfaces", "eth0:eth1", "trusted_interfaces", ("eth0", "eth1")),
        (f"{BRIDGE}enable_ip_forwarding", "yes", "warnings", ()),
        ("com.example.unknown", "\n", "warnings", ()),
    ],
)
def test_valid_option_is_used(key: str, value: str, attribute: str, expected: object) -> None:
    found = with_option(key, value)
    assert getattr(found, attribute) == expected
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("key", "value", "attribute", "shown", "in_force"),
    [
        (f"{BRIDGE}enable_icc", "yes", "icc", "'yes'", "true is in force"),
        (f"{BRIDGE}enable_icc", "", "icc", "''", "true is in force"),
        (f"{BRIDGE}enable_icc", ["false"], "icc", "false", "true is in force"),
        (f"{BRIDGE}enable_icc", "x" * 10_000, "icc", "xxx...'", "true is in force"),
        (f"{BRIDGE}enable_ip_masquerade", "no\n", "masquerade", "'no\\n'", "true is in force"),
        (f"{BRIDGE}gateway_mode_ipv6", "open", "gateway_mode", "'open'", "nat is in force"),
        (f"{BRIDGE}gateway_mode_ipv6", ["nat"], "gateway_mode", "nat", "nat is in force"),
        (f"{BRIDGE}host_binding_ipv4", "localhost", "host_binding_ipv4", "'local", "ignored"),
        (f"{BRIDGE}host_binding_ipv6", "2001:db8::1/64", "host_binding_ipv6", "/64", "ignored"),
        (f"{BRIDGE}host_binding_ipv6", "192.0.2.1", "host_binding_ipv6", "192.0.2.1", "ignored"),
        (f"{BRIDGE}host_binding_ipv6", "::ffff:1.2.3.4", "host_binding_ipv6", "1.2", "ignored"),
        (f"{BRIDGE}host_binding_ipv6", "fe80::1%eth0", "host_binding_ipv6", "%eth0", "ignored"),
        (HOST_IPV6, "2001:db8::1 -j ACCEPT", "source_address", "-j ACCEPT", "ignored"),
        (HOST_IPV6, "ä", "source_address", "'\\xe4'", "ignored"),
        (HOST_IPV6, {"x": 1}, "source_address", "{", "ignored"),
        (f"{BRIDGE}trusted_host_interfaces", "a b", "trusted_interfaces", "'a b'", "left out"),
    ],
)
def test_v8_invalid_option_keeps_the_default_and_adds_a_warning(
    key: str, value: object, attribute: str, shown: str, in_force: str
) -> None:
    """The warning has the key, the value and the default."""
    found, plain = with_option(key, value), network_of()
    assert getattr(found, attribute) == getattr(plain, attribute)
    (warning,) = found.warnings
    assert key in warning
    assert shown in warning
    assert in_force in warning
    assert len(warning) < 300
    assert warning.isascii()
    assert warning.isprintable()


@pytest.mark.parametrize("name", ["br lan", "br+", "-br", "a" * 16, 'b"r', "b\nr", "bä", "b\\"])
def test_bridge_name_that_no_rule_can_have_is_a_problem(name: str) -> None:
    found = with_option(f"{BRIDGE}name", name)
    assert found.bridge == ""
    assert "cannot be used in a rule" in found.problem
    assert found.problem.isprintable()


@pytest.mark.parametrize("name", ["a" * 15, "br-0123456789ab", "lan.1", "eth0@x", "_x", "0"])
def test_valid_bridge_name_is_used(name: str) -> None:
    assert with_option(f"{BRIDGE}name", name).bridge == name


@pytest.mark.parametrize(
    "subnet",
    ["fd00:a::/129", "fd00:g::/64", "fd00::a::/64", ":", "fd00:a::%\n-A FORWARD -j ACCEPT\n/64"],
)
def test_unreadable_subnet_is_left_out_with_a_warning(subnet: str) -> None:
    config = [{"Subnet": subnet}, {"Subnet": "fd00:b::/64"}, {"Subnet": "172.18.0.0/16"}]
    found = network_of(IPAM={"Config": config})
    assert found.subnets == (IPv6Network("fd00:b::/64"),)
    (warning,) = found.warnings
    assert "left out" in warning
    assert warning.isprintable()


def test_subnet_with_host_bits_is_masked() -> None:
    found = network_of(IPAM={"Config": [{"Subnet": "fd00:a::5/64"}]})
    assert found.subnets == (IPv6Network("fd00:a::/64"),)


@every("value", HOSTILE)
def test_hostile_network_name_is_cut_and_valid_utf8(value: str) -> None:
    found = network_of(Name=value)
    assert 0 < len(found.name) <= 255
    assert found.name.encode()


@every("value", {repr(value): value for value in INVALID + HOSTILE})
@every("field", list(raw_network()))
def test_network_with_any_value_in_any_field_does_not_raise(field: str, value: object) -> None:
    found = docker_facts.network(raw_network(**{field: value}))
    assert (found is None) == (field == "Id" and value != "x")


@pytest.mark.parametrize("raw", INVALID)
def test_other_json_is_no_network_and_no_container(raw: object) -> None:
    assert docker_facts.network(raw) is None
    assert docker_facts.container(raw, ENGINE) is None


# Containers.


@pytest.mark.parametrize(
    ("ports", "bindings"),
    [
        ({"80/tcp": [{"HostIp": "::", "HostPort": "8080"}]}, ["[::]:8080:80/tcp"]),
        ({"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}, []),
        ({"80/tcp": None, "53/udp": [{"HostIp": "::1", "HostPort": "1"}]}, ["[::1]:1:53/udp"]),
        ({"9/sctp": [{"HostIp": "2001:db8::1", "HostPort": "9"}]}, ["[2001:db8::1]:9:9/sctp"]),
        ({"80/tcp": [{"HostIp": "::ffff:192.0.2.1", "HostPort": "8080"}]}, []),
    ],
)
def test_bindings_of_an_inspect(ports: object, bindings: list[str]) -> None:
    assert ipv6_ports(container_of(raw_container(ports))) == bindings


def test_p12_ipv6_only_network_without_ipv4_fields_is_read() -> None:
    """An inspect of Docker 28 for a network created with --ipv4=false."""
    found = container_of(raw_container({"80/tcp": [{"HostIp": "::", "HostPort": "8080"}]}))
    assert found.endpoints == (
        Endpoint(network_id=identity("x"), address=IPv6Address("fd00:a::2"), has_gateway6=True),
    )
    assert ipv6_ports(found) == ["[::]:8080:80/tcp"]


@pytest.mark.parametrize(
    ("port", "entry", "words"),
    [
        ("80/tcp", {"HostIp": ":", "HostPort": "8080"}, "':', which is not an IP address"),
        ("80/tcp", {"HostIp": "fe80::1%eth0", "HostPort": "8080"}, "not an IP address"),
        ("80/tcp", {"HostIp": 0, "HostPort": "8080"}, "0', which is not an IP address"),
        ("80/tcp", {"HostIp": [], "HostPort": "8080"}, "not an IP address"),
        ("80/tcp", {"HostIp": "::\n-j", "HostPort": "8080"}, "'::\\n-j'"),
        ("80/tcp", {"HostIp": "::", "HostPort": "65536"}, "'65536' as its host port"),
        ("80/tcp", {"HostIp": "::", "HostPort": "0"}, "'0' as its host port"),
        ("80/tcp", {"HostIp": "::", "HostPort": "-1"}, "'-1' as its host port"),
        ("80/tcp", {"HostIp": "::", "HostPort": "٣"}, "as its host port"),
        ("80/tcp", {"HostIp": "::", "HostPort": 8080}, "'8080' as its host port"),
        ("80/tcp", {"HostIp": "::", "HostPort": "9" * 10_000}, "...' as its host port"),
        ("0/tcp", {"HostIp": "::", "HostPort": "8080"}, "'0/tcp'"),
        ("65536/tcp", {"HostIp": "::", "HostPort": "8080"}, "'65536/tcp'"),
        ("80/icmp", {"HostIp": "::", "HostPort": "8080"}, "'80/icmp'"),
        ("80", {"HostIp": "::", "HostPort": "8080"}, "'80'"),
        ("80/tcp\n", {"HostIp": "::", "HostPort": "8080"}, "'80/tcp\\n'"),
        ("\ud800", {"HostIp": "::", "HostPort": "8080"}, "'\\ud800'"),
    ],
)
def test_b15_unreadable_binding_is_a_problem_and_the_others_are_read(
    port: str, entry: object, words: str
) -> None:
    """Also ports out of range: never forwarded, always reported."""
    ports = {port: [entry], "81/tcp": [{"HostIp": "::", "HostPort": "81"}]}
    found = container_of(raw_container(ports))
    assert ipv6_ports(found) == ["[::]:81:81/tcp"]
    ((where, reason),) = found.problems
    assert words in reason
    assert reason.isprintable()
    assert where.isprintable()
    assert len(where) <= 60


@pytest.mark.parametrize("entry", [5, "x", None, [], {}, {"HostIp": "::"}])
def test_binding_without_a_host_port_has_port_0(entry: object) -> None:
    found = container_of(raw_container({"80/tcp": [entry]}))
    assert all(binding.host_port == 0 for binding in found.bindings)


@pytest.mark.parametrize(
    ("row", "bindings", "problems"),
    [
        ({"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}, 1, 0),
        ({"PrivatePort": 80, "Type": "tcp"}, 0, 0),
        ({"IP": "x", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}, 0, 1),
        ({"IP": "::", "PrivatePort": 80, "PublicPort": 65536, "Type": "tcp"}, 0, 1),
        ({"IP": "::", "PrivatePort": -1, "PublicPort": 1, "Type": "tcp"}, 0, 1),
        ({"IP": "::", "PublicPort": 1}, 0, 1),
        ({"IP": "::", "PrivatePort": 80.0, "PublicPort": 1, "Type": "tcp"}, 0, 1),
        ("x", 0, 0),
        (None, 0, 0),
    ],
)
def test_bindings_of_a_list_row(row: object, bindings: int, problems: int) -> None:
    found = container_of(raw_container(Ports=[row]))
    assert (len(found.bindings), len(found.problems)) == (bindings, problems)


@pytest.mark.parametrize(
    ("fields", "running"),
    [
        ({"State": {"Running": True}}, True),
        ({"State": {"Running": True, "Paused": True}}, True),
        ({"State": {"Running": False}}, False),
        ({"State": {}}, False),
        ({"State": "running"}, True),
        ({"State": "paused"}, True),
    ],
)
def test_p9_p10_container_that_does_not_run_is_none(fields: dict[str, Any], running: bool) -> None:
    """A paused container runs."""
    assert (docker_facts.container(raw_container(**fields), ENGINE) is not None) is running


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (["/web"], "web"),
        (["/app/db", "/db"], "db"),
        (["/db", "/app/db"], "db"),
        (["/app/db"], "app/db"),
        (["/"], identity("web")[:12]),
        ([7], identity("web")[:12]),
        ([], "web"),
    ],
)
def test_name_of_a_container_is_not_the_alias_of_a_link(names: list[object], name: str) -> None:
    assert container_of(raw_container(Names=names)).name == name


@every("value", HOSTILE)
def test_hostile_container_name_is_cut_and_valid_utf8(value: str) -> None:
    found = container_of(raw_container(Name=value))
    assert 0 < len(found.name) <= 255
    assert found.name.encode()


@pytest.mark.parametrize(
    ("gateway", "has"),
    [
        ("fd00:a::1", True),
        ("fd00:a::1/64", True),
        ("<nil>", False),
        ("", False),
        ("172.18.0.1", False),
        (None, False),
        (["fd00:a::1"], False),
    ],
)
def test_gateway6_in_the_formats_of_all_engines(gateway: object, has: bool) -> None:
    assert endpoint_of(IPv6Gateway=gateway).has_gateway6 is has


@pytest.mark.parametrize("address", ["", None, 5, "x", "172.18.0.2", "fd00:a::2/64", "fd00::%\n"])
def test_invalid_ipv6_address_is_none(address: object) -> None:
    assert endpoint_of(GlobalIPv6Address=address).address is None


@pytest.mark.parametrize(
    ("value", "priority"), [(5, 5), (-1, -1), (None, 0), ("5", 0), (True, 0), (1.5, 0)]
)
def test_m2_gateway_priority_is_a_number_or_0(value: object, priority: int) -> None:
    """M2."""
    assert endpoint_of(GwPriority=value).gw_priority == priority


def paths(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside: list[tuple[Any, ...]] = [path] if path else []
    items = value.items() if isinstance(value, dict) else ()
    for key, item in [*items, *(enumerate(value) if isinstance(value, list) else ())]:
        inside += paths(item, (*path, key))
    return inside


@pytest.mark.parametrize("value", INVALID)
def test_inspect_with_any_value_anywhere_does_not_raise(value: object) -> None:
    whole = raw_container({"80/tcp": [{"HostIp": "::", "HostPort": "8080"}]})
    for *way, last in paths(whole):
        mangled = deepcopy(whole)
        place: Any = mangled
        for key in way:
            place = place[key]
        place[last] = value
        found = docker_facts.container(mangled, ENGINE)
        assert found is None or found.id


@pytest.mark.parametrize("field", ["State", "HostConfig", "NetworkSettings", "Name"])
def test_inspect_with_a_missing_field_does_not_raise(field: str) -> None:
    raw = raw_container()
    del raw[field]
    assert container_of(raw).id == identity("web")


# Engines.


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("20.10.24+dfsg1", (20, 10, 24)),
        ("20.10.5", (20, 10, 5)),
        ("28.0.0-rc.1", (28, 0, 0)),
        ("29", (29,)),
        ("20.x.5", (20,)),
        ("master", ()),
        ("", ()),
        ("1" * 5000, (111_111_111,)),
    ],
)
def test_release_is_the_leading_numbers_of_the_version(
    version: str, release: tuple[int, ...]
) -> None:
    assert Engine(version=version).release == release


@pytest.mark.parametrize("answer", INVALID)
def test_engine_of_other_json_is_unknown(answer: object) -> None:
    found = docker_facts.engine(answer, answer)
    assert found == Engine(version="unknown", rootless=False, experimental=answer is None)


def test_engine_with_rootless_option_is_rootless() -> None:
    assert docker_facts.engine({}, {"SecurityOptions": ["name=rootless"]}).rootless


@pytest.mark.parametrize(
    ("version", "asked", "bound", "mirrored"),
    [
        ("20.10.5", "", "0.0.0.0", True),
        ("19.03.15", "", "0.0.0.0", True),
        ("20.10.6", "", "0.0.0.0", False),
        ("28.0.0", "", "0.0.0.0", False),
        ("20.10.5", "0.0.0.0", "0.0.0.0", False),
        ("20.10.5", "127.0.0.1", "127.0.0.1", False),
        ("20.10.5", "", "127.0.0.1", False),
    ],
)
def test_b3_b8_old_engine_gets_ipv6_bindings_only_for_requests_without_address(
    version: str, asked: str, bound: str, mirrored: bool
) -> None:
    """Not for a request for 0.0.0.0, and not for the address of --ip."""
    raw = raw_container(
        {"80/tcp": [{"HostIp": bound, "HostPort": "8080"}]},
        HostConfig={"PortBindings": {"80/tcp": [{"HostIp": asked, "HostPort": "8080"}]}},
    )
    found = container_of(raw, Engine(version=version))
    expected = PortBinding(
        protocol=Protocol.TCP,
        container_port=80,
        host_address=None,
        host_port=8080,
        explicit_address=False,
    )
    assert (expected in found.bindings) is mirrored
    assert len(found.bindings) == 1 + mirrored


def test_old_engine_that_lists_ipv6_gets_no_more_bindings() -> None:
    entries = [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8081"}]
    raw = raw_container({"80/tcp": entries}, HostConfig={"PortBindings": {"80/tcp": [{}]}})
    found = container_of(raw, Engine(version="20.10.5"))
    assert ipv6_ports(found) == ["[::]:8081:80/tcp"]
    assert len(found.bindings) == 2


@pytest.mark.parametrize(
    ("version", "name", "needs"),
    [
        ("20.10.24", "web", True),
        ("20.10.24", "in", True),
        ("27.5.1", "web", True),
        ("28.0.0", "web", False),
        ("20.10.5", "web", True),
        ("20.10.5", "sh", True),
    ],
)
def test_needs_inspect_by_release_and_container(version: str, name: str, needs: bool) -> None:
    engine = Engine(version=version)
    assert docker_facts.needs_inspect(listed(name, engine), engine, {}) is needs


@pytest.mark.parametrize(
    ("version", "bound", "needs"),
    [("28.5.2", "0.0.0.0", True), ("28.5.2", "127.0.0.1", False), ("20.10.24", "0.0.0.0", False)],
)
def test_p11_needs_inspect_for_a_wildcard_binding_without_ipv6_address(
    version: str, bound: str, needs: bool
) -> None:
    """Docker 28 without its proxy publishes such a port on IPv4 only."""
    raw = raw_container({"80/tcp": [{"HostIp": bound, "HostPort": "8080"}]})
    raw["NetworkSettings"]["Networks"]["x"] |= {"GlobalIPv6Address": "", "IPv6Gateway": ""}
    engine = Engine(version=version)
    networks = {identity("x"): network_of()}
    assert docker_facts.needs_inspect(container_of(raw, engine), engine, networks) is needs
    networks = {identity("x"): network_of(EnableIPv6=False)}
    assert not docker_facts.needs_inspect(container_of(raw, engine), engine, networks)


def test_b15_unreadable_requested_address_counts_as_none() -> None:
    """Every engine binds such a port like a request without an address."""
    entries = [{"HostIp": address, "HostPort": "8080"} for address in ("0.0.0.0", "::")]
    asked = {"PortBindings": {"80/tcp": [{"HostIp": ":", "HostPort": "8080"}]}}
    found = container_of(raw_container({"80/tcp": entries}, HostConfig=asked))
    assert ipv6_ports(found) == ["[::]:8080:80/tcp"]
    assert [binding.explicit_address for binding in found.bindings] == [False, False]
    assert found.problems == ()


def test_row_with_new_facts_does_not_match_the_inspect() -> None:
    row = listed("web")
    assert not docker_facts.matches_inspect(row, None)
    assert not docker_facts.matches_inspect(row, inspected("in"))
    moved = raw_container()
    moved["NetworkSettings"]["Networks"]["x"]["GlobalIPv6Address"] = "fd00:a::9"
    known, listed_now = container_of(raw_container()), container_of(moved)
    assert not docker_facts.matches_inspect(listed_now, known)


# Events.

CONTAINER, NETWORK = Subject("container", "c"), Subject("network", "n")


@pytest.mark.parametrize(
    ("event", "subjects"),
    [
        (
            {"Type": "container", "Action": "start", "Actor": {"ID": "c", "Attributes": {}}},
            [CONTAINER],
        ),
        ({"Type": "container", "Action": "die", "Actor": {"ID": "c"}}, [CONTAINER]),
        ({"Type": "container", "Action": "create", "Actor": {"ID": "c"}}, []),
        ({"Type": "container", "Action": ["start"], "Actor": {"ID": "c"}}, []),
        ({"Type": "network", "Action": "create", "Actor": {"ID": "n"}}, [NETWORK]),
        (
            {
                "Type": "network",
                "Action": "connect",
                "Actor": {"ID": "n", "Attributes": {"container": "c"}},
            },
            [CONTAINER, NETWORK],
        ),
        ({"Type": "image", "Action": "pull", "Actor": {"ID": "i"}}, []),
        ({"Type": "container", "Action": "start", "Actor": {"ID": "../../info?x"}}, []),
        ({"status": "start", "id": "c", "from": "lab:1"}, []),
        ({"Type": ["container"], "Actor": "c"}, []),
        ({"Type": "network", "Actor": {"ID": 5, "Attributes": ["container"]}}, []),
    ],
)
def test_event_subjects_of_all_api_versions(event: object, subjects: list[Subject]) -> None:
    """API 1.52 has no status, id and from; they are not read."""
    assert docker_facts.event_subjects(event) == subjects


@pytest.mark.parametrize(
    ("action", "attributes", "expected"),
    [
        ("rename", {"name": "new", "oldName": "/old"}, ("c", "new")),
        ("rename", {}, ("c", "")),
        ("destroy", {"name": "old"}, ("c", "")),
        ("die", {"name": "old"}, None),
    ],
)
def test_name_of_a_container_after_an_event(
    action: str, attributes: dict[str, str], expected: tuple[str, str] | None
) -> None:
    event = {
        "Type": "container",
        "Action": action,
        "Actor": {"ID": "c", "Attributes": attributes},
    }
    assert docker_facts.named(event) == expected


@pytest.mark.parametrize("raw", INVALID)
def test_event_subjects_of_other_json_are_empty(raw: object) -> None:
    assert docker_facts.event_subjects(raw) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a", "'a'"), ("a\nb", "'a\\nb'"), ("ä", "'\\xe4'"), (5, "'5'"), (None, "'None'")],
)
def test_quoted_escapes_a_value(value: object, expected: str) -> None:
    assert docker_facts.quoted(value) == expected


def test_quoted_cuts_a_long_value() -> None:
    assert docker_facts.quoted("x" * 10_000) == "'" + "x" * 55 + "...'"


def test_requests_that_the_engine_publishes_nowhere_are_read_from_an_inspect() -> None:
    """Q19: `-p 8080:80 -p 7000-7010:70/udp` on a macvlan network."""
    asked = {
        "80/tcp": [{"HostIp": "", "HostPort": "8080"}],
        "70/udp": [{"HostIp": "::", "HostPort": "7000-7010"}],
        "90/tcp": [{"HostIp": "", "HostPort": ""}],
        "nonsense": [{"HostPort": "1"}],
        "91/tcp": None,
    }
    raw = raw_container(
        {"80/tcp": None, "90/tcp": [{"HostIp": "", "HostPort": "32768"}]},
        HostConfig={"PortBindings": asked},
    )
    found = container_of(raw, Engine(version="28.5.1"))
    ports = [(each.protocol, each.host_port, each.container_port) for each in found.unpublished]
    assert ports == [(Protocol.TCP, 8080, 80), (Protocol.UDP, 7000, 70)]
    assert [each.container_port for each in found.bindings] == [90]


@pytest.mark.parametrize("value", [None, [], "x", {"80/tcp": 5}, {"80/tcp": [None, "x"]}])
def test_malformed_requests_are_no_requests(value: object) -> None:
    raw = raw_container({}, HostConfig={"PortBindings": value})
    found = container_of(raw, Engine(version="28.5.1"))
    assert all(not each.host_port for each in found.unpublished)


@pytest.mark.parametrize(
    ("sysctls", "options", "networks", "addresses"),
    [
        ({}, None, 1, 1),
        ({"net.ipv6.conf.all.disable_ipv6": "1"}, None, 2, 0),
        ({"net.ipv6.conf.eth0.disable_ipv6": "1"}, None, 1, 0),
        ({"net.ipv6.conf.eth0.disable_ipv6": "0"}, None, 1, 1),
        ({"net.ipv6.conf.eth0.disable_ipv6": "2"}, None, 1, 0),
        ({"net.ipv6.conf.eth0.accept_ra": "1"}, None, 1, 1),
        ({"net.ipv6.conf.eth0.disable_ipv6": "1"}, None, 2, 2),
        ({}, "net.ipv6.conf.IFNAME.disable_ipv6=1", 2, 1),
        ({}, "net.ipv4.conf.IFNAME.log_martians=1,net.ipv6.conf.IFNAME.disable_ipv6=1", 1, 0),
        ({}, "net.ipv6.conf.IFNAME.disable_ipv6=0", 1, 1),
    ],
)
def test_sysctl_that_disables_ipv6_inside_takes_the_address(
    sysctls: dict[str, str], options: str | None, networks: int, addresses: int
) -> None:
    """P11 and Q15."""
    raw = raw_container({}, HostConfig={"Sysctls": sysctls})
    first = raw["NetworkSettings"]["Networks"].pop("x")
    for number in range(networks):
        own = {"com.docker.network.endpoint.sysctls": options} if options and not number else None
        raw["NetworkSettings"]["Networks"][f"x{number}"] = first | {
            "NetworkID": identity(f"x{number}"),
            "DriverOpts": own,
        }
    found = container_of(raw, Engine(version="28.5.1"))
    assert len(found.endpoints) == networks
    with_address = [each for each in found.endpoints if each.address and each.has_gateway6]
    assert len(with_address) == addresses
