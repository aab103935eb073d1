"""Host addresses of bindings, by options and settings: B9 to B16, O4, O6, O9."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from ipaddress import IPv6Address, IPv6Network
from typing import Any

import pytest

from tests.harness import Daemon, Engine, Failure, Namespace, Regime, Sandbox, serve, tcp, until
from tests.harness.engine import IMAGE
from tests.harness.process import LabError
from tests.harness.sandbox import CLIENT, CLIENT4, HOST, HOST_TOO
from tests.system.packets.asking import SHORT, dnats, listed, opened, peer, server

pytestmark = pytest.mark.depends_on("proxy", "engine")

V4 = "com.docker.network.bridge.host_binding_ipv4"
V6 = "com.docker.network.bridge.host_binding_ipv6"
SOURCE = "com.docker.network.host_ipv6"
LATE = IPv6Address("2001:db8:1::66")
PUBLIC = "2001:db8:f::/48"


@pytest.mark.depends_on
def test_b9_default_ipv4_binding_option_accepts_an_ipv6_address(regime: Regime) -> None:
    port = regime.port()
    with (
        regime.network(options={V4: str(HOST_TOO)}) as network,
        regime.container(network=network, publish=[f"{port}:80"]),
    ):
        opened(regime.client, port, address=HOST_TOO)
        assert tcp(regime.client, HOST, port) is Failure.REFUSED


@pytest.mark.parametrize("options", [{V6: str(HOST_TOO)}, {V4: "127.0.0.1", V6: str(HOST_TOO)}])
def test_b10_b11_default_ipv6_binding_option_sets_the_host_address(
    regime: Regime, options: dict[str, str]
) -> None:
    port = regime.port()
    with (
        regime.network(options=options) as network,
        regime.container(network=network, publish=[f"{port}:80"]),
    ):
        opened(regime.client, port, address=HOST_TOO)
        assert peer(tcp(regime.client, HOST, port)) != CLIENT


@pytest.mark.ours
def test_b12_binding_to_a_missing_address_works_once_the_host_has_it(regime: Regime) -> None:
    port = regime.port()
    options = {V6: str(LATE)}
    with (
        regime.network(options=options) as network,
        regime.container(network=network, publish=[f"{port}:80"]),
    ):
        assert until(lambda: len(dnats(regime.sandbox.rules(), port)), 1) == 1
        (row,) = [row for row in listed(regime.daemon, "networks") if row["Name"] == network.name]
        assert str(LATE) in row["Warnings"][0]
        regime.host.ip(f"address add {LATE}/64 dev ext0 nodad preferred_lft 0")
        try:
            opened(regime.client, port, address=LATE)
        finally:
            regime.host.ip(f"address del {LATE}/64 dev ext0")


def test_b13_two_containers_share_a_port_on_two_addresses(regime: Regime) -> None:
    port = regime.port()
    with (
        regime.container(publish=[f"[{HOST}]:{port}:80"]) as one,
        regime.container(publish=[f"[{HOST_TOO}]:{port}:80"]) as two,
    ):
        assert opened(regime.client, port).server == one.name
        assert opened(regime.client, port, address=HOST_TOO).server == two.name


def test_b14_engine_refuses_an_address_binding_beside_a_wildcard(regime: Regime) -> None:
    with (
        pytest.raises(LabError, match=r"already (in use|allocated)"),
        regime.container(publish=[f"[{HOST_TOO}]:8080:80"]),
    ):
        pass
    assert opened(regime.client, 8080, address=HOST_TOO).server == "x1"
    assert len(dnats(regime.sandbox.rules(), 8080)) == 1


def create(engine: Engine, name: str, **host_config: Any) -> None:
    """Create a container that the engine's API accepts and its command line rejects."""
    body = {"Image": IMAGE, "Cmd": ["sleep", "infinity"], "ExposedPorts": {"80/tcp": {}}}
    post(engine, f"/containers/create?name={name}", body | {"HostConfig": host_config})


def post(engine: Engine, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of the engine's API to a request that creates something."""
    connection = HTTPConnection("engine")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(engine.socket))
    with closing(connection):
        kind = {"Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), kind)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 201, text
        return dict(json.loads(text))


def test_second_network_of_a_name_changes_no_port_of_the_first(regime: Regime) -> None:
    """An engine starts no container on either of them then, and a later one refuses the second."""
    port, made = regime.port(), []

    def twin(number: int) -> str:
        addresses = [{"Subnet": f"fd00:2{number}::/64"}]
        body = {"Name": "twin", "EnableIPv6": True, "IPAM": {"Config": addresses}}
        made.append(str(post(regime.engine, "/v1.41/networks/create", body)["Id"]))
        return made[-1]

    try:
        with regime.container(network=twin(1), publish=[f"{port}:80"]) as one:
            if regime.engine.release < (25,):
                bridge = f"br-{twin(2)[:12]}"
                assert until(lambda: bridge in regime.sandbox.rules(), wanted=True)
                assert opened(regime.client, port).server == one.name
                regime.engine.docker("network", "rm", made.pop())
                assert until(lambda: bridge not in regime.sandbox.rules(), wanted=True)
            else:
                with pytest.raises(AssertionError, match="already exists"):
                    twin(2)
            assert opened(regime.client, port).server == one.name
    finally:
        for network in made:
            regime.engine.docker("network", "rm", network)


def test_b15_invalid_host_ip_is_published_as_the_engine_reads_it(regime: Regime) -> None:
    port = regime.port()
    asked = {"80/tcp": [{"HostIp": ":", "HostPort": str(port)}]}
    create(regime.engine, "box15", NetworkMode="X", PortBindings=asked)
    try:
        regime.engine.docker("start", "box15")
        made = regime.engine.container("box15", network="X")
        assert made.port() == port
        with serve(made.ns, "box15", tcp=[80]):
            assert opened(regime.client, port).server == "box15"
        if not regime.native:
            rows = listed(regime.daemon, "skipped")
            assert [row for row in rows if row["ContainerName"] == "box15"] == []
    finally:
        regime.engine.rm("box15")


@dataclass(frozen=True, kw_only=True)
class ConfiguredLab:
    """A lab whose daemon has other settings."""

    sandbox: Sandbox
    engine: Engine

    @property
    def client(self) -> Namespace:
        return self.sandbox.client


@pytest.fixture(scope="module")
def configured(tools: None) -> Iterator[ConfiguredLab]:  # noqa: ARG001
    settings = (
        "ipv4_any_means_ipv6 = true",
        f'address_map = {{ "192.0.2.10" = "{HOST_TOO}" }}',
        f'nat_prefixes = ["fc00::/7", "{PUBLIC}"]',
    )
    with (
        Sandbox() as sandbox,
        Engine(sandbox) as engine,
        Daemon(sandbox, engine.endpoint, settings=settings),
    ):
        engine.network("X", "fd00:a::/64")
        yield ConfiguredLab(sandbox=sandbox, engine=engine)


def test_b3_b16_settings_map_ipv4_bindings_to_ipv6(configured: ConfiguredLab) -> None:
    published = ["0.0.0.0:8080:80", "192.0.2.10:8443:80", "192.0.2.1:8444:80"]
    made = configured.engine.run("x1", "X", publish=published)
    with serve(made.ns, "x1", tcp=[80]):
        opened(configured.client, 8080)
        opened(configured.client, 8443, address=HOST_TOO)
        assert tcp(configured.client, HOST, 8443) is Failure.REFUSED
        assert tcp(configured.client, HOST_TOO, 8444) is Failure.REFUSED


def test_b14_address_binding_precedes_an_earlier_wildcard_binding(
    configured: ConfiguredLab,
) -> None:
    """The engine permits both bindings if `address_map` derives the address from another."""
    any_address = configured.engine.run("any", "X", publish=["[::]:8500:80", "[::]:8501:80"])
    one_address = configured.engine.run(
        "one", "X", publish=["192.0.2.10:8500:80", "192.0.2.10:8501:80"]
    )
    with serve(any_address.ns, "any", tcp=[80]), serve(one_address.ns, "one", tcp=[80]):
        for port in (8500, 8501):
            assert until(lambda n=port: server(tcp(configured.client, HOST_TOO, n)), "one") == "one"  # type: ignore[misc]
            assert opened(configured.client, port).server == "any"


def test_o9_public_network_in_nat_prefixes_uses_nat(configured: ConfiguredLab) -> None:
    """Its containers also prefer IPv6, which they do not with an address in fc00::/7."""
    network = configured.engine.network("P", PUBLIC)
    made = configured.engine.run("o9", network, publish=["8600:80"])
    beside = configured.engine.run("ula", "X")
    with serve(made.ns, "o9", tcp=[80]), serve(configured.client, "client", tcp=[9000]):
        assert opened(configured.client, 8600).local == made.address
        assert peer(tcp(made.ns, CLIENT, 9000)) == HOST
        assert made.address is not None
        assert tcp(configured.sandbox.rogue, made.address, 80, timeout=SHORT) is Failure.TIMEOUT
    assert preferred(configured, made.ns) == str(CLIENT)
    assert preferred(configured, beside.ns) == str(CLIENT4)


def preferred(configured: ConfiguredLab, ns: Namespace) -> str:
    """The first address of getaddrinfo for a name with an IPv4 and an IPv6 address."""
    hosts = configured.sandbox.dir / "hosts"
    hosts.write_text(f"{CLIENT4} both\n{CLIENT} both\n")
    ask = "import socket; print(socket.getaddrinfo('both', 80)[0][4][0])"
    script = 'mount --bind "$1" /etc/hosts; exec "$2" -c "$3"'
    words = ("unshare", "--mount", "sh", "-c", script, "sh", str(hosts), sys.executable, ask)
    return ns.run(*words).strip()


def test_o4_source_address_that_the_host_lacks_is_ignored_with_a_warning(regime: Regime) -> None:
    port = regime.port()
    with (
        regime.network(options={SOURCE: str(LATE)}) as network,
        regime.container(network=network) as made,
        serve(regime.client, "client", tcp=[port]),
    ):
        until(lambda: network.bridge in regime.sandbox.rules(), True)
        assert peer(tcp(made.ns, CLIENT, port)) == HOST
        if regime.native:
            return
        (row,) = [row for row in listed(regime.daemon, "networks") if row["Name"] == network.name]
        assert str(LATE) in row["Warnings"][0]


@pytest.mark.ours
@pytest.mark.parametrize("address", ["own gateway", "::1"])
def test_q17_address_that_no_host_can_answer_to_is_no_source(regime: Regime, address: str) -> None:
    port, subnet = regime.port(), IPv6Network("fd00:1:0:ff00::/64")
    options = {SOURCE: str(subnet[1]) if address == "own gateway" else address}
    with (
        regime.network(subnet=str(subnet), options=options) as network,
        regime.container(network=network) as made,
        serve(regime.client, "client", tcp=[port]),
    ):
        until(lambda: network.bridge in regime.sandbox.rules(), True)
        assert peer(tcp(made.ns, CLIENT, port)) == HOST
        (row,) = [row for row in listed(regime.daemon, "networks") if row["Name"] == network.name]
        assert "recreate the network" in row["Warnings"][0]


def test_o6_gateway_address_of_the_host_is_not_masqueraded(regime: Regime) -> None:
    port = regime.port()
    gateway = IPv6Address("fd00:a::1")
    regime.client.ip(f"route add {gateway}/128 via {HOST} dev ext0")
    try:
        with serve(regime.client, "client", tcp=[port]):
            answer = tcp(regime.host, CLIENT, port, source=gateway)
            assert (server(answer), peer(answer)) == ("client", gateway)
    finally:
        regime.client.ip(f"route del {gateway}/128")
